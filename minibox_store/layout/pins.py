"""Which blobs the transactions of living processes hold, by links of their own: nobody removes those."""

import os
from collections.abc import Iterator

from minibox_store.digest import Digest
from minibox_store.layout.leftovers import is_alive
from minibox_store.layout.paths import LayoutPaths, pinned_digest


def live_pins(paths: LayoutPaths) -> dict[str, Digest]:
    """Return the blobs that the transactions of living processes hold, by what their files are called."""
    transactions = [entry.path for entry in iter_entries(paths.ingest) if entry.is_dir(follow_symlinks=False)]
    names = (each.name for path in transactions if is_alive(path) for each in iter_entries(path))
    return {digest.hex: digest for name in names if (digest := pinned_digest(name)) is not None}


def iter_entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder; nothing where there is none."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:
        return
