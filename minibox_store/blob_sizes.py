"""The blobs of a store by their digests, kept so that very many take little memory.

A dict of digests takes some 500 bytes for each. Here a blob takes some 60: the digest's own bytes in a row with others,
its place there, its size, and a place or two in a table by which it is found.
"""

from array import array
from collections.abc import Iterator, Mapping

from minibox_store.digest import HEX_LENGTHS, Digest

_ALGORITHMS = {length // 2: algorithm for algorithm, length in HEX_LENGTHS.items()}
_UNIT_BYTES = 32  # what every digest is a multiple of: it takes one or two
# So long is a row. What is freed in one large piece teaches glibc to keep as much from then on.
_ROW_UNITS = 1024
_FEWEST_SLOTS = 64  # a power of two, as every number of slots


def zeros(count: int) -> "array[int]":
    """Return so many zeros, in four bytes each."""
    return array("I", [0]) * count


class DigestNumbers:
    """Digests, each with a number: from 0, in the order in which they came.

    A digest is given by its hexadecimal part, which tells the algorithm by its length.
    """

    def __init__(self) -> None:
        self._rows: list[bytearray] = []
        self._units = 0  # up to here there are digests
        self._places = array("I")  # of each digest its first unit, in all rows, twice; and 1 if it takes two
        self._slots = zeros(_FEWEST_SLOTS)  # a digest's number and 1; 0 where there is none

    def __len__(self) -> int:
        return len(self._places)

    def find(self, encoded: str) -> int | None:
        """Return the number of a digest; None where it has none."""
        found = self._slots[self._slot_of(bytes.fromhex(encoded))]
        return found - 1 if found else None

    def add(self, encoded: str) -> int:
        """Return the number of a digest, the next one where it had none."""
        content = bytes.fromhex(encoded)
        slot = self._slot_of(content)
        if self._slots[slot]:
            return self._slots[slot] - 1
        number = len(self)
        self._places.append(self._put(content))
        self._slots[slot] = number + 1
        if 3 * len(self) > 2 * len(self._slots):
            self._grow()
        return number

    def content(self, number: int) -> bytes:
        """Return the bytes of a digest."""
        row, unit = divmod(self._places[number] >> 1, _ROW_UNITS)
        end = unit + 1 + (self._places[number] & 1)
        return bytes(self._rows[row][_UNIT_BYTES * unit : _UNIT_BYTES * end])

    def digest(self, number: int) -> Digest:
        """Return a digest."""
        content = self.content(number)
        return Digest(_ALGORITHMS[len(content)], content.hex())

    def _put(self, content: bytes) -> int:
        """Lay a digest behind the last one, or into a new row, and return its place."""
        count = len(content) // _UNIT_BYTES
        if self._units + count > len(self._rows) * _ROW_UNITS:
            self._units = len(self._rows) * _ROW_UNITS
            self._rows.append(bytearray(_UNIT_BYTES * _ROW_UNITS))
        unit = self._units % _ROW_UNITS
        self._rows[-1][_UNIT_BYTES * unit : _UNIT_BYTES * (unit + count)] = content
        self._units += count
        return 2 * (self._units - count) + count - 1

    def _slot_of(self, content: bytes) -> int:
        """Return the slot in which a digest is, or else the free one that it would take."""
        slots = self._slots
        most = len(slots) - 1
        # By Python's own hash, which has a secret: whoever chooses digests by their bytes cannot crowd one place.
        slot = hash(content) & most
        while (taken := slots[slot]) and self.content(taken - 1) != content:
            slot = (slot + 1) & most
        return slot

    def _grow(self) -> None:
        self._slots = zeros(2 * len(self._slots))
        for number in range(len(self)):
            self._slots[self._slot_of(self.content(number))] = number + 1


class BlobSizes(Mapping[Digest, int]):
    """The sizes of blobs in bytes, by their digests.

    Attributes:
        numbers: of the blobs. Once all of them are here, other digests may be numbered behind them: they are not in
            the mapping.
    """

    def __init__(self) -> None:
        self.numbers = DigestNumbers()
        self._sizes_bytes = array("Q")

    def add(self, encoded: str, size_bytes: int) -> None:
        """Add a blob; of its digest the hexadecimal part is given."""
        number = self.numbers.add(encoded)
        if number == len(self):
            self._sizes_bytes.append(size_bytes)
        else:  # a folder that changes may be listed with a file twice
            self._sizes_bytes[number] = size_bytes

    def size_bytes(self, number: int) -> int:
        """Return the size of what has a number: nothing, of what is not in the mapping."""
        return self._sizes_bytes[number] if number < len(self._sizes_bytes) else 0

    @property
    def total_bytes(self) -> int:
        """The size of all blobs."""
        return sum(self._sizes_bytes)

    def __getitem__(self, digest: Digest) -> int:
        number = self.numbers.find(digest.hex)
        if number is None or number >= len(self):
            raise KeyError(digest)
        return self._sizes_bytes[number]

    def __iter__(self) -> Iterator[Digest]:
        return map(self.numbers.digest, range(len(self)))

    def __len__(self) -> int:
        return len(self._sizes_bytes)
