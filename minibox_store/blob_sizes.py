"""The blobs of a store by their digests, kept so that very many take little memory.

A dict of digests and sizes takes some 500 bytes for each. Here a blob takes some 200: the bytes of its digest, a number
by which it is found, and its size in a row with all others.
"""

from array import array
from collections.abc import Iterator, Mapping

from minibox_store.digest import HEX_LENGTHS, Digest

_ALGORITHMS = {length // 2: algorithm for algorithm, length in HEX_LENGTHS.items()}


def zeros(count: int) -> "array[int]":
    """Return so many zeros, in four bytes each."""
    return array("I", [0]) * count


class DigestNumbers:
    """Digests, each with a number: from 0, in the order in which they came.

    A digest is given by its hexadecimal part, which tells the algorithm by its length.
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._contents: list[bytes] = []

    def __len__(self) -> int:
        return len(self._contents)

    def find(self, encoded: str) -> int | None:
        """Return the number of a digest; None where it has none."""
        return self._numbers.get(bytes.fromhex(encoded))

    def add(self, encoded: str) -> int:
        """Return the number of a digest, the next one where it had none."""
        content = bytes.fromhex(encoded)
        number = self._numbers.setdefault(content, len(self._contents))
        if number == len(self._contents):
            self._contents.append(content)
        return number

    def content(self, number: int) -> bytes:
        """Return the bytes of a digest."""
        return self._contents[number]

    def digest(self, number: int) -> Digest:
        """Return a digest."""
        content = self._contents[number]
        return Digest(_ALGORITHMS[len(content)], content.hex())


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
