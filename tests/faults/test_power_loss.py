"""The power goes at any moment: what had returned is all there, what had not is whole or not at all.

Each change that a verb makes with full durability is recorded, and cut off at each moment. Of the disks that may be
left then (:mod:`tests.support.disk_model` says what is assumed, which is little) these are looked at in memory: the
extremes, those on which one change alone is lost or kept, and some that are drawn. A few of them are written to a
folder, opened, and gone on with; many, where MINIBOX_DEEP is 1.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minibox_store import Digest, Store
from tests.faults.test_crashes import (
    ALWAYS,
    FRESH,
    NEW,
    OLD,
    PULLED,
    SHARED,
    TREES,
    VERBS,
    Verb,
    check_store,
    expected_names,
    files_of,
    make_store,
    open_at,
    pull_tree,
    wrong_contents,
)
from tests.support.archives import members_of, pack, read_archive
from tests.support.disk_checks import iter_disk_breaches, names_on
from tests.support.disk_trees import WholeTrees
from tests.support.images import build_image
from tests.support.invariants import read_names
from tests.support.layer_trees import listing
from tests.support.os_proxy import OsProxy, no_hard_links, replaced_os
from tests.support.power_loss import LeftDisk, Recording
from tests.support.pushes import push_blob
from tests.support.sources import memory_of
from tests.support.stores import open_store, put, require_root
from tests.support.trials import DEEP, part_of

# How many disks of each recording are written to a folder and gone on with; how many are drawn for each moment.
MOST_OPENED = 600 if DEEP else 3
DRAWN = 200 if DEEP else 8
# At how many further places a process dies, for each verb and each thing that is done then; else at all.
MOST_DEATHS = 1
MOST_SECONDS = 900 if DEEP else 120
# A push has 349 places to die at; of the disks that each leaves, all are looked at for some 17 s.
MOST_SECONDS_OF_DEATHS = 4 * 3600 if DEEP else 120
DRAWN_AFTER_DEATH = 20 if DEEP else 8

# It has a layer of each image that the verbs bring in.
SHARING = build_image([SHARED, FRESH], salt="sharing")

Names = dict[str, str]


def make_archive_before(root: Path) -> None:
    make_store(root)
    (root.parent / "out.tar").write_bytes(pack(members_of(OLD, "moving:1")))


def make_unnamed_tree(root: Path) -> None:
    make_store(root)
    pull_tree(PULLED, open_store(root))
    open_store(root).remove("team/app:1")


# They may be done once, and the table's work does nothing where that has been.
ONCE = ("remove", "untag", "undo", "delete a manifest")
POWER_VERBS = {
    **VERBS,
    "save over an archive": replace(VERBS["save"], prepare=make_archive_before),
}


@dataclass(kw_only=True)
class Scene:
    """A verb, the folder it is done in, what is true before and after, and the recording of it."""

    verb: Verb
    folder: Path
    before: Names
    after: Names
    unsound: frozenset[str]
    wrong: set[bytes]
    recording: Recording

    def work(self, system: OsProxy, *, links: bool = True) -> None:
        if not links:
            no_hard_links(system)
        self.verb.work(open_at(self.folder, "full"), self.folder / "store")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of stores are written, and none outlives the test."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def whole_trees(scene: Scene, *moments: int) -> WholeTrees:
    """Return what the trees may be: those of the beginning, of these moments, and of the end."""
    recording = scene.recording
    moments = (0, *moments, recording.length)
    return WholeTrees(tuple(map(recording.rest_at, moments)), tuple(scene.verb.trees))


def check_trees_made(scene: Scene) -> None:
    """See to it that the verb has made its trees."""
    for path, (_, made) in scene.verb.trees.items():
        assert listing(scene.folder / path) == made
    for name in scene.verb.names if scene.verb.unpacks else ():
        assert files_of(open_store(scene.folder / "store").base_layer(name)) == TREES[scene.after[name]]


def make_scene(verb: Verb, folder: Path) -> Scene:
    """Bring about what the verb begins with; all of it lies on the disk when the recording begins."""
    folder.mkdir()
    verb.prepare(folder / "store")
    before = read_names(folder / "store")
    return Scene(
        verb=verb,
        folder=folder,
        before=before,
        after=expected_names(before, verb.names),
        unsound=frozenset(NEW.blobs | OLD.blobs) if verb.mends else frozenset(),
        wrong=wrong_contents(folder / "store"),
        recording=Recording(folder),
    )


def check_disk(left: LeftDisk, scene: Scene, allowed: tuple[Names, ...], *, returned: bool) -> None:
    """Look at a disk as it is."""
    unsound = frozenset[str]() if returned else scene.unsound
    assert list(iter_disk_breaches(left.tree, unsound=unsound)) == [], left
    assert names_on(left.tree) in allowed, left
    archive = left.tree.files.get("out.tar")
    if archive is None:
        assert not (returned and scene.verb.work is VERBS["save"].work), f"no archive: {left}"
        return
    blobs = read_archive(archive.content)[2]
    assert blobs == ALWAYS.blobs or (not returned and blobs == OLD.blobs), left


def open_disk(left: LeftDisk, scene: Scene, folder: Path, before: Names) -> None:
    """Open the store that is left, do the same again, and collect."""
    folder.mkdir()
    left.write_to(folder)
    if not scene.verb.mends and "store" in left.tree.folders:
        findings = [each for each in open_store(folder / "store").verify() if each.kind != "unreferenced"]
        assert findings == [], left
    remove_foreign_archive(folder)
    separate_leftovers(folder / "store" / "history")
    check_store(scene.verb, folder, before, scene.after, place=str(left))
    assert list(open_store(folder / "store").verify()) == [], left
    shutil.rmtree(folder)


def remove_foreign_archive(folder: Path) -> None:
    """Take away an archive of before, which :func:`check_store` does not know; that it is whole was seen already."""
    archive = folder / "out.tar"
    if archive.exists() and read_archive(archive.read_bytes())[2] == OLD.blobs:
        archive.unlink()


def separate_leftovers(history: Path) -> None:
    """Make files of their own of temporary names that a rename has left: a generation must have one name to be whole.

    It is the disk that gave it two here, and not another program; prune takes the other one.
    """
    for path in history.glob(".*.tmp"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)


def chosen(disks: list[LeftDisk], chance: random.Random) -> list[LeftDisk]:
    """Return the disks that are opened: some that are extreme, some that lack one thing, some that were drawn."""
    if len(disks) <= MOST_OPENED:
        return disks
    found: list[LeftDisk] = []
    for kind in ("extreme", "single", "drawn"):
        some = [left for left in disks if left.kind == kind]
        found += chance.sample(some, min(len(some), MOST_OPENED // 3))
    return found


def test_a_file_that_was_not_synced_before_its_rename_may_be_anything_and_one_that_was_is_the_old_or_the_new(
    disk: Path,
) -> None:
    def write(system: OsProxy, *, synced: bool) -> None:
        opened = system.open(str(disk / "new"), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        system.write(opened, b"good")
        if synced:
            system.fsync(opened)
        os.close(opened)
        system.replace(str(disk / "new"), str(disk / "file"))

    found: dict[bool, set[bytes]] = {}
    for synced in (False, True):
        (disk / "file").write_bytes(b"old")
        recording = Recording(disk)
        recording.run(partial(write, synced=synced))
        found[synced] = {left.tree.files["file"].content for left in recording.disks(random.Random(0), drawn=50)}
        assert found[synced] <= {b"old", b"good", b"go", b"", b"\0\0\0\0"}
    assert found == {False: {b"old", b"good", b"go", b"", b"\0\0\0\0"}, True: {b"old", b"good"}}


def iter_ways() -> Iterator[object]:
    """Yield each verb with hard links and without; what is about trees goes one way with both."""
    for name, verb in POWER_VERBS.items():
        is_about_trees = verb.unpacks or verb.trees or name == "prune of trees"
        for links in (True,) if is_about_trees and not DEEP else (True, False):
            yield pytest.param(name, links, id=f"{name}-{'links' if links else 'no links'}")


WAYS: list[Any] = list(iter_ways())


@pytest.mark.timeout(MOST_SECONDS)
@pytest.mark.parametrize(("name", "links"), WAYS)
def test_the_power_may_go_at_any_operation(disk: Path, name: str, links: bool) -> None:
    scene = make_scene(POWER_VERBS[name], disk / "scene")
    scene.recording.run(lambda system: scene.work(system, links=links))
    assert read_names(scene.folder / "store") == scene.after
    check_trees_made(scene)
    chance = random.Random(f"{name} {links}")
    trees = whole_trees(scene)
    left_disks = list(scene.recording.disks(chance, drawn=DRAWN))
    for left in part_of(left_disks):
        returned = left.moment == scene.recording.length
        check_disk(left, scene, (scene.after,) if returned else (scene.before, scene.after), returned=returned)
        assert list(trees.iter_breaches(left.tree, returned=returned)) == [], left
        if links or returned:  # a rename alone, as the model has it, may leave no name at all behind
            kept = {file.content for file in left.tree.files.values()}
            assert scene.wrong <= kept, f"what was wrong is lost: {left}"
    for number, left in enumerate(part_of(chosen(left_disks, chance))):
        open_disk(left, scene, disk / f"left-{number}", scene.before)


def test_what_a_prune_has_removed_stays_away_once_it_has_returned(disk: Path) -> None:
    scene = make_scene(VERBS["prune"], disk / "scene")
    removed = [f"store/{each.path}" for each in open_at(scene.folder, "full").prune(dry_run=True).removed]
    assert {path.split("/")[1] for path in removed} >= {"blobs", "ingest"}
    scene.recording.run(scene.work)
    for left in scene.recording.disks(random.Random(0), start=scene.recording.length, drawn=DRAWN):
        assert [path for path in removed if path in left.tree.files or path in left.tree.folders] == [], left


def test_the_power_may_go_while_a_tree_is_taken_away_and_what_is_left_beside_it_is_taken_for_no_tree(
    disk: Path,
) -> None:
    require_root()
    scene = make_scene(replace(VERBS["pull and unpack"], prepare=make_unnamed_tree), disk / "scene")
    scene.recording.run(lambda _: open_at(scene.folder, "full").prune())
    assert not list(scene.folder.glob("store/base_layers/*"))
    trees = whole_trees(scene)
    tree, alone = "store/base_layers/team_app_1", None
    for left in scene.recording.disks(random.Random(0)):
        assert list(trees.iter_breaches(left.tree, returned=False)) == [], left
        if f"{tree}.json" in left.tree.files and tree not in left.tree.folders:
            alone = left
    assert alone is not None
    folder = disk / "left"
    folder.mkdir()
    alone.write_to(folder)
    store = open_store(folder / "store")
    store.import_image(memory_of({"team/app:1": PULLED}), "team/app:1")
    assert store.base_layer("team/app:1") is None
    assert pull_tree(PULLED, store)
    assert files_of(store.base_layer("team/app:1")) == TREES[PULLED.digest]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_the_power_may_go_while_an_index_is_mended(disk: Path, links: bool) -> None:
    scene = make_scene(VERBS["tag"], disk / "scene")
    index = scene.folder / "store" / "index.json"
    index.write_bytes(b"{")
    scene.recording = Recording(scene.folder)

    def mend(system: OsProxy) -> None:
        if not links:
            no_hard_links(system)
        open_at(scene.folder, "full").repair()

    scene.recording.run(mend)
    for number, left in enumerate(scene.recording.disks(random.Random(0), drawn=DRAWN)):
        found = left.tree.files.get("store/index.json")
        is_mended = found is not None and found.content != b"{"
        assert is_mended or left.moment < scene.recording.length, left
        if is_mended:
            assert (list(iter_disk_breaches(left.tree)), names_on(left.tree)) == ([], scene.before), left
        elif DEEP or number % 7 == 0:
            folder = disk / str(number)
            folder.mkdir()
            left.write_to(folder)
            open_store(folder / "store").repair()
            assert read_names(folder / "store") == scene.before, left


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_blob_whose_upload_was_finished_is_there_and_pinned(disk: Path, links: bool) -> None:
    make_store(disk / "store")
    recording = Recording(disk)
    content = b"pushed"

    def push(system: OsProxy) -> None:
        if not links:
            no_hard_links(system)
        push_blob(open_at(disk, "full").repository("team/app"), content)

    recording.run(push)
    digest = Digest.of(content)
    pin = f"store/ingest/pushed/{Digest.of(b'team/app').hex}/sha256-{digest.hex}"
    for left in recording.disks(random.Random(0), drawn=DRAWN):
        if left.moment == recording.length:
            assert left.tree.files[f"store/blobs/sha256/{digest.hex}"].content == content, left
            assert pin in left.tree.files, left
        assert list(iter_disk_breaches(left.tree)) == [], left


# What a process that died has left to be written, another one relies on


def do_again(scene: Scene, store: Store) -> None:
    scene.verb.work(store, scene.folder / "store")


def collect(_: Scene, store: Store) -> None:
    store.prune()


def import_sharing(_: Scene, store: Store) -> None:
    store.import_image(memory_of({"x": SHARING}), "x", as_name="sharing:1")


Follower = Callable[[Scene, Store], None]
FOLLOWERS: dict[str, Follower] = {
    "does it again": do_again,
    "collects": collect,
    "imports an image that shares blobs": import_sharing,
}


def follow(follower: Follower, scene: Scene, store: Store, _: OsProxy) -> None:
    follower(scene, store)


def used_store(scene: Scene) -> Store:
    """Return a store that has made a change before, where there is a store: what it syncs but once is behind it."""
    store = open_at(scene.folder, "full")
    if "always:1" in scene.before:
        store.tag("always:1", "always:1")
        scene.recording = Recording(scene.folder)
    return store


def places_to_die(scene: Scene, folder: Path, chance: random.Random) -> list[int]:
    """Return before which changes a process dies.

    All; or that behind each replacement of index.json, and of what lies where a tree is, which are seen and on no disk
    yet, and before some other syncs, where most is at stake.
    """
    shutil.copytree(scene.folder, folder, symlinks=True)
    with replaced_os(trees=True) as system:
        scene.verb.work(open_at(folder, "full"), folder / "store")
    changes = system.changes
    if DEEP:
        return list(part_of(range(len(changes))))
    named = {place + 1 for place, call in enumerate(changes) if call.paths[1:] == (f"{folder}/store/index.json",)}
    trees = {os.path.dirname(f"{folder}/{path}") for path in scene.verb.trees}
    trees |= {f"{folder}/store/base_layers"} if scene.verb.unpacks else set()
    named |= {place for place, call in enumerate(changes) if call.name == "fsync" and trees.intersection(call.paths)}
    syncs = [place for place, call in enumerate(changes) if call.name == "fsync" and place not in named]
    return [*sorted(named), *chance.sample(syncs, min(len(syncs), MOST_DEATHS))]


@pytest.mark.timeout(MOST_SECONDS_OF_DEATHS)
@pytest.mark.parametrize("follower", FOLLOWERS)
@pytest.mark.parametrize("name", [name for name in POWER_VERBS if not POWER_VERBS[name].mends])
def test_a_process_dies_and_another_has_returned_when_the_power_goes(disk: Path, name: str, follower: str) -> None:
    chance = random.Random(f"{name} {follower}")
    for position in places_to_die(make_scene(POWER_VERBS[name], disk / "template"), disk / "counted", chance):
        folder = disk / str(position)
        scene = make_scene(POWER_VERBS[name], folder)
        store = used_store(scene)
        died = scene.recording.run_until(scene.work, position, disk / "notes")
        # Who sees that a name has gone already, or come back, asks for nothing, and is promised nothing.
        is_asked = name not in ONCE or read_names(folder / "store") != scene.after
        is_done = not died or (FOLLOWERS[follower] is do_again and is_asked)
        begun = scene.recording.length
        scene.recording.run(partial(follow, FOLLOWERS[follower], scene, store))
        trees = whole_trees(scene, begun)
        for left in scene.recording.disks(chance, start=begun, drawn=DRAWN_AFTER_DEATH, brief=not DEEP):
            returned = left.moment == scene.recording.length
            names = names_on(left.tree)
            sharing = names.pop("sharing:1", None)
            allowed = (scene.after,) if not died or (returned and is_done) else (scene.before, scene.after)
            place = f"died at {position}, then {left}"
            assert list(iter_disk_breaches(left.tree)) == [], place
            assert list(trees.iter_breaches(left.tree, returned=returned and is_done)) == [], place
            assert names in allowed, place
            assert sharing == SHARING.digest or not (returned and FOLLOWERS[follower] is import_sharing), place
        shutil.rmtree(folder)


@pytest.mark.timeout(MOST_SECONDS)
@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("is_named", [True, False], ids=["named", "nameless"])
@pytest.mark.parametrize("way", ["import into no store", "load into no store"])
def test_what_a_durable_call_finds_is_durable_once_it_has_returned(
    disk: Path, way: str, is_named: bool, links: bool
) -> None:
    """Whoever has brought it: a process that left it to the system to write, or another tool."""
    scene = make_scene(VERBS[way], disk / "scene")

    def bring(system: OsProxy) -> None:
        if not links:
            no_hard_links(system)
        put(scene.folder / "store", NEW, "lazy:1")
        if not is_named:
            open_store(scene.folder / "store").remove("lazy:1")

    scene.recording.run(bring)
    begun = scene.recording.length
    scene.recording.run(lambda system: scene.work(system, links=links))
    chance = random.Random(f"{way} {is_named} {links}")
    for left in scene.recording.disks(chance, start=begun, drawn=DRAWN_AFTER_DEATH, brief=not DEEP):
        if left.moment < scene.recording.length and not has_name(left, "new:1"):
            continue  # what the first process has left to chance is its own affair
        assert list(iter_disk_breaches(left.tree, only={"new:1"})) == [], left
        assert names_on(left.tree)["new:1"] == NEW.digest, left


def has_name(left: LeftDisk, name: str) -> bool:
    index = left.tree.files.get("store/index.json")
    return index is not None and name.encode() in index.content
