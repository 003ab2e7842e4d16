"""Locks between processes, and between threads of one: the only flock.

A lock dies with the process that holds it. It is good only as long as its file has its name, which is checked after
every success; and nobody waits for one without an end, and a name in the message.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from minibox_store._files import NOT_REGULAR, is_same_file, open_shared
from minibox_store.errors import StoreBusy

_NOTE = re.compile(rb"([0-9]{1,10}) ([0-9]{1,11}\.[0-9]{3,6}) (.+)\n")


def try_lock(descriptor: int, path: str, *, shared: bool = False, dir_fd: int | None = None) -> bool:
    """Take the flock of an open file if it is free, and ``path``, in the directory ``dir_fd``, is still that file.

    A lock on a file that has lost its name guards nothing: the caller opens ``path`` again then.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    if is_same_file(descriptor, path, dir_fd=dir_fd):
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def is_locked(path: str) -> bool:
    """Whether somebody holds the lock file ``path``; False where there is none."""
    descriptor = _open_to_ask(path)
    if descriptor is None:
        return False
    try:
        return not try_lock(descriptor, path, shared=True)
    finally:
        release(descriptor)


def _open_to_ask(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in NOT_REGULAR:
            raise
        return None  # nobody locks a link or a folder


@contextmanager
def holding_lock(path: str, *, doing: str, timeout_seconds: float, shared: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``, and a note in it of who does so since when, doing what.

    Raises:
        StoreBusy: when somebody else held it for all of ``timeout_seconds``, with their note.
    """
    deadline = time.monotonic() + timeout_seconds
    pause = 0.001
    while True:
        file = LockFile(open_shared(path))
        try:
            if try_lock(file.descriptor, path, shared=shared):
                break
            busy = _busy(file.descriptor, path)
        except BaseException:
            file.close()  # at once: who keeps the error keeps this frame, and with it the file
            raise
        file.close()
        if time.monotonic() >= deadline:
            raise busy
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    # To the microsecond: by it two collections are told apart, of which one follows at once upon the other.
    note = f"{os.getpid()} {time.time():.6f} {doing}\n".encode()
    try:
        _write(file.descriptor, note)
        yield
    finally:
        if shared:
            _erase(file.descriptor, note)
        file.close()


def locked_file(descriptor: int, path: str) -> "LockFile | None":
    """Return an open file with its lock, as :func:`try_lock` takes it; None where it is not to be had, and closed."""
    file = LockFile(descriptor)
    try:
        if try_lock(descriptor, path):
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


class LockFile:
    """An open lock file. It goes, and its lock, when nobody has it any more, if it was not closed before.

    The error of a signal may come between any two steps, and whoever lives on then must not keep a lock for good.
    """

    descriptor = -1  # until it has one

    def __init__(self, descriptor: int) -> None:
        self._process = os.getpid()
        self.descriptor = descriptor

    def close(self) -> None:
        """Let the lock go, and close the file; a second time, nothing."""
        if self.descriptor >= 0:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)  # once more is no matter: first this, then the rest
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)

    def __del__(self) -> None:
        if self.descriptor >= 0 and self._process == os.getpid():  # a child that was forked has no lock of its own
            self.close()


def _write(descriptor: int, note: bytes) -> None:
    try:
        os.ftruncate(descriptor, len(note))
        os.pwrite(descriptor, note, 0)
    except OSError:  # a full disk must not keep anybody from pruning it
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)  # nor may the note of whoever was here before stand for this one's


def _erase(descriptor: int, note: bytes) -> None:
    """Take away our note from a lock that others may share still: it must not stand for them."""
    with contextlib.suppress(OSError):
        if os.pread(descriptor, len(note) + 1, 0) == note:
            os.ftruncate(descriptor, 0)


def release(descriptor: int) -> None:
    """Let a lock go and close its file. A child that was forked meanwhile has the file too, and must not keep it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def holder_of(path: str) -> StoreBusy | None:
    """Return who holds the lock file ``path``, as the error for whoever waits; None where nobody does."""
    descriptor = _open_to_ask(path)
    if descriptor is None:
        return None
    try:
        return None if try_lock(descriptor, path, shared=True) else _busy(descriptor, path)
    finally:
        release(descriptor)


def last_held(path: str, known: float | None) -> float | None:
    """Return when the last lock that was let go of had been taken, by the note that it left; None where it left none.

    While somebody holds it, or it cannot be read, that is not known, and ``known`` is returned.
    """
    try:
        descriptor = _open_to_ask(path)
    except OSError:
        return known
    if descriptor is None:
        return None
    try:
        return _busy(descriptor, path).since if try_lock(descriptor, path, shared=True) else known
    finally:
        release(descriptor)


def _busy(descriptor: int, path: str) -> StoreBusy:
    found = _NOTE.fullmatch(os.pread(descriptor, 512, 0))
    if found is None:
        return StoreBusy(path, None, None, "")
    return StoreBusy(path, int(found[1]), float(found[2]), found[3].decode("utf-8", "replace"))
