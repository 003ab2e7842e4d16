"""Real trees with all that a file system can hold: for other programs to make layers of, and to be changed by hand.

Nothing here knows ``minibox_store``.
"""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.peers import require_peer

SECOND = 10**9
_TIME = 1_400_000_000 * SECOND
_HOLE_BYTES = 1 << 20
_SPARSE_BYTES = 5 * _HOLE_BYTES


def plant(root: Path, *, plain: bool = False) -> None:
    """Make a tree of everything below ``root``, which is there already. It takes root.

    Args:
        root: Where it is made.
        plain: Leave out what the oldest tar format has no room for: large owners, times that are no whole second,
            names of more than 100 bytes.
    """
    write(root / "etc/hosts", b"127.0.0.1 localhost\n", mode=0o644)
    write(root / "etc/shadow", b"secret", mode=0o640, owner=(0, 42))
    write(root / "usr/bin/su", b"\x7fELF" * 1000, mode=0o4755)
    write(root / "usr/bin/ping", b"\x7fELF", mode=0o755)
    write(root / "usr/bin/wall", b"\x7fELF", mode=0o2755, owner=(0, 5))
    write(root / "srv/large", bytes(range(256)) * 20_000, mode=0o600, owner=(1000, 1000))
    write(root / "srv/empty", b"", mode=0)
    os.link(root / "usr/bin/su", root / "usr/bin/sudo")
    os.symlink("su", root / "usr/bin/to-su")
    os.symlink("/etc/hosts", root / "usr/hosts")
    os.symlink("nowhere/at/all", root / "dangling")
    os.symlink("usr/bin", root / "bin")
    for folder, mode in (("tmp", 0o1777), ("srv/closed", 0o700), ("srv/grouped", 0o2770)):
        (root / folder).mkdir()
        (root / folder).chmod(mode)
    os.chown(root / "srv/grouped", 1000, 50)
    os.mkfifo(root / "srv/queue", 0o622)
    (root / "dev").mkdir()
    os.mknod(root / "dev/null", 0o20666, os.makedev(1, 3))
    os.mknod(root / "dev/disk", 0o60660, os.makedev(8, 17))
    write(root / "names/grüße", b"utf-8")
    write(root / os.fsdecode(b"names/not \xff utf-8"), b"bytes")
    write(root / "names/new\nline", b"line")
    write(root / "names/-dash", b"dash")
    if not plain:
        write(root / "srv/owner", b"large", owner=(2**31, 2**22))
        write(root / "names" / ("n" * 200) / ("m" * 255), b"long")
        os.symlink("t" * 300, root / "names/link-to-long")
    for number, path in enumerate(sorted(root.rglob("*"))):
        _stamp(path, _TIME + number * SECOND + (0 if plain else number * 1001))
    _stamp(root, _TIME)


def mark(root: Path, *, trusted: bool = True) -> None:
    """Give some files of a planted tree xattrs, those that only root sees where wanted, and capabilities."""
    marks = [
        ("etc/hosts", "user.note", b"a note"),
        ("etc/hosts", "user.binary", b"\x00=\n\xff"),
        ("etc", "user.of-a-directory", b"1"),
    ]
    if trusted:
        marks += [("srv/large", "trusted.note", b"trusted"), ("dangling", "trusted.of-a-link", b"link")]
    for path, name, value in marks:
        os.setxattr(root / path, name, value, follow_symlinks=False)
    subprocess.run([require_peer("setcap"), "cap_net_raw=ep", root / "usr/bin/ping"], check=True, timeout=10)


def plant_sparse(path: Path) -> None:
    """Make a file that has data at its begin, in its middle and before its end, and holes between them."""
    with path.open("wb") as file:
        file.truncate(_SPARSE_BYTES)
        for offset, content in (
            (0, b"begin"),
            (2 * _HOLE_BYTES + 1234, b"middle" * 1000),
            (_SPARSE_BYTES - 9000, b"e"),
        ):
            file.seek(offset)
            file.write(content)


def change(root: Path) -> None:
    """Change a planted tree in each way in which a layer can change the one below it."""
    write(root / "etc/hosts", b"changed\n")
    (root / "etc/shadow").unlink()
    write(root / "etc/new", b"new", owner=(5, 6))
    (root / "usr/bin/su").chmod(0o755)
    shutil.rmtree(root / "names")
    write(root / "names/only", b"only this")
    shutil.rmtree(root / "srv/closed")
    write(root / "srv/closed", b"a file now")
    (root / "dangling").unlink()
    (root / "dangling").mkdir()
    write(root / "dangling/inside", b"inside")
    (root / "bin").unlink()
    os.symlink("usr/sbin", root / "bin")
    (root / "dev/null").unlink()
    os.mknod(root / "dev/null", 0o20600, os.makedev(1, 5))
    (root / "srv/large").rename(root / "srv/moved")
    os.link(root / "srv/moved", root / "srv/moved-too")
    os.utime(root / "srv/empty", ns=(_TIME, _TIME + 5))


def write(path: Path, content: bytes, *, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
    """Write a file, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.chown(path, *owner)
    path.chmod(mode)


def _stamp(path: Path, nanoseconds: int) -> None:
    os.utime(path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)
