"""Programs that run beside a test: kept logs, bounded waits, and an end by the pid that was started."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_END_SECONDS = 5.0
_POLL_SECONDS = 0.02


class ProcessFailed(Exception):
    """A program that ended, or did not answer, when it should have run; with what it wrote."""


def plain_environment(home: Path) -> dict[str, str]:
    """Return an environment without the machine's proxies, credentials and settings."""
    folders = dict.fromkeys(("HOME", "TMPDIR", "XDG_RUNTIME_DIR"), str(home))
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", **folders}


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago; who uses it must bear that it is taken again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    folder: Path,
    end_seconds: float = _END_SECONDS,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, both its outputs in ``log``; at exit it is terminated, and killed after ``end_seconds``."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        end_process(process, timeout_seconds=end_seconds)


def end_process(process: subprocess.Popen[bytes], *, timeout_seconds: float = _END_SECONDS) -> bool:
    """End a program, and return whether it obeyed SIGTERM within the time."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def wait_until(
    is_ready: Callable[[], bool], process: subprocess.Popen[bytes], *, log: Path, timeout_seconds: float = 60.0
) -> None:
    """Return once ``is_ready`` says so.

    Raises:
        ProcessFailed: when the program ends first, or the time does.
    """
    deadline = time.monotonic() + timeout_seconds
    while not is_ready():
        name = str(process.args)
        if process.poll() is not None:
            raise ProcessFailed(f"{name} ended with status {process.returncode}:\n{read_log(log)}")
        if time.monotonic() > deadline:
            raise ProcessFailed(f"{name} did not answer within {timeout_seconds} s:\n{read_log(log)}")
        time.sleep(_POLL_SECONDS)


def read_log(log: Path) -> str:
    """Return what a program has written so far."""
    return log.read_text(errors="replace") if log.exists() else ""


def children_in_session(pid: int) -> set[int]:
    """Return the processes that one has begun and that have not begun a session of their own."""
    begun = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return {each for each in begun if _session_of(each) == _session_of(pid)}


def _session_of(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)
    return None
