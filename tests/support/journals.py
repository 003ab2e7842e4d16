"""The journals of a store, written and read by their format alone: fields between tabs, a full stop at the end."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support.invariants import read_names

HOUR = 3600.0
DAY = 24 * HOUR


def names_journal(root: Path) -> Path:
    """Return where a store notes when names were written and used."""
    return root / "journal" / "names"


def origins_journal(root: Path) -> Path:
    """Return where a store notes where blobs came from."""
    return root / "journal" / "origins"


def read_lines(path: Path) -> list[list[str]]:
    """Return the fields of each whole line of a journal; each line must be whole."""
    if not path.exists():
        return []
    lines = [line.split("\t") for line in path.read_text().split("\n")]
    assert lines[0] == [""]
    assert all(line[-1] == "." for line in lines[1:]), lines
    return [line[:-1] for line in lines[1:]]


def written_line(name: str, digest: str, seconds: float) -> str:
    """Return the line that says when a name was written."""
    return f"\nwritten\t{seconds:.3f}\t{digest}\t{name}\t."


def used_line(name: str, seconds: float) -> str:
    """Return the line that says when a name was used."""
    return f"\nused\t{seconds:.3f}\t{name}\t."


def set_ages(root: Path, written: Mapping[str, float], used: Mapping[str, float] | None = None) -> None:
    """Let a store say that names were written, and used, so many seconds ago; and index.json be as old as the oldest.

    Names that are not given keep what is known of them.
    """
    now = time.time()
    digests = read_names(root)
    lines = [written_line(name, digests[name], now - age) for name, age in written.items()]
    lines += [used_line(name, now - age) for name, age in (used or {}).items()]
    names_journal(root).parent.mkdir(mode=0o700, exist_ok=True)
    with names_journal(root).open("a") as file:
        file.write("".join(lines))
    age_index(root, max(written.values(), default=0.0))


def age_index(root: Path, age_seconds: float) -> None:
    """Let index.json be so old."""
    changed = time.time() - age_seconds
    os.utime(root / "index.json", (changed, changed))
