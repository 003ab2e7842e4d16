"""The tar codec beside two others: Python's tarfile and GNU tar read what it writes, and it reads what they write."""

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Literal

import pytest

from minibox_store.errors import InvalidArchive
from minibox_store.tar import Member, MemberKind, TarReader, encode_header
from tests.support.members import EVERY_KIND, LONG_FOLDER, NEEDS_PAX, read_tar, write_tar
from tests.support.peers import require_peer
from tests.support.tars import run_gnu_tar

TARFILE_FORMATS: list[Literal[0, 1, 2]] = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
GNU_TAR_FORMATS = ["v7", "oldgnu", "gnu", "ustar", "posix"]
GIBIBYTE = 1 << 30


class TestAgreementWithOthers:
    @pytest.mark.parametrize("tar_format", TARFILE_FORMATS)
    def test_what_tarfile_writes_is_read(self, tar_format: Literal[0, 1, 2]) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tar_format) as archive:
            for member in EVERY_KIND[:-1]:
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
                archive.addfile(info, io.BytesIO(bytes(member.size_bytes)))
        assert [member for member, _ in read_tar(stream.getvalue())] == EVERY_KIND[:-1]

    def test_what_is_written_tarfile_reads(self) -> None:
        members = EVERY_KIND[:-1] + NEEDS_PAX
        archive = write_tar(*[(member, b"x" * member.size_bytes) for member in members])
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            infos = opened.getmembers()
        assert [info.name for info in infos] == [member.name for member in members]
        assert [info.type for info in infos] == [member.kind.value for member in members]
        assert [info.linkname for info in infos] == [member.link_target for member in members]
        assert [(info.uid, info.gid, info.mode) for info in infos] == [(m.uid, m.gid, m.mode) for m in members]
        assert [(info.uname, info.gname) for info in infos] == [(m.uname, m.gname) for m in members]
        assert [info.mtime for info in infos] == [m.mtime_nanoseconds / 10**9 for m in members]
        assert infos[-1].pax_headers["SCHILY.xattr.user.ü"] == "1"

    def test_what_is_written_gnu_tar_extracts(self, tmp_path: Path) -> None:
        contents = [
            (Member(name="directory", kind=MemberKind.DIRECTORY, mode=0o750), b""),
            (
                Member(name="directory/file", size_bytes=5, mode=0o640, mtime_nanoseconds=1_700_000_000_123_456_789),
                b"12345",
            ),
            (Member(name=f"{LONG_FOLDER}/{'n' * 120}", size_bytes=1, mtime_nanoseconds=-1_500_000_000), b"l"),
            (Member(name="grüße", size_bytes=0), b""),
            (Member(name=b"latin-\xe9".decode("utf-8", "surrogateescape")), b""),
            (Member(name="symlink", kind=MemberKind.SYMLINK, link_target="x" * 150), b""),
            (Member(name="hardlink", kind=MemberKind.HARDLINK, link_target="directory/file"), b""),
            (Member(name="queue", kind=MemberKind.FIFO), b""),
        ]
        run_gnu_tar(tmp_path, "--extract", "--preserve-permissions", "--no-same-owner", stdin=write_tar(*contents))
        for member, data in contents:
            path = tmp_path / member.name
            if member.kind is MemberKind.FILE:
                assert path.read_bytes() == data
                assert (path.stat().st_mode & 0o7777, path.stat().st_mtime_ns) == (
                    member.mode,
                    member.mtime_nanoseconds,
                )
        assert os.readlink(tmp_path / "symlink") == "x" * 150
        assert (tmp_path / "hardlink").samefile(tmp_path / "directory" / "file")
        assert (tmp_path / "directory").stat().st_mode & 0o7777 == 0o750
        assert (tmp_path / "queue").is_fifo()

    def test_what_is_written_gnu_tar_lists(self, tmp_path: Path) -> None:
        members = [
            Member(name="large-ids", uid=3_000_000, gid=4_000_000, mode=0o4755),
            Member(name="marked", xattrs={"user.colour": b"green"}),
            Member(name="disk", kind=MemberKind.BLOCK_DEVICE, device_major=8, device_minor=1),
        ]
        archive = write_tar(*[(member, b"") for member in members])
        lines = (
            run_gnu_tar(tmp_path, "--list", "-vv", "--numeric-owner", "--xattrs", stdin=archive).decode().split("\n")
        )
        assert lines[0].split()[:2] == ["-rwsr-xr-x", "3000000/4000000"]
        assert "user.colour" in "\n".join(lines)
        assert any("8,1" in line and line.endswith("disk") for line in lines)

    def test_gnu_tar_reads_a_header_of_more_than_eight_gibibytes(self, tmp_path: Path) -> None:
        header = encode_header(Member(name="huge", size_bytes=9 * GIBIBYTE))
        command = [require_peer("tar"), "--list", "--verbose"]
        listed = subprocess.run(command, input=header, capture_output=True, check=False, timeout=30, cwd=tmp_path)
        assert str(9 * GIBIBYTE) in listed.stdout.decode()

    @pytest.mark.parametrize("tar_format", GNU_TAR_FORMATS)
    def test_what_gnu_tar_writes_is_read(self, tar_format: str, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        (tree / "directory").mkdir(parents=True)
        (tree / "directory" / "file").write_bytes(b"content" * 1000)
        (tree / ("n" * 90)).write_bytes(b"")
        (tree / "grüße").write_bytes(b"1")
        (tree / "symlink").symlink_to("directory/file")
        os.link(tree / "directory" / "file", tree / "hardlink")
        if tar_format != "v7":
            os.mkfifo(tree / "queue")
        if tar_format in ("oldgnu", "gnu", "posix"):
            (tree / ("m" * 200)).write_bytes(b"2")
            (tree / "longlink").symlink_to("t" * 200)
        archive = run_gnu_tar(tmp_path, f"--format={tar_format}", "--sort=name", "--create", "tree")
        found = {member.name: (member, data) for member, data in read_tar(archive)}
        assert set(found) == {"tree", *(str(path.relative_to(tmp_path)) for path in tree.rglob("*"))}
        for name, (member, data) in found.items():
            status = (tmp_path / name).lstat()
            assert member.mode == status.st_mode & 0o7777
            assert member.uid == status.st_uid
            if member.kind is MemberKind.FILE:
                assert data == (tmp_path / name).read_bytes()
                exact = member.mtime_nanoseconds == status.st_mtime_ns
                assert exact if tar_format == "posix" else member.mtime_nanoseconds // 10**9 == int(status.st_mtime)
            elif member.kind is MemberKind.SYMLINK:
                assert member.link_target == os.readlink(tmp_path / name)
        assert found["tree/hardlink"][0].link_target == "tree/directory/file"

    @pytest.mark.parametrize("tar_format", ["gnu", "posix"])
    def test_a_header_of_more_than_eight_gibibytes_by_gnu_tar_is_read(self, tar_format: str, tmp_path: Path) -> None:
        with (tmp_path / "huge").open("wb") as file:
            file.truncate(9 * GIBIBYTE)
        command = [require_peer("tar"), f"--format={tar_format}", "--create", "huge"]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            beginning = process.stdout.read(8192)
            process.kill()
        member = next(TarReader(io.BytesIO(beginning)))
        assert (member.name, member.size_bytes) == ("huge", 9 * GIBIBYTE)

    @pytest.mark.parametrize("tar_format", ["gnu", "posix"])
    def test_a_sparse_file_by_gnu_tar_is_refused(self, tar_format: str, tmp_path: Path) -> None:
        with (tmp_path / "sparse").open("wb") as file:
            file.seek(1 << 20)
            file.write(b"x")
        archive = run_gnu_tar(tmp_path, f"--format={tar_format}", "--sparse", "--create", "sparse")
        with pytest.raises(InvalidArchive, match="sparse"):
            read_tar(archive)
