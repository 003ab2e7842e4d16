"""A folder as a value, so that a test can show that nothing in it has changed."""

import os
import stat
from pathlib import Path

# The locks of a store: who takes one leaves a note in it, and changes nothing by that.
# The same of its journals: that an image was read, or written again, is a note beside the store.
LOCKS = {f"ingest/{name}" for name in ("store.lock", "store.turn", "prune.lock", "life.lock", "base_layers.lock")}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return type, mode and content of everything below ``folder``, by relative path; no lock or journal counts.

    The content of a link is where it leads.
    """
    found: dict[str, tuple[int, bytes]] = {}
    for directory, subfolders, files in os.walk(folder):
        for name in [*subfolders, *files]:
            path = Path(directory, name)
            relative = path.relative_to(folder).as_posix()
            if relative not in LOCKS and relative.partition("/")[0] != "journal":
                found[relative] = (path.lstat().st_mode, _content(path))
    return found


def _content(path: Path) -> bytes:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return os.fsencode(os.readlink(path))
    return path.read_bytes() if stat.S_ISREG(mode) else b""
