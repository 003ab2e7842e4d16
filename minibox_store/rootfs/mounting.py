"""Mounting an image: the process that serves it is begun, waited for, and ended here.

The server is a process of its own, so that no thread and no lock of the program stands between the kernel and its
answers. It is this Python with this library, whatever the environment says, and never begun through a shell. A pipe to
it is kept open for as long as the mount is wanted: when this process ends, however it does, the mount goes.
"""

import contextlib
import importlib.util
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from minibox_store import _locks
from minibox_store._file_errors import file_errors, path_errors
from minibox_store._trees import OPEN_DIRECTORY
from minibox_store.errors import InvalidPath, MissingLibrary, StoreBusy, StoreError, StoreUnavailable
from minibox_store.rootfs.mount_talk import FAILED, MOUNTED, OPENED, MountOrder, decode_failure, encode
from minibox_store.rootfs.unmounting import mount_at, unmount

_LOGGER = logging.getLogger(__name__)
_MOUNT_SECONDS = 30.0
_PAUSE_SECONDS = 0.01
_END_SECONDS = 10.0
_LONGEST_LINE_BYTES = 256
_MOST_FAILURE_BYTES = 1024 * 1024
_OWN_FOLDER = os.path.abspath(Path(__file__).parents[2])  # of a zip file it may have been relative when that was found
# The server must not find its modules in the working directory, nor by what the environment says.
_BEGIN = "import sys; sys.path[:] = sys.argv[2:]; import importlib; importlib.import_module(sys.argv[1]).main()"


class Mount:
    """A mounted image; use it as a context manager, or close it.

    Attributes:
        directory: where the image is, as an absolute path.
        digest: of the manifest, as text.
        pid: of the server.
        was_busy: once it is closed: whether somebody still used the mount then.
    """

    def __init__(self, directory: str, digest: str, server: "_Server", *, remove_directory: bool) -> None:
        self.directory = directory
        self.digest = digest
        self.pid = server.process.pid
        self.was_busy = False
        self._server = server
        self._remove_directory = remove_directory
        self._mount = mount_at(directory)
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = self._is_unmounted = False

    def close(self) -> None:
        """Unmount, and end the server.

        Somebody may have a file open in it, or work in it: then the directory is free all the same, what they have open
        gives errors from now on, ``was_busy`` is True, and the log tells.

        Raises:
            StoreUnavailable: when it could not be unmounted.

        Guarantees: idempotent; the server is no more when this returns. In a fork of the process that mounted it does
            nothing.
        """
        with self._lock:
            if self._closed or os.getpid() != self._owner_pid:
                return
            self._closed = True
            try:
                self._unmount()
            finally:
                self._server.end()
                with contextlib.suppress(OSError):
                    # Once it was unmounted, another one may have its number.
                    if not self._is_unmounted and self._is_there():
                        unmount(self.directory)  # it had to be killed
                if self._remove_directory:
                    _remove_place(self.directory)

    def __enter__(self) -> "Mount":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _unmount(self) -> None:
        with file_errors(self.directory):
            if self._is_there():
                self.was_busy = unmount(self.directory)
                self._is_unmounted = True
        if self.was_busy:
            _LOGGER.warning("%s is unmounted though it is in use", self.directory)

    def _is_there(self) -> bool:
        """Whether what is at the directory is this mount, and not what somebody mounted over it, or after it."""
        with contextlib.suppress(OSError):
            return mount_at(self.directory) == self._mount
        return False


def mount_image(directory: str | None, *, entry: str, image: Any, place: Callable[[str], str]) -> Mount:
    """Mount an image, and return when it answers.

    Args:
        directory: an absolute path of an empty directory; where None, it is the one that ``place`` makes.
        entry: the module whose ``main`` calls :func:`minibox_store.rootfs.serving.serve`.
        image: what the server opens; it has to be picklable.
        place: given the digest of the manifest, makes a directory, and returns its path.

    Raises:
        InvalidPath: when the directory is none, is a link, is not empty, or has a mount already.
        MissingLibrary: when mfusepy is not installed.
        StoreUnavailable: when it cannot be mounted, with the reason.
        StoreError: what opening the image raises.
    """
    if importlib.util.find_spec("mfusepy") is None:
        raise MissingLibrary("mounting an image", "fuse")
    if directory is not None:
        _check_directory(directory)
    server = _Server(entry, image, directory or "the mount")
    try:
        digest = server.wait_until(OPENED, timeout_seconds=None)
        find = partial(place, digest) if directory is None else partial(_checked, directory)
        with _mounting_alone(find) as at:
            return _mount_at(at, digest, server, remove_directory=directory is None)
    except BaseException:
        server.end()
        raise


def _mount_at(directory: str, digest: str, server: "_Server", *, remove_directory: bool) -> Mount:
    below = mount_at(directory)
    try:
        before = os.stat(directory).st_dev
        server.send(directory)
        server.wait_until(MOUNTED, timeout_seconds=_MOUNT_SECONDS)
        if os.stat(directory).st_dev == before:
            raise StoreUnavailable(directory, "it was mounted somewhere else")
        return Mount(directory, digest, server, remove_directory=remove_directory)
    except BaseException:
        server.end()
        _leave_nothing(directory, below, remove_directory=remove_directory)
        raise


def _checked(directory: str) -> str:
    _check_directory(directory)
    return directory


@contextlib.contextmanager
def _mounting_alone(find: Callable[[], str]) -> Iterator[str]:
    """Yield a directory at which nobody else mounts meanwhile: each would take the mount of the other for its own.

    Args:
        find: returns it; who closes a mount may have removed what it had returned.

    Raises:
        InvalidPath: when it has a mount already, or by then; StoreBusy when that cannot be waited for.
    """
    deadline = time.monotonic() + _MOUNT_SECONDS
    while True:
        directory = find()
        with _opened_if_there(directory) as opened:
            is_alone = opened is not None
            with contextlib.suppress(OSError):  # not every file system locks directories
                is_alone = opened is not None and _locks.try_lock(opened, directory)
            if is_alone:
                _check_directory(directory)
                yield directory
                return
        if time.monotonic() >= deadline:
            raise StoreBusy(directory, None, None, "mounting an image")
        time.sleep(_PAUSE_SECONDS)


@contextlib.contextmanager
def _opened_if_there(directory: str) -> Iterator[int | None]:
    opened = None
    with path_errors(directory), contextlib.suppress(FileNotFoundError):
        opened = os.open(directory, OPEN_DIRECTORY)
    try:
        yield opened
    finally:
        if opened is not None:
            _locks.release(opened)


def _leave_nothing(directory: str, below: int, *, remove_directory: bool) -> None:
    """Take away what a server that did not get far has left, which was killed, or died."""
    with contextlib.suppress(OSError):
        if mount_at(directory) != below:
            unmount(directory)
    if remove_directory:
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _remove_place(directory: str) -> None:
    """Remove a directory that was made for a mount, unless somebody is mounting there again."""
    with contextlib.suppress(OSError, StoreError), _opened_if_there(directory) as opened:
        if opened is not None and _locks.try_lock(opened, directory):
            os.rmdir(directory)


class _Server:
    """The process that serves one mount."""

    def __init__(self, entry: str, image: Any, where: str) -> None:
        self._where = where
        if not sys.executable:
            raise StoreUnavailable(where, "this program does not know its Python, and that has to serve it")
        command = [sys.executable, "-I", "-c", _BEGIN, entry, *_module_folders()]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", start_new_session=True, bufsize=0
        )
        self.send(MountOrder(parent_pid=os.getpid(), image=image))

    def send(self, what: Any) -> None:
        """Tell the server something; that it is there no more shows when it is listened to."""
        assert self.process.stdin is not None
        rest = memoryview(encode(what))
        with contextlib.suppress(BrokenPipeError):
            while rest:
                rest = rest[self.process.stdin.write(rest) :]

    def wait_until(self, step: bytes, *, timeout_seconds: float | None) -> str:
        """Return what the server says behind the name of a step.

        Raises:
            StoreError: what it fails with; StoreUnavailable when it ends without a word, or does not come so far.
        """
        said, _, rest = self._read_line(timeout_seconds).partition(b" ")
        if said == step:
            return rest.decode()
        if said == FAILED:
            raise self._read_failure()
        if not said:
            raise StoreUnavailable(self._where, f"the server of the mount ended with status {self._end_status()}")
        raise StoreUnavailable(self._where, f"the server of the mount says {said!r}")

    def end(self) -> None:
        """End the server, and return when it is no more; one that does not end in time is killed."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read_line(self, timeout_seconds: float | None) -> bytes:
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        line = b""
        while len(line) < _LONGEST_LINE_BYTES:
            # A line is written in one piece: what has begun comes to its end, or to that of the server.
            if not poll.poll(None if timeout_seconds is None else timeout_seconds * 1000):
                raise StoreUnavailable(self._where, f"its server did not answer within {timeout_seconds} s")
            read = self.process.stdout.read(1)
            if not read or read == b"\n":
                break
            line += read
        return line

    def _read_failure(self) -> StoreError:
        assert self.process.stdout is not None
        content = b""
        while len(content) < _MOST_FAILURE_BYTES and (piece := self.process.stdout.read(_MOST_FAILURE_BYTES)):
            content += piece
        try:
            return decode_failure(content)
        except ValueError:
            return StoreUnavailable(self._where, "the server of the mount failed, and does not say clearly of what")

    def _end_status(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(_END_SECONDS)
        return None


def _module_folders() -> list[str]:
    """Return where the server finds modules: where this process does, but nowhere that is relative to a folder."""
    folders = [folder for folder in sys.path if os.path.isabs(folder)]
    return folders if _OWN_FOLDER in folders else [_OWN_FOLDER, *folders]


def _check_directory(directory: str) -> None:
    def is_mounted() -> bool:
        return mount_at(directory) != mount_at(os.path.dirname(directory))

    with path_errors(directory):
        if os.path.islink(directory):
            raise InvalidPath(directory, "it is a symbolic link")
        was_mounted = is_mounted()
        with os.scandir(directory) as entries:
            is_empty = next(entries, None) is None
        # An empty one too: what somebody has mounted there is not to be hidden, nor taken for this mount.
        if was_mounted or is_mounted():
            raise InvalidPath(directory, "something is mounted there already")
        if not is_empty:
            raise InvalidPath(directory, "it is not empty")
