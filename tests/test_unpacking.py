"""An image unpacked by the store: verified, seen whole or never, and at its place alone."""

import errno
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from minibox_store import (
    Cancellation,
    Cancelled,
    ContentMismatch,
    Event,
    ImageNotFound,
    IncompleteImage,
    InvalidArchive,
    InvalidArgument,
    InvalidDocument,
    InvalidPath,
    Platform,
    PlatformNotFound,
    Store,
    StoreFull,
    StoreUnavailable,
    UnpackingLayer,
    UnpackLimits,
    UnpackPolicy,
    render_line,
)
from minibox_store.rootfs.unpacking import growing_tree
from tests.support.forks import run_forked
from tests.support.hard_layers import image_of, member
from tests.support.images import OCI_LAYER, Layer, build_image, build_index, digest_of
from tests.support.invariants import open_files
from tests.support.layer_trees import file, folder, hard_link, layer_of, link, listing, tar_of
from tests.support.os_proxy import replaced_os
from tests.support.snapshots import snapshot
from tests.support.stores import blob, bound, mounted, open_store, put, require_root, rot

IMAGE = build_image(
    [
        layer_of(folder("etc", 0o700), file("etc/a", b"1"), file("etc/b", b"22"), link("l", "etc")),
        layer_of(file("etc/.wh.a"), file("l/c", b"333"), hard_link("d", "etc/c")),
    ]
)
TREE = {"etc": "d", "etc/b": "22", "etc/c": "333", "l": "-> etc", "d": "333"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with one image of two layers. Whatever a test does, it leaves nothing open, there or beside it."""
    put(tmp_path / "store", IMAGE, "a:1")
    yield open_store(tmp_path / "store")
    assert not [path for path in open_files(tmp_path.parent) if path.startswith(os.fspath(tmp_path))]


def temporaries(around: Path) -> list[str]:
    return [name for name in os.listdir(around) if name.endswith(".tmp")]


def test_an_image_is_unpacked_and_told_of(store: Store, tmp_path: Path) -> None:
    seen: list[Event] = []
    report = store.unpack("a:1", tmp_path / "out", on_event=seen.append)
    assert listing(tmp_path / "out") == TREE
    assert attrs.asdict(report) == {
        "directory": str(tmp_path / "out"),
        "manifest_digest": IMAGE.digest,
        "config_digest": IMAGE.config_digest,
        "layers": 2,
        "entries": 7,
        "size_bytes": 6,
        "left_out": (),
        "left_out_count": 0,
    }
    lines = [render_line(event) for event in seen]
    assert lines == ["[pull] extracting layer 1/2...", "[pull] extracting layer 2/2..."]
    assert [event.descriptor.digest.hex for event in seen if isinstance(event, UnpackingLayer)] == [
        digest.removeprefix("sha256:") for digest in IMAGE.layer_digests
    ]
    assert temporaries(tmp_path) == []


def test_an_empty_directory_is_a_place_for_a_tree(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o700)
    store.unpack("a:1", tmp_path / "out")
    assert listing(tmp_path / "out") == TREE
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_a_directory_with_something_in_it_is_replaced_when_that_is_asked_for(store: Store, tmp_path: Path) -> None:
    old = tmp_path / "out"
    (old / "locked").mkdir(parents=True)
    (old / "locked" / "f").write_text("old")
    (old / "locked").chmod(0)
    before = snapshot(old)
    with pytest.raises(InvalidPath, match="not empty"):
        store.unpack("a:1", old)
    assert snapshot(old) == before
    store.unpack("a:1", old, replace=True)
    assert listing(old) == TREE
    assert temporaries(tmp_path) == []


def test_a_directory_with_something_in_it_is_refused_before_anything_is_begun(tmp_path: Path) -> None:
    (tmp_path / "out" / "mine").mkdir(parents=True)
    with pytest.raises(InvalidPath, match="not empty"), growing_tree(str(tmp_path / "out")):
        raise AssertionError("it was begun")


def test_what_fills_the_place_meanwhile_is_not_replaced(store: Store, tmp_path: Path) -> None:
    def fill(_: Event) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(InvalidPath, match="not empty"):
        store.unpack("a:1", tmp_path / "out", on_event=fill)
    assert listing(tmp_path / "out") == {"mine": "mine"}
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("what", ["file", "link", "link to a directory", "link to nothing"])
def test_what_is_no_directory_is_never_replaced(store: Store, tmp_path: Path, what: str, replace: bool) -> None:
    out = tmp_path / "out"
    (tmp_path / "there").mkdir()
    if what == "file":
        out.write_text("mine")
    else:
        out.symlink_to({"link": "out", "link to a directory": "there", "link to nothing": "missing"}[what])
    before = snapshot(tmp_path / "there"), os.lstat(out)
    with pytest.raises(InvalidPath, match="no directory"):
        store.unpack("a:1", out, replace=replace)
    assert (snapshot(tmp_path / "there"), os.lstat(out)) == before


@pytest.mark.parametrize("place", ["missing/out", "file/out", "/", "n\0ul", "x" * 256])
def test_a_place_that_cannot_be_is_refused(store: Store, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidPath):
        store.unpack("a:1", tmp_path / place if place != "n\0ul" else f"{tmp_path}/{place}")


def test_a_long_name_is_a_place_too(store: Store, tmp_path: Path) -> None:
    store.unpack("a:1", tmp_path / ("x" * 255))
    assert listing(tmp_path / ("x" * 255)) == TREE


def test_a_file_system_without_exchange_gets_its_tree_all_the_same(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    monkeypatch.setattr("minibox_store._files._RENAME_EXCHANGE", 1 << 20)  # which no system knows
    store.unpack("a:1", tmp_path / "out", replace=True)
    assert (listing(tmp_path / "out"), temporaries(tmp_path)) == (TREE, [])


def test_what_is_mounted_in_the_old_tree_is_left_alone(store: Store, tmp_path: Path) -> None:
    require_root()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious").write_text("precious")
    (tmp_path / "out" / "a").mkdir(parents=True)
    with bound(mine, tmp_path / "out" / "mnt"):
        store.unpack("a:1", tmp_path / "out", replace=True)
        assert (mine / "precious").read_text() == "precious"
        assert listing(tmp_path / "out") == TREE
        [left] = temporaries(tmp_path)
        # It went with the tree that it was in. Put back, so that it ends where it began:
        (tmp_path / "out").rename(tmp_path / "new")
        (tmp_path / left).rename(tmp_path / "out")
    store.unpack("a:1", tmp_path / "out", replace=True)
    assert (mine / "precious").read_text() == "precious"
    assert (listing(tmp_path / "out"), temporaries(tmp_path)) == (TREE, [])


def test_a_policy_that_nobody_knows_is_refused() -> None:
    for options in ({"owners": "sett"}, {"owners": ""}, {"privileges": "none"}):
        with pytest.raises(InvalidArgument, match="neither"):
            UnpackPolicy(**options)  # type: ignore[arg-type]  # a caller without types may write this


# ---- what goes wrong


def damaged_layer(tmp_path: Path) -> None:
    rot(blob(tmp_path / "store", IMAGE.layer_digests[1]))


def missing_layer(tmp_path: Path) -> None:
    blob(tmp_path / "store", IMAGE.layer_digests[1]).unlink()


@pytest.mark.parametrize(
    ("harm", "error"),
    [(damaged_layer, (ContentMismatch, InvalidArchive)), (missing_layer, IncompleteImage)],
)
def test_an_image_that_is_damaged_leaves_the_old_tree(
    store: Store, tmp_path: Path, harm: Callable[[Path], None], error: type[Exception]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    harm(tmp_path)
    with pytest.raises(error):
        store.unpack("a:1", tmp_path / "out", replace=True)
    assert (listing(tmp_path / "out"), temporaries(tmp_path)) == ({"old": "old"}, [])


def test_a_blob_that_the_disk_does_not_give_is_told_and_not_the_place(tmp_path: Path) -> None:
    image = build_image([layer_of(file("f", b"1" * 100_000))])
    put(tmp_path / "store", image, "a:1")
    with replaced_os() as system:
        for name in ("read", "pread", "readv", "preadv"):
            system.fail(name, errno.EIO, path=image.layer_digests[0].removeprefix("sha256:"))
        with pytest.raises(StoreUnavailable, match=f"layer {image.layer_digests[0]}: Input/output error"):
            open_store(tmp_path / "store").unpack("a:1", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["store"]


def test_a_layer_that_is_another_than_the_config_promises_is_refused(tmp_path: Path) -> None:
    tar = tar_of([file("f", b"1")])
    wrong = Layer(content=tar, media_type=OCI_LAYER, diff_id=digest_of(b"another"))
    put(tmp_path / "store", build_image([wrong]), "a:1")
    with pytest.raises(ContentMismatch, match="decompressed"):
        open_store(tmp_path / "store").unpack("a:1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_of_another_number_of_layers_is_refused(tmp_path: Path) -> None:
    rootfs = {"type": "layers", "diff_ids": [digest_of(b"")]}
    put(tmp_path / "store", build_image(config={"rootfs": rootfs}), "a:1")
    with pytest.raises(InvalidDocument, match=r"rootfs.diff_ids: there are 1 for 2 layers"):
        open_store(tmp_path / "store").unpack("a:1", tmp_path / "out")


def test_an_attestation_is_no_image_of_files(tmp_path: Path) -> None:
    index = build_index([build_image()], attestations=True)
    attestation = next(each["digest"] for each in index.document()["manifests"] if "annotations" in each)
    put(tmp_path / "store", index, "a:1")
    store = open_store(tmp_path / "store")
    assert store.unpack("a:1", tmp_path / "out").manifest_digest != attestation
    with pytest.raises(PlatformNotFound):
        store.unpack("a:1", tmp_path / "other", platform=Platform.parse("linux/arm64"))
    assert not (tmp_path / "other").exists()


def test_an_image_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        store.unpack("b:1", tmp_path / "out")


def test_an_index_is_unpacked_for_its_platform_though_others_are_missing(tmp_path: Path) -> None:
    here, other = build_image(salt="here"), build_image(platform="linux/arm64", salt="other")
    put(tmp_path / "store", build_index([other, here]), "a:1")
    for digest in other.layer_digests:
        if digest not in here.layer_digests:
            blob(tmp_path / "store", digest).unlink()
    store = open_store(tmp_path / "store")
    assert store.unpack("a:1", tmp_path / "out").manifest_digest == here.digest
    with pytest.raises(IncompleteImage):
        store.unpack("a:1", tmp_path / "other", platform=Platform.parse("linux/arm64"))


def test_an_image_of_one_platform_is_unpacked_whichever_it_is(tmp_path: Path) -> None:
    put(tmp_path / "store", build_image([layer_of(file("f"))], platform="linux/s390x"), "a:1")
    open_store(tmp_path / "store").unpack("a:1", tmp_path / "out")
    assert listing(tmp_path / "out") == {"f": ""}


def test_limits_hold(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match="more than 6 members"):
        store.unpack("a:1", tmp_path / "out", limits=UnpackLimits(entries=6))
    with pytest.raises(InvalidArchive, match="larger than 1000 bytes"):
        store.unpack("a:1", tmp_path / "out", limits=UnpackLimits(output_bytes=1000))
    assert os.listdir(tmp_path) == ["store"]
    store.unpack("a:1", tmp_path / "out", limits=UnpackLimits(entries=7))


@pytest.mark.parametrize("at", [1, 2])
def test_a_cancel_ends_it_and_leaves_nothing(store: Store, tmp_path: Path, at: int) -> None:
    cancellation = Cancellation()

    def cancel(event: Event) -> None:
        if isinstance(event, UnpackingLayer) and event.position == at:
            cancellation.cancel()

    with pytest.raises(Cancelled):
        store.unpack("a:1", tmp_path / "out", on_event=cancel, cancellation=cancellation)
    assert os.listdir(tmp_path) == ["store"]


def test_a_cancelled_unpacking_ends_within_a_second_in_the_middle_of_a_file(tmp_path: Path) -> None:
    image = build_image([layer_of(file("large", bytes(256 << 20)))])
    put(tmp_path / "store", image, "a:1")
    cancellation = Cancellation()
    timer = threading.Timer(0.05, cancellation.cancel)
    with replaced_os(trees=True) as system:
        # However fast the disk is: the tenth write waits until it is cancelled.
        system.before("write", timer.start)
        system.before("write", timer.join, skip=9)
        with pytest.raises(Cancelled):
            open_store(tmp_path / "store").unpack("a:1", tmp_path / "out", cancellation=cancellation)
        assert system.count("write") < 20
    assert os.listdir(tmp_path) == ["store"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    require_root()
    put(tmp_path / "store", build_image([layer_of(file("large", os.urandom(4 << 20)))]), "a:1")
    with mounted(tmp_path / "small", "size=1m") as small:
        with pytest.raises(StoreFull):
            open_store(tmp_path / "store").unpack("a:1", small / "out")
        assert os.listdir(small) == []


# ---- what others do


def test_what_a_killed_unpacking_left_goes_with_the_next_one(store: Store, tmp_path: Path) -> None:
    def die() -> None:
        store.unpack("a:1", tmp_path / "out", on_event=lambda event: os._exit(7) if is_second(event) else None)

    assert run_forked(die) == 7
    assert len(temporaries(tmp_path)) == 1
    others = [".out.0123.tmp", ".out.0123456789abcdeg.tmp", ".other.0123456789abcdef.tmp", "out.0123456789abcdef.tmp"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.0123456789abcdef.tmp").write_text("no tree")
    store.unpack("a:1", tmp_path / "out")
    assert sorted(temporaries(tmp_path)) == sorted([*others, ".out.0123456789abcdef.tmp"])
    assert listing(tmp_path / "out") == TREE


def is_second(event: Event) -> bool:
    return isinstance(event, UnpackingLayer) and event.position == 2


def test_two_unpack_to_one_place_and_neither_takes_the_others_tree(store: Store, tmp_path: Path) -> None:
    other = open_store(tmp_path / "store")

    def meanwhile(event: Event) -> None:
        if is_second(event):
            assert len(temporaries(tmp_path)) == 1
            other.unpack("a:1", tmp_path / "out", replace=True)
            assert len(temporaries(tmp_path)) == 1

    store.unpack("a:1", tmp_path / "out", replace=True, on_event=meanwhile)
    assert (listing(tmp_path / "out"), temporaries(tmp_path)) == (TREE, [])


def test_the_tree_is_for_its_owner_alone_while_it_grows(store: Store, tmp_path: Path) -> None:
    modes = set()

    def look(_: Event) -> None:
        [name] = temporaries(tmp_path)
        modes.add(stat.S_IMODE((tmp_path / name).stat().st_mode))

    before = os.umask(0)
    try:
        store.unpack("a:1", tmp_path / "out", on_event=look)
    finally:
        os.umask(before)
    assert modes == {0o700}


@pytest.mark.parametrize("successor", [True, False], ids=["another takes its place", "nothing takes its place"])
def test_a_folder_that_is_moved_meanwhile_gets_no_tree_and_is_told(
    store: Store, tmp_path: Path, successor: bool
) -> None:
    (tmp_path / "around").mkdir()

    def move(event: Event) -> None:
        if is_second(event):
            (tmp_path / "around").rename(tmp_path / "moved")
            if successor:
                (tmp_path / "around").mkdir()

    with pytest.raises(InvalidPath, match="the folder around it was moved meanwhile"):
        store.unpack("a:1", tmp_path / "around" / "out", on_event=move)
    assert os.listdir(tmp_path / "moved") == []
    assert not successor or os.listdir(tmp_path / "around") == []


def test_nothing_is_made_in_a_folder_that_took_the_place_of_the_one_that_was_opened(
    store: Store, tmp_path: Path
) -> None:
    put(tmp_path / "store", build_image([layer_of(file("f"))]), "without-directories:1")
    (tmp_path / "around").mkdir()

    def swap() -> None:
        (tmp_path / "around").rename(tmp_path / "moved")
        (tmp_path / "around").mkdir()

    with replaced_os(trees=True) as system:
        system.before("mkdir", swap, path=".out.")
        system.fail("mkdir", errno.EIO, path=".out.", skip=1)
        with pytest.raises(InvalidPath, match="the folder around it was moved meanwhile"):
            store.unpack("without-directories:1", tmp_path / "around" / "out")
    assert os.listdir(tmp_path / "moved") == os.listdir(tmp_path / "around") == []


def test_a_block_that_fails_leaves_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), growing_tree(str(tmp_path / "out")):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_durable_store_syncs_the_tree_before_it_has_its_name(tmp_path: Path) -> None:
    put(tmp_path / "store", IMAGE, "a:1")
    with replaced_os(trees=True) as system:
        Store(tmp_path / "store").unpack("a:1", tmp_path / "out")
        names = [call.name for call in system.changes]
        assert names[names.index("replace") + 1 :] == ["fsync"]


def test_S24_a_config_is_never_a_path_or_a_command(tmp_path: Path) -> None:
    hostile = {
        "config": {
            "Env": ["PATH=/outside"],
            "Cmd": [f"touch {tmp_path}/ran"],
            "Entrypoint": ["../../ran"],
            "WorkingDir": "../../../outside",
            "Volumes": {"../../volume": {}, str(tmp_path / "volume"): {}},
            "Labels": {"../../label": "\x1b[2J"},
            "User": "../../user",
        },
        "author": "\x1b]0;x\x07",
    }
    put(tmp_path / "store", build_image([layer_of(file("f", b"1"))], config=hostile), "a:1")
    store = open_store(tmp_path / "store")
    store.unpack("a:1", tmp_path / "out")
    assert listing(tmp_path / "out") == {"f": "1"}
    assert sorted(os.listdir(tmp_path)) == ["out", "store"]


def test_a_user_unpacks_from_a_store_of_their_own() -> None:
    require_root()
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)

        def work() -> None:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            put(Path(home, "store"), IMAGE, "a:1")
            store = open_store(Path(home, "store"))
            for _ in range(2):
                report = store.unpack("a:1", Path(home, "out"), replace=True)
            assert (report.left_out, listing(Path(home, "out"))) == ((), TREE)
            put(Path(home, "store"), build_image([layer_of(file("f", uid=1))]), "b:1")
            with pytest.raises(InvalidPath, match="not permitted"):
                store.unpack("b:1", Path(home, "other"), policy=UnpackPolicy(owners="set"))
            assert temporaries(Path(home)) == []

        assert run_forked(work) == 0


def test_a_device_that_may_not_be_made_is_named() -> None:
    require_root()
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)

        def work() -> None:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            device = member("dev/disk", "block device", device=(8, 0), uid=65534, gid=65534)
            put(Path(home, "store"), image_of([[device]]), "a:1")
            # As it is for root of a container: owners are set, and no device is made.
            with pytest.raises(InvalidPath, match="the device dev/disk cannot be made: operation not permitted"):
                open_store(Path(home, "store")).unpack("a:1", Path(home, "out"), policy=UnpackPolicy(owners="set"))
            assert temporaries(Path(home)) == []

        assert run_forked(work) == 0
