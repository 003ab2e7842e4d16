"""Another process that has a file open for writing, and changes it when it is told, or all the time."""

import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.forks import forked

_WAIT_SECONDS = 60.0


class Meddler:
    """The other process, from here: each call returns once it has done what it was told."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def write(self, offset: int, data: bytes) -> None:
        """Let it write over a part of the file."""
        self._tell((offset, data))

    def truncate(self, size_bytes: int) -> None:
        """Let it cut the file off."""
        self._tell((size_bytes, None))

    def _tell(self, order: tuple[int, bytes | None]) -> None:
        content = pickle.dumps(order)
        self._connection.sendall(len(content).to_bytes(8) + content)
        if self._connection.recv(1) != b"!":
            raise AssertionError("the other process has not done what it was told")


@contextmanager
def meddling_with(path: Path) -> Iterator[Meddler]:
    """Start a process that changes a file as it is told; at exit it is killed."""
    ours, theirs = socket.socketpair()
    ours.settimeout(_WAIT_SECONDS)

    def obey(ready: Callable[[], None]) -> None:
        ours.close()
        with path.open("r+b", buffering=0) as file, theirs.makefile("rb") as orders:
            ready()
            while head := orders.read(8):
                position, data = pickle.loads(orders.read(int.from_bytes(head)))
                if data is None:
                    file.truncate(position)
                else:
                    _write_all(file.fileno(), data, position)
                theirs.sendall(b"!")

    with ours, theirs, forked(obey):
        yield Meddler(ours)


@contextmanager
def changing_all_the_time(path: Path, changes: Sequence[tuple[int, bytes]]) -> Iterator[None]:
    """Let another process write each of these bytes at its place, one after the other, over and over, for the block."""

    def change(ready: Callable[[], None]) -> None:
        with path.open("r+b", buffering=0) as file:
            ready()
            while True:
                for offset, data in changes:
                    _write_all(file.fileno(), data, offset)
                    time.sleep(0.001)

    with forked(change):
        yield


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
