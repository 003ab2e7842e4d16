"""What the files of blobs hold: whether it is what their names say, and whether it is on the disk."""

import os
from collections.abc import Iterable

from minibox_store import _files, _moving
from minibox_store.digest import Digest, Verifier
from minibox_store.errors import ContentMismatch


def is_content(opened: int, digest: Digest, size_bytes: int) -> bool:
    """Whether an open file has this size and digest. One whose bytes the disk does not give has not."""
    if os.fstat(opened).st_size != size_bytes:
        return False
    verifier = Verifier(digest, size_bytes)
    try:
        _moving.hash_range(opened, 0, size_bytes, verifier)
        verifier.finish()
    except ContentMismatch:
        return False
    except OSError as error:
        if error.errno not in _files.DAMAGE:
            raise
        return False
    return True


def sync_contents(paths: Iterable[str]) -> None:
    """Make the content of blobs that were found durable: whoever brought them may have left it to the system.

    What is gone, or no file, is left out: the commit puts there what the transaction has pinned.
    """
    for path in paths:
        try:
            _files.sync_regular(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in _files.NOT_REGULAR:
                raise
