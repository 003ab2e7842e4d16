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
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, BinaryIO

import mfusepy  # type: ignore[import-untyped]  # it has annotations, and does not say so

from minibox_store.errors import StoreError, StoreUnavailable
from minibox_store.rootfs.answering import Answers, ServedImage, Session, options
from minibox_store.rootfs.mount_talk import FAILED, MOUNTED, OPENED, MountOrder, decode_next, encode_failure

_ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_AGAIN_SECONDS = 0.1
_MOST_SAID_BYTES = 4096


def serve(open_image: Callable[[Any], AbstractContextManager[tuple[ServedImage[Any], str]]]) -> None:
    """Do what comes through the standard input, and return when the mount is gone.

    Args:
        open_image: opens what ``MountOrder.image`` says, and gives the digest of its manifest too.
    """
    said = os.dup(1)
    os.dup2(2, 1)  # whatever writes to the standard output by mistake spoils no answer
    order: MountOrder = decode_next(sys.stdin.buffer)
    for each in _ENDING:
        signal.signal(each, signal.SIG_DFL)  # the process that mounts may have ignored them
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    threading.Thread(target=_end_after, args=(order.parent_pid,), daemon=True).start()
    try:
        with open_image(order.image) as (image, digest):
            os.write(said, OPENED + f" {digest}\n".encode())
            _serve_at(decode_next(sys.stdin.buffer), image, digest, said)
    except Exception as error:  # noqa: BLE001  # whatever it was, the process that mounts has to be told
        told = error if isinstance(error, StoreError) else StoreUnavailable("the mounted image", repr(error))
        with suppress(BrokenPipeError):
            os.write(said, FAILED + b"\n" + encode_failure(told))


def _serve_at(directory: str, image: ServedImage[Any], digest: str, said: int) -> None:
    if mfusepy.fuse_version_major != 3:
        raise StoreUnavailable(directory, "libfuse 3 is needed to mount an image")
    with _gathered_errors() as errors:
        # Between the mount and libfuse's own handlers a signal would leave a mount that nobody answers for.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

        def when_mounted() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            errors.release()
            with suppress(BrokenPipeError):
                os.write(said, MOUNTED + b"\n")

        answers = Answers(image, when_mounted)
        try:
            Session(answers, directory, **options(digest, for_everybody=os.geteuid() == 0))
        except RuntimeError as error:  # libfuse says no more than its exit status
            raise StoreUnavailable(directory, errors.read() or f"libfuse failed with {error}") from error


def _end_after(parent_pid: int) -> None:
    """Wait until the process that mounts does not want the mount any more, or is no more, and end this one then."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # they are for the thread that answers the kernel
    poll = select.poll()
    poll.register(0, 0)  # the end of the pipe is told in any case
    with suppress(OSError):  # an old kernel has no pidfd; a fork that keeps the pipe open keeps the mount then
        poll.register(os.pidfd_open(parent_pid), select.POLLIN)
    if os.getppid() == parent_pid:
        poll.poll()
    while True:
        # A signal that comes just before the next wait for the kernel would not end that.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_AGAIN_SECONDS)


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
