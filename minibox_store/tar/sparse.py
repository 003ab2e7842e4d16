"""Where the bytes of a sparse file go: the four ways in which GNU tar says it, each held to one reading.

The map of a member may be in its header and in blocks behind that (old GNU, type "S"), in PAX records (0.0, 0.1), or in
front of its data (1.0). All bytes here are untrusted.

Spec: GNU tar 1.35 manual, "Storing Sparse Files"; ``struct oldgnu_header`` and ``struct sparse_header`` of its tar.h.
"""

import re
from collections.abc import Callable, Sequence

import attrs

from minibox_store.limits import TarLimits
from minibox_store.tar.decoding import SPARSE_KEY, SPARSE_TYPE, decode_number
from minibox_store.tar.format import BLOCK_BYTES, GNU_MAGIC, LARGEST_NUMBER, TYPE
from minibox_store.tar.member import Member, MemberKind, Segments, refusal

SparseRecords = Sequence[tuple[bytes, bytes]]
# Gives ``size_bytes`` of the archive from ``offset`` on; the offsets only grow.
Fetch = Callable[[int, int], bytes]

_MAGIC = slice(257, 265)
_REAL_SIZE = slice(483, 495)
_ENTRY_BYTES, _FIELD_BYTES = 24, 12
_FIRST_ENTRIES, _FIRST_MORE, _ENTRIES, _MORE = slice(386, 482), 482, slice(0, 504), 504
_NUMBER = re.compile(rb"[0-9]{1,19}")
_LONGEST_NUMBER_BYTES = 19


def decode_sparse(member: Member, block: bytes, records: SparseRecords, fetch: Fetch, limits: TarLimits) -> Member:
    """Return ``member`` as the sparse file that it is: with its own name, its whole size, and its segments.

    Args:
        member: as its header has it by itself; its size is that of what is stored.
        block: its header.
        records: of its PAX header, those that speak of sparse files, in their order; none for type "S".
        fetch: reads on from behind the header.
        limits: bound its size, and its segments.

    Raises:
        InvalidArchive: unless the segments ascend, lie apart and inside the file, and are all that is stored.
    """
    if member.kind is not MemberKind.FILE:
        raise refusal("only a file can be sparse", member.name)
    if block[TYPE] == SPARSE_TYPE:
        return _decode_old_gnu(member, block, fetch, limits)
    found = _Records(records, member.name)
    version = (found.take(b"major"), found.take(b"minor"))
    if version == (b"1", b"0"):
        return _decode_data_map(member, found, fetch, limits)
    if version != (None, None):
        raise refusal("it is a sparse file of an unknown version", member.name)
    return _decode_records(member, found, limits)


class _Records:
    """The records of one sparse file: each is taken once, and none may be left."""

    def __init__(self, records: SparseRecords, name: str) -> None:
        self._name = name
        self.pairs: list[tuple[bytes, bytes]] = []
        self._others: dict[bytes, bytes] = {}
        for whole_key, value in records:
            key = whole_key[len(SPARSE_KEY) :]
            if key in (b"offset", b"numbytes"):
                self.pairs.append((key, value))
            elif key in self._others:
                raise refusal(f"it has two PAX records {whole_key[:64]!r}", name)
            else:
                self._others[key] = value

    def take(self, key: bytes) -> bytes | None:
        return self._others.pop(key, None)

    def take_number(self, key: bytes) -> int:
        value = self.take(key)
        if value is None:
            raise refusal(f"it is a sparse file without a record {(SPARSE_KEY + key).decode()}", self._name)
        return _parse_number(value, self._name)

    def take_name(self) -> str:
        value = self.take(b"name")
        if value is None:
            return self._name
        if not value or b"\0" in value or value.endswith(b"/"):
            raise refusal("it is a sparse file without a name, or with a NUL or a last slash in it", self._name)
        return value.decode("utf-8", "surrogateescape")

    def finish(self) -> None:
        """Refuse records that are left: another reader might go by them."""
        if self._others or self.pairs:
            key = next(iter(self._others), b"offset")
            raise refusal(f"its PAX record {(SPARSE_KEY + key)[:64]!r} has no place here", self._name)


def _decode_old_gnu(member: Member, block: bytes, fetch: Fetch, limits: TarLimits) -> Member:
    name = member.name
    if block[_MAGIC] != GNU_MAGIC:
        raise refusal("it is a GNU sparse file in the header of another format", name)
    size_bytes = _decode_field(block[_REAL_SIZE], name)
    numbers: list[int] = []
    is_over = _take_entries(block[_FIRST_ENTRIES], numbers, name)
    more, data_offset = block[_FIRST_MORE], member.data_offset
    while more:
        if more != 1 or is_over:
            raise refusal("its sparse map goes on behind its end", name)
        _check_count(len(numbers) // 2, limits, name)
        block = fetch(data_offset, BLOCK_BYTES)
        data_offset += BLOCK_BYTES
        is_over = _take_entries(block[_ENTRIES], numbers, name)
        more = block[_MORE]
    segments = _decode_segments(numbers, size_bytes, member.size_bytes, limits, name)
    return attrs.evolve(member, size_bytes=size_bytes, segments=segments, data_offset=data_offset)


def _take_entries(entries: bytes, numbers: list[int], name: str) -> bool:
    """Add the offsets and sizes of one block to ``numbers``; return whether the map is over, by an entry of NULs."""
    for start in range(0, len(entries), _ENTRY_BYTES):
        offset, size = entries[start : start + _FIELD_BYTES], entries[start + _FIELD_BYTES : start + _ENTRY_BYTES]
        if not any(offset + size):
            # GNU tar stops here, whatever follows, and so would hide it.
            if any(entries[start:]):
                raise refusal("its sparse map goes on behind its end", name)
            return True
        numbers += (_decode_field(offset, name), _decode_field(size, name))
    return False


def _decode_field(field: bytes, name: str) -> int:
    number = decode_number(field, "sparse map", name)
    # A blank one is zero for some, and the end of the map for others.
    if number < 0 or not field.strip(b"\0 "):
        raise refusal(f"its sparse map is no number that a tar can hold: {field!r}", name)
    return number


def _decode_records(member: Member, found: _Records, limits: TarLimits) -> Member:
    name, size_bytes, count = found.take_name(), found.take_number(b"size"), found.take_number(b"numblocks")
    listed = found.take(b"map")
    if listed is None:
        keys, values = [key for key, _ in found.pairs], [value for _, value in found.pairs]
        if keys != [b"offset", b"numbytes"] * (len(keys) // 2):
            raise refusal("its sparse map is not of offsets and sizes in turn", name)
        found.pairs.clear()
    else:
        values = listed.split(b",") if listed else []
    found.finish()
    if len(values) != 2 * count:
        raise refusal(f"its sparse map is not of {count} offsets and sizes in turn", name)
    _check_count(count, limits, name)
    numbers = [_parse_number(value, name) for value in values]
    segments = _decode_segments(numbers, size_bytes, member.size_bytes, limits, name)
    return attrs.evolve(member, name=name, size_bytes=size_bytes, segments=segments)


def _decode_data_map(member: Member, found: _Records, fetch: Fetch, limits: TarLimits) -> Member:
    name, size_bytes = found.take_name(), found.take_number(b"realsize")
    found.finish()
    numbers: list[int] = []
    wanted, map_bytes, rest = 1, 0, b""
    while len(numbers) < wanted:
        if len(rest) > _LONGEST_NUMBER_BYTES or map_bytes + BLOCK_BYTES > member.size_bytes:
            raise refusal("its sparse map has no end in its data", name)
        *lines, rest = (rest + fetch(member.data_offset + map_bytes, BLOCK_BYTES)).split(b"\n")
        map_bytes += BLOCK_BYTES
        numbers += [_parse_number(line, name) for line in lines]
        if wanted == 1 and numbers:
            _check_count(numbers[0], limits, name)
            wanted += 2 * numbers[0]
    if len(numbers) > wanted or rest.strip(b"\0"):
        raise refusal("its sparse map goes on behind its end", name)
    stored_bytes = member.size_bytes - map_bytes
    segments = _decode_segments(numbers[1:], size_bytes, stored_bytes, limits, name)
    data_offset = member.data_offset + map_bytes
    return attrs.evolve(member, name=name, size_bytes=size_bytes, segments=segments, data_offset=data_offset)


def _decode_segments(numbers: list[int], size_bytes: int, stored_bytes: int, limits: TarLimits, name: str) -> Segments:
    _check_count(len(numbers) // 2, limits, name)
    if size_bytes > limits.member_bytes:
        raise refusal(f"it cannot have {size_bytes} bytes of data", name)
    segments = []
    end = total_bytes = 0
    for offset, count in zip(numbers[::2], numbers[1::2], strict=True):
        if not end <= offset <= offset + count <= size_bytes:
            raise refusal("its sparse map has segments that overlap, go backwards or pass the end of the file", name)
        end = offset + count
        total_bytes += count
        if count:
            segments.append((offset, count))
    if total_bytes != stored_bytes:
        raise refusal(f"its sparse map is of {total_bytes} bytes, and {stored_bytes} are stored", name)
    return tuple(segments)


def _check_count(count: int, limits: TarLimits, name: str) -> None:
    if count > limits.sparse_segments:
        raise refusal(f"its sparse map has more than {limits.sparse_segments} segments", name)


def _parse_number(value: bytes, name: str) -> int:
    if not _NUMBER.fullmatch(value) or int(value) > LARGEST_NUMBER:
        raise refusal(f"its sparse map has no number in {value[:64]!r}", name)
    return int(value)
