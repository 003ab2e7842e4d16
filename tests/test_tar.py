"""The tar codec: what it writes, and what it reads of streams of all kinds and of every format."""

import io
import os
import tarfile
import threading
import tracemalloc
from pathlib import Path

import pytest

from minibox_store.errors import InvalidArchive
from minibox_store.tar import END_OF_ARCHIVE, Member, MemberKind, TarReader, encode_header
from tests.support.members import EVERY_KIND, NEEDS_PAX, only_member, read_tar, write_tar
from tests.support.tars import (
    BLOCK,
    END,
    GNU,
    ForwardOnly,
    base256,
    extension,
    negative_base256,
    padded,
    pax,
    raw_header,
)

GIBIBYTE = 1 << 30


class TestWhatIsWritten:
    @pytest.mark.parametrize("member", EVERY_KIND, ids=lambda member: member.name)
    def test_a_member_that_ustar_can_hold_takes_one_block_and_is_read_back_the_same(self, member: Member) -> None:
        assert len(encode_header(member)) == BLOCK
        assert only_member(write_tar((member, bytes(member.size_bytes)))) == member

    @pytest.mark.parametrize("member", NEEDS_PAX, ids=lambda member: ascii(member.name)[:20])
    def test_a_member_that_ustar_cannot_hold_has_a_pax_header_and_is_read_back_the_same(self, member: Member) -> None:
        header = encode_header(member)
        assert header[156:157] == b"x"
        assert only_member(header + END_OF_ARCHIVE) == member

    @pytest.mark.parametrize("size_bytes", [0, 1, 8**11 - 1, 8**11, 8 * GIBIBYTE + 1, 1 << 43])
    def test_a_size_is_read_back_the_same_below_and_above_eight_gibibytes(self, size_bytes: int) -> None:
        member = Member(name="a", size_bytes=size_bytes)
        assert next(TarReader(io.BytesIO(encode_header(member)))) == member
        assert (len(encode_header(member)) > BLOCK) == (size_bytes >= 8**11)

    @pytest.mark.parametrize(
        ("name", "headers_bytes"),
        [
            ("n" * 100, 512),
            ("n" * 101, 1536),
            ("p" * 155 + "/" + "n" * 100, 512),
            ("p" * 156 + "/" + "n" * 100, 1536),
            ("p" * 155 + "/" + "n" * 101, 1536),
            ("/" + "n" * 100, 1536),
            ("//" + "n" * 100, 512),
        ],
    )
    def test_a_long_name_goes_into_the_prefix_where_a_slash_allows_it(self, name: str, headers_bytes: int) -> None:
        header = encode_header(Member(name=name))
        assert len(header) == headers_bytes
        assert only_member(header + END_OF_ARCHIVE).name == name

    def test_the_same_member_gives_the_same_bytes_whatever_the_order_of_its_attributes(self) -> None:
        xattrs = {"user.a": b"1", "user.b": b"2"}
        turned = dict(reversed(xattrs.items()))
        assert encode_header(Member(name="a", xattrs=xattrs)) == encode_header(Member(name="a", xattrs=turned))
        assert encode_header(Member(name="a", data_offset=512)) == encode_header(Member(name="a"))

    @pytest.mark.parametrize("offset", [0, 512, 2048, 2560, 3072, 3584])
    @pytest.mark.parametrize("name", ["a", "ü", "ü" * 200])
    def test_data_is_aligned_where_that_is_asked_for(self, offset: int, name: str) -> None:
        member = Member(name=name, size_bytes=3)
        header = encode_header(member, offset=offset, align_bytes=4096)
        archive = header + padded(b"abc") + END
        assert (offset + len(header)) % 4096 == 0
        assert len(header) <= 4096 + len(encode_header(member)) + BLOCK
        assert read_tar(archive) == [(member, b"abc")]
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            assert [(info.name, info.size) for info in opened] == [(name, 3)]

    @pytest.mark.parametrize(
        "member",
        [
            Member(name=""),
            Member(name="file/"),
            Member(name="directory/", kind=MemberKind.DIRECTORY),
            Member(name="nul\0inside"),
            Member(name="\ud800"),
            Member(name=b"\xc3".decode("utf-8", "surrogateescape") + b"\xa9".decode("utf-8", "surrogateescape")),
            Member(name="a", size_bytes=-1),
            Member(name="a", size_bytes=1 << 62),
            Member(name="a", size_bytes=1, kind=MemberKind.DIRECTORY),
            Member(name="a", mode=0o10000),
            Member(name="a", mode=-1),
            Member(name="a", uid=-1),
            Member(name="a", gid=2**63),
            Member(name="a", mtime_nanoseconds=2**63 * 10**9),
            Member(name="a", kind=MemberKind.SYMLINK),
            Member(name="a", link_target="b"),
            Member(name="a", kind=MemberKind.SYMLINK, link_target="b\0"),
            Member(name="a", device_major=1),
            Member(name="a", kind=MemberKind.BLOCK_DEVICE, device_minor=8**7),
            Member(name="a", uname="\0"),
            Member(name="a", xattrs={"": b""}),
            Member(name="a", xattrs={"a=b": b""}),
            Member(name="a", xattrs={"user.big": bytes(1 << 20)}),
        ],
        ids=lambda member: ascii(member).removeprefix("Member(")[:90],
    )
    def test_a_member_that_would_not_be_read_back_the_same_is_not_written(self, member: Member) -> None:
        with pytest.raises(InvalidArchive) as refused:
            encode_header(member)
        assert refused.value.member == member.name
        assert str(refused.value)


class TestReading:
    @pytest.mark.parametrize("most", [1, 7, 512, 700, 1 << 20])
    def test_short_reads_change_nothing(self, most: int) -> None:
        contents = [(member, b"x" * member.size_bytes) for member in EVERY_KIND + NEEDS_PAX]
        assert read_tar(ForwardOnly(write_tar(*contents), most)) == contents

    def test_data_that_nobody_reads_is_skipped_in_a_pipe(self) -> None:
        contents = [(Member(name=str(size), size_bytes=size), bytes(size)) for size in (0, 1, 512, 70_000, 300_000, 1)]
        stream = ForwardOnly(write_tar(*contents), 999)
        assert list(TarReader(stream)) == [member for member, _ in contents]

    def test_data_that_nobody_reads_is_sought_over_in_a_file(self) -> None:
        class Counting(io.BytesIO):
            given_bytes = 0

            def read(self, size: int | None = -1, /) -> bytes:
                data = super().read(size)
                self.given_bytes += len(data)
                return data

        stream = Counting(write_tar(*[(Member(name="a", size_bytes=4_000_000), bytes(4_000_000))] * 3))
        assert len(list(TarReader(stream))) == 3
        assert stream.given_bytes < 400_000

    def test_data_is_read_in_pieces_and_never_beyond_its_member(self) -> None:
        archive = write_tar((Member(name="a", size_bytes=600), b"a" * 600), (Member(name="b", size_bytes=3), b"bbb"))
        reader = TarReader(io.BytesIO(archive))
        assert reader.read(10) == b""
        assert next(reader).name == "a"
        assert reader.read(0) == b""
        assert reader.read(10) == b"a" * 10
        assert reader.read(1 << 40) == b"a" * 590
        assert reader.read(10) == b""
        assert next(reader).name == "b"
        assert reader.read(1) == b"b"
        assert list(reader) == []
        assert reader.read(10) == b""

    def test_a_part_of_the_data_may_be_read_and_the_rest_left(self) -> None:
        contents = [(Member(name=str(number), size_bytes=200_000), bytes([number]) * 200_000) for number in range(5)]
        for stream in (io.BytesIO(write_tar(*contents)), ForwardOnly(write_tar(*contents), 1000)):
            reader = TarReader(stream)
            parts = [(member, reader.read(100) + reader.read(100)) for member in reader]
            assert parts == [(member, data[:200]) for member, data in contents]

    def test_a_negative_size_is_not_taken_for_everything(self) -> None:
        reader = TarReader(io.BytesIO(write_tar((Member(name="a", size_bytes=1), b"a"))))
        next(reader)
        with pytest.raises(ValueError, match="negative"):
            reader.read(-1)

    @pytest.mark.parametrize("size_bytes", [0, 1, 511, 65_536, 1_000_000])
    def test_data_is_read_into_a_buffer_of_the_caller(self, size_bytes: int, tmp_path: Path) -> None:
        data = bytes(number % 251 for number in range(size_bytes))
        path = tmp_path / "a.tar"
        path.write_bytes(write_tar((Member(name="a", size_bytes=size_bytes), data), (Member(name="b"), b"")))
        with path.open("rb", buffering=0) as raw, path.open("rb") as buffered:
            for stream in (raw, buffered, ForwardOnly(path.read_bytes(), 5000)):
                reader = TarReader(stream)
                next(reader)
                buffer, found = bytearray(70_000), b""
                while count := reader.readinto(buffer):
                    found += buffer[:count]
                assert found == data
                assert [member.name for member in reader] == ["b"]

    def test_data_lies_where_its_member_says(self, tmp_path: Path) -> None:
        archive = write_tar((NEEDS_PAX[0], b""), (Member(name="b", size_bytes=3), b"bbb"), (EVERY_KIND[1], b"12345"))
        found = [archive[member.data_offset :][: member.size_bytes] for member in TarReader(io.BytesIO(archive))]
        assert found == [b"", b"bbb", b"12345"]

    def test_a_real_pipe_is_read_to_its_end(self) -> None:
        contents = [(Member(name=str(number), size_bytes=100_000), bytes([number]) * 100_000) for number in range(4)]
        archive = write_tar(*contents)
        receiver, sender = os.pipe()

        def send() -> None:
            with open(sender, "wb") as stream:
                stream.write(archive)

        thread = threading.Thread(target=send)
        thread.start()
        with open(receiver, "rb", buffering=0) as stream:
            assert read_tar(stream) == contents
        thread.join()

    def test_no_byte_is_read_twice_and_memory_stays_the_same_over_many_members(self) -> None:
        archive = encode_header(Member(name="a", size_bytes=1)) + padded(b"a")
        stream = ForwardOnly(archive * 20_000 + END)
        tracemalloc.start()
        assert sum(1 for _ in TarReader(stream)) == 20_000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert stream.given_bytes == len(archive) * 20_000 + len(END)
        assert peak < 1_000_000

    def test_names_that_escape_are_handed_on_as_they_are(self) -> None:
        names = ["../up", "/absolute", "./here", "a//b", "a/../../b", "..", "con\nfusing", "\x1b[31m"]
        archive = b"".join(raw_header(name.encode()) for name in names) + END
        assert [member.name for member, _ in read_tar(archive)] == names


class TestWhatIsRead:
    @pytest.mark.parametrize("flag", [b"0", b"\0", b"7"])
    def test_a_file_has_one_of_three_types(self, flag: bytes) -> None:
        assert only_member(raw_header(flag=flag, size=2) + padded(b"ab") + END).kind is MemberKind.FILE

    def test_old_v7_has_no_user_names_and_marks_directories_by_a_slash(self) -> None:
        block = raw_header(b"d/", flag=b"\0", magic=bytes(8), uname=b"junk", prefix=b"junk", mode=b"   755 \0")
        assert only_member(block + END) == Member(name="d", kind=MemberKind.DIRECTORY, mode=0o755)

    def test_gnu_headers_have_no_prefix(self) -> None:
        assert only_member(raw_header(magic=GNU, prefix=b"00000001234") + END).name == "a"

    def test_a_name_may_fill_its_field(self) -> None:
        assert only_member(raw_header(b"n" * 100, prefix=b"p" * 155) + END).name == "p" * 155 + "/" + "n" * 100

    def test_gnu_long_names_replace_the_short_ones(self) -> None:
        long, target = b"l" * 5000, b"t" * 5000
        links = extension(b"K", target + b"\0", magic=GNU), extension(b"L", long + b"\0", magic=GNU)
        for order in (links, links[::-1]):
            member = only_member(b"".join(order) + raw_header(flag=b"2", link=b"short", magic=GNU) + END)
            assert (member.name, member.link_target) == (long.decode(), target.decode())

    @pytest.mark.parametrize("value", [0, 1, 8**7, 2**56 - 1])
    def test_gnu_base_256_numbers_are_read(self, value: int) -> None:
        block = raw_header(uid=base256(value, 8), gid=base256(value, 8), mtime=base256(value, 12), magic=GNU)
        member = only_member(block + END)
        assert (member.uid, member.gid, member.mtime_nanoseconds) == (value, value, value * 10**9)

    def test_times_before_1970_are_read_from_base_256(self) -> None:
        member = only_member(raw_header(mtime=negative_base256(-1, 12)) + END)
        assert member.mtime_nanoseconds == -1_000_000_000

    @pytest.mark.parametrize(
        ("field", "number"),
        [
            (b"0000644\0", 0o644),
            (b"000644 \0", 0o644),
            (b"   644 \0", 0o644),
            (b"644\0\0\0\0\0", 0o644),
            (b"00000644", 0o644),
            (b"0100644\0", 0o644),
            (bytes(8), 0),
            (b" " * 8, 0),
        ],
    )
    def test_octal_fields_are_read_as_all_tools_write_them(self, field: bytes, number: int) -> None:
        assert only_member(raw_header(mode=field) + END).mode == number

    @pytest.mark.parametrize(
        ("text", "nanoseconds"),
        [
            (b"1", 10**9),
            (b"1.", 10**9),
            (b"1.5", 1_500_000_000),
            (b"-1.5", -1_500_000_000),
            (b"-0.000000001", -1),
            (b"1.1234567899" + b"9" * 500_000, 1_123_456_789),
            (b"9223372036854775807", (2**63 - 1) * 10**9),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_pax_times_are_exact_to_the_nanosecond(self, text: bytes, nanoseconds: int) -> None:
        assert only_member(pax([(b"mtime", text)]) + raw_header() + END).mtime_nanoseconds == nanoseconds

    def test_pax_records_replace_what_the_header_says(self) -> None:
        records = [
            (b"path", "é".encode()),
            (b"linkpath", b"target"),
            (b"uid", b"3000000"),
            (b"gid", b"4000000"),
            (b"uname", b"user"),
            (b"gname", b"\xff"),
            (b"SCHILY.xattr.user.a", b"\0\n"),
            (b"LIBARCHIVE.creationtime", b"1"),
            (b"comment", b"nobody reads this"),
            (b"hdrcharset", b"BINARY"),
        ]
        assert only_member(pax(records) + raw_header(flag=b"2", link=b"no") + END) == Member(
            name="é",
            kind=MemberKind.SYMLINK,
            link_target="target",
            uid=3_000_000,
            gid=4_000_000,
            uname="user",
            gname="\udcff",
            xattrs={"user.a": b"\0\n"},
        )

    def test_pax_records_hold_for_one_member_and_an_empty_one_for_none(self) -> None:
        archive = pax([(b"path", b"one"), (b"path", b"two"), (b"uid", b"")]) + raw_header(uid=b"0000007\0")
        found = [(member.name, member.uid) for member, _ in read_tar(archive + raw_header() + END)]
        assert found == [("two", 7), ("a", 0)]

    def test_global_records_hold_for_all_members_to_come_until_they_are_replaced(self) -> None:
        archive = [
            raw_header(b"first"),
            pax([(b"uname", b"g"), (b"mtime", b"5"), (b"comment", b"0" * 40)], flag=b"g"),
            raw_header(b"second", uname=b"own"),
            pax([(b"uname", b"x")]) + raw_header(b"third"),
            pax([(b"uname", b"")]) + raw_header(b"fourth", uname=b"own"),
            pax([(b"uname", b"new")], flag=b"g") + raw_header(b"fifth"),
        ]
        found = [(m.uname, m.mtime_nanoseconds // 10**9) for m, _ in read_tar(b"".join(archive) + END)]
        assert found == [("", 0), ("g", 5), ("x", 5), ("own", 5), ("new", 5)]

    @pytest.mark.parametrize("padding_bytes", [0, 1, 512, 9 * 1024, 1 << 20])
    def test_zeros_behind_the_end_are_nothing(self, padding_bytes: int) -> None:
        assert only_member(raw_header() + END + bytes(padding_bytes)).name == "a"

    def test_an_archive_of_nothing_is_two_zero_blocks(self) -> None:
        assert read_tar(END) == []
