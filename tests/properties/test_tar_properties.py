"""Laws of the tar codec: what is written is read back, by others too; any bytes are members or one refusal."""

import io
import tarfile
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minibox_store.errors import InvalidArchive
from minibox_store.tar import END_OF_ARCHIVE, Member, MemberKind, TarReader, encode_header, padding
from tests.support.members import read_tar, write_tar
from tests.support.tars import BLOCK, ForwardOnly, with_checksum

LINKS = (MemberKind.SYMLINK, MemberKind.HARDLINK)
DEVICES = (MemberKind.CHARACTER_DEVICE, MemberKind.BLOCK_DEVICE)
Content = tuple[Member, bytes]


def raw_texts(most: int) -> st.SearchStrategy[str]:
    """Texts as a Linux file name has them: any bytes but NUL, mostly UTF-8."""
    as_bytes = st.binary(min_size=1, max_size=most) | st.text(min_size=1, max_size=most).map(
        lambda text: text.encode("utf-8", "replace")
    )
    long = st.integers(min_value=90, max_value=300).map(lambda length: b"n" * length)
    return (as_bytes | long).map(lambda raw: raw.replace(b"\0", b"0").decode("utf-8", "surrogateescape"))


def names() -> st.SearchStrategy[str]:
    """Names of one to five parts, with no slash at the end."""
    return st.lists(raw_texts(40), min_size=1, max_size=5).map("/".join).filter(lambda name: not name.endswith("/"))


@st.composite
def members(draw: st.DrawFn, *, whole_seconds: bool = False) -> Member:
    """Members of all kinds, with numbers on both sides of what ustar can hold, and up to 2,000 bytes of data."""
    kind = draw(st.sampled_from(MemberKind))
    numbers = st.integers(min_value=0, max_value=8**7 - 1) if kind in DEVICES else st.just(0)
    ids = st.integers(min_value=0, max_value=2_000) | st.sampled_from([8**7 - 1, 8**7, 2**32 - 2, 2**63 - 1])
    seconds = st.integers(min_value=-(2**40), max_value=2**40)
    fractions = st.just(0) if whole_seconds else st.integers(min_value=0, max_value=10**9 - 1)
    return Member(
        name=draw(names()),
        kind=kind,
        size_bytes=draw(st.integers(min_value=0, max_value=2_000)) if kind is MemberKind.FILE else 0,
        mode=draw(st.integers(min_value=0, max_value=0o7777)),
        uid=draw(ids),
        gid=draw(ids),
        uname=draw(st.just("") | raw_texts(40)),
        gname=draw(st.just("root") | raw_texts(40)),
        mtime_nanoseconds=draw(seconds) * 10**9 + draw(fractions),
        link_target=draw(names()) if kind in LINKS else "",
        device_major=draw(numbers),
        device_minor=draw(numbers),
        xattrs=draw(
            st.dictionaries(raw_texts(20).filter(lambda name: "=" not in name), st.binary(max_size=40), max_size=3)
        ),
    )


@st.composite
def contents(draw: st.DrawFn, *, whole_seconds: bool = False) -> list[Content]:
    """Members with their data."""
    found = draw(st.lists(members(whole_seconds=whole_seconds), max_size=4))
    return [(member, bytes([draw(st.integers(0, 255))]) * member.size_bytes) for member in found]


@given(content=contents(), most=st.integers(min_value=1, max_value=3_000))
def test_what_is_written_is_read_back_however_the_stream_cuts_it(content: list[Content], most: int) -> None:
    archive = write_tar(*content)
    assert read_tar(archive) == content
    assert read_tar(ForwardOnly(archive, most), step=most) == content
    assert list(TarReader(ForwardOnly(archive, most))) == [member for member, _ in content]


@given(member=members(), size_bytes=st.integers(min_value=0, max_value=1 << 43))
def test_a_size_of_any_length_is_read_back(member: Member, size_bytes: int) -> None:
    sized = Member(name=member.name, size_bytes=size_bytes, uid=member.uid, xattrs=member.xattrs)
    assert next(TarReader(io.BytesIO(encode_header(sized)))) == sized


@given(member=members(), blocks=st.integers(min_value=0, max_value=20))
def test_alignment_changes_nothing_but_where_the_data_lies(member: Member, blocks: int) -> None:
    header = encode_header(member, offset=blocks * BLOCK, align_bytes=4096)
    assert (blocks * BLOCK + len(header)) % 4096 == 0
    archive = header + bytes(member.size_bytes) + padding(member.size_bytes) + END_OF_ARCHIVE
    assert list(TarReader(io.BytesIO(archive))) == [member]


@given(content=contents(whole_seconds=True))
def test_tarfile_reads_what_is_written(content: list[Content]) -> None:
    with tarfile.open(fileobj=io.BytesIO(write_tar(*content)), encoding="utf-8") as archive:
        found = [(info, (archive.extractfile(info) if info.isreg() else None)) for info in archive]
        assert len(found) == len(content)
        for (info, data), (member, expected) in zip(found, content, strict=True):
            assert (info.name, info.type, info.linkname) == (member.name, member.kind.value, member.link_target)
            assert (info.uid, info.gid, info.mode, info.size) == (
                member.uid,
                member.gid,
                member.mode,
                member.size_bytes,
            )
            assert (info.uname, info.gname) == (member.uname, member.gname)
            assert info.mtime == member.mtime_nanoseconds // 10**9
            assert (info.devmajor, info.devminor) == (member.device_major, member.device_minor)
            assert data is None or data.read() == expected


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(content=contents(whole_seconds=True))
def test_what_tarfile_writes_is_read(tar_format: Literal[0, 1, 2], content: list[Content]) -> None:
    stream = io.BytesIO()
    expected = []
    with tarfile.open(fileobj=stream, mode="w", format=tar_format, encoding="utf-8") as archive:
        for member, data in content:
            info = _tarinfo(member)
            try:
                info.tobuf(tar_format, "utf-8", "surrogateescape")
            except (ValueError, UnicodeEncodeError):
                continue
            archive.addfile(info, io.BytesIO(data))
            expected.append((member, data))
    found = read_tar(stream.getvalue())
    assert [(_without_pax(member, tar_format), data) for member, data in expected] == [
        (_without_pax(member, tar_format), data) for member, data in found
    ]


def _tarinfo(member: Member) -> tarfile.TarInfo:
    info = tarfile.TarInfo(member.name)
    info.type, info.size, info.mode, info.linkname = (
        member.kind.value,
        member.size_bytes,
        member.mode,
        member.link_target,
    )
    info.uid, info.gid, info.uname, info.gname = member.uid, member.gid, member.uname, member.gname
    info.mtime = member.mtime_nanoseconds // 10**9
    info.devmajor, info.devminor = member.device_major, member.device_minor
    return info


def _without_pax(member: Member, tar_format: int) -> tuple[object, ...]:
    # tarfile cuts user names to 32 bytes where it has no record for them.
    cut = 10_000 if tar_format == tarfile.PAX_FORMAT else 32
    texts = (
        member.uname.encode("utf-8", "surrogateescape")[:cut],
        member.gname.encode("utf-8", "surrogateescape")[:cut],
    )
    numbers = (member.size_bytes, member.mode, member.uid, member.gid, member.mtime_nanoseconds)
    return (member.name, member.kind, member.link_target, *numbers, *texts, member.device_major, member.device_minor)


def outcome(archive: bytes) -> str:
    """Return what both ways of reading make of some bytes: they agree, and raise nothing but a refusal."""
    outcomes = []
    for stream in (io.BytesIO(archive), ForwardOnly(archive, 700)):
        try:
            found = [member.name for member, _ in read_tar(stream)]
            outcomes.append(f"members {found}")
        except InvalidArchive as refused:
            outcomes.append(str(refused))
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


@given(archive=st.binary(max_size=3_000))
@example(archive=b"")
def test_any_bytes_are_members_or_a_refusal(archive: bytes) -> None:
    assert outcome(archive)


@given(content=contents(), changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=20))))
def test_a_changed_archive_is_members_or_a_refusal(content: list[Content], changes: list[tuple[int, bytes]]) -> None:
    archive = bytearray(write_tar(*content))
    for position, piece in changes:
        start = position % len(archive)
        archive[start : start + len(piece)] = piece
    assert outcome(bytes(archive))


FIELDS = [(100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (265, 32), (345, 155)]
VALUES = st.binary(max_size=12) | st.sampled_from(
    [
        b"\xff" * 12,
        b"\x80" + b"\xff" * 11,
        b"\xff" * 10 + b"\xf8\0",
        b"00000000000\0",
        b"-1",
        b"x",
        b"L",
        b"K",
        b"g",
        b"S",
    ]
)


@given(
    content=contents(),
    changes=st.lists(st.tuples(st.integers(0, 100), st.sampled_from(FIELDS), VALUES), min_size=1, max_size=4),
)
def test_a_block_of_any_fields_with_a_right_checksum_is_a_member_or_a_refusal(
    content: list[Content], changes: list[tuple[int, tuple[int, int], bytes]]
) -> None:
    archive = write_tar(*content)
    blocks = [archive[start : start + BLOCK] for start in range(0, len(archive), BLOCK)]
    for number, (start, width), value in changes:
        block = blocks[number % len(blocks)]
        field = value[:width].ljust(width, b"\0")
        blocks[number % len(blocks)] = with_checksum(block[:start] + field + block[start + width :])
    assert outcome(b"".join(blocks))


@given(body=st.binary(max_size=200) | st.lists(st.binary(max_size=30), max_size=4).map(b"\n".join))
def test_a_pax_header_of_any_bytes_is_records_or_a_refusal(body: bytes) -> None:
    header = bytearray(encode_header(Member(name="x", size_bytes=len(body))))
    header[156:157] = b"x"
    archive = (
        with_checksum(bytes(header)) + body + padding(len(body)) + encode_header(Member(name="a")) + END_OF_ARCHIVE
    )
    assert outcome(archive)


@given(content=contents(), end=st.integers(min_value=1))
def test_an_archive_that_is_cut_off_is_refused(content: list[Content], end: int) -> None:
    archive = write_tar(*content)
    assert "cut off" in outcome(archive[: -(1 + end % len(archive))])
