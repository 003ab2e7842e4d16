"""skopeo copies into a store while we work on it: it takes no lock, and writes what it found at its start.

What it may do to us is bounded here; what we must not do to it follows. It writes index.json, oci-layout and the
manifest in place, and everything else by a rename.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from minibox_store import ImageNotFound, IncompleteImage, Store
from tests.support.foreign_copies import skopeo_copying, skopeo_rewriting
from tests.support.forks import run_forked
from tests.support.images import build_image, build_layer
from tests.support.invariants import check_invariants, generations, reachable, read_names, stored
from tests.support.layouts import write_layout
from tests.support.ledgers import check_whole
from tests.support.os_proxy import Gate, replaced_os
from tests.support.scripted_registry import Answer, Request, ScriptedRegistry, blob_headers, blob_target, serve_image
from tests.support.snapshots import snapshot
from tests.support.sources import memory_of
from tests.support.stores import blob, put, put_dead
from tests.support.trials import drawing, trial_seconds
from tests.support.waiting import sparing_later_files

OURS = build_image(salt="ours")
NEW = build_image(salt="new")
# All layers are compressed: skopeo compresses what is not, and so makes it another blob.
SHARED = build_layer({"srv/shared": b"shared" * 1000})
FOREIGN = build_image([SHARED, {"srv/foreign": b"foreign"}], salt="foreign")
DEAD = build_image([SHARED], salt="dead")
SECONDS = trial_seconds(6, 60)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a store with one image of ours under two names."""
    folder = tmp_path / "store"
    put(folder, OURS, "ours:1", "going:1")
    return folder


@contextmanager
def foreign_copy_under_way(root: Path) -> Iterator[ScriptedRegistry]:
    """Let skopeo copy FOREIGN into the store as ``foreign:1``; in the block it has read index.json, and waits.

    Behind the block it goes on, and comes to its end.
    """
    gate = Gate()
    config = FOREIGN.config_digest

    def held(request: Request) -> Answer:
        gate()
        return Answer(headers=blob_headers(config), body=FOREIGN.blobs[config])

    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", FOREIGN)
        registry.allow("GET", blob_target("team/app", config), held)
        source = f"docker://{registry.reference('team/app', '1')}"
        with skopeo_copying(root.parent / "skopeo", source, f"oci:{root}:foreign:1"):
            try:
                gate.wait()
                yield registry
            finally:
                gate.open()


def open_store(root: Path) -> Store:
    """Return a store as patient as it is by itself."""
    return Store(root, durability="none")


# What it drops, and what it leaves alone


def test_names_that_were_written_during_a_foreign_copy_are_dropped_by_it_and_found_again(root: Path) -> None:
    store = open_store(root)
    with foreign_copy_under_way(root):
        store.import_image(memory_of({"new:1": NEW}), "new:1")
        store.tag("ours:1", "ours:2")
        store.remove("going:1")
    assert set(read_names(root)) == {"ours:1", "going:1", "foreign:1"}, "it wrote what it had read, and its own"
    lost = {each.name: str(each.descriptor.digest) for each in store.lost_names()}
    assert lost == {"new:1": NEW.digest, "ours:2": OURS.digest}
    check_invariants(root, history_behind=True)
    store.tag("ours:1", "ours:3")
    assert set(read_names(root)) == {"ours:1", "ours:3", "going:1", "foreign:1"}
    assert {each.name for each in store.lost_names()} == set(lost), "the next change of ours hides none of them"
    said = [path.read_bytes() for path in generations(root)]
    assert sum(b"foreign:1" in content for content in said) == 2, "what it wrote was recorded before that change"
    for image in (OURS, NEW, FOREIGN):
        check_whole(root, image)
    check_invariants(root)


def test_an_undo_gives_back_what_a_foreign_copy_has_dropped(root: Path) -> None:
    store = open_store(root)
    with foreign_copy_under_way(root):
        store.import_image(memory_of({"new:1": NEW}), "new:1")
    assert [image.name for image in store.undo()] == ["new:1"]
    assert read_names(root) == {
        **dict.fromkeys(["ours:1", "going:1"], OURS.digest),
        "new:1": NEW.digest,
        "foreign:1": FOREIGN.digest,
    }
    check_invariants(root)


def test_what_a_foreign_copy_has_written_is_a_root_of_every_later_prune(root: Path) -> None:
    put_dead(root, DEAD)
    store = open_store(root)
    with foreign_copy_under_way(root) as registry:
        pass
    assert registry.count("GET", blob_target("team/app", FOREIGN.layer_digests[0])) == 0, "it had seen that blob here"
    assert {finding.kind for finding in store.verify()} == {"unreferenced"}
    report = store.prune()
    assert (report.errors, report.absent) == ((), ())
    assert report.blobs_removed == len(DEAD.blobs.keys() - FOREIGN.blobs.keys())
    check_whole(root, FOREIGN)
    check_whole(root, OURS)
    assert store.get("foreign:1").layers == 2
    assert stored(root) == reachable(root)
    assert store.verify() == ()


def test_a_blob_that_a_prune_took_from_under_a_foreign_copy_is_missed_by_name_and_nothing_else_goes(root: Path) -> None:
    put_dead(root, DEAD)
    put_dead(root, NEW)
    store = open_store(root)
    with foreign_copy_under_way(root):
        store.prune()
    damage = [each for each in store.verify() if each.is_damage]
    assert {(each.kind, each.names) for each in damage} == {("missing", ("foreign:1",))}
    missing = {str(each.digest) for each in damage}
    assert missing == set(FOREIGN.layer_digests), "what it had seen, and what it had written but not named"
    before = stored(root)
    with pytest.raises(IncompleteImage, match=FOREIGN.layer_digests[0]):
        store.save("foreign:1", root.parent / "foreign.tar")
    store.save("ours:1", root.parent / "ours.tar")
    store.import_image(memory_of({"foreign:1": FOREIGN}), "foreign:1")
    assert stored(root) == before | missing
    assert store.verify() == ()
    check_invariants(root, history_behind=True)


def test_a_prune_that_spares_what_is_new_takes_nothing_from_under_a_foreign_copy(root: Path) -> None:
    put_dead(root, NEW)
    store = open_store(root)
    with sparing_later_files() as seconds, foreign_copy_under_way(root):
        report = store.prune(keep_newer_than_seconds=seconds)
        assert report.blobs_removed == len(NEW.blobs), "what was there before the copy began is as old as that"
        layers = {f"blobs/{digest.replace(':', '/')}" for digest in FOREIGN.layer_digests}
        assert {each.partition(":")[0] for each in report.kept} >= layers, "what it has just written"
    check_whole(root, FOREIGN)
    check_whole(root, OURS)
    assert store.verify() == ()
    assert store.prune().blobs_removed == 0


def test_a_repair_offers_the_names_that_a_foreign_copy_has_dropped_and_changes_nothing(root: Path) -> None:
    store = open_store(root)
    with foreign_copy_under_way(root):
        store.import_image(memory_of({"new:1": NEW}), "new:1")
        store.tag("ours:1", "ours:2")
    before = snapshot(root)
    report = store.repair()
    assert report.is_whole
    assert (report.index, report.mended, report.unmended) == (None, (), ())
    lost = {each.name: str(each.descriptor.digest) for each in report.lost_names}
    assert lost == {"new:1": NEW.digest, "ours:2": OURS.digest}
    assert [str(each.digest) for each in report.nameless] == [NEW.digest], "a name of the other is there"
    assert snapshot(root) == before
    store.undo()
    assert open_store(root).repair().lost_names == ()
    check_whole(root, NEW)


# What it is writing at this moment


def look(store: Store) -> None:
    assert not any(image.damaged for image in store.images())


def save(store: Store) -> None:
    store.save("foreign:1", Path(store.root).parent / "saved.tar")


def check(store: Store) -> None:
    assert store.verify() == ()


def repair(store: Store) -> None:
    report = store.repair()
    assert (report.index, report.mended, report.unmended) == (None, (), ())


ACTIONS: dict[str, Callable[[Store], object]] = {
    "images": look,
    "save": save,
    "tag": lambda store: store.tag("foreign:1", "tagged:1"),
    "remove": lambda store: store.remove("going:1"),
    "import": lambda store: store.import_image(memory_of({"new:1": NEW}), "new:1"),
    "import of the same": lambda store: store.import_image(memory_of({"foreign:1": FOREIGN}), "foreign:1"),
    "prune": lambda store: store.prune(),
    "verify": check,
    "usage": lambda store: store.usage(),
    "why": lambda store: store.why(store.get("foreign:1").digest),
    "repair": repair,
    "lost names": lambda store: store.lost_names(),
}


def changed(names: dict[str, str], action: str) -> dict[str, str]:
    """Return what an action makes of the names of a store."""
    match action:
        case "tag":
            return {**names, "tagged:1": FOREIGN.digest}
        case "import":
            return {**names, "new:1": NEW.digest}
        case "remove":
            return {name: digest for name, digest in names.items() if name != "going:1"}
    return names


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("file", ["index.json", "oci-layout", "the manifest"])
def test_a_file_that_skopeo_is_writing_is_waited_for(root: Path, file: str, action: str) -> None:
    put(root, FOREIGN, "foreign:1")
    blob(root, FOREIGN.digest).chmod(0o644)  # as skopeo has written it: over one of ours it may write as root alone
    source = root.parent / "source"
    write_layout(source, {"foreign:1": FOREIGN})
    path = blob(root, FOREIGN.digest) if file == "the manifest" else root / file
    before = read_names(root)
    with skopeo_rewriting(root.parent / "skopeo", path, f"oci:{source}:foreign:1", f"oci:{root}:foreign:1"):
        ACTIONS[action](Store(root, durability="none", settle_seconds=60.0))
    # index.json is what skopeo writes last, as it was at its start: what we changed in it before that is dropped.
    dropped = [] if file == "index.json" else [before]
    assert read_names(root) in (changed(before, action), *dropped)
    for image in (OURS, FOREIGN):
        check_whole(root, image)
    check_invariants(root, history_behind=True)


def test_a_manifest_that_is_written_in_place_again_and_again_is_read_whole_each_time(root: Path) -> None:
    path, content = blob(root, OURS.digest), OURS.blobs[OURS.digest]
    path.chmod(0o600)
    stopped = threading.Event()

    def write() -> None:
        while not stopped.is_set():
            path.write_bytes(content)
            time.sleep(0.0005)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(80):
                look(open_store(root))
                check(open_store(root))
        finally:
            stopped.set()
        writing.result()
    assert path.read_bytes() == content


def test_a_tag_that_another_tool_drops_at_once_was_given_all_the_same(root: Path) -> None:
    store, before = open_store(root), (root / "index.json").read_bytes()
    with replaced_os() as system:
        system.after("replace", lambda: (root / "index.json").write_bytes(before), target="/index.json")
        image = store.tag("ours:1", "ours:2")
    assert (image.name, str(image.digest)) == ("ours:2", OURS.digest)
    assert [each.name for each in store.lost_names()] == ["ours:2"]


# Both, for a while


def work_beside(root: Path, number: int, seed: int, seconds: float) -> None:
    """Do whatever comes but a prune, for a while; only that a name of ours is not there may be told."""
    begun_file(root, number).touch()
    store, drawn = open_store(root), random.Random(seed)
    names = [f"own-{number}/app:{each}" for each in range(3)]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        name = drawn.choice(names)
        with suppress(ImageNotFound):
            match drawn.randrange(6):
                case 0 | 1:
                    image = drawn.choice([OURS, NEW, DEAD])
                    store.import_image(memory_of({name: image}), name)
                case 2:
                    store.tag(name, drawn.choice(names))
                case 3:
                    store.remove(name)
                case 4:
                    store.save(name, root.parent / f"saved-{number}.tar")
                case 5:
                    assert [image.name for image in store.images() if image.damaged] == []
                    assert [finding for finding in store.verify() if finding.is_damage] == []


def begun_file(root: Path, number: int) -> Path:
    """Return the file that a process makes as soon as it works beside others."""
    return root.parent / f"begun-{number}"


def wait_until_begun(root: Path, numbers: range) -> None:
    """Return once these processes work.

    A program that is started while this process forks in other threads may be waited for until all of those have ended:
    they have inherited the pipe by whose end is told that it runs.
    """
    deadline = time.monotonic() + 20
    while not all(begun_file(root, number).exists() for number in numbers):
        assert time.monotonic() < deadline, "the processes did not begin"
        time.sleep(0.01)


@pytest.mark.timeout(SECONDS + 120)
def test_skopeo_and_processes_of_ours_work_on_one_store_and_nothing_is_damaged(root: Path) -> None:
    images = {f"foreign/app:{number}": build_image([SHARED, {"n": b"%d" % number}], salt="f") for number in range(4)}
    source = root.parent / "source"
    write_layout(source, images)
    copies = 0
    with drawing() as seed, ThreadPoolExecutor() as pool:
        run = partial(run_forked, timeout_seconds=SECONDS + 60)
        working = [pool.submit(run, partial(work_beside, root, each, seed + each, SECONDS)) for each in range(3)]
        wait_until_begun(root, range(3))
        while not all(each.done() for each in working):
            name = sorted(images)[copies % len(images)]
            with skopeo_copying(root.parent / "skopeo", f"oci:{source}:{name}", f"oci:{root}:{name}"):
                pass
            copies += 1
        assert [each.result() for each in working] == [0, 0, 0]
    assert copies > len(images), "each image was written over another time while others worked"
    store = open_store(root)
    assert not any(finding.is_damage for finding in store.verify())
    check_invariants(root, history_behind=True)
    for name in images:
        with skopeo_copying(root.parent / "skopeo", f"oci:{source}:{name}", f"oci:{root}:{name}"):
            pass
    assert store.prune().errors == ()
    for name, image in images.items():
        assert read_names(root)[name] == image.digest
        check_whole(root, image)
    check_whole(root, OURS)
    assert stored(root) == reachable(root)
    assert store.verify() == ()
