"""Sparse files in tars: the four ways of GNU tar, by GNU tar and bsdtar themselves, and by strangers."""

import io
import random
import subprocess
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minibox_store.errors import InvalidArchive
from minibox_store.tar import Member, TarLimits, TarReader, encode_header
from tests.support.members import read_data
from tests.support.peers import require_peer
from tests.support.processes import plain_environment
from tests.support.sparse_tars import PAX_0, TEN, VERSION, Map, all_ways, data_map, entry, gnu_sparse, octal, sparse_pax
from tests.support.tars import (
    BLOCK,
    END,
    GNU,
    Endless,
    ForwardOnly,
    base256,
    extension,
    negative_base256,
    padded,
    pax,
    raw_header,
    run_gnu_tar,
    with_checksum,
)
from tests.support.trials import drawing, trial_count

GIBIBYTE = 1 << 30

# Segments and size of each file; what lies in a segment is told by its offset.
FILES: dict[str, tuple[Map, int]] = {
    "hole in front": ([(1 << 20, 5000)], (1 << 20) + 5000),
    "hole behind": ([(0, 4096)], 3 << 20),
    "holes between": ([(0, 4096), (1 << 20, 8192), (2 << 20, 10)], (2 << 20) + 10),
    "nothing but a hole": ([], GIBIBYTE),
    "many holes": ([(number * 8192, 4096) for number in range(70)], 70 * 8192 + 77),
    "beyond what octal holds": ([(9 * GIBIBYTE, 4096)], 20 * GIBIBYTE),
    "n" * 150: ([(1 << 20, 4096)], 2 << 20),
}
GNU_TAR_WAYS = {
    "oldgnu": ["--format=oldgnu"],
    "gnu": ["--format=gnu"],
    "0.0": ["--format=posix", "--sparse-version=0.0"],
    "0.1": ["--format=posix", "--sparse-version=0.1"],
    "1.0": ["--format=posix", "--sparse-version=1.0"],
}


def write_sparse_files(folder: Path) -> None:
    for name, (segments, size_bytes) in FILES.items():
        with (folder / name).open("wb") as file:
            file.truncate(size_bytes)
            for offset, count in segments:
                file.seek(offset)
                file.write(content_of(offset, count))


def content_of(offset: int, count: int) -> bytes:
    return random.Random(offset).randbytes(count)


def read_sparse(archive: bytes, limits: TarLimits | None = None) -> list[tuple[Member, bytes]]:
    """Return the members of an archive with what is stored of each: the same however the stream gives it."""
    found = []
    for stream in (io.BytesIO(archive), ForwardOnly(archive, 700)):
        reader = TarReader(stream, limits or TarLimits(), sparse=True)
        found.append([(member, read_data(reader)) for member in reader])
    skipped = list(TarReader(io.BytesIO(archive), limits or TarLimits(), sparse=True))
    assert found[0] == found[1]
    assert skipped == [member for member, _ in found[0]]
    for member, data in found[0]:
        assert len(data) == member.stored_bytes
        assert archive[member.data_offset :].startswith(data)
    return found[0]


def check_against_files(found: list[tuple[Member, bytes]], folder: Path, *, all_sparse: bool = True) -> None:
    for member, data in found:
        segments, size_bytes = FILES[member.name]
        assert member.size_bytes == size_bytes == (folder / member.name).stat().st_size
        if all_sparse:
            assert member.segments is not None
        position = 0
        covered: set[int] = set()
        with (folder / member.name).open("rb") as file:
            for offset, count in member.segments or ():
                file.seek(offset)
                assert data[position : position + count] == file.read(count)
                position += count
                covered |= {start for start, _ in segments if offset <= start < offset + count}
        assert covered == {start for start, _ in segments} or member.segments is None


class TestAgreementWithOthers:
    @pytest.mark.parametrize("arguments", GNU_TAR_WAYS.values(), ids=GNU_TAR_WAYS.keys())
    def test_what_gnu_tar_writes_is_read(self, arguments: list[str], tmp_path: Path) -> None:
        write_sparse_files(tmp_path)
        found = read_sparse(run_gnu_tar(tmp_path, "--sparse", *arguments, "--create", *FILES))
        assert [member.name for member, _ in found] == list(FILES)
        check_against_files(found, tmp_path)
        assert {member.mtime_nanoseconds // 10**9 for member, _ in found} == {
            int((tmp_path / name).stat().st_mtime) for name in FILES
        }

    def test_what_bsdtar_writes_is_read(self, tmp_path: Path) -> None:
        write_sparse_files(tmp_path)
        names = [name for name, (segments, _) in FILES.items() if segments]
        command = [require_peer("bsdtar"), "--read-sparse", "--format=pax", "-cf", "-", *names]
        environment = {**plain_environment(tmp_path), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, timeout=60)
        found = read_sparse(done.stdout)
        assert [member.name for member, _ in found] == names
        check_against_files(found, tmp_path)

    @pytest.mark.parametrize("arguments", GNU_TAR_WAYS.values(), ids=GNU_TAR_WAYS.keys())
    def test_it_is_refused_unless_the_caller_takes_such(self, arguments: list[str], tmp_path: Path) -> None:
        write_sparse_files(tmp_path)
        archive = run_gnu_tar(tmp_path, "--sparse", *arguments, "--create", "hole behind")
        with pytest.raises(InvalidArchive, match="sparse"):
            list(TarReader(io.BytesIO(archive)))

    def test_neighbours_of_a_sparse_file_are_plain(self, tmp_path: Path) -> None:
        write_sparse_files(tmp_path)
        (tmp_path / "before").write_bytes(b"1")
        (tmp_path / "grüße").write_bytes(b"22")
        for arguments in GNU_TAR_WAYS.values():
            archive = run_gnu_tar(tmp_path, "--sparse", *arguments, "--create", "before", "hole behind", "grüße")
            (before, _), (sparse, _), (after, data) = read_sparse(archive)
            assert (before.segments, after.segments, after.size_bytes, data) == (None, None, 2, b"22")
            assert sparse.segments == ((0, 4096),)

    def test_it_can_be_written_by_nobody(self) -> None:
        with pytest.raises(InvalidArchive, match="sparse"):
            encode_header(Member("a", size_bytes=10, segments=()))


# Twelve of its segments are empty, and all of its numbers but the last have as many digits as one may have.
ONE_BLOCK = b"13\n%019d\n%019d\n" % (5, 10) + b"%019d\n%019d\n" % (15, 0) * 11 + b"%019d\n%08d\n" % (15, 0)

TAKEN: dict[str, tuple[bytes, Map, int]] = {
    "old GNU": (gnu_sparse([entry(5, 10)], stored=TEN), [(5, 10)], 1000),
    "old GNU, with the end marked": (gnu_sparse([entry(5, 10), entry(1000, 0)], stored=TEN), [(5, 10)], 1000),
    "old GNU in base 256": (
        gnu_sparse([base256(1 << 40, 12) + base256(10, 12)], stored=TEN, size=base256(1 << 41, 12)),
        [(1 << 40, 10)],
        1 << 41,
    ),
    "old GNU that goes on": (
        gnu_sparse([entry(n, 1) for n in range(4)], stored=TEN[:5], more=b"\1")[:BLOCK]
        + entry(4, 1).ljust(BLOCK, b"\0")
        + padded(TEN[:5]),
        [(n, 1) for n in range(5)],
        1000,
    ),
    "0.0": (sparse_pax(*PAX_0, (b"offset", b"5"), (b"numbytes", b"10"), stored=TEN), [(5, 10)], 1000),
    "0.0 without a segment": (sparse_pax((b"size", b"7"), (b"numblocks", b"0")), [], 7),
    "0.1": (sparse_pax(*PAX_0, (b"map", b"5,10"), stored=TEN), [(5, 10)], 1000),
    "0.1 that touches": (
        sparse_pax((b"size", b"10"), (b"numblocks", b"2"), (b"map", b"0,4,4,6"), stored=TEN),
        [(0, 4), (4, 6)],
        10,
    ),
    "1.0": (data_map(b"1\n5\n10\n", stored=TEN), [(5, 10)], 1000),
    "1.0 without a segment": (data_map(b"0\n"), [], 1000),
    "1.0 with a map of some blocks": (
        data_map(b"200\n" + b"".join(b"%d\n1\n" % (n * 2) for n in range(200)), stored=bytes(200)),
        [(n * 2, 1) for n in range(200)],
        1000,
    ),
    "1.0 with a map of exactly one block": (data_map(ONE_BLOCK, stored=TEN), [(5, 10)], 1000),
}
REFUSED = {
    "old GNU in another format": (gnu_sparse([entry(5, 10)], stored=TEN, magic=b"ustar\x0000"), "another format"),
    "old GNU behind a PAX header": (
        pax([(b"path", b"b")]) + gnu_sparse([entry(5, 10)], stored=TEN),
        "conflicting|sparse",
    ),
    "old GNU of no size": (gnu_sparse([entry(5, 10)], stored=TEN, size=bytes(12)), "no number"),
    "old GNU of a negative size": (gnu_sparse([], size=negative_base256(-1, 12)), "no number"),
    "old GNU of a negative offset": (gnu_sparse([negative_base256(-9, 12) + octal(9)], stored=TEN[:9]), "no number"),
    "old GNU of a blank offset": (gnu_sparse([bytes(12) + octal(10)], stored=TEN), "no number"),
    "old GNU of a blank count": (gnu_sparse([octal(5) + bytes(12)]), "no number"),
    "old GNU of rubbish": (gnu_sparse([b"rubbish".ljust(24)], stored=TEN), "no number"),
    "old GNU, an entry behind the end": (gnu_sparse([entry(5, 10), bytes(24), entry(20, 1)], stored=TEN), "goes on"),
    "old GNU, a block behind the end": (gnu_sparse([entry(5, 10)], stored=TEN, more=b"\1") + bytes(BLOCK), "goes on"),
    "old GNU, another flag": (gnu_sparse([entry(n, 1) for n in range(4)], more=b"x") + bytes(BLOCK), "goes on"),
    "old GNU, cut off in its map": (
        gnu_sparse([entry(n, 1) for n in range(4)], more=b"\1"),
        "of 4 bytes, and 0 are stored",
    ),
    "old GNU backwards": (gnu_sparse([entry(20, 5), entry(5, 5)], stored=TEN), "overlap"),
    "old GNU too few stored": (gnu_sparse([entry(5, 11)], stored=TEN), "of 11 bytes, and 10 are stored"),
    "old GNU named as a directory": (
        extension(b"L", b"d/\0", magic=GNU) + gnu_sparse([entry(5, 10)], stored=TEN),
        "directory",
    ),
    "0.0, a count too many": (
        sparse_pax((b"size", b"1000"), (b"numblocks", b"2"), (b"offset", b"5"), (b"numbytes", b"10"), stored=TEN),
        "not of 2 offsets",
    ),
    "0.0, sizes first": (sparse_pax(*PAX_0, (b"numbytes", b"10"), (b"offset", b"5"), stored=TEN), "in turn"),
    "0.0, two offsets": (sparse_pax(*PAX_0, (b"offset", b"5"), (b"offset", b"5"), stored=TEN), "in turn"),
    "0.0 without a size": (sparse_pax((b"numblocks", b"0")), "without a record GNU.sparse.size"),
    "0.0 without a count": (sparse_pax((b"size", b"7")), "without a record GNU.sparse.numblocks"),
    "0.0 and 0.1": (
        sparse_pax(*PAX_0, (b"offset", b"5"), (b"numbytes", b"10"), (b"map", b"5,10"), stored=TEN),
        "no place here",
    ),
    "0.1 of two maps": (sparse_pax(*PAX_0, (b"map", b"5,10"), (b"map", b"6,10"), stored=TEN), "two PAX records"),
    "0.1 of three numbers": (sparse_pax(*PAX_0, (b"map", b"5,10,20"), stored=TEN), "not of 1 offsets"),
    "0.1 of an empty number": (sparse_pax(*PAX_0, (b"map", b",10"), stored=TEN), "no number in b''"),
    "0.1 of a negative number": (sparse_pax(*PAX_0, (b"map", b"-5,10"), stored=TEN), "no number in b'-5'"),
    "0.1 of a number with an underscore": (sparse_pax(*PAX_0, (b"map", b"5,1_0"), stored=TEN), "no number"),
    "0.1 of a number of 64 bits": (sparse_pax(*PAX_0, (b"map", b"9223372036854775808,1"), stored=TEN[:1]), "no number"),
    "0.1 of 5,000 digits": (sparse_pax(*PAX_0, (b"map", b"9" * 5000 + b",1"), stored=TEN[:1]), "no number"),
    "0.1 that overlaps": (
        sparse_pax((b"size", b"99"), (b"numblocks", b"2"), (b"map", b"0,5,4,5"), stored=TEN),
        "overlap",
    ),
    "0.1 beyond the end": (sparse_pax(*PAX_0, (b"map", b"991,10"), stored=TEN), "pass the end"),
    "0.1 of nothing beyond the end": (sparse_pax(*PAX_0, (b"map", b"1001,0")), "pass the end"),
    "0.1 of a sum of 64 bits": (
        sparse_pax((b"size", b"9000"), (b"numblocks", b"1"), (b"map", b"9223372036854775807,9223372036854775807")),
        "pass the end",
    ),
    "0.1 with too much stored": (sparse_pax(*PAX_0, (b"map", b"5,9"), stored=TEN), "of 9 bytes, and 10 are stored"),
    "0.1 of an unknown record": (sparse_pax(*PAX_0, (b"map", b"5,10"), (b"new", b"1"), stored=TEN), "no place here"),
    "0.1 without a name": (sparse_pax(*PAX_0, (b"map", b"5,10"), (b"name", b""), stored=TEN), "without a name"),
    "0.1 with a NUL in its name": (sparse_pax(*PAX_0, (b"map", b"5,10"), (b"name", b"a\0b"), stored=TEN), "NUL"),
    "0.1 named as a directory": (sparse_pax(*PAX_0, (b"map", b"5,10"), (b"name", b"d/"), stored=TEN), "last slash"),
    "0.1 of a directory": (sparse_pax((b"size", b"0"), (b"numblocks", b"0"), flag=b"5"), "only a file"),
    "0.1 beyond what a member may have": (sparse_pax((b"size", b"9" * 18), (b"numblocks", b"0")), "cannot have"),
    "0.1 for all members": (pax([(b"GNU.sparse.size", b"1")], flag=b"g") + raw_header() + END, "sparse"),
    "version 1.1": (sparse_pax((b"major", b"1"), (b"minor", b"1"), (b"realsize", b"1")), "unknown version"),
    "version 1": (sparse_pax((b"major", b"1"), (b"realsize", b"1")), "unknown version"),
    "version 0.1 by its number": (sparse_pax((b"major", b"0"), (b"minor", b"1"), *PAX_0, (b"map", b"5,10")), "unknown"),
    "1.0 without a size": (sparse_pax(*VERSION, stored=padded(b"0\n")), "without a record GNU.sparse.realsize"),
    "1.0 with a map in its records": (
        sparse_pax(*VERSION, (b"realsize", b"9"), (b"map", b"0,1"), stored=padded(b"0\n")),
        "no place here",
    ),
    "1.0 without data": (sparse_pax(*VERSION, (b"realsize", b"9")), "no end in its data"),
    "1.0 with a map that the data cuts off": (data_map(b"9\n1\n1\n"), "no number|no end"),
    "1.0 with data that ends in the map's block": (
        sparse_pax(*VERSION, (b"realsize", b"9"), stored=b"0\n"),
        "no end in its data",
    ),
    "1.0 of a line that never ends": (data_map(b"1" * 2000), "no end in its data"),
    "1.0 of an empty line": (data_map(b"\n1\n1\n"), "no number"),
    "1.0 of a sign": (data_map(b"+0\n"), "no number"),
    "1.0 with a line too many": (data_map(b"0\n5\n"), "goes on"),
    "1.0 with rubbish behind its map": (data_map(b"0\nx"), "goes on"),
    "1.0 that overlaps": (data_map(b"2\n0\n5\n4\n5\n", stored=TEN), "overlap"),
    "1.0 with too little stored": (data_map(b"1\n5\n10\n", stored=TEN[:9]), "of 10 bytes, and 9 are stored"),
}


class TestMaps:
    @pytest.mark.parametrize(("archive", "segments", "size_bytes"), TAKEN.values(), ids=TAKEN.keys())
    def test_a_map_is_taken(self, archive: bytes, segments: Map, size_bytes: int) -> None:
        [(member, data)] = read_sparse(archive + END)
        assert (member.segments, member.size_bytes) == (tuple(segments), size_bytes)
        assert data == (TEN[: len(data)] if len(data) <= 10 else bytes(200))

    @pytest.mark.parametrize(("archive", "sentence"), REFUSED.values(), ids=REFUSED.keys())
    def test_S10_a_map_with_two_readings_is_refused_with_one_sentence(self, archive: bytes, sentence: str) -> None:
        told = refusal_of(archive + END)
        assert len(told) < 350
        with pytest.raises(InvalidArchive, match=sentence):
            read_sparse(archive + END)

    def test_the_name_of_the_sparse_file_counts_before_all_others(self) -> None:
        archive = pax(
            [
                (b"path", b"fake/path"),
                (b"GNU.sparse.name", "grüße".encode()),
                (b"GNU.sparse.size", b"5"),
                (b"GNU.sparse.numblocks", b"0"),
            ]
        ) + raw_header(b"own")
        [(member, _)] = read_sparse(archive + END)
        assert member.name == "grüße"

    def test_extended_attributes_and_owners_are_kept(self) -> None:
        archive = pax(
            [
                (b"SCHILY.xattr.user.a", b"1"),
                (b"uid", b"77"),
                (b"GNU.sparse.size", b"5"),
                (b"GNU.sparse.numblocks", b"0"),
            ]
        ) + raw_header(b"own")
        [(member, _)] = read_sparse(archive + END)
        assert (member.xattrs, member.uid) == ({"user.a": b"1"}, 77)

    def test_a_refusal_names_the_member(self) -> None:
        with pytest.raises(InvalidArchive) as refused:
            read_sparse(sparse_pax(*PAX_0, (b"name", b"bad"), (b"map", b"991,10"), stored=TEN) + END)
        assert refused.value.member == "bad"

    @pytest.mark.parametrize("way", range(4), ids=["old GNU", "0.0", "0.1", "1.0"])
    def test_S10_the_number_of_segments_is_bounded(self, way: int) -> None:
        archive = all_ways([(number * 2, 1) for number in range(50)], 1000)[way] + END
        assert len(read_sparse(archive, TarLimits(sparse_segments=50))) == 1
        with pytest.raises(InvalidArchive, match="more than 49 segments"):
            read_sparse(archive, TarLimits(sparse_segments=49))

    @pytest.mark.parametrize(
        ("beginning", "block"),
        [
            pytest.param(
                gnu_sparse([entry(n, 0) for n in range(4)], more=b"\1"),
                (entry(9, 0) * 21).ljust(504, b"\0") + b"\1" + bytes(7),
                id="old GNU without end",
            ),
            pytest.param(
                sparse_pax(*VERSION, (b"realsize", b"9"))[: 2 * BLOCK] + raw_header(b"own", size=1 << 40),
                b"9999999999\n".ljust(16, b"1") * 32,
                id="1.0 of many segments",
            ),
            pytest.param(
                sparse_pax(*VERSION, (b"realsize", b"9"))[: 2 * BLOCK] + raw_header(b"own", size=1 << 40),
                b"1" * BLOCK,
                id="1.0 of one number without end",
            ),
            pytest.param(
                sparse_pax(*VERSION, (b"realsize", b"9"))[: 2 * BLOCK] + raw_header(b"own", size=1 << 40) + b"65536\n",
                b"0\n",
                id="1.0 of as many segments as there may be",
            ),
        ],
    )
    def test_S10_a_map_without_end_is_refused_in_bounded_time_and_memory(self, beginning: bytes, block: bytes) -> None:
        stream = Endless(beginning, block)
        tracemalloc.start()
        with pytest.raises(InvalidArchive):
            list(TarReader(stream, sparse=True))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert stream.given_bytes < 8 << 20
        assert peak < 16 << 20

    @pytest.mark.timeout(900)
    def test_S10_mutations_of_sparse_files_are_members_or_refusals(self) -> None:
        intact = [archive + raw_header(b"last", size=3) + padded(b"end") + END for archive, _, _ in TAKEN.values()]
        pieces = [
            b"0",
            b"9",
            b",",
            b"\n",
            b"=",
            b"-",
            b"\0",
            b"\xff" * 12,
            b"\x80" + b"\xff" * 11,
            b"7" * 11,
            b"S",
            b"x",
        ]
        outcomes = {"members": 0, "refusal": 0}
        with drawing() as seed:
            chance = random.Random(seed)
            for _ in range(trial_count(5_000, 100_000)):
                archive = bytearray(chance.choice(intact))
                for _ in range(chance.choice((1, 1, 2, 4))):
                    # The end of the archive and of the last member stay: there is enough in front of them.
                    start = chance.randrange(len(archive) // BLOCK - 4) * BLOCK
                    place = start + chance.choice((chance.randrange(60), 124, 156, 386, 398, 410, 482, 483, 495))
                    piece = chance.choice(pieces)
                    archive[place : place + len(piece)] = piece
                    if archive[start + 257 : start + 262] == b"ustar":
                        archive[start : start + BLOCK] = with_checksum(bytes(archive[start : start + BLOCK]))
                outcomes[outcome(bytes(archive))] += 1
        assert min(outcomes.values()) > 100


def outcome(archive: bytes) -> str:
    """Return what both ways of reading make of some bytes; what they make of them as sparse files holds together."""
    outcomes = []
    for stream in (io.BytesIO(archive), ForwardOnly(archive, 700)):
        reader = TarReader(stream, sparse=True)
        try:
            for member in reader:
                stored_bytes = len(read_data(reader))
                if member.segments is not None:
                    assert stored_bytes == member.stored_bytes
                    ends = [0, *[place for offset, count in member.segments for place in (offset, offset + count)]]
                    assert ends == sorted(ends)
                    assert ends[-1] <= member.size_bytes
            outcomes.append("members")
        except InvalidArchive as refused:
            outcomes.append(str(refused))
    assert outcomes[0] == outcomes[1]
    return "members" if outcomes[0] == "members" else "refusal"


@st.composite
def sparse_maps(draw: st.DrawFn) -> tuple[Map, int]:
    """Segments with holes of any size between them, empty ones too, and the size of the file."""
    position = 0
    segments = []
    for hole, count in draw(st.lists(st.tuples(st.integers(0, 1 << 38), st.integers(0, 300)), max_size=40)):
        segments.append((position + hole, count))
        position += hole + count
    return segments, position + draw(st.integers(0, 1 << 38))


@given(drawn=sparse_maps())
@example(drawn=([], 0))
@example(drawn=([(0, 0)], 0))
def test_all_four_ways_say_the_same(drawn: tuple[Map, int]) -> None:
    segments, size_bytes = drawn
    expected = tuple(segment for segment in segments if segment[1])
    for archive in all_ways(segments, size_bytes):
        [(member, _)] = read_sparse(archive + END)
        assert (member.segments, member.size_bytes) == (expected, size_bytes)


def refusal_of(archive: bytes) -> str:
    with pytest.raises(InvalidArchive) as refused:
        read_sparse(archive)
    told = str(refused.value)
    assert "\n" not in told
    return told
