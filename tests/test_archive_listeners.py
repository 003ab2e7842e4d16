"""What a program's own functions raise while an archive is written or read is told as it is, and leaves nothing."""

import errno
import io
import os
from pathlib import Path

import pytest

from minibox_store import BlobNotFound, ContentMismatch, Event, InvalidArchive, Store
from tests.support.archives import members_of, pack
from tests.support.images import build_image
from tests.support.snapshots import snapshot
from tests.support.stores import open_store, put

NAME = "app:1"
IMAGE = build_image()
ARCHIVE = pack(members_of(IMAGE, NAME))
ERRORS = {
    "a closed pipe": BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),
    "a full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "a text that the terminal has not": UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range(128)"),
    "no error of the system": ZeroDivisionError(),
    "an archive of its own": InvalidArchive("mine"),
    "a blob that it misses": BlobNotFound("mine"),
    "content that it did not expect": ContentMismatch("mine", "this", "that"),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    put(tmp_path / "store", IMAGE, NAME)
    return open_store(tmp_path / "store")


class Listener:
    """Raises at one of the events, and counts them all."""

    def __init__(self, error: Exception, position: int) -> None:
        self._error = error
        self._position = position
        self.calls = 0

    def __call__(self, event: Event) -> None:
        self.calls += 1
        if self.calls == self._position:
            raise self._error


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_what_a_listener_of_a_save_raises_passes_and_the_old_file_stays(
    error: Exception, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.tar").write_bytes(b"old")
    before = snapshot(tmp_path / "out")
    for position in (1, 4, 6):
        for file in (tmp_path / "out" / "a.tar", io.BytesIO()):
            with pytest.raises(type(error)) as caught:
                store.save(NAME, file, on_event=Listener(error, position))
            assert caught.value is error
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_what_a_listener_of_a_load_raises_passes_and_nothing_comes_in(
    error: Exception, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(ARCHIVE)
    before = snapshot(Path(store.root))
    for position in (1, 4, 6):
        for path in (tmp_path / "a.tar", None):
            with pytest.raises(type(error)) as caught:
                store.load(io.BytesIO(ARCHIVE) if path is None else path, on_event=Listener(error, position))
            assert caught.value is error
    assert snapshot(Path(store.root)) == before


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_what_names_raises_passes_and_nothing_comes_in(error: Exception, store: Store) -> None:
    def refuse(name: str) -> str:
        raise error

    before = snapshot(Path(store.root))
    with pytest.raises(type(error)) as caught:
        store.load(io.BytesIO(ARCHIVE), names=refuse)
    assert caught.value is error
    assert snapshot(Path(store.root)) == before
