"""What the files of blobs hold: whether it is what their names say, and whether it is on the disk."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress

from minibox_store import _files, _moving
from minibox_store.digest import Digest, Verifier
from minibox_store.errors import ContentMismatch
from minibox_store.limits import MEBIBYTE

_STEP_BYTES = 16 * MEBIBYTE


def is_content(opened: int, digest: Digest, size_bytes: int, check: Callable[[], None] = lambda: None) -> bool:
    """Whether an open file has this size and digest. One whose bytes the disk does not give has not.

    It takes as long as the file is large; what ``check`` raises, which is called now and then, ends it.
    """
    if os.fstat(opened).st_size != size_bytes:
        return False
    verifier = Verifier(digest, size_bytes)
    try:
        for start in range(0, size_bytes, _STEP_BYTES):
            check()
            _moving.hash_range(opened, start, min(_STEP_BYTES, size_bytes - start), verifier)
        verifier.finish()
    except ContentMismatch:
        return False
    except OSError as error:
        if error.errno not in _files.DAMAGE:
            raise
        return False
    return True


def sync_unfinished(opened: int, path: str) -> None:
    """Make the content of an open file durable that is to become a blob; where that fails ``path`` is removed.

    What a disk has lost looks whole for as long as the system remembers it, and the next sync finds nothing to say.
    """
    try:
        _files.sync_file(opened)
    except OSError:
        with suppress(OSError):
            if _files.is_same_file(opened, path):
                _files.discard_file(path)
        raise


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
