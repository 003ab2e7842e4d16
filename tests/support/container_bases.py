"""A stand-in for the image that a Containerfile builds on: this machine's Python, and the few programs of a ``RUN``."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from tests.support.forks import not_possible
from tests.support.peers import require_peer

# A shell, and what the Containerfile calls by it.
_PROGRAMS = ("/bin/sh", "/bin/mkdir")
_LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "__pycache__", "site-packages", "config-*")


def write_base(root: Path) -> None:
    """Write the files of a base image below a folder that is there: ``python3`` with its ``venv``, a shell, mkdir."""
    standard, interpreter = Path(sysconfig.get_path("stdlib")), Path(os.path.realpath(sys.executable))
    place = root / standard.relative_to("/")
    shutil.copytree(standard, place, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    # Debian has the wheels of pip elsewhere.
    packages = sysconfig.get_config_var("WHEEL_PKG_DIR")
    if packages and Path(packages).is_dir():
        shutil.copytree(packages, root / str(packages).lstrip("/"))
    extensions = sorted((place / "lib-dynload").glob("*.so"))
    for file in (interpreter, *map(Path, _PROGRAMS)):
        _copy(file, root)
    for library in _libraries((interpreter, *map(Path, _PROGRAMS), *extensions)):
        _copy(library, root)
    # Where the libraries are that lie in no usual folder.
    _copy(Path("/etc/ld.so.cache"), root)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    for name in ("usr/bin", "tmp", "var/lib", "root", "proc", "sys", "dev", "opt"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if not (root / "usr/bin/python3").exists():
        (root / "usr/bin/python3").symlink_to(interpreter)


def _libraries(files: Iterable[Path]) -> set[Path]:
    """Return the libraries that programs and extensions are linked to, by the names at which they are looked for."""
    listed = subprocess.run(
        [require_peer("ldd"), *map(str, files)], capture_output=True, text=True, timeout=60, check=False
    )
    found = {Path(name) for name in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed.stdout, re.MULTILINE)}
    if not found:
        not_possible(f"ldd names no libraries: {listed.stderr}")
    return found


def _copy(file: Path, root: Path) -> None:
    place = root / file.relative_to("/")
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
