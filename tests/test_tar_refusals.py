"""The tar codec against archives that nobody should read: each is refused, in one sentence, soon, in little memory."""

import io
import random
import tracemalloc
from pathlib import Path

import pytest

from minibox_store.errors import InvalidArchive
from minibox_store.tar import ByteStream, Member, TarLimits, TarReader
from tests.support.members import EVERY_KIND, only_member, read_tar, write_tar
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
    pax_record,
    raw_header,
    with_checksum,
)

REFUSED = {
    "nothing at all": (b"", "cut off"),
    "text": (b"this is no archive\n" * 100, "no tar header at byte 0"),
    "one zero block": (raw_header() + bytes(BLOCK), "cut off"),
    "no end": (raw_header(), "cut off"),
    "a zero block alone": (raw_header() + bytes(BLOCK) + raw_header() + END, "stands alone"),
    "a second archive behind the end": (raw_header() + END + raw_header() + END, "data behind the end"),
    "one byte behind the end": (raw_header() + END + b"\0" * 5000 + b"x", "data behind the end"),
    "a wrong checksum": (raw_header()[:148] + b"0000000\0" + raw_header()[156:] + END, "the checksum is wrong"),
    "a signed checksum": (
        raw_header(b"\xff")[:148]
        + b"%06o\0 " % (int(raw_header(b"\xff")[148:154], 8) - 256)
        + raw_header(b"\xff")[156:],
        "the checksum is wrong",
    ),
    "no name": (raw_header(b"") + END, "no name"),
    "a NUL in the name": (raw_header(b"a\0b") + END, "NUL"),
    "a NUL in the prefix": (raw_header(prefix=b"a\0b") + END, "NUL"),
    "a NUL in a link": (raw_header(flag=b"2", link=b"a\0b") + END, "link target has a NUL"),
    "a NUL in a user name": (raw_header(uname=b"a\0b") + END, "user name has a NUL"),
    "a link to nothing": (raw_header(flag=b"1") + END, "without a target"),
    "a file named as a directory": (raw_header(b"d/") + END, "name of a directory"),
    "an unknown format": (raw_header(magic=b"ustar\0\0\0") + END, "unknown format"),
    "an unknown type": (raw_header(flag=b"Z") + END, "type b'Z'"),
    "a volume label": (raw_header(flag=b"V", magic=GNU) + END, "type b'V'"),
    "a GNU sparse file": (raw_header(flag=b"S", magic=GNU) + END, "sparse"),
    "a PAX sparse file": (pax([(b"GNU.sparse.major", b"1")]) + raw_header() + END, "sparse"),
    "a directory with data": (raw_header(flag=b"5", size=512) + bytes(512) + END, "cannot have 512 bytes"),
    "a hard link with data": (raw_header(flag=b"1", link=b"b", size=1) + bytes(512) + END, "cannot have 1 bytes"),
    "an octal 8": (raw_header(size=b"00000000008\0") + END, "size is no number"),
    "an octal with a sign": (raw_header(size=b"-0000000001\0") + END, "size is no number"),
    "an octal with a prefix": (raw_header(mode=b"0o00644\0") + END, "mode is no number"),
    "an octal with an underscore": (raw_header(mode=b"000_644\0") + END, "mode is no number"),
    "an octal behind a NUL": (raw_header(mode=b"\0000644\0") + END, "mode is no number"),
    "an octal before rubbish": (raw_header(mode=b"644\0junk") + END, "mode is no number"),
    "a negative uid": (raw_header(uid=negative_base256(-2, 8)) + END, "uid is negative"),
    "a negative device number": (raw_header(flag=b"3", device=negative_base256(-1, 8)) + END, "device number is neg"),
    "a base 256 of 90 bits": (raw_header(size=b"\x80" + b"\xff" * 11) + END, "size is no number"),
    "a base 256 with another first byte": (raw_header(size=b"\x81" + bytes(11)) + END, "size is no number"),
    "a size beyond the limit": (raw_header(size=base256(1 << 62, 12)) + END, "cannot have"),
    "a size beyond the end": (raw_header(size=1 << 30) + END, "cut off"),
    "two PAX headers": (pax([(b"path", b"b")]) * 2 + raw_header() + END, "conflicting"),
    "two long names": (extension(b"L", b"b\0") * 2 + raw_header() + END, "conflicting"),
    "a PAX header and a long name": (pax([]) + extension(b"L", b"b\0") + raw_header() + END, "conflicting"),
    "a long name and a PAX header": (extension(b"L", b"b\0") + pax([]) + raw_header() + END, "conflicting"),
    "a global header between": (pax([]) + pax([], flag=b"g") + raw_header() + END, "conflicting"),
    "many global headers": (pax([], flag=b"g") * 9 + raw_header() + END, "too many"),
    "an extension of nothing": (pax([(b"path", b"b")]) + END, "no member follows"),
    "an empty long name": (extension(b"L", b"\0") + raw_header() + END, "empty"),
    "a NUL in a long name": (extension(b"L", b"a\0b\0") + raw_header() + END, "NUL"),
    "a NUL in a PAX path": (pax([(b"path", b"a\0b")]) + raw_header() + END, "NUL"),
    "a NUL in a PAX user name": (pax([(b"uname", b"a\0")]) + raw_header() + END, "user name has a NUL"),
    "a NUL in an attribute's name": (pax([(b"SCHILY.xattr.a\0", b"")]) + raw_header() + END, "attribute has a NUL"),
    "an attribute without a name": (pax([(b"SCHILY.xattr.", b"")]) + raw_header() + END, "has no name"),
    "another character set": (pax([(b"hdrcharset", b"ISO-8859-1")]) + raw_header() + END, "character set"),
    "two sizes": (pax([(b"size", b"0")]) + raw_header(size=512) + raw_header() + END, "512 bytes and its PAX record 0"),
    "two sizes, the header's zero": (pax([(b"size", b"512")]) + raw_header() * 2 + END, "0 bytes and its PAX record"),
    "two sizes, both large": (pax([(b"size", b"8589934592")]) + raw_header(size=512) + END, "512 bytes and"),
    "a PAX size that is none": (pax([(b"size", b"0x10")]) + raw_header() + END, "PAX size is no number"),
    "a negative PAX size": (pax([(b"size", b"-1")]) + raw_header() + END, "PAX size is no number"),
    "a PAX uid of 5,000 digits": (pax([(b"uid", b"9" * 5000)]) + raw_header() + END, "PAX uid is no number"),
    "a PAX uid of 64 bits": (pax([(b"uid", b"9223372036854775808")]) + raw_header() + END, "PAX uid is no number"),
    "a PAX time that is none": (pax([(b"mtime", b"1e9")]) + raw_header() + END, "mtime is no time"),
    "a PAX time of 5,000 digits": (pax([(b"mtime", b"9" * 5000)]) + raw_header() + END, "mtime is no time"),
    "a PAX time of 64 bits": (pax([(b"mtime", b"9223372036854775808")]) + raw_header() + END, "mtime is no time"),
    "a global path": (pax([(b"path", b"b")], flag=b"g") + raw_header() + END, "global"),
    "a global size": (pax([(b"size", b"0")], flag=b"g") + raw_header() + END, "global"),
    "a global attribute": (pax([(b"SCHILY.xattr.a", b"")], flag=b"g") + raw_header() + END, "global"),
    "a PAX record that is text": (extension(b"x", b"nonsense") + raw_header() + END, "malformed record at its byte 0"),
    "a PAX record without a key": (extension(b"x", b"5 =b\n") + raw_header() + END, "malformed"),
    "a PAX record without a newline": (extension(b"x", b"9 path=bb") + raw_header() + END, "malformed"),
    "a PAX record that is too short": (extension(b"x", b"4 path=b\n") + raw_header() + END, "malformed"),
    "a PAX record that is too long": (extension(b"x", b"90 path=b\n") + raw_header() + END, "malformed"),
    "a PAX record padded by NULs": (extension(b"x", b"10 path=b\n" + bytes(5)) + raw_header() + END, "its byte 10"),
}


class TestRefusals:
    @pytest.mark.parametrize(("archive", "sentence"), REFUSED.values(), ids=REFUSED.keys())
    def test_an_archive_is_refused_with_one_sentence(self, archive: bytes, sentence: str) -> None:
        told = refusal_of(archive)
        assert sentence in told
        assert "\n" not in told

    def test_the_refusal_names_the_member_and_shows_no_megabyte_of_it(self) -> None:
        with pytest.raises(InvalidArchive) as refused:
            read_tar(raw_header(b"bad", mode=b"rubbish\0") + END)
        assert refused.value.member == "bad"
        assert len(refusal_of(extension(b"L", b"n" * 1_000_000) + raw_header(flag=b"1") + END)) < 500

    @pytest.mark.parametrize("before", [b"", extension(b"L", b"long\0"), pax([(b"comment", b"c" * 100_000)])])
    def test_a_refusal_is_repeated_when_the_step_is(self, before: bytes) -> None:
        reader = TarReader(io.BytesIO(raw_header() + before + raw_header(mode=b"rubbish\0") + raw_header() * 200 + END))
        next(reader)
        for _ in range(3):
            with pytest.raises(InvalidArchive, match="mode is no number"):
                next(reader)
            assert reader.read(1) == b""

    def test_an_error_of_the_stream_passes_and_no_step_follows_it(self) -> None:
        class Failing(ForwardOnly):
            def read(self, size: int, /) -> bytes:
                if self.given_bytes:
                    raise OSError("the line is dead")
                return super().read(size)

        reader = TarReader(Failing(raw_header() * 3 + END, 700))
        assert next(reader).name == "a"
        for _ in range(3):
            with pytest.raises(OSError, match="the line is dead"):
                next(reader)

    @pytest.mark.parametrize("member", [EVERY_KIND[1], Member(name="ü" * 60, size_bytes=700)], ids=["ustar", "pax"])
    def test_an_archive_that_is_cut_off_anywhere_is_refused(self, member: Member) -> None:
        data = b"d" * member.size_bytes
        archive = write_tar((member, data), (Member(name="last", size_bytes=3), b"end"))
        assert len(read_tar(archive)) == 2
        for end in range(len(archive)):
            with pytest.raises(InvalidArchive, match="cut off"):
                read_tar(archive[:end])
            with pytest.raises(InvalidArchive, match="cut off"):
                list(TarReader(ForwardOnly(archive[:end], 600)))

    def test_a_file_that_is_cut_off_inside_data_that_is_sought_over_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "cut.tar"
        archive = write_tar((Member(name="large", size_bytes=1_000_000), bytes(1_000_000)))
        for end in (600, 100_000, 1_000_511, 1_000_512, 1_000_900, 1_000_960, len(archive) - 1):
            path.write_bytes(archive[:end])
            with path.open("rb", buffering=0) as stream, pytest.raises(InvalidArchive, match="cut off") as refused:
                list(TarReader(stream))
            assert refused.value.member == "large"

    def test_a_flip_of_any_bit_gives_members_or_a_refusal(self) -> None:
        contents = [(Member(name="ü", size_bytes=3, uid=8**8, xattrs={"user.a": b"1"}), b"abc"), (EVERY_KIND[3], b"")]
        archive = bytearray(
            extension(b"L", b"long\0", magic=GNU) + raw_header(magic=GNU, uid=base256(5, 8)) + write_tar(*contents)
        )
        intact = [member.name for member in TarReader(io.BytesIO(bytes(archive)))]
        outcomes = {"members": 0, "refusal": 0}
        for bit in range(len(archive) * 8):
            archive[bit // 8] ^= 1 << bit % 8
            try:
                names = [member.name for member, _ in read_tar(bytes(archive))]
            except InvalidArchive:
                outcomes["refusal"] += 1
            else:
                # A flip in a header is seen by its checksum: what still is read has the members that were written.
                assert len(names) == len(intact)
                outcomes["members"] += 1
            archive[bit // 8] ^= 1 << bit % 8
        assert outcomes["refusal"] > 4 * BLOCK * 8
        assert outcomes["members"] > 0

    def test_limits_are_parameters(self) -> None:
        archive = pax([(b"comment", b"c" * 1000)]) + raw_header(size=100) + padded(b"x" * 100) + END + bytes(2000)
        assert len(read_tar(archive)) == 1
        assert len(read_tar(archive, TarLimits(extension_headers=1, member_bytes=100, padding_bytes=2000))) == 1
        for limits in (
            TarLimits(extension_bytes=999),
            TarLimits(extension_headers=0),
            TarLimits(member_bytes=99),
            TarLimits(padding_bytes=1999),
        ):
            with pytest.raises(InvalidArchive):
                read_tar(archive, limits)


class TestS10:
    """Row S10: malformed headers end in bounded time and memory, whatever they claim (CPython's CVEs of tarfile)."""

    @pytest.mark.parametrize(
        "beginning",
        [
            pytest.param(raw_header(size=negative_base256(-2048, 12)), id="CVE-2025-8194 negative size"),
            pytest.param(raw_header(flag=b"x", size=negative_base256(-2048, 12)), id="negative size of an extension"),
            pytest.param(extension(b"x", b"0 path=b\n"), id="CVE-2019-20907 record of length zero"),
            pytest.param(extension(b"x", b"00000000000000000000 path=b\n"), id="record of length zero, in many digits"),
            pytest.param(extension(b"x", b"-9 path=b\n"), id="record of negative length"),
            pytest.param(extension(b"x", b"1" * 100_000), id="CVE-2024-6232 record of nothing but digits"),
            pytest.param(extension(b"x", b"314572800 path=b\n"), id="record that claims 300 MiB"),
            pytest.param(raw_header(flag=b"x", size=300 << 20), id="PAX header that claims 300 MiB"),
            pytest.param(raw_header(flag=b"g", size=300 << 20), id="global PAX header that claims 300 MiB"),
            pytest.param(raw_header(flag=b"L", size=300 << 20), id="long name that claims 300 MiB"),
            pytest.param(raw_header(flag=b"K", size=(1 << 20) + 1), id="long link of one byte more than 1 MiB"),
            pytest.param(raw_header(flag=b"L", size=base256(1 << 62, 12)), id="long name that claims 4 EiB"),
            pytest.param(END, id="endless zeros behind the end"),
        ],
    )
    def test_S10_a_malformed_header_is_refused_in_bounded_time_and_memory(self, beginning: bytes) -> None:
        stream = Endless(beginning)
        tracemalloc.start()
        with pytest.raises(InvalidArchive):
            read_tar(stream)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert stream.given_bytes < 20 << 20
        assert peak < 2 << 20

    @pytest.mark.parametrize(
        "block",
        [
            pytest.param(pax([], flag=b"g"), id="global headers"),
            pytest.param(pax([]), id="PAX headers"),
            pytest.param(extension(b"L", b"a\0"), id="long names"),
        ],
    )
    def test_S10_extension_headers_without_end_are_refused(self, block: bytes) -> None:
        stream = Endless(block, block)
        assert "extension headers" in refusal_of(stream)
        assert stream.given_bytes < 1 << 20

    def test_S10_a_long_name_of_1_MiB_is_read_and_one_more_byte_is_refused(self) -> None:
        for flag in (b"L", b"x"):
            body = b"n" * (1 << 20) if flag == b"L" else pax_record(b"path", b"n" * ((1 << 20) - 14))
            assert len(body) == 1 << 20
            assert len(only_member(extension(flag, body) + raw_header() + END).name) > 1_000_000
            assert "of at most 1048576" in refusal_of(extension(flag, body + b"n") + raw_header() + END)

    def test_S10_a_hundred_thousand_mutations_are_members_or_refusals(self) -> None:
        intact = (
            pax([(b"path", b"a"), (b"size", b"3")])
            + raw_header(size=3)
            + padded(b"abc")
            + extension(b"L", b"b\0", magic=GNU)
            + raw_header(magic=GNU, uid=base256(5, 8))
            + END
        )
        rubbish = [
            b"\xff" * 12,
            b"\x80" + b"\xff" * 11,
            b"0" * 11 + b"\0",
            b"7" * 11 + b"\0",
            b"-1",
            b"0 ",
            b"x",
            b"L",
            b"=",
        ]
        chance = random.Random(10)
        outcomes = {"members": 0, "refusal": 0}
        for _ in range(100_000):
            archive = bytearray(intact)
            start = chance.randrange(len(archive) // BLOCK) * BLOCK
            place = start + chance.choice((0, 1, 3, 100, 124, 124, 136, 156, 156, 257, 345))
            piece = chance.choice(rubbish)
            archive[place : place + len(piece)] = piece
            archive[start : start + BLOCK] = with_checksum(bytes(archive[start : start + BLOCK]))
            try:
                found = list(TarReader(io.BytesIO(archive)))
            except InvalidArchive:
                outcomes["refusal"] += 1
            else:
                assert len(found) <= len(archive) // BLOCK
                outcomes["members"] += 1
        assert min(outcomes.values()) > 1000

    def test_S10_a_megabyte_of_records_is_read_in_one_pass(self) -> None:
        records = b"".join(pax_record(b"SCHILY.xattr.%d" % number, b"") for number in range(30_000))
        assert len(only_member(extension(b"x", records) + raw_header() + END).xattrs) == 30_000

    def test_S24_a_global_record_cannot_make_each_member_cost_its_length(self) -> None:
        assert "global" in refusal_of(pax([(b"uname", b"u" * 256)], flag=b"g") + raw_header() + END)


def refusal_of(archive: bytes | ByteStream) -> str:
    """Return the sentence with which an archive is refused, whether it can seek or not."""
    with pytest.raises(InvalidArchive) as refused:
        read_tar(archive)
    if isinstance(archive, bytes):
        with pytest.raises(InvalidArchive) as skipped:
            list(TarReader(ForwardOnly(archive, 512)))
        assert str(skipped.value) == str(refused.value)
    return str(refused.value)
