"""What others make of tars: GNU tar, bsdtar and Python's tarfile list them, extract them, and pack them anew."""

import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tests.support.peers import require_peer, run_peer
from tests.support.processes import plain_environment

TOOLS = ("GNU tar", "bsdtar", "tarfile")
FORMATS = {
    "GNU tar": ("v7", "oldgnu", "gnu", "ustar", "posix"),
    "bsdtar": ("v7", "ustar", "gnutar", "pax"),
    "tarfile": ("ustar", "gnu", "pax"),
}
# Those in which no name may be longer than the 100 bytes of a header's field, nor be told in two.
SHORT_NAMES = ("v7", "ustar")

_TARFILE_FORMATS: dict[str, Literal[0, 1, 2]] = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}


def list_names(tool: str, archive: Path) -> list[str]:
    """Return the names of the members, as the tool lists them."""
    if tool == "tarfile":
        with tarfile.open(archive, "r:") as opened:
            return opened.getnames()
    return _run(tool, archive.parent, "-t", "-f", str(archive)).splitlines()


def extract(tool: str, archive: Path, folder: Path) -> dict[str, bytes]:
    """Extract an archive into a new folder, and return the content of each file that came, by its path in there."""
    folder.mkdir()
    if tool == "tarfile":
        with tarfile.open(archive, "r:") as opened:
            opened.extractall(folder, filter="data")
    else:
        _run(tool, folder, "-x", "-f", str(archive))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pack(tool: str, tar_format: str, folder: Path, names: Sequence[str], archive: Path) -> Path:
    """Pack what is in a folder: what is named, in this order, and all that is below it."""
    if tool == "tarfile":
        with tarfile.open(archive, "w", format=_TARFILE_FORMATS[tar_format]) as opened:
            for name in names:
                opened.add(folder / name, name)
    else:
        _run(tool, folder, "--format", tar_format, "-c", "-f", str(archive), *names)
    return archive


def _run(tool: str, folder: Path, *arguments: str) -> str:
    program = require_peer({"GNU tar": "tar"}.get(tool, tool))
    environment = {**plain_environment(folder), "LC_ALL": "C.UTF-8"}
    return run_peer([program, "-C", str(folder), *arguments], environment)
