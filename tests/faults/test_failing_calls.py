"""Any call of the operating system fails, once or from there on: it is told, nothing is lost, the next try succeeds.

Each verb meets each error at each of its operations: what changes a disk by ENOSPC, EDQUOT, EIO, EROFS and EMFILE, what
only looks at it by EIO, what opens anything by EMFILE. Places are taken by a stride, others for each error, and all of
them where MINIBOX_DEEP is 1.
"""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from minibox_store import IncompleteImage, PruneReport, Store, StoreDamaged, StoreError, StoreFull, StoreUnavailable
from minibox_store import _locks as locks
from tests.support.archives import members_of, pack, read_archive
from tests.support.failing_system import FailingSystem, failing_system, is_change, is_look, is_opening
from tests.support.images import BuiltImage, build_image, build_index, random_layer
from tests.support.invariants import check_invariants, held_locks, open_files, reachable, read_names, stored
from tests.support.lock_records import recorded_locks
from tests.support.os_proxy import Call
from tests.support.pushes import push_image
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedRegistry, blob_target, manifest_target, serve_image
from tests.support.sources import memory_of
from tests.support.stores import blob, open_store, put, put_dead, rot
from tests.support.trials import DEEP, part_of

SHARED = random_layer(4096, salt="shared")
ALWAYS = build_image([SHARED, {"a": b"always"}], salt="always")
OLD = build_image(salt="old")
DEAD = build_image(salt="dead")
NEW = build_index([build_image([SHARED, random_layer(70_144, salt="new")]), build_image(platform="linux/arm64")])

MOST_PLACES = 100_000 if DEEP else 6
EVER = 1 << 60

CHANGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE)
FAULTS: dict[str, tuple[Callable[[Call], bool], int]] = {
    **{f"{errno.errorcode[number]} at a change": (is_change, number) for number in CHANGE_ERRORS},
    "EIO at a look": (is_look, errno.EIO),
    "EMFILE at an opening": (is_opening, errno.EMFILE),
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One store that a verb is done to, in a folder of its own, and the registry that it may pull from."""

    folder: Path
    registry: ScriptedRegistry

    @property
    def root(self) -> Path:
        return self.folder / "store"

    def open_store(self) -> Store:
        """Return the store; it waits for no lock at all, as there is nobody who might hold one."""
        return Store(self.root, lock_timeout_seconds=0.0, settle_seconds=0.0)


@dataclass(frozen=True, kw_only=True)
class Verb:
    """Something that is done to a store, and the names that it changes: None for one that goes."""

    work: Callable[[Store, Scene], object]
    names: dict[str, BuiltImage | None] = field(default_factory=dict)


VERBS = {
    "import": Verb(work=lambda store, _: store.import_image(memory_of({"new:1": NEW}), "new:1"), names={"new:1": NEW}),
    "pull": Verb(
        work=lambda store, scene: store.pull(
            scene.registry.reference("app", "1"), name="new:1", platform=None, client=quick_client()
        ),
        names={"new:1": NEW},
    ),
    "load": Verb(work=lambda store, scene: store.load(scene.folder / "a.tar"), names={"new:1": NEW}),
    "save": Verb(work=lambda store, scene: store.save("always:1", scene.folder / "out.tar")),
    "tag": Verb(work=lambda store, _: store.tag("always:1", "moving:1"), names={"moving:1": ALWAYS}),
    "remove": Verb(work=lambda store, _: store.remove("moving:1"), names={"moving:1": None}),
    "undo": Verb(work=lambda store, _: store.undo(), names={"gone:1": OLD}),
    "prune": Verb(work=lambda store, _: store.prune()),
    "push": Verb(
        work=lambda store, _: push_image(store.repository("team/new"), ALWAYS, "1"), names={"team/new:1": ALWAYS}
    ),
}


@pytest.fixture(scope="module")
def registry() -> Iterator[ScriptedRegistry]:
    """A registry that serves one image, as often as it is asked."""
    with ScriptedRegistry() as scripted:
        serve_image(scripted, "app", "1", NEW)
        yield scripted


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of stores are copied, and none outlives the test."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def template(disk: Path) -> Path:
    """A folder with an archive and a store: names, ten generations, dead blobs, a dead transaction and a partial."""
    folder = disk / "template"
    root = folder / "store"
    folder.mkdir()
    put_dead(root, DEAD)
    put(root, ALWAYS, "always:1")
    put(root, OLD, "old:1", "moving:1", "gone:1")
    for number in range(3):
        open_store(root).tag("always:1", f"tag:{number}")
    open_store(root).remove("gone:1")
    (root / "ingest" / "partial" / f"sha256-{'0' * 64}").write_bytes(b"half")
    abandoned = root / "ingest" / "0123456789abcdef"
    abandoned.mkdir()
    (abandoned / "lock").touch()
    (abandoned / "staged-00").write_bytes(b"x")
    (folder / "a.tar").write_bytes(pack(members_of(NEW, "new:1")))
    return folder


@contextmanager
def scene_of(template: Path, registry: ScriptedRegistry) -> Iterator[Scene]:
    """Make a copy of the template for the block."""
    with tempfile.TemporaryDirectory(dir=template.parent) as name:
        folder = Path(name) / "scene"
        shutil.copytree(template, folder, symlinks=True)
        yield Scene(folder=folder, registry=registry)


def expected_names(before: dict[str, str], verb: Verb) -> dict[str, str]:
    """Return the names once a verb has come to its end."""
    after = {**before, **{name: image.digest for name, image in verb.names.items() if image is not None}}
    return {name: digest for name, digest in after.items() if verb.names.get(name, ALWAYS) is not None}


def count_places(verb: Verb, scene: Scene, matches: Callable[[Call], bool]) -> int:
    """Return how many calls match when none fails."""
    with failing_system() as system:
        verb.work(scene.open_store(), scene)
    return system.count_of(matches)


@pytest.mark.timeout(1800 if DEEP else 120)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", VERBS)
def test_S18_an_error_at_any_call_is_told_loses_nothing_and_leaves_no_lock_and_no_open_file(
    template: Path, registry: ScriptedRegistry, name: str, fault: str
) -> None:
    verb, (matches, number) = VERBS[name], FAULTS[fault]
    with scene_of(template, registry) as scene:
        places = count_places(verb, scene, matches)
        assert read_names(scene.root) == expected_names(read_names(template / "store"), verb)
        assert bool(verb.names) == (read_names(scene.root) != read_names(template / "store"))
    stride = -(-places // MOST_PLACES)
    first = list(FAULTS).index(fault) * 7 % stride
    met = tried = 0
    for turn, position in enumerate(part_of(range(first, places, stride))):
        for times in (1, EVER) if DEEP else ((1, EVER)[turn % 2],):
            tried += 1
            place = f"{name}, {fault} {position} of {places}, {'once' if times == 1 else 'and all behind it'}"
            with scene_of(template, registry) as scene:
                met += check_one(verb, scene, matches, number, position, times, place)
    # Threads change the order of the calls, and their number by a little.
    assert met >= (int(0.7 * tried) if DEEP else 0.7 * places // stride), "most of the places were reached"


def check_one(
    verb: Verb, scene: Scene, matches: Callable[[Call], bool], number: int, position: int, times: int, place: str
) -> bool:
    """Let one call fail, or all from one on; return whether it was reached."""
    root, before = scene.root, read_names(scene.root)
    after = expected_names(before, verb)
    asked = requests_of(scene.registry)
    error, result = None, None
    with failing_system() as system:
        system.fail_from(matches, number, skip=position, times=times)
        start = time.monotonic()
        try:
            result = verb.work(scene.open_store(), scene)
        except StoreError as raised:
            error = raised
        seconds = time.monotonic() - start
    assert seconds < 5, f"{place}: it took {seconds} s to give up"
    assert all(count <= 1 for count in (requests_of(scene.registry) - asked).values()), f"{place}: asked for again"
    if matches is not is_look:  # to look at a thing a second time is no second try
        assert system.repeated() == [], place
    assert open_files(scene.folder) == [], place
    assert held_locks(root) == [], place
    check_invariants(root, leftovers=True)
    if error is not None:
        check_sentence(error, scene, number, system, place)
    check_names(root, before, after, error, system, times, place)
    if isinstance(result, PruneReport):
        assert result.errors or stored(root) == reachable(root), f"{place}: what stayed was not told"
    if not system.failed:
        assert error is None, place
    check_next_try(verb, scene, after, place)
    if times == 1:  # what cannot be removed either stays beside the archive
        assert [path.name for path in scene.folder.iterdir() if path.name.startswith(".")] == [], place
    return bool(system.failed)


def check_sentence(error: StoreError, scene: Scene, number: int, system: FailingSystem, place: str) -> None:
    """Check that an error is one sentence that names a thing, and of its kind."""
    sentence = str(error)
    # A durable change makes the folders above the store durable too, and says which of them it could not.
    above = any(sentence.startswith(f"cannot use {folder}: ") for folder in scene.folder.parents)
    # A blob that the disk does not give counts as none: whoever pushes is told its digest, and pushes it again.
    blob = isinstance(error, IncompleteImage) and all(digest in sentence for digest in error.missing)
    assert str(scene.folder) in sentence or above or blob, f"{place}: {sentence!r} names nothing"
    assert sentence.isprintable(), place
    assert "Traceback" not in sentence
    assert system.failed, f"{place}: {sentence}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        assert isinstance(error, StoreFull), f"{place}: {error!r}"
    else:
        assert not isinstance(error, StoreFull), f"{place}: {error!r}"


def check_names(
    root: Path,
    before: dict[str, str],
    after: dict[str, str],
    error: StoreError | None,
    system: FailingSystem,
    times: int,
    place: str,
) -> None:
    """Check that a failure has changed no name, and that a success has changed those that it should."""
    names = read_names(root)
    first = system.failed[0] if system.failed else None
    if first is not None and times > 1 and (first.name, first.paths) == ("fsync", (str(root),)):
        # The name was there, its folder could not be synced, and a disk that takes no change takes nothing back.
        assert names in (before, after), place
    else:
        assert names == (after if error is None else before), place


def check_next_try(verb: Verb, scene: Scene, after: dict[str, str], place: str) -> None:
    """Check that the same succeeds when the system is well again, waiting for nothing, and leaves nothing behind."""
    root = scene.root
    store = scene.open_store()
    if verb is VERBS["save"] or read_names(root) != after or verb is VERBS["prune"]:
        with recorded_locks() as records:
            verb.work(store, scene)
        assert records.waited_for == set(), place
    assert read_names(root) == after, place
    if verb is VERBS["save"]:
        assert read_archive((scene.folder / "out.tar").read_bytes())[2] == ALWAYS.blobs, place
    assert store.prune().errors == (), place
    check_invariants(root, history_behind=True)
    assert stored(root) == reachable(root), place
    assert not any(image.damaged for image in store.images()), place


def requests_of(registry: ScriptedRegistry) -> "Counts":
    """Return how often each manifest and blob was asked for until now."""
    targets = [manifest_target("app", "1")]
    targets += [manifest_target("app", digest) for digest in NEW.document_digests]
    targets += [blob_target("app", digest) for digest in NEW.blobs if digest not in NEW.document_digests]
    return Counts({target: registry.count("GET", target) for target in targets})


class Counts(dict[str, int]):
    """Counts by name."""

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts({name: count - other[name] for name, count in self.items()})


def repair(store: Store) -> object:
    return store.repair(sources=[memory_of({"always:1": ALWAYS, "old:1": OLD})], parallel=1)


def make_wrong(root: Path) -> set[bytes]:
    """Harm some blobs of a store, and return what was made of them."""
    victims = [ALWAYS.digest, ALWAYS.layer_digests[0], OLD.layer_digests[1]]
    for digest in victims:
        rot(blob(root, digest))
    blob(root, OLD.config_digest).unlink()
    return {blob(root, digest).read_bytes() for digest in victims}


@pytest.mark.timeout(1800 if DEEP else 120)
@pytest.mark.parametrize("fault", FAULTS)
def test_S18_an_error_at_any_call_of_a_repair_is_told_loses_nothing_and_the_next_one_mends(
    template: Path, registry: ScriptedRegistry, fault: str
) -> None:
    matches, number = FAULTS[fault]
    with scene_of(template, registry) as scene, failing_system() as system:
        make_wrong(scene.root)
        repair(scene.open_store())
        places = system.count_of(matches)
    stride = -(-places // (4 * MOST_PLACES))
    met = tried = 0
    for turn, position in enumerate(part_of(range(0, places, stride))):
        for times in (1, EVER) if DEEP else ((1, EVER)[turn % 2],):
            tried += 1
            with scene_of(template, registry) as scene:
                place = f"{fault} {position} of {places}, {'once' if times == 1 else 'and all behind it'}"
                met += check_repair(scene, matches, number, position, times, place)
    assert met >= (int(0.7 * tried) if DEEP else 0.7 * places // stride), "most of the places were reached"


def check_repair(
    scene: Scene, matches: Callable[[Call], bool], number: int, position: int, times: int, place: str
) -> bool:
    """Let one call of a repair fail, or all from one on; return whether it was reached."""
    root, before = scene.root, read_names(scene.root)
    wrong = make_wrong(root)
    error = None
    with failing_system() as system:
        system.fail_from(matches, number, skip=position, times=times)
        try:
            repair(scene.open_store())
        except StoreError as raised:
            error = raised
    assert open_files(scene.folder) == [], place
    assert held_locks(root) == [], place
    assert read_names(root) == before, place
    kept = {path.read_bytes() for folder in ("blobs", "quarantine") for path in (root / folder).rglob("sha*/*")}
    kept |= {path.read_bytes() for path in (root / "quarantine").glob("*")}
    assert wrong <= kept, f"{place}: what was wrong is lost"
    assert error is None or system.failed, place
    if isinstance(error, StoreDamaged):  # nobody could read index.json, nor any generation of it
        assert matches is not is_change, place
    elif error is not None:
        # The folder above the store is its ground too, and may be what was not to be opened.
        named = (str(scene.folder), *(path for call in system.failed for path in call.paths))
        assert any(path in str(error) for path in named), f"{place}: {error}"
        assert str(error).isprintable(), place
        assert isinstance(error, StoreFull) == (number in (errno.ENOSPC, errno.EDQUOT)), f"{place}: {error!r}"
    report = scene.open_store().repair(sources=[memory_of({"always:1": ALWAYS, "old:1": OLD})])
    assert report.is_whole, place
    assert [each for each in scene.open_store().verify() if each.is_damage] == [], place
    assert scene.open_store().prune().errors == (), place
    check_invariants(root, history_behind=True)
    assert read_names(root) == before, place
    return bool(system.failed)


def test_a_fault_that_nobody_meets_is_seen_not_to_be_met(template: Path, registry: ScriptedRegistry) -> None:
    with scene_of(template, registry) as scene:
        assert not check_one(VERBS["tag"], scene, is_change, errno.EIO, 10_000, 1, "nowhere")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("verb", "operation"),
    [
        *(("import", name) for name in ("write", "fsync", "fchmod")),
        *(("load", name) for name in ("write", "fsync", "fchmod", "copy_file_range")),
        *(("tag", name) for name in ("write", "fsync", "fchmod")),
        *(("save", name) for name in ("write", "fsync", "copy_file_range")),
    ],
)
def test_what_cannot_be_cleared_away_does_not_hide_that_the_disk_is_full(
    template: Path, registry: ScriptedRegistry, verb: str, operation: str, number: int
) -> None:
    with scene_of(template, registry) as scene, failing_system() as system:
        system.fail_from(lambda call: call.name == operation, number, skip=0, times=EVER)
        system.fail("unlink", errno.EIO)
        with pytest.raises(StoreFull, match=str(scene.folder)):
            VERBS[verb].work(scene.open_store(), scene)


@pytest.mark.parametrize("name", ["flock", "lstat", "fstat"])
def test_S18_a_lock_whose_taking_fails_is_not_kept(
    template: Path, registry: ScriptedRegistry, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene_of(template, registry) as scene:
        path = str(scene.root / "ingest" / "store.lock")
        with failing_system() as system, monkeypatch.context() as patch:
            if name == "flock":
                patch.setattr(locks, "fcntl", _NoLocks())
            else:
                system.fail(name, errno.EIO, path="store.lock")
            with pytest.raises(StoreUnavailable, match=str(scene.root)):
                scene.open_store().tag("always:1", "never:1")
        assert open_files(scene.folder) == []
        assert held_locks(scene.root) == []
        with locks.holding_lock(path, doing="trying", timeout_seconds=0):
            assert held_locks(scene.root) == ["ingest/store.lock"]


class _NoLocks:
    """A kernel that has no room for a further lock."""

    LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = 1, 2, 4, 8

    def flock(self, descriptor: int, operation: int) -> None:
        if operation != self.LOCK_UN:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
