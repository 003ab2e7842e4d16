"""Processors stay awake while a mount is asked one thing after another, and no longer."""

import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minibox_store.rootfs.wakefulness import Wakefulness
from tests.support.forks import run_alone, run_forked
from tests.support.peers import require_peer
from tests.support.served_trees import (
    directory,
    mount_here,
    mount_point,
    mount_tree,
    mounted_as_root,
    regular,
    require_fuse,
)
from tests.support.stores import require_root
from tests.support.waiting import wait_for

LATENCY = Path("/dev/cpu_dma_latency")
NOBODY = 65534
FILES = 3000


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Path]:
    with mount_point(tmp_path / "mounted") as path:
        yield path


def require_latency_file() -> None:
    if os.geteuid() != 0 or not LATENCY.exists():
        pytest.skip("only root may say how late a processor may wake, on a kernel that asks")


def keeps_awake(pid: int) -> bool:
    """Whether a process has the file open that keeps processors awake."""
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if each.readlink() == LATENCY:
                return True
        except FileNotFoundError:
            continue
    return False


def ask(at: Path, begin: int, end: int) -> Iterator[int]:
    """Ask for files that the kernel knows nothing of yet, each of them one question."""
    for number in range(begin, end):
        yield (at / f"file{number}").stat().st_size


def test_a_run_of_questions_keeps_the_processors_awake_until_none_has_come_for_a_while(at: Path) -> None:
    require_latency_file()
    files = {f"/file{number}": regular(number + 2, b"content") for number in range(FILES)}
    with mount_tree({"/": directory(1), **files}, at) as mount:
        for begin in (0, FILES // 2):
            seen = False
            for size_bytes in ask(at, begin, begin + FILES // 2):
                assert size_bytes == len(b"content")
                if not seen and keeps_awake(mount.pid):
                    with LATENCY.open("rb") as file:  # what the kernel goes by now, of all who said something
                        latency = struct.unpack("=i", file.read(4))[0]
                    # Looking took time too: whether it was held all the while is asked after it.
                    seen = keeps_awake(mount.pid) and latency == 0
            assert seen
            wait_for(lambda: not keeps_awake(mount.pid), "the processors are still kept awake")


def test_a_question_now_and_then_lets_them_sleep(at: Path) -> None:
    require_latency_file()
    files = {f"/file{number}": regular(number + 2, b"content") for number in range(30)}
    with mount_tree({"/": directory(1), **files}, at) as mount:
        for _ in ask(at, 0, 30):
            assert not keeps_awake(mount.pid)
            time.sleep(0.03)


def test_a_mount_that_has_become_the_root_of_its_server_answers_as_before(at: Path) -> None:
    files = {f"/file{number}": regular(number + 2, b"content") for number in range(30)}

    def ask_all() -> None:
        with mounted_as_root(mount_here({"/": directory(1), **files}, at), at):
            assert sum(ask(Path("/"), 0, 30)) == 30 * len(b"content")

    require_fuse()
    require_root()
    require_peer("pivot_root")
    assert run_alone(ask_all) == 0


def test_who_may_not_say_it_answers_all_the_same() -> None:
    def run() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        wakefulness = Wakefulness()
        for _ in range(100):
            wakefulness.note_question()
        assert threading.active_count() == 1

    if LATENCY.exists() and LATENCY.stat().st_mode & (stat.S_IWOTH | stat.S_IWGRP):
        pytest.skip("everybody may say it here")
    assert run_forked(run) == 0
