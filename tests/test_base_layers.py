"""Where root filesystems lie: which place a name has, and what stands beside a tree, whatever fails when."""

import ctypes
import errno
import fcntl
import json
import os
import threading
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.codec import BaseLayer, decode_base_layer, encode_base_layer
from minibox_store.digest import Digest
from minibox_store.errors import InvalidDocument, StoreBusy, StoreError, StoreUnavailable
from minibox_store.mounts import read_mounts
from minibox_store.rootfs.base_layers import BaseLayers, GrowingTree
from minibox_store.rootfs.image_tags import image_tag, iter_places
from minibox_store.rootfs.removing import UNFINISHED
from tests.support.forks import run_forked
from tests.support.invariants import open_files
from tests.support.os_proxy import DIED, replaced_os
from tests.support.stores import bound

NAME = "registry.example:5000/team/app:1"
TAG = "registry.example_5000_team_app_1"
NAMES = st.from_regex(r"[A-Za-z0-9\\[][!-~]{0,511}", fullmatch=True)
TWIN = "registry.example_5000/team/app:1"


def digest(character: str) -> Digest:
    return Digest("sha256", character * 64)


def layer(name: str = NAME, manifest: str = "a") -> BaseLayer:
    return BaseLayer(name=name, manifest_digest=digest(manifest), config_digest=digest("c"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of the trees. Whatever a test does, it leaves no open file, and nothing unfinished behind."""
    yield tmp_path / "base_layers"
    assert open_files(tmp_path) == []
    # An old tree stays aside where a process of somebody else's cannot be looked into: that may have it mounted.
    assert list(tmp_path.glob("base_layers/.*")) == [] or read_mounts().doubts


def trees_in(folder: Path, *, seconds: float = 5.0, names: Container[str] = (NAME, TWIN)) -> BaseLayers:
    lock = str(folder.parent / "base_layers.lock")
    return BaseLayers(str(folder), lock, durable=True, lock_timeout_seconds=seconds, read_names=lambda: names)


def fill(tree: GrowingTree, content: str) -> None:
    Path(tree.path, "content").write_text(content)


@contextmanager
def publishing(trees: BaseLayers, what: BaseLayer, content: str) -> Iterator[None]:
    """Make a tree with one file, and keep it in its place until the block ends without an error."""
    with trees.growing(what.name) as tree:
        fill(tree, content)
        with trees.locked(), trees.putting_in_place(tree, what):
            yield


def publish(trees: BaseLayers, what: BaseLayer, content: str) -> None:
    with publishing(trees, what, content):
        pass


def contents(folder: Path) -> dict[str, str]:
    """Return what the one file of each tree says, by its place."""
    return {path.parent.name: path.read_text() for path in folder.glob("[!.]*/content")}


def sidecars(folder: Path) -> dict[str, str]:
    """Return whose each place is."""
    found = [path for path in folder.glob("*.json") if path.is_file()]
    return {path.name.removesuffix(".json"): json.loads(path.read_bytes())["name"] for path in found}


# ---- names


def test_each_slash_and_colon_of_a_name_becomes_an_underscore() -> None:
    assert image_tag(NAME) == TAG
    assert next(iter_places(NAME)) == TAG


@pytest.mark.parametrize("name", ["a/b.json", "a" * 512, ".a", "..", "/".join(["ab"] * 120)])
def test_a_tag_that_cannot_be_the_name_of_a_directory_gets_a_suffix_at_once(name: str) -> None:
    first = next(iter_places(name))
    assert first != image_tag(name)
    assert first[-13] == "-"


@given(name=NAMES)
def test_a_place_is_always_a_name_that_its_directory_and_all_beside_it_can_have(name: str) -> None:
    places = list(iter_places(name))
    assert len(set(places)) == len(places) >= 2
    for place in places:
        assert "/" not in place
        assert not place.startswith(".")
        assert not place.endswith(".json")
        assert 0 < len(f".{place}.json.{'0' * 16}.tmp".encode()) <= 255


@given(name=st.text(min_size=1, max_size=512))
def test_what_stands_beside_a_tree_is_read_as_it_was_written(name: str) -> None:
    assert decode_base_layer(encode_base_layer(layer(name))) == layer(name)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"name": 1, "manifest_digest": "sha256:%s", "config_digest": "sha256:%s"}' % (b"a" * 64, b"b" * 64),
        b'{"name": "a", "manifest_digest": "sha256:%s", "config_digest": "../../x"}' % (b"a" * 64),
        b" " * 70_000,
    ],
)
def test_what_does_not_say_whose_a_tree_is_vouches_for_none(folder: Path, content: bytes) -> None:
    with pytest.raises(InvalidDocument):
        decode_base_layer(content)
    trees = trees_in(folder)
    publish(trees, layer(), "old")
    (folder / f"{TAG}.json").write_bytes(content)
    assert not trees.is_current(layer())
    publish(trees, layer(), "new")
    assert (contents(folder), sidecars(folder)) == ({TAG: "new"}, {TAG: NAME})


# ---- places


def test_a_tree_lies_under_its_images_tag_and_the_file_beside_it_says_what_it_was_made_of(folder: Path) -> None:
    trees = trees_in(folder)
    publish(trees, layer(), "1")
    assert contents(folder) == {TAG: "1"}
    assert json.loads((folder / f"{TAG}.json").read_bytes()) == {
        "name": NAME,
        "manifest_digest": str(digest("a")),
        "config_digest": str(digest("c")),
    }
    assert trees.is_current(layer())
    assert not trees.is_current(layer(manifest="b"))
    assert trees.find(NAME, digest("a")) == str(folder / TAG)
    assert trees.find(NAME, digest("b")) is None
    assert trees.find("other", digest("a")) is None


def test_two_names_of_one_tag_have_a_place_each_and_keep_it(folder: Path) -> None:
    trees = trees_in(folder)
    publish(trees, layer(), "first")
    publish(trees, layer(TWIN), "second")
    second = next(place for place in iter_places(TWIN) if place != TAG)
    assert contents(folder) == {TAG: "first", second: "second"}
    assert sidecars(folder) == {TAG: NAME, second: TWIN}
    publish(trees, layer(TWIN, "b"), "second again")
    publish(trees, layer(NAME, "b"), "first again")
    assert contents(folder) == {TAG: "first again", second: "second again"}
    assert trees.find(TWIN, digest("b")) == str(folder / second)


def test_who_has_a_suffix_keeps_it_when_the_plain_tag_is_free_again(folder: Path) -> None:
    trees = trees_in(folder)
    publish(trees, layer(), "first")
    publish(trees, layer(TWIN), "second")
    (folder / TAG / "content").unlink()
    (folder / TAG).rmdir()
    (folder / f"{TAG}.json").unlink()
    publish(trees, layer(TWIN, "b"), "second again")
    assert list(contents(folder).values()) == ["second again"]
    assert TAG not in contents(folder)


def test_a_name_that_is_spelt_like_the_suffix_of_another_takes_no_place_from_it(folder: Path) -> None:
    impostor = list(iter_places(TWIN))[1]
    trees = trees_in(folder, names=(NAME, TWIN, impostor))
    for name, content in ((NAME, "first"), (impostor, "impostor"), (TWIN, "twin")):
        publish(trees, layer(name), content)
    assert {name: contents(folder)[place] for place, name in sidecars(folder).items()} == {
        NAME: "first",
        impostor: "impostor",
        TWIN: "twin",
    }


def test_a_tree_that_nobody_vouches_for_is_replaced(folder: Path) -> None:
    (folder / TAG / "etc").mkdir(parents=True)
    (folder / TAG / "content").write_text("of another daemon")
    publish(trees_in(folder), layer(), "new")
    assert contents(folder) == {TAG: "new"}
    assert not (folder / TAG / "etc").exists()


def test_a_link_in_the_place_of_a_tree_is_replaced_and_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "content").write_text("not ours")
    folder.mkdir()
    (folder / TAG).symlink_to(tmp_path / "elsewhere")
    trees = trees_in(folder)
    assert not trees.is_current(layer())
    publish(trees, layer(), "new")
    assert not (folder / TAG).is_symlink()
    assert contents(folder) == {TAG: "new"}
    assert (tmp_path / "elsewhere" / "content").read_text() == "not ours"


def test_a_link_in_the_place_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="it is a link, or no folder"):
        publish(trees_in(folder), layer(), "new")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_without_its_tree_says_nothing(folder: Path) -> None:
    trees = trees_in(folder)
    publish(trees, layer(), "1")
    (folder / TAG / "content").unlink()
    (folder / TAG).rmdir()
    assert not trees.is_current(layer())
    assert trees.find(NAME, digest("a")) is None
    publish(trees, layer(), "2")
    assert contents(folder) == {TAG: "2"}


def test_when_all_places_are_taken_the_image_gets_none_and_no_other_loses_its_own(folder: Path) -> None:
    folder.mkdir()
    for place in iter_places(NAME):
        (folder / f"{place}.json").write_bytes(encode_base_layer(layer("somebody")))
    with pytest.raises(StoreUnavailable, match="other images"):
        publish(trees_in(folder, names=(NAME, "somebody")), layer(), "1")
    assert contents(folder) == {}


def test_the_place_of_an_image_that_has_no_name_any_more_is_free(folder: Path) -> None:
    publish(trees_in(folder), layer(), "first")
    publish(trees_in(folder, names=(TWIN,)), layer(TWIN), "second")
    assert (contents(folder), sidecars(folder)) == ({TAG: "second"}, {TAG: TWIN})


def test_the_tree_of_another_daemon_that_lies_where_a_sidecar_would_leaves_the_place_alone(folder: Path) -> None:
    (folder / f"{TAG}.json").mkdir(parents=True)
    (folder / f"{TAG}.json" / "content").write_text("of another daemon")
    trees = trees_in(folder)
    publish(trees, layer(), "1")
    [place] = sidecars(folder)
    assert place.startswith(f"{TAG}-")
    assert contents(folder) == {f"{TAG}.json": "of another daemon", place: "1"}
    assert trees.is_current(layer())


def test_another_image_that_takes_the_place_meanwhile_keeps_it(folder: Path) -> None:
    trees = trees_in(folder)
    with trees.growing(TWIN) as tree:
        fill(tree, "second")
        publish(trees, layer(), "first")
        with trees.locked(), trees.putting_in_place(tree, layer(TWIN)):
            pass
    assert sorted(contents(folder).values()) == ["first", "second"]
    assert contents(folder)[TAG] == "first"


# ---- in one step, or not at all


def test_before_the_block_ends_the_new_tree_is_there_and_with_an_error_the_old_one_is_back(folder: Path) -> None:
    trees = trees_in(folder)
    publish(trees, layer(), "old")
    inode = (folder / TAG).stat().st_ino

    def publish_in_vain() -> None:
        with publishing(trees, layer(manifest="b"), "new"):
            assert contents(folder) == {TAG: "new"}
            assert trees.is_current(layer(manifest="b"))
            raise RuntimeError("the commit fails")

    with pytest.raises(RuntimeError, match="the commit fails"):
        publish_in_vain()
    assert contents(folder) == {TAG: "old"}
    assert trees.is_current(layer())
    assert (folder / TAG).stat().st_ino == inode


def test_where_nothing_was_before_nothing_is_left_by_an_error(folder: Path) -> None:
    trees = trees_in(folder)
    with pytest.raises(RuntimeError), publishing(trees, layer(), "new"):
        raise RuntimeError
    assert list(folder.iterdir()) == []


def test_every_change_that_fails_leaves_the_old_tree_and_what_stands_beside_it_or_the_new_ones(folder: Path) -> None:
    trees = trees_in(folder)
    publish(trees, layer(), "old")
    with replaced_os() as system:
        publish(trees, layer(manifest="b"), "new")
    changes = len(system.changes)
    assert changes > 5
    failed = 0
    for position in range(changes):
        publish(trees, layer(), "old")
        with replaced_os() as system:
            system.fail_change(position, errno.EIO)
            try:
                publish(trees, layer(manifest="b"), "new")
            except OSError:
                failed += 1
                assert contents(folder) == {TAG: "old"}, f"operation {position}: {system.changes[position]}"
                assert trees.is_current(layer()), f"operation {position}: {system.changes[position]}"
            else:
                assert contents(folder) == {TAG: "new"}, f"operation {position}: {system.changes[position]}"
                assert trees.is_current(layer(manifest="b")), f"operation {position}"
        for path in folder.glob(".*"):
            remove(path)
    assert failed > changes // 2


def test_on_a_full_disk_the_old_tree_and_what_stands_beside_it_are_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = trees_in(folder)
    publish(trees, layer(), "old")

    def write_all(descriptor: int, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("minibox_store.rootfs.base_layers._moving.write_all", write_all)
    with pytest.raises(OSError, match="No space left"):
        publish(trees, layer(manifest="b"), "new")
    assert contents(folder) == {TAG: "old"}
    assert trees.is_current(layer())
    assert sorted(path.name for path in folder.iterdir()) == [TAG, f"{TAG}.json"]


def remove(path: Path) -> None:
    """Remove what a failing disk did not let go."""
    for each in path.iterdir() if path.is_dir() else ():
        each.unlink()
    path.rmdir() if path.is_dir() else path.unlink()


class NoExchange:
    """The system's library on a file system that can only rename."""

    def __init__(self, name: None, *, use_errno: bool) -> None:
        assert use_errno

    def renameat2(self, *_: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1

    def syncfs(self, _: int) -> int:
        return 0


def test_a_file_system_need_not_be_able_to_exchange(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", NoExchange)
    trees = trees_in(folder)
    publish(trees, layer(), "old")
    publish(trees, layer(manifest="b"), "new")
    assert contents(folder) == {TAG: "new"}
    for position in range(3):
        with replaced_os() as system:
            system.fail("replace", errno.EIO, skip=position, times=1)
            with pytest.raises(OSError, match="Input/output error"):
                publish(trees, layer(), "newer")
        assert contents(folder) == {TAG: "new"}, f"rename {position}"
        assert trees.is_current(layer(manifest="b")), f"rename {position}"


def test_a_process_that_dies_between_two_renames_leaves_nothing_that_no_prune_would_know(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = trees_in(folder)
    publish(trees, layer(), "old")

    def work(position: int) -> None:
        monkeypatch.setattr(ctypes, "CDLL", NoExchange)
        with replaced_os() as system:
            system.before("replace", lambda: os._exit(DIED), skip=position)
            publish(trees, layer(manifest="b"), "new")

    for position in range(1, 5):  # the first of all puts aside what stands beside the tree
        assert run_forked(partial(work, position)) == DIED
        assert not trees.is_current(layer())
        assert not trees.is_current(layer(manifest="b"))
        left = list(folder.glob(".*"))
        assert left
        for path in left:
            assert UNFINISHED.fullmatch(path.name)
            remove(path)
        publish(trees, layer(), "old")
        assert contents(folder) == {TAG: "old"}


# ---- others at work


def test_a_tree_that_grows_is_locked_and_one_that_has_its_place_is_not(folder: Path) -> None:
    trees = trees_in(folder)
    publish(trees, layer(), "old")
    with trees.growing(NAME) as tree:
        assert not can_lock(tree.path)
        assert os.path.basename(tree.path).startswith(f".{TAG}.")
        with trees.locked(), trees.putting_in_place(tree, layer(manifest="b")):
            assert not can_lock(tree.path), "the old tree may have to come back"
            assert not can_lock(str(folder / TAG))
        assert can_lock(str(folder / TAG))
        assert not can_lock(tree.path), "it is being removed"


def can_lock(path: str) -> bool:
    opened = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(opened)
    return True


def test_an_old_tree_that_is_mounted_stays_aside_under_the_name_of_its_place(folder: Path, tmp_path: Path) -> None:
    trees = trees_in(folder)
    publish(trees, layer(), "old")
    with bound(folder / TAG, tmp_path / "seen elsewhere") as seen:
        publish(trees, layer(manifest="b"), "new")
        assert contents(folder) == {TAG: "new"}
        assert (seen / "content").read_text() == "old"
    [aside] = folder.glob(".*")
    assert aside.name.startswith(f".{TAG}.")
    assert can_lock(str(aside)), "whoever collects may have it"
    remove(aside)


def test_who_waits_too_long_for_the_lock_is_told_who_has_it(folder: Path) -> None:
    folder.mkdir()
    with trees_in(folder).locked(), pytest.raises(StoreBusy, match="putting a root filesystem in its place"):
        publish(trees_in(folder, seconds=0.05), layer(), "1")
    assert contents(folder) == {}


def test_many_who_publish_at_once_leave_one_tree_for_each_name(folder: Path) -> None:
    errors: list[StoreError | OSError] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                name = (NAME, TWIN)[(number + turn) % 2]
                publish(trees_in(folder, seconds=20), layer(name, "abcdef"[turn % 6]), name)
        except (StoreError, OSError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join, 60)
    assert errors == []
    assert {name: contents(folder)[place] for place, name in sidecars(folder).items()} == {NAME: NAME, TWIN: TWIN}
    assert len(contents(folder)) == 2
