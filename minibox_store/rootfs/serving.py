"""The process behind one mounted image: it opens the image, mounts it, answers the kernel, and takes the mount away.

It ends when it is told to by a signal, when somebody unmounts, and when the process that mounted is there no more,
however that ended: nothing is left of the mount then. Only what kills it outright leaves a mount without an answer.

What it is to do comes through its standard input, which stays open for as long as the mount is wanted; how it goes is
said on its standard output. Until the mount is there, what libfuse writes to the standard error belongs to the answer.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from minibox_store.errors import StoreError, StoreUnavailable
from minibox_store.rootfs.mount_talk import FAILED, MOUNTED, OPENED, MountOrder, decode_next, encode_failure
from minibox_store.rootfs.unmounting import mount_at, point_of, unmount

if TYPE_CHECKING:
    from minibox_store.rootfs.answering import ServedImage

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MOUNT_SECONDS = 30.0
_DEVICE = "/dev/fuse"
_MOST_SAID_BYTES = 4096


def serve(open_image: Callable[[Any], AbstractContextManager[tuple["ServedImage[Any]", str]]]) -> None:
    """Do what comes through the standard input, and return when the mount is gone.

    Args:
        open_image: opens what ``MountOrder.image`` says, and gives the digest of its manifest too.
    """
    said = os.dup(1)
    os.dup2(2, 1)  # whatever writes to the standard output by mistake spoils no answer
    order: MountOrder = decode_next(sys.stdin.buffer)
    ending = _Ending(order.parent_pid, said)
    try:
        _load_libfuse()
        with open_image(order.image) as (image, digest):
            os.write(said, OPENED + f" {digest}\n".encode())
            _serve_at(decode_next(sys.stdin.buffer), image, digest, ending)
    except Exception as error:  # noqa: BLE001  # whatever it was, the process that mounts has to be told
        told = error if isinstance(error, StoreError) else StoreUnavailable("the mounted image", repr(error))
        with suppress(BrokenPipeError):
            os.write(said, FAILED + b"\n" + encode_failure(told))


def _load_libfuse() -> None:
    """See that there is one before an image is opened, which may take long; and before anybody waits for the mount."""
    try:
        from minibox_store.rootfs import answering  # noqa: F401  # it is used later
    except (OSError, AttributeError) as error:  # the latter where it is another library, or far too old
        raise StoreUnavailable("the mounted image", f"libfuse 3 is needed to mount an image: {error}") from error


def _serve_at(directory: str, image: "ServedImage[Any]", digest: str, ending: "_Ending") -> None:
    from minibox_store.rootfs.answering import Answers, Session, options

    with _gathered_errors() as errors, ending.mounting(directory):

        def when_mounted() -> None:
            errors.release()
            ending.note_mounted()

        answers = Answers(image, when_mounted)
        try:
            Session(answers, directory, **options(digest, for_everybody=os.geteuid() == 0))
        except RuntimeError as error:  # libfuse says no more than its exit status
            raise StoreUnavailable(directory, errors.read() or f"libfuse failed with {error}") from error


class _Ending:
    """What ends this process: a thread that waits for a signal, and for the end of the process that mounts.

    libfuse has handlers of its own, and takes them away before it unmounts: a second signal would leave a mount without
    a server then. So none of them is used.
    """

    def __init__(self, parent_pid: int, said: int) -> None:
        self._parent_pid = parent_pid
        self._said = said
        self._woken, self._waking = os.pipe()
        os.set_blocking(self._waking, False)
        self._directory = ""
        self._before: int | None = None  # which mount the directory lies on
        self._device: int | None = None
        self._settled = threading.Event()  # whether there is a mount, or nobody is making one
        self._settled.set()
        signal.set_wakeup_fd(self._waking, warn_on_full_buffer=False)
        self._catch_signals()
        # The process that mounts may have blocked them.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        threading.Thread(target=self._wait, daemon=True).start()

    @contextmanager
    def mounting(self, directory: str) -> Iterator[None]:
        """Keep the process from ending between the mount and the first answer: nobody would unmount then."""
        self._settled.clear()
        with suppress(OSError):
            self._before = mount_at(directory)
        self._directory = directory
        try:
            yield
        finally:
            self._settled.set()

    def note_mounted(self) -> None:
        """Say that there is a mount now, for the process that mounts to be told; called by the thread that answers."""
        self._catch_signals()  # mfusepy leaves SIGINT to libfuse
        self._device = _dup_device()
        self._settled.set()
        os.write(self._waking, b"\0")

    def _catch_signals(self) -> None:
        for each in _ENDING:
            signal.signal(each, _be_woken)

    def _wait(self) -> None:
        mounted = self._wait_for_end()
        self._settled.wait(_MOUNT_SECONDS)
        with suppress(OSError, StoreError):
            place = self._place_of(mounted) if self._directory else None
            # Somebody may have unmounted it, and another one mounted there since: numbers of mounts are used again.
            if place is not None and not self._is_unmounted():
                unmount(place)
        # Somebody may have a file open, and the thread that answers would wait for that one.
        os._exit(0)

    def _is_unmounted(self) -> bool:
        """Whether the kernel asks nothing any more, as libfuse finds it out too."""
        if self._device is None:
            return False
        poll = select.poll()
        poll.register(self._device, 0)
        return any(found & select.POLLERR for _, found in poll.poll(0))

    def _place_of(self, mounted: int | None) -> str | None:
        """Return where the mount is: what is at the directory may be what somebody had mounted there, or has since."""
        there = None
        with suppress(OSError):
            there = mount_at(self._directory)
        if mounted is not None:
            return self._directory if there == mounted else point_of(mounted)
        return self._directory if there not in (None, self._before) else None

    def _wait_for_end(self) -> int | None:
        """Return, when this process has to end, which mount it has made; None where that is not known."""
        mounted = None
        poll = select.poll()
        poll.register(0, 0)  # the end of the pipe is told in any case
        poll.register(self._woken, select.POLLIN)
        with suppress(OSError):  # an old kernel has no pidfd; a fork that keeps the pipe open keeps the mount then
            poll.register(os.pidfd_open(self._parent_pid), select.POLLIN)
        while os.getppid() == self._parent_pid:
            if [self._woken] != [opened for opened, _ in poll.poll()] or os.read(self._woken, 1) != b"\0":
                break
            # Only now may anybody mount something over it: from here on this mount is known from that one.
            with suppress(OSError):
                mounted = mount_at(self._directory)
            with suppress(BrokenPipeError):
                os.write(self._said, MOUNTED + b"\n")
        return mounted


def _dup_device() -> int | None:
    """Return a further descriptor of the device by which this process answers."""
    with suppress(OSError):
        for each in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the one by which they are listed
                if os.readlink(f"/proc/self/fd/{each}") == _DEVICE:
                    return os.dup(int(each))
    return None


def _be_woken(*_: object) -> None:
    """Let a signal do nothing but wake the thread that waits for it."""


class _GatheredErrors:
    """What is written to the standard error, until that is released."""

    def __init__(self) -> None:
        self._real = os.dup(2)
        self._file: BinaryIO = os.fdopen(os.memfd_create("errors"), "r+b")
        os.dup2(self._file.fileno(), 2)

    def release(self) -> None:
        """Let the standard error be what it was."""
        os.dup2(self._real, 2)

    def read(self) -> str:
        """Return what was gathered, in one line."""
        self._file.seek(0)
        lines = self._file.read(_MOST_SAID_BYTES).decode(errors="replace").splitlines()
        return "; ".join(line.strip() for line in lines if line.strip())


@contextmanager
def _gathered_errors() -> Iterator[_GatheredErrors]:
    errors = _GatheredErrors()
    try:
        yield errors
    finally:
        errors.release()
