"""A file that takes the room of another one, which is given up for it: nothing else is to be had on a full disk.

It takes the very inode: XFS makes no new one there, however many small files have been removed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from minibox_store import _files, _moving


@contextmanager
def replacing_file_by(spare: str | None, path: str, *, folder: str, mode: int, durable: bool) -> Iterator[int]:
    """Do as :func:`minibox_store._files.replacing_file`, in place of the file ``spare``, unless that is None.

    Once it is written to, the spare file is gone, with an error too. Who has it open, and takes no lock, may read
    half of what it becomes.

    It lies in ``folder`` until it is whole: in its own, XFS may have no room for one name more before one goes.
    """
    if spare is None:
        with _files.replacing_file(path, mode=mode, durable=durable) as opened:
            yield opened
        return
    temporary = _files.temporary_path(os.path.join(folder, os.path.basename(path)))
    with _files.opened_directory(os.path.dirname(path)) if durable else nullcontext() as directory:
        _files.rename_file(spare, temporary)
        try:
            # Not before it is ours alone: another process may put its listing in the place of ours at any time.
            opened = _moving.open_to_extend(temporary)
            try:
                if durable:  # its own name must not come back with what it becomes
                    _files.sync_directory(os.path.dirname(spare))
                _files.truncate_file(opened)
                yield opened
                _files.set_mode(opened, mode)
                if durable:
                    _files.sync_file(opened)
                _files.rename_file(temporary, path)
            finally:
                os.close(opened)
        except BaseException:
            with suppress(OSError):  # what went wrong first is what is told
                _files.discard_file(temporary)
            raise
        if directory is not None:
            _files.sync_file(directory)
