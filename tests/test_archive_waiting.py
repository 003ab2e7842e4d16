"""A load that waits for a pipe, or a socket, which gives nothing ends when it is cancelled."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from minibox_store import Cancellation, Store
from minibox_store.errors import Cancelled, InvalidArgument, StoreUnavailable
from tests.support.archives import members_of, pack
from tests.support.images import build_image
from tests.support.loads import store_with_something
from tests.support.snapshots import snapshot
from tests.support.waiting import SOON_SECONDS

ARCHIVE = pack(members_of(build_image(), "app:1"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_with_something(tmp_path / "store")


@contextmanager
def silent_pipe(given: bytes, buffering: int) -> Iterator[BinaryIO]:
    """Open a pipe that has these bytes, whose other end stays open."""
    reading, writing = os.pipe()
    os.write(writing, given)
    with open(writing, "wb"), open(reading, "rb", buffering=buffering) as pipe:
        yield pipe


@contextmanager
def silent_peer(given: bytes, buffering: int, timeout_seconds: float | None = None) -> Iterator[BinaryIO]:
    """Open a socket as a file whose peer gave these bytes, and stays there."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(given)
        here.settimeout(timeout_seconds)
        file: Any = here.makefile("rb", buffering=buffering)
        with file:
            yield file


def silent_patient_peer(given: bytes, buffering: int) -> AbstractContextManager[BinaryIO]:
    return silent_peer(given, buffering, 100.0)


@pytest.mark.parametrize("silent", [silent_pipe, silent_peer, silent_patient_peer])
@pytest.mark.parametrize("buffering", [0, 8192])
@pytest.mark.parametrize("given", [b"", ARCHIVE[:700], ARCHIVE, b"\x1f\x8b\x08\x00"])
def test_a_load_from_who_gives_nothing_ends_within_a_second_of_its_cancel(
    given: bytes, buffering: int, silent: Callable[[bytes, int], AbstractContextManager[BinaryIO]], store: Store
) -> None:
    before = snapshot(Path(store.root))
    cancellation = Cancellation()
    caught: list[Exception] = []

    def load(file: BinaryIO) -> None:
        try:
            store.load(file, cancellation=cancellation)
        except Exception as error:  # noqa: BLE001  # told below
            caught.append(error)

    with silent(given, buffering) as file:
        thread = threading.Thread(target=load, args=(file,), daemon=True)
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        cancellation.cancel()
        thread.join(SOON_SECONDS)
        assert not thread.is_alive()
    assert [type(error) for error in caught] == [Cancelled]
    assert snapshot(Path(store.root)) == before


@pytest.mark.parametrize("buffering", [0, 8192])
def test_the_timeout_of_a_socket_holds(buffering: int, store: Store) -> None:
    with silent_peer(ARCHIVE, buffering, 0.1) as file, pytest.raises(StoreUnavailable, match="timed out"):
        store.load(file)


@pytest.mark.parametrize("buffering", [0, 8192])
def test_a_socket_that_does_not_wait_is_told_so(buffering: int, store: Store) -> None:
    with silent_peer(b"", buffering, 0) as file, pytest.raises(InvalidArgument, match="does not wait"):
        store.load(file)


def test_a_socket_that_only_takes_is_told_so(store: Store) -> None:
    here, there = socket.socketpair()
    file: Any = here.makefile("wb", buffering=0)
    with here, there, file, pytest.raises(InvalidArgument, match="not open for reading"):
        store.load(file)


@pytest.mark.parametrize("buffering", [8192, 1 << 20])
@pytest.mark.parametrize("timeout_seconds", [None, 100.0])
def test_what_was_read_ahead_of_a_socket_is_loaded_too(
    buffering: int, timeout_seconds: float | None, store: Store
) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(timeout_seconds)
        there.sendall(ARCHIVE)
        there.shutdown(socket.SHUT_WR)
        file: Any = here.makefile("rb", buffering=buffering)
        with file:
            assert file.peek(1)
            (image,) = store.load(file)
    assert image.name == "app:1"
