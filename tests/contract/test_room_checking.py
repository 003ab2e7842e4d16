"""What every RoomChecking writer promises: what cannot fit is refused beforehand, in figures, and nothing else is."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from minibox_store import _room
from minibox_store.documents import Descriptor
from minibox_store.errors import Cancelled, StoreFull
from minibox_store.protocols import ImageTarget, RoomChecking
from tests.contract.ends import TARGETS, TargetEnd
from tests.support.filled import fill, take_room
from tests.support.images import OCI_LAYER, build_image, digest_of, random_layer
from tests.support.snapshots import snapshot
from tests.support.sources import copy_into, descriptor_of, descriptors_of
from tests.support.stores import mounted
from tests.support.system_calls import OtherOs

CHECKING = [kind for kind in TARGETS if kind not in ("memory", "repository")]
HOLDING = [kind for kind in CHECKING if kind != "archive"]
FREE_BYTES = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk on which little more than a mebibyte is free once a target is there."""
    with mounted(tmp_path / "disk", "size=8m") as folder:
        yield folder


@pytest.fixture(params=CHECKING)
def end(request: pytest.FixtureRequest, disk: Path, monkeypatch: pytest.MonkeyPatch) -> TargetEnd:
    return TARGETS[request.param](disk, monkeypatch)


@pytest.fixture(params=HOLDING)
def store(request: pytest.FixtureRequest, disk: Path, monkeypatch: pytest.MonkeyPatch) -> TargetEnd:
    return TARGETS[request.param](disk, monkeypatch)


def layer(number: int, size_bytes: int) -> Descriptor:
    return descriptor_of({"mediaType": OCI_LAYER, "digest": digest_of(b"%d" % number), "size": size_bytes})


class Left(Exception):
    """How a writer is left that has written nothing."""


def weigh(target: ImageTarget, *descriptors: Descriptor, action: Callable[[], object] | None = None) -> None:
    """Ask a writer, after something was done, and leave it without having written anything."""
    with suppress(Left), target.open_writer() as writer:
        assert isinstance(writer, RoomChecking)
        if action is not None:
            action()
        writer.check_room(iter(descriptors))
        raise Left


def refused(target: ImageTarget, *descriptors: Descriptor, action: Callable[[], object] | None = None) -> StoreFull:
    """Do so, and return the refusal."""
    with pytest.raises(StoreFull) as caught:
        weigh(target, *descriptors, action=action)
    return caught.value


def test_what_fits_is_not_refused_and_what_does_not_is_in_both_figures(end: TargetEnd, disk: Path) -> None:
    take_room(disk / "ballast", all_but_bytes=FREE_BYTES)
    weigh(end.target)
    before = snapshot(disk)
    weigh(end.target, layer(1, 0), layer(2, 1), layer(3, FREE_BYTES // 2))
    error = refused(end.target, layer(1, FREE_BYTES + 1))
    assert error.needed_bytes == FREE_BYTES + 1
    assert error.free_bytes is not None
    assert FREE_BYTES // 2 < error.free_bytes <= FREE_BYTES
    assert f"{FREE_BYTES + 1} bytes are needed, and {error.free_bytes} are free" in str(error)
    assert str(disk) in str(error)
    assert snapshot(disk) == before, "a look changes nothing"


def test_what_fits_each_for_itself_and_not_together_is_refused(end: TargetEnd, disk: Path) -> None:
    take_room(disk / "ballast", all_but_bytes=FREE_BYTES)
    several = [layer(number, FREE_BYTES // 4) for number in range(5)]
    weigh(end.target, *several[:3])
    assert refused(end.target, *several).needed_bytes == FREE_BYTES // 4 * 5


def test_a_blob_that_is_named_twice_is_weighed_once(end: TargetEnd, disk: Path) -> None:
    take_room(disk / "ballast", all_but_bytes=FREE_BYTES)
    weigh(end.target, *[layer(1, FREE_BYTES // 2)] * 5)
    five = [layer(number, FREE_BYTES // 2) for number in range(5)]
    assert refused(end.target, *five).needed_bytes == 5 * (FREE_BYTES // 2)


def test_nothing_needs_no_room(end: TargetEnd, disk: Path) -> None:
    weigh(end.target, action=lambda: fill(disk / "filler"))
    (disk / "filler").unlink()
    weigh(end.target, layer(1, 0), action=lambda: fill(disk / "filler"))
    (disk / "filler").unlink()
    assert refused(end.target, layer(1, 1), action=lambda: fill(disk / "filler")).free_bytes == 0


def test_a_size_that_no_disk_has_is_refused(end: TargetEnd) -> None:
    assert refused(end.target, layer(1, (1 << 53) - 1)).needed_bytes == (1 << 53) - 1


def test_an_error_of_whoever_gives_the_blobs_passes(end: TargetEnd) -> None:
    def given() -> Iterator[Descriptor]:
        yield layer(1, 1)
        raise Cancelled

    def ask() -> None:
        with end.target.open_writer() as writer:
            assert isinstance(writer, RoomChecking)
            writer.check_room(given())

    with pytest.raises(Cancelled):
        ask()
    assert end.read_names() == {}


def test_what_the_target_holds_already_needs_no_room(store: TargetEnd, disk: Path) -> None:
    image = build_image([random_layer(FREE_BYTES, salt="a"), random_layer(FREE_BYTES, salt="b")], salt="held")
    copy_into(store.target, image, "held:1")
    take_room(disk / "ballast", all_but_bytes=FREE_BYTES // 2)
    weigh(store.target, *descriptors_of(image))
    weigh(store.target, *descriptors_of(image), layer(1, FREE_BYTES // 4))
    assert refused(store.target, *descriptors_of(image), layer(1, FREE_BYTES)).needed_bytes == FREE_BYTES


@pytest.mark.parametrize("holds", [True, False])
def test_a_blob_of_another_size_than_is_wanted_needs_all_of_its_room(store: TargetEnd, disk: Path, holds: bool) -> None:
    image = build_image([random_layer(FREE_BYTES, salt="a")], salt="held")
    if holds:
        copy_into(store.target, image, "held:1")
    other = descriptor_of({**image.document()["layers"][0], "size": 2 * FREE_BYTES})
    take_room(disk / "ballast", all_but_bytes=FREE_BYTES)
    assert refused(store.target, other).needed_bytes == 2 * FREE_BYTES


def test_a_file_system_that_says_nothing_refuses_nothing(end: TargetEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_room, "os", OtherOs(statvfs=says(blocks=0, free=0, available=0)))
    weigh(end.target, layer(1, 1 << 50))
    monkeypatch.setattr(_room, "os", OtherOs(statvfs=says(blocks=10, free=1, available=1)))
    assert refused(end.target, layer(1, 1 << 50)).free_bytes == 4096


def says(*, blocks: int, free: int, available: int) -> Callable[[object], os.statvfs_result]:
    """Return what a disk of blocks of 4096 bytes says."""
    return lambda _: os.statvfs_result((4096, 4096, blocks, free, available, 0, 0, 0, 0, 255))


@pytest.mark.parametrize(("user", "most_blocks"), [(0, 20), (1000, 10)])
def test_the_blocks_that_are_kept_for_root_are_roots_alone(
    end: TargetEnd, monkeypatch: pytest.MonkeyPatch, user: int, most_blocks: int
) -> None:
    figures = says(blocks=100, free=20, available=10)
    monkeypatch.setattr(_room, "os", OtherOs(statvfs=figures, geteuid=lambda: user))
    weigh(end.target, layer(1, most_blocks * 4096))
    error = refused(end.target, layer(1, most_blocks * 4096 + 1))
    assert (error.needed_bytes, error.free_bytes) == (most_blocks * 4096 + 1, most_blocks * 4096)
