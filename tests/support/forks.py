"""Other processes that work on the same store: forks of the test, ended by the pid that was started, and in time."""

import ctypes
import os
import select
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minibox_store import preload

RAISED = 99

_WAIT_SECONDS = 60.0
_NOT_PERMITTED = 98
_NOBODY = 65534
_PARENT_DEATH_SIGNAL = 1
_NEW_NAMESPACES = 0x20000000 | 0x00020000  # CLONE_NEWPID | CLONE_NEWNS
_NEW_USERS = 0x10000000  # CLONE_NEWUSER
_CAPABILITY_VERSION = 0x20080522
_PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE


def run_forked(function: Callable[[], None], *, timeout_seconds: float = _WAIT_SECONDS) -> int:
    """Run a function in a process of its own; return its exit status, RAISED after an error, minus a signal's number.

    Raises:
        AssertionError: when it does not end in time; it has been killed then.
    """
    pid = _fork(function)
    deadline = time.monotonic() + timeout_seconds
    pause = 0.0005
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"a process did not end within {timeout_seconds} s")


def run_as_user(function: Callable[[Path], None]) -> int:
    """Do as :func:`run_forked` as a user who is not root, with a folder that this user may write to. Takes root."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)

        def run() -> None:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
            function(Path(name))

        preload()  # the user may not read where the library lies
        return run_forked(run)


@contextmanager
def forked(function: Callable[[Callable[[], None]], None]) -> Iterator[int]:
    """Run a function in a process of its own, and yield its pid once it has called the function that it is given.

    At exit the process is killed, if it is there still.
    """
    reading, writing = os.pipe()

    def run() -> None:
        os.close(reading)
        function(lambda: _tell(writing))

    pid = _fork(run)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], _WAIT_SECONDS)
        if not ready or os.read(reading, 1) != b"!":
            raise AssertionError("the process did not come to where it should")
        yield pid
    finally:
        os.close(reading)
        kill(pid)


def run_alone(function: Callable[[], None], *, timeout_seconds: float = _WAIT_SECONDS) -> int:
    """Do as :func:`run_forked`, in a process that sees no others: not even those that it might not look into.

    Who is not root is the same user there, and may do no more than elsewhere.

    Where that is not permitted the test is skipped; where MINIBOX_REQUIRE_PEERS is 1 it fails.
    """
    uid, gid = os.geteuid(), os.getegid()

    def begin() -> None:
        os._exit(_end_of(_fork(function_alone)))

    def function_alone() -> None:
        if _libc().mount(b"proc", b"/proc", b"proc", 0, None):
            os._exit(_NOT_PERMITTED)
        if uid:
            _give_up_capabilities()
        function()

    def separate() -> None:
        if _libc().unshare(_NEW_NAMESPACES | (_NEW_USERS if uid else 0)):
            os._exit(_NOT_PERMITTED)
        if uid:
            _be_as_outside(uid, gid)
        if _libc().mount(b"none", b"/", None, _PRIVATE, None):
            os._exit(_NOT_PERMITTED)
        begin()

    status = run_forked(separate, timeout_seconds=timeout_seconds)
    if status == _NOT_PERMITTED:
        not_possible("a process may not have namespaces of its own here")
    return status


def kill(pid: int) -> None:
    """Kill a process that was started here, if it is there still, and return when it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def sleep_for_ever() -> None:
    """Do nothing until somebody ends the process; at last it ends itself."""
    time.sleep(4 * _WAIT_SECONDS)


def not_possible(reason: str) -> None:
    """Skip the test, or fail it where MINIBOX_REQUIRE_PEERS is 1: a run that promises all tests must not leave any."""
    if os.environ.get("MINIBOX_REQUIRE_PEERS") == "1":
        pytest.fail(f"{reason}, and MINIBOX_REQUIRE_PEERS=1 wants it", pytrace=False)
    pytest.skip(reason)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _be_as_outside(uid: int, gid: int) -> None:
    """Have the same user and group in a new namespace of users as outside."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_text(text)


def _give_up_capabilities() -> None:
    """Let the first process of a namespace of users pass no mode of a file, as outside."""
    assert _libc().capset(struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)) == 0


def _end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _tell(writing: int) -> None:
    os.write(writing, b"!")


def _fork(function: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        # What is forked here starts threads of its own at most, and ends without a word to those of its parent.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    # Whoever ends the parent, in whatever way, ends this one too: nothing outlives the test that wants it.
    _libc().prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    status = RAISED
    try:
        function()
        status = 0
    except BaseException:  # noqa: BLE001  # whatever it was, this process must not go on as a second test run
        traceback.print_exc()
    finally:
        os._exit(status)
