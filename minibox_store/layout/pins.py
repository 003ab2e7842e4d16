"""Which blobs are held though no name needs them: nobody removes those.

The transactions of living processes hold them, by links of their own; and so do the pins of what was pushed, or asked
for, as long as they are young.
"""

import os
from collections.abc import Iterator

from minibox_store.digest import Digest
from minibox_store.layout.layout import Layout
from minibox_store.layout.leftovers import is_alive
from minibox_store.layout.paths import pinned_digest
from minibox_store.layout.pushed import PinnedBlobs


def live_pins(layout: Layout, pinned: PinnedBlobs | None = None) -> dict[str, Digest]:
    """Return the blobs that are held, by what their files are called; ``pinned`` is kept by who asks again."""
    paths = layout.paths
    transactions = [entry.path for entry in iter_entries(paths.ingest) if entry.is_dir(follow_symlinks=False)]
    names = (each.name for path in transactions if is_alive(path) for each in iter_entries(path))
    held = {digest.hex: digest for name in names if (digest := pinned_digest(name)) is not None}
    # Looked at last: a push pins a blob before its transaction lets it go.
    held.update((pinned or PinnedBlobs(paths, layout.limits)).read())
    return held


def iter_entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder; nothing where there is none."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:
        return
