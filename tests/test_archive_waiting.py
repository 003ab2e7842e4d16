"""A load that waits for a pipe which gives nothing ends when it is cancelled."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from minibox_store import Cancellation, Store
from minibox_store.errors import Cancelled
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


@pytest.mark.parametrize("buffering", [0, 8192])
@pytest.mark.parametrize("given", [b"", ARCHIVE[:700], ARCHIVE, b"\x1f\x8b\x08\x00"])
def test_a_load_from_a_silent_pipe_ends_within_a_second_of_its_cancel(
    given: bytes, buffering: int, store: Store
) -> None:
    before = snapshot(Path(store.root))
    cancellation = Cancellation()
    caught: list[Exception] = []

    def load(pipe: BinaryIO) -> None:
        try:
            store.load(pipe, cancellation=cancellation)
        except Exception as error:  # noqa: BLE001  # told below
            caught.append(error)

    with silent_pipe(given, buffering) as pipe:
        thread = threading.Thread(target=load, args=(pipe,), daemon=True)
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        cancellation.cancel()
        thread.join(SOON_SECONDS)
        assert not thread.is_alive()
    assert [type(error) for error in caught] == [Cancelled]
    assert snapshot(Path(store.root)) == before
