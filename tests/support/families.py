"""A process and all that it began: which there are, and how much memory they have together."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

_PAUSE_SECONDS = 0.1


def descendants(pid: int) -> list[int]:
    """Return the processes that a process began, and that those began; nothing of one that has ended."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                found += [int(child), *descendants(int(child))]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def lives(pid: int) -> bool:
    """Whether a process has not ended: a thread of it may close files though the first one has ended."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(_runs(f"/proc/{pid}/task/{thread}/stat") for thread in threads)


def _runs(path: str) -> bool:
    try:
        return Path(path).read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_none_lives(pids: list[int], timeout_seconds: float = 60.0) -> None:
    """Return once all of these processes have ended."""
    deadline = time.monotonic() + timeout_seconds
    while left := [pid for pid in pids if lives(pid)]:
        assert time.monotonic() < deadline, f"{left} have not ended"
        time.sleep(0.005)


@attrs.define
class FamilyMemory:
    """How much memory a process and its descendants have had together at once; what several share counts once."""

    peak_bytes: int = 0


@contextmanager
def watching_memory(pid: int) -> Iterator[FamilyMemory]:
    """Look ten times a second, as long as the block runs, and at its end."""
    memory, over = FamilyMemory(), threading.Event()

    def look() -> None:
        while True:
            is_last = over.wait(_PAUSE_SECONDS)
            memory.peak_bytes = max(memory.peak_bytes, sum(map(_share_bytes, [pid, *descendants(pid)])))
            if is_last:
                return

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield memory
    finally:
        over.set()
        watcher.join()


def _share_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
