"""A process dies at any operation on its files: then the store is whole, and the same call again succeeds.

Each file operation of ``minibox_store._files`` is a place to die, by ``os._exit`` in a child process; every other time
a write is torn in its middle.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from minibox_store import Digest, Store
from minibox_store.tar import Member, MemberKind
from tests.support.archives import members_of, pack, read_archive
from tests.support.derived import UNFINISHED, base_layer, extracted, file_index, hex_of, plant_tree, write_sidecar
from tests.support.forks import run_alone, run_forked
from tests.support.images import BuiltImage, build_image, build_index, digest_of, random_layer
from tests.support.invariants import (
    check_invariants,
    held_locks,
    reachable,
    read_names,
    stored,
)
from tests.support.layer_trees import file, layer_of, link, listing
from tests.support.layer_trees import folder as directory
from tests.support.os_proxy import DIED, no_hard_links, replaced_os
from tests.support.pushes import push_image
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedRegistry, serve_image
from tests.support.sources import memory_of
from tests.support.stores import blob, open_store, put, put_dead, rot
from tests.support.trials import DEEP, part_of

# What is in a tree, by path.
Listing = dict[str, str]

SHARED = random_layer(4096, salt="shared")
FRESH = random_layer(70_144, salt="fresh")
ALWAYS = build_image([SHARED, {"a": b"always"}], salt="always")
HALF = build_image([SHARED, FRESH], salt="new")
NEW = build_index([HALF, build_image([SHARED], platform="linux/arm64")])
OLD = build_image(salt="old")
SHARED_DIGEST = HALF.layer_digests[0]
# What trees are made of: nothing of the one is a part of the other.
PULLED = build_image([{"etc/new": b"1", "etc/all": b"1"}, {"etc/all": b"2", "srv/new": b"x" * 5000}], salt="pulled")
REPLACED = build_image([{"etc/old": b"o", "etc/all": b"o"}], salt="replaced")
TREES: dict[str, dict[str, bytes]] = {
    PULLED.digest: {"etc/new": b"1", "etc/all": b"2", "srv/new": b"x" * 5000},
    REPLACED.digest: {"etc/old": b"o", "etc/all": b"o"},
}
GONE = "sha256:" + "d" * 64
# Every place, where MINIBOX_DEEP is 1; else so many for each verb that all of it takes less than a minute.
MOST_PLACES = 10_000 if DEEP else 12


@dataclass(frozen=True, kw_only=True)
class Verb:
    """Something that is done to a store, and what its names are afterwards.

    ``prepare`` makes the store; ``work`` is what the process dies of; ``names`` is what it changes, None for a name
    that goes. ``mends`` says that the store is not whole before, and is afterwards; ``unpacks`` that each of the names
    has a tree then. ``trees`` are those that it makes by their paths beside the store, each with what may have been
    there before.
    """

    prepare: Callable[[Path], None]
    work: Callable[[Store, Path], object]
    names: dict[str, BuiltImage | None]
    mends: bool = False
    unpacks: bool = False
    trees: Mapping[str, tuple[Listing | None, Listing]] = field(default_factory=dict)


def make_store(root: Path) -> None:
    put(root, ALWAYS, "always:1", "going:1")
    put(root, OLD, "moving:1")


def make_archive(root: Path) -> None:
    make_store(root)
    make_archive_alone(root)


def make_archive_alone(root: Path) -> None:
    (root.parent / "a.tar").write_bytes(pack(members_of(NEW, "new:1")))


def make_garbage(root: Path) -> None:
    make_store(root)
    put_dead(root, NEW)
    put_dead(root, build_image([random_layer(2048, salt=str(number)) for number in range(5)], salt="garbage"))
    layer = OLD.layer_digests[0].removeprefix("sha256:")
    for folder, name in (("blobs/sha256", "d" * 64 + ".index.json"), ("ingest/partial", f"sha256-{layer}")):
        (root / folder / name).write_bytes(b"{}")
    transaction = root / "ingest" / "0123456789abcdef"
    transaction.mkdir()
    (transaction / "lock").touch()
    (transaction / "staged-00").write_bytes(b"x")
    os.link(blob(root, NEW.digest), transaction / f"sha256-{NEW.digest.removeprefix('sha256:')}")
    (root / (".index.json." + "0" * 16 + ".tmp")).write_bytes(b"{")


def make_derived(root: Path) -> None:
    """Leave what was made of images that are gone, and of one that is there."""
    make_garbage(root)
    base_layer(root, "always_1", "always:1", ALWAYS)
    base_layer(root, "gone_1", "gone:1", HALF)
    base_layer(root, "gone_2")
    plant_tree(root / "base_layers" / f".gone_3.{UNFINISHED}")
    write_sidecar(root, "gone_4", "gone:4", HALF)
    for digest in (SHARED_DIGEST, GONE):
        extracted(root, digest)
        file_index(root, digest)
    for folder in ("lazy", "cache"):
        (root / folder / ("d" * 64)).mkdir(parents=True)


def make_wrong_blobs(root: Path) -> None:
    put(root, ALWAYS, "always:1")
    put(root, NEW, "new:1")
    rot(blob(root, NEW.digest))
    short = blob(root, HALF.layer_digests[1])
    short.chmod(0o600)
    short.write_bytes(b"short")


def make_rotten(root: Path) -> None:
    make_store(root)
    put(root, NEW, "new:1")
    rot(blob(root, NEW.digest))
    rot(blob(root, HALF.digest))
    rot(blob(root, SHARED_DIGEST))
    blob(root, HALF.layer_digests[1]).unlink()
    blob(root, OLD.layer_digests[0]).unlink()
    blob(root, OLD.layer_digests[0]).mkdir()


def make_partial(root: Path) -> None:
    make_store(root)
    layer = HALF.layer_digests[1]
    unfinished = root / "ingest" / "partial" / layer.replace(":", "-")
    unfinished.write_bytes(NEW.blobs[layer][:30_000])


def make_removed(root: Path) -> None:
    make_store(root)
    open_store(root).remove("going:1")


def import_new(store: Store, _: Path) -> object:
    return store.import_image(memory_of({"new:1": NEW}), "new:1")


def pull_new(store: Store, _: Path) -> object:
    """Pull from a registry in this very process: whatever the process dies of, the registry dies of too."""
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", NEW)
        reference = registry.reference("team/app", "1")
        return store.pull(reference, name="new:1", platform=None, client=quick_client())


def pull_tree(image: BuiltImage, store: Store) -> object:
    """Pull an image and unpack it, from a registry in this very process too."""
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", image)
        reference = registry.reference("team/app", "1")
        return store.pull(reference, name="team/app:1", client=quick_client(), unpack=True)


def make_tree(root: Path) -> None:
    make_store(root)
    pull_tree(REPLACED, open_store(root))


def make_foreign_tree(root: Path) -> None:
    """Leave what another daemon has unpacked, of which nobody knows what it was made of."""
    make_store(root)
    (root / "base_layers" / "team_app_1" / "etc").mkdir(parents=True)
    (root / "base_layers" / "team_app_1" / "etc" / "foreign").write_bytes(b"f")


def load_new(store: Store, root: Path) -> object:
    return store.load(root.parent / "a.tar")


def repair(store: Store, _: Path) -> object:
    return store.repair(sources=[memory_of({"new:1": NEW, "moving:1": OLD, "always:1": ALWAYS})])


def remove_once(store: Store, root: Path) -> object:
    return store.remove("going:1") if "going:1" in read_names(root) else None


def untag_once(store: Store, root: Path) -> object:
    return store.untag("going:1") if "going:1" in read_names(root) else None


def undo_once(store: Store, root: Path) -> object:
    return None if "going:1" in read_names(root) else store.undo()


def make_packed(root: Path) -> None:
    put(root, PACKED, "packed:1")


def make_unpacked(root: Path) -> None:
    make_packed(root)
    old = root.parent / "tree"
    (old / "old").mkdir(parents=True)
    (old / "old" / "file").write_text("old")


def unpack(store: Store, root: Path) -> object:
    return store.unpack("packed:1", root.parent / "tree", replace=True)


PACKED_LAYERS = (
    layer_of(directory("etc", 0o750, uid=7), file("etc/a", b"1"), file("etc/b", b"2"), link("l", "etc")),
    layer_of(file("etc/.wh.a"), file("l/c", b"3"), Member("q", MemberKind.FIFO), file("q", b"4")),
)
PACKED = build_image(PACKED_LAYERS, salt="packed")
PACKED_TREE = {"etc": "d", "etc/b": "2", "etc/c": "3", "l": "-> etc", "q": "4"}
LAYER_PATHS = [f"store/extracted/{digest.removeprefix('sha256:')}" for digest in PACKED.layer_digests]
LAYER_TREES: dict[str, tuple[Listing | None, Listing]] = {
    LAYER_PATHS[0]: (None, {"etc": "d", "etc/a": "1", "etc/b": "2", "l": "-> etc"}),
    LAYER_PATHS[1]: (None, {"etc": "d", "etc/a": "special", "l": "d", "l/c": "3", "q": "4"}),
}
OLD_TREE = {"old": "d", "old/file": "old"}


def push_new(store: Store, _: Path) -> object:
    return push_image(store.repository("team/new"), NEW, "1")


def push_over(store: Store, _: Path) -> object:
    return push_image(store.repository("team/app"), HALF, "1")


def make_pushed(root: Path) -> None:
    make_store(root)
    push_image(open_store(root).repository("team/app"), OLD, "1", "2")


def delete_once(store: Store, root: Path) -> object:
    is_there = "team/app:1" in read_names(root)
    return store.repository("team/app").delete_manifest(Digest.parse(OLD.digest)) if is_there else None


VERBS = {
    # The whole of an index takes long where each change is a place to die.
    **({"push": Verb(prepare=make_store, work=push_new, names={"team/new:1": NEW})} if DEEP else {}),
    "push over a tag": Verb(prepare=make_pushed, work=push_over, names={"team/app:1": HALF}),
    "delete a manifest": Verb(prepare=make_pushed, work=delete_once, names={"team/app:1": None, "team/app:2": None}),
    "import": Verb(prepare=make_store, work=import_new, names={"new:1": NEW}),
    "pull": Verb(prepare=make_store, work=pull_new, names={"new:1": NEW}),
    "pull with a partial": Verb(prepare=make_partial, work=pull_new, names={"new:1": NEW}),
    "pull and unpack": Verb(
        prepare=make_store, work=lambda store, _: pull_tree(PULLED, store), names={"team/app:1": PULLED}, unpacks=True
    ),
    "pull and unpack over a tree": Verb(
        prepare=make_tree, work=lambda store, _: pull_tree(PULLED, store), names={"team/app:1": PULLED}, unpacks=True
    ),
    "pull and unpack over a foreign tree": Verb(
        prepare=make_foreign_tree,
        work=lambda store, _: pull_tree(PULLED, store),
        names={"team/app:1": PULLED},
        unpacks=True,
    ),
    "import into no store": Verb(prepare=lambda root: None, work=import_new, names={"new:1": NEW}),
    "import over a name": Verb(
        prepare=make_store,
        work=lambda store, _: store.import_image(memory_of({"x": NEW}), "x", as_name="moving:1"),
        names={"moving:1": NEW},
    ),
    "import what is there": Verb(
        prepare=make_store,
        work=lambda store, _: store.import_image(memory_of({"x": ALWAYS}), "x", as_name="new:1"),
        names={"new:1": ALWAYS},
    ),
    "import with a partial": Verb(prepare=make_partial, work=import_new, names={"new:1": NEW}),
    "import over wrong blobs": Verb(prepare=make_wrong_blobs, work=import_new, names={"new:1": NEW}, mends=True),
    "load": Verb(prepare=make_archive, work=load_new, names={"new:1": NEW}),
    "load into no store": Verb(
        prepare=make_archive_alone,
        work=load_new,
        names={"new:1": NEW},
    ),
    "tag": Verb(prepare=make_store, work=lambda store, _: store.tag("always:1", "new:1"), names={"new:1": ALWAYS}),
    "tag over a name": Verb(
        prepare=make_store, work=lambda store, _: store.tag("always:1", "moving:1"), names={"moving:1": ALWAYS}
    ),
    "remove": Verb(prepare=make_store, work=remove_once, names={"going:1": None}),
    "untag": Verb(prepare=make_store, work=untag_once, names={"going:1": None}),
    "undo": Verb(prepare=make_removed, work=undo_once, names={"going:1": ALWAYS}),
    "repair": Verb(prepare=make_rotten, work=repair, names={}, mends=True),
    "unpack": Verb(prepare=make_packed, work=unpack, names={}, trees={"tree": (None, PACKED_TREE)}),
    "unpack over a tree": Verb(prepare=make_unpacked, work=unpack, names={}, trees={"tree": (OLD_TREE, PACKED_TREE)}),
    "rootfs": Verb(prepare=make_packed, work=lambda store, _: store.rootfs("packed:1"), names={}, trees=LAYER_TREES),
    "prune": Verb(prepare=make_garbage, work=lambda store, _: store.prune(), names={}),
    "prune of trees": Verb(prepare=make_derived, work=lambda store, _: store.prune(), names={}),
    "save": Verb(
        prepare=make_store, work=lambda store, root: store.save("always:1", root.parent / "out.tar"), names={}
    ),
}


def expected_names(before: dict[str, str], changes: dict[str, BuiltImage | None]) -> dict[str, str]:
    """Return the names once a verb has come to its end."""
    after = {**before, **{name: image.digest for name, image in changes.items() if image is not None}}
    return {name: digest for name, digest in after.items() if changes.get(name, ALWAYS) is not None}


def wrong_contents(root: Path) -> set[bytes]:
    """Return what lies in the place of blobs and is no such blob."""
    files = [path for path in (root / "blobs").glob("*/*") if path.is_file() and path.name.isalnum()]
    contents = {f"{path.parent.name}:{path.name}": path.read_bytes() for path in files}
    return {content for digest, content in contents.items() if digest_of(content) != digest}


def kept_contents(root: Path, *folders: str) -> set[bytes]:
    """Return what lies under ``blobs/`` and in quarantine, or in some of these folders."""
    found = [path for folder in folders or ("blobs", "quarantine") for path in (root / folder).rglob("*")]
    return {path.read_bytes() for path in found if path.is_file()}


def count_changes(verb: Verb, template: Path, folder: Path, *, links: bool, durability: str) -> int:
    """Return how many operations a verb takes when nobody dies."""
    shutil.copytree(template, folder, symlinks=True)
    with replaced_os(trees=True) as system:
        if not links:
            no_hard_links(system)
        verb.work(open_at(folder, durability), folder / "store")
        return len(system.changes)


def open_at(folder: Path, durability: str) -> Store:
    """Return the store of a folder."""
    return Store(folder / "store", durability="full" if durability == "full" else "none", lock_timeout_seconds=5.0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of stores are copied, and none outlives the test."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.timeout(900 if DEEP else 120)
@pytest.mark.parametrize(("links", "durability"), [(True, "none"), (True, "full"), (False, "none")])
@pytest.mark.parametrize("name", VERBS)
def test_a_process_may_die_at_any_operation(disk: Path, name: str, links: bool, durability: str) -> None:
    verb = VERBS[name]
    template = disk / "template"
    template.mkdir()
    verb.prepare(template / "store")
    before = read_names(template / "store")
    wrong = wrong_contents(template / "store")
    assert bool(wrong) == verb.mends
    after = expected_names(before, verb.names)
    changes = count_changes(verb, template, disk / "counted", links=links, durability=durability)
    stride = -(-changes // MOST_PLACES)
    places = list(part_of(range(0, changes, stride)))
    died = 0
    for position in places:
        folder = disk / str(position)
        shutil.copytree(template, folder, symlinks=True)
        status = run_forked(partial(work_and_die, verb, folder, position, links=links, durability=durability))
        assert status in (0, DIED), f"{name}: an error instead of a death at operation {position}"
        assert wrong <= kept_contents(folder / "store"), f"{name}, operation {position}: what was wrong is lost"
        died += status == DIED
        check_store(verb, folder, before, after, place=f"{name}, operation {position} of {changes}")
        assert wrong <= kept_contents(folder / "store", "quarantine"), f"{name}, operation {position}"
        shutil.rmtree(folder)
    # A part of a deep run may be of few places.
    assert len(places) - died <= max(DEEP, 0.2 * len(places)), "most of the places were reached"


def work_and_die(verb: Verb, folder: Path, position: int, *, links: bool, durability: str) -> None:
    """Do what the verb says, and die at an operation."""
    with replaced_os(trees=True) as system:
        if not links:
            no_hard_links(system)
        system.die_at(position, torn=bool(position % 2))
        verb.work(open_at(folder, durability), folder / "store")


def planted_trees(root: Path) -> set[str]:
    """Return where the trees lie that :func:`make_derived` left, and that have their names still."""
    found = {*root.glob("base_layers/*_[0-9]"), *root.glob("extracted/[0-9a-f]*")}
    return {path.relative_to(root).as_posix() for path in found}


def half_trees(root: Path) -> list[str]:
    """Return those of them that are not whole."""
    parts = ("file", "usr/bin/tool")
    return [path for path in planted_trees(root) if not all((root / path / part).exists() for part in parts)]


def check_store(verb: Verb, folder: Path, before: dict[str, str], after: dict[str, str], *, place: str) -> None:
    """Check a store whose process has died, then do the same again, collect, and check once more."""
    root = folder / "store"
    if not verb.mends:
        check_invariants(root, leftovers=True)
    assert held_locks(root) == [], place
    assert read_names(root) in (before, after), place
    check_trees(root, place=place)
    if verb.prepare is make_derived:
        assert half_trees(root) == [], place
    if "out.tar" in os.listdir(folder):
        assert read_archive((folder / "out.tar").read_bytes())[2] == ALWAYS.blobs
    for path, states in verb.trees.items():
        assert (listing(folder / path) if (folder / path).exists() else None) in states, place
    store = open_at(folder, "none")
    verb.work(store, root)
    check_invariants(root, leftovers=True)
    for path, (_, made) in verb.trees.items():
        assert listing(folder / path) == made, place
    if verb.trees:
        assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")], place
    assert read_names(root) == after, place
    check_trees(root, place=place)
    for name in verb.names if verb.unpacks else ():
        assert files_of(store.base_layer(name)) == TREES[after[name]], place
    if verb.unpacks or verb.prepare is make_derived:
        # Who is not root may not look into others, which may have the trees mounted.
        assert run_alone(partial(check_collected, verb, folder, after, place=place)) == 0, place
    else:
        check_collected(verb, folder, after, place=place)


def check_collected(verb: Verb, folder: Path, after: dict[str, str], *, place: str) -> None:
    """Collect, and check that all that is named is left, and nothing else."""
    root = folder / "store"
    store = open_at(folder, "none")
    report = store.prune()
    assert report.errors == (), place
    assert list((root / "ingest" / "partial").iterdir()) == [], place
    assert list(root.glob("base_layers/.*")) == [], place
    check_trees(root, place=place)
    for name in verb.names if verb.unpacks else ():
        assert files_of(store.base_layer(name)) == TREES[after[name]], place
    check_invariants(root, history_behind=True)
    assert stored(root) == reachable(root), place
    assert store.prune().removed == (), place
    if verb.prepare is make_derived:
        assert planted_trees(root) <= {"base_layers/always_1", f"extracted/{hex_of(SHARED_DIGEST)}"}, place
    assert not any(image.damaged for image in store.images()), place


def check_trees(root: Path, *, place: str) -> None:
    """Check that what stands beside a tree says what the tree is."""
    for sidecar in (root / "base_layers").glob("[!.]*.json"):
        made_of = json.loads(sidecar.read_bytes())["manifest_digest"]
        if made_of in TREES:
            assert files_of(sidecar.with_suffix("")) == TREES[made_of], f"{place}: {sidecar.name} lies"


def files_of(tree: str | Path | None) -> dict[str, bytes]:
    """Return the files of a tree by their paths."""
    assert tree is not None
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in Path(tree).rglob("*") if path.is_file()}
