"""Taking what is wrong out of its place, whether there is something right to be put there or not. It is kept."""

import os

from minibox_store import _files, _signatures
from minibox_store.digest import Digest
from minibox_store.layout.contents import is_content
from minibox_store.layout.layout import Layout
from minibox_store.layout.paths import pin_name
from minibox_store.layout.settling import is_recent


def has_content(layout: Layout, digest: Digest) -> bool | None:
    """Whether the bytes in a blob's place are those that its digest names, however many a descriptor says there are.

    None where that is not known: the file is closed to us.
    """
    try:
        opened = _files.open_regular(layout.paths.blob(digest))
    except FileNotFoundError:
        return False
    except PermissionError:
        return None
    except OSError as error:
        if error.errno not in _files.DAMAGE:
            raise
        return False
    try:
        return is_content(opened, digest, os.fstat(opened).st_size)
    finally:
        os.close(opened)


def is_settled(layout: Layout, digest: Digest) -> bool:
    """Whether a blob was last written long ago, or is gone: else another tool may be writing it at this moment."""
    return not is_recent(layout.paths.blob(digest), layout.settle_seconds)


def set_aside(layout: Layout, digest: Digest, seen: _signatures.Signature | None) -> str | None:
    """Move what lies in a blob's place to ``quarantine/``, and return where, relative to the store's root.

    Args:
        layout: the store.
        digest: of the blob.
        seen: what was found to be wrong. Another thing in its place is left alone, and nothing is returned.
    """
    path = layout.paths.blob(digest)
    if seen is None:
        return None
    with layout.store_lock("setting a wrong blob aside"):
        if _signatures.signature(path) != seen:
            return None
        aside = layout.quarantine_path(pin_name(digest))
        _files.rename_file(path, aside)
        if layout.durable:
            _files.sync_directory(os.path.dirname(aside))
            _files.sync_directory(os.path.dirname(path))
    return os.path.relpath(aside, layout.paths.root)


def keep_aside(layout: Layout, path: str, name: str) -> str | None:
    """Keep what is in the place of a file of the store in ``quarantine/``, and return where; None where nothing is.

    It is in its place still, where it can be, until another takes that in one step. Under the store lock.
    """
    if not _files.exists(path):
        return None
    aside = layout.quarantine_path(name)
    if layout.has_hard_links() and not os.path.isdir(path):
        _files.link_file(path, aside)
    else:
        _files.rename_file(path, aside)
    if layout.durable:
        _files.sync_directory(layout.paths.quarantine)
    return os.path.relpath(aside, layout.paths.root)
