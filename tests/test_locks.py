"""Locks from the outside: in which order each verb takes them, and what whoever waits for one is told."""

import errno
import graphlib
import io
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import pytest

from minibox_store import Store, StoreBusy
from minibox_store import _locks as locks
from minibox_store.layout import Layout, partials
from minibox_store.layout.living import living_folder
from minibox_store.layout.uploads import Uploads
from tests.support.archives import members_of, pack
from tests.support.failing_system import failing_system
from tests.support.forks import forked, sleep_for_ever
from tests.support.images import build_image, random_layer
from tests.support.invariants import check_invariants, held_locks, open_files, read_names
from tests.support.lock_records import recorded_locks
from tests.support.os_proxy import OsProxy, no_hard_links, replaced_os
from tests.support.pushes import push_image
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedRegistry, serve_image
from tests.support.sources import RecordingSource, descriptors_of, memory_of
from tests.support.steps import Steps
from tests.support.stores import blob, layer_of, open_layout, open_store, put, put_dead, rot
from tests.support.waiting import SOON_SECONDS

ALWAYS = build_image(salt="always")
IMAGE = build_image(salt="image")
OTHER = build_image(salt="other")
LOADED = build_image(salt="loaded")

ORDER = ["prune", "life", "transaction", "base layers", "upload", "turn", "store"]
WRITTEN = "prune lock, life lock, a transaction's own, that of the base layers, an upload's, the turn, the store lock"

# What is taken while what is held; where there are no hard links, the life lock takes the place of the pins.
EDGES = {
    ("prune", "transaction"),
    ("prune", "partial"),
    ("prune", "base layers"),
    ("prune", "turn"),
    ("prune", "upload"),
    ("prune", "store"),
    ("transaction", "partial"),
    ("transaction", "upload"),
    ("transaction", "turn"),
    ("transaction", "store"),
    ("transaction", "base layers"),
    ("base layers", "turn"),
    ("base layers", "store"),
    ("upload", "turn"),
    ("upload", "store"),
    ("turn", "store"),
}
EDGES_OF_LIFE = {
    ("prune", "life"),
    ("life", "transaction"),
    ("life", "partial"),
    ("life", "base layers"),
    ("life", "upload"),
    ("life", "turn"),
    ("life", "store"),
}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store. Whatever a test does, it leaves no open file and no lock behind."""
    folder = tmp_path / "store"
    put(folder, ALWAYS, "always:1", "going:1")
    yield folder
    assert open_files(folder) == []
    assert held_locks(folder) == []


# The order


def make_work(root: Path) -> None:
    """Leave something for every verb to do that takes a lock: wrong blobs, dead ones, and what was left half done."""
    (root.parent / "a.tar").write_bytes(pack(members_of(LOADED, "loaded:1")))
    put(root, OTHER, "other:1")
    put_dead(root, build_image(salt="dead"))
    (root / "ingest" / "partial" / f"sha256-{'0' * 64}").write_bytes(b"half")
    open_store(root).repository("team/old").begin_upload()
    for upload in (root / "ingest" / "uploads").iterdir():
        os.utime(upload, (1.0, 1.0))
    (root / "ingest" / ("0" * 16)).mkdir()
    (root / (".index.json." + "0" * 16 + ".tmp")).write_bytes(b"x")
    for name in ("gone_1", f".gone_2.{'0' * 16}.tmp"):
        (root / "base_layers" / name).mkdir(parents=True)


def import_over(store: Store, root: Path) -> None:
    rot(blob(root, OTHER.digest))
    store.import_image(memory_of({"other:1": OTHER}), "other:1")


def repair(store: Store, root: Path) -> None:
    (root / "index.json").write_bytes(b"{")
    store.repair()


def pull_and_unpack(store: Store, _: Path) -> None:
    with ScriptedRegistry() as registry:
        for image in (IMAGE, OTHER):
            serve_image(registry, "team/app", "1", image)
            reference = registry.reference("team/app", "1")
            store.pull(reference, name="pulled:1", unpack=True, client=quick_client())


VERBS: dict[str, Callable[[Store, Path], object]] = {
    "make": lambda _, root: open_store(root.parent / "new").import_image(memory_of({"new:1": IMAGE}), "new:1"),
    "import": lambda store, _: store.import_image(memory_of({"image:1": IMAGE}), "image:1"),
    "import over a wrong blob": import_over,
    "pull and unpack": pull_and_unpack,
    "load": lambda store, root: store.load(root.parent / "a.tar"),
    "tag": lambda store, _: store.tag("always:1", "second:1"),
    "remove": lambda store, _: store.remove("going:1"),
    "undo": lambda store, _: store.undo(),
    "prune": lambda store, _: store.prune(),
    "info": lambda store, _: store.info(),
    "repair": repair,
    "push": lambda store, _: push_image(store.repository("team/app"), LOADED, "1"),
}
READING: dict[str, Callable[[Store, Path], object]] = {
    "images": lambda store, _: store.images(),
    "get": lambda store, _: store.get("always:1"),
    "save": lambda store, root: store.save("always:1", root.parent / "out.tar"),
    "verify": lambda store, _: store.verify(),
    "usage": lambda store, _: store.usage(),
    "lost names": lambda store, _: store.lost_names(),
    "plan of a prune": lambda store, _: store.prune(dry_run=True),
}


@contextmanager
def file_system(*, links: bool) -> Iterator[OsProxy]:
    """A file system with hard links, or without."""
    with replaced_os() as system:
        if not links:
            no_hard_links(system)
        yield system


def check_order(edges: set[tuple[str, str]]) -> None:
    """Check that no lock is wanted by who holds one that stands behind it, nor in a circle."""
    behind: dict[str, set[str]] = {}
    for held, wanted in edges:
        behind.setdefault(wanted, set()).add(held)
    graphlib.TopologicalSorter(behind).prepare()  # CycleError where there is a circle
    assert [(held, wanted) for held, wanted in edges if not stands_before(held, wanted)] == []
    assert edges <= EDGES | EDGES_OF_LIFE


def stands_before(held: str, wanted: str) -> bool:
    """Whether the written order lets who holds the one lock want the other; a tree and a partial are the last."""
    places = [*ORDER, "partial"]
    return places.index(held) < places.index(wanted)


@pytest.mark.parametrize("links", [True, False])
def test_each_verb_takes_its_locks_in_the_order_that_is_written_down(root: Path, links: bool) -> None:
    edges: set[tuple[str, str]] = set()
    make_work(root)
    for name, verb in VERBS.items():
        with file_system(links=links), recorded_locks() as records:
            verb(open_store(root), root)
        assert records.kinds, f"{name} takes no lock"
        assert records.waited_for == set(), f"{name} waits, and nobody is there"
        check_order(records.taken)
        edges |= records.taken
    assert edges == (EDGES if links else EDGES | EDGES_OF_LIFE)
    check_invariants(root, history_behind=True)


def test_there_is_only_one_order_that_the_verbs_leave_and_it_is_the_written_one() -> None:
    # Nothing but a pull that unpacks stands between the lock of the base layers and those around it.
    assert set(itertools.pairwise(each for each in ORDER if each != "base layers")) <= EDGES | EDGES_OF_LIFE
    assert WRITTEN in " ".join((Layout.store_lock.__doc__ or "").split())


@pytest.mark.parametrize("name", READING)
def test_who_only_reads_takes_no_lock_and_waits_for_none(root: Path, name: str) -> None:
    put_dead(root, IMAGE)

    def work(ready: Callable[[], None]) -> None:
        with ExitStack() as stack:
            for path in ("prune.lock", "life.lock", "store.turn", "store.lock"):
                stack.enter_context(locks.holding_lock(f"{root}/ingest/{path}", doing="sitting", timeout_seconds=1))
            ready()
            sleep_for_ever()

    with forked(work), recorded_locks() as records:
        READING[name](open_store(root, lock_timeout_seconds=0.0), root)
    assert (records.kinds, records.waited_for) == (set(), set())


@pytest.mark.parametrize("links", [True, False])
def test_many_threads_at_once_keep_the_order_and_come_to_their_end(root: Path, links: bool) -> None:
    make_work(root)
    images = [build_image([random_layer(4096, salt="shared"), {"n": bytes([number])}]) for number in range(4)]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        store = open_store(root, lock_timeout_seconds=20)
        try:
            for turn in range(4):
                name = f"image:{number}-{turn}"
                store.import_image(memory_of({name: images[number]}), name)
                store.tag(name, f"tag:{number}")
                store.prune()
                store.remove(name)
        except BaseException as error:  # noqa: BLE001  # it is raised where the test sees it
            errors.append(error)

    with file_system(links=links), recorded_locks(by_thread=True) as records:
        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
    assert not any(each.is_alive() for each in threads), "they wait for each other"
    assert errors == []
    check_order(records.taken | records.waited)
    assert records.waited_for, "nobody has ever waited: this shows nothing"
    # A new transaction whose folder a prune takes for an abandoned one makes another: for its own lock alone it waits.
    assert records.waited_for <= {*ORDER, "partial"}
    open_store(root).prune()
    check_invariants(root, history_behind=True)


# Who waits


LIMIT_SECONDS = 0.3


@pytest.mark.parametrize(
    ("lock", "verb", "links"),
    [
        ("prune", "prune", True),
        ("life", "import", False),
        ("life", "load", False),
        ("life", "prune", False),
        ("turn", "tag", True),
        ("turn", "import", True),
        *(("store", verb, True) for verb in ("import", "load", "tag", "remove", "undo", "prune", "repair")),
    ],
)
def test_who_waits_is_told_after_its_limit_who_holds_the_lock_since_when_and_doing_what(
    root: Path, lock: str, verb: str, links: bool
) -> None:
    make_work(root)
    open_store(root).remove("going:1")
    put(root, ALWAYS, "going:1")
    if verb == "undo":
        open_store(root).remove("going:1")
    if verb == "prune":
        for name in ("0" * 16, "uploads"):
            shutil.rmtree(root / "ingest" / name, ignore_errors=True)  # what it has removed it tells, and no error
    names = read_names(root)
    path = f"{root}/ingest/" + {"turn": "store.turn"}.get(lock, f"{lock}.lock")
    before = time.time()

    def sit(ready: Callable[[], None]) -> None:
        with locks.holding_lock(path, doing="counting sheep", timeout_seconds=1):
            ready()
            sleep_for_ever()

    with forked(sit) as pid, file_system(links=links), recorded_locks() as records:
        held_by = time.time()
        busy = busy_of(lambda store: VERBS[verb](store, root), root)
        assert busy.holder_pid == pid
    assert (busy.path, busy.doing) == (path, "counting sheep")
    assert busy.since is not None
    assert before - 0.001 <= busy.since <= held_by + 0.001
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(busy.since))
    assert str(busy) == f"store busy: process {pid} holds {path} (counting sheep) since {since}"
    assert records.waited_for == {lock}
    check_order(records.taken | records.waited)
    if verb != "repair":
        assert read_names(root) == names
        check_invariants(root, leftovers=True)


def busy_of(work: Callable[[Store], object], root: Path) -> StoreBusy:
    """Return what somebody is told who waits for a lock that stays held; check how long that takes."""
    store = open_store(root, lock_timeout_seconds=LIMIT_SECONDS)
    start = time.monotonic()
    with pytest.raises(StoreBusy) as caught:
        work(store)
    assert LIMIT_SECONDS <= time.monotonic() - start < SOON_SECONDS
    return caught.value


COMMIT = ("replace", "index.json")


@pytest.mark.parametrize(
    ("verb", "stop", "waiter", "doing", "lock", "links"),
    [
        ("import", COMMIT, "tag", "committing an image", "store.lock", True),
        ("load", COMMIT, "remove", "committing an image", "store.lock", True),
        ("undo", COMMIT, "tag", "committing an image", "store.lock", True),
        ("tag", COMMIT, "import", "tagging an image", "store.lock", True),
        ("remove", COMMIT, "load", "removing an image", "store.lock", True),
        ("repair", COMMIT, "repair", "mending index.json", "store.lock", True),
        ("import over a wrong blob", ("link", "quarantine/"), "tag", "replacing a wrong blob", "store.lock", True),
        ("prune", ("unlink", "blobs/"), "tag", "collecting", "store.lock", True),
        ("prune", ("unlink", "blobs/"), "prune", "collecting", "prune.lock", True),
        ("prune", ("unlink", "blobs/"), "import", "collecting", "life.lock", False),
        ("import", ("write", "ingest/partial/"), "prune", "writing images", "life.lock", False),
    ],
)
def test_each_verb_says_in_its_lock_what_it_does(
    root: Path, verb: str, stop: tuple[str, str], waiter: str, doing: str, lock: str, links: bool
) -> None:
    make_work(root)
    open_store(root).remove("going:1")
    put(root, ALWAYS, "going:1")
    if verb == "undo":
        open_store(root).remove("going:1")
    started = time.time()

    def work(ready: Callable[[], None]) -> None:
        def stand() -> None:
            ready()
            sleep_for_ever()

        with file_system(links=links) as system:
            system.before(stop[0], stand, path=f"{root}/{stop[1]}")
            VERBS[verb](open_store(root), root)

    with forked(work) as pid, file_system(links=links):
        busy = busy_of(lambda store: VERBS[waiter](store, root), root)
        assert (busy.path, busy.holder_pid, busy.doing) == (f"{root}/ingest/{lock}", pid, doing)
        assert busy.since is not None
        assert started - 0.001 <= busy.since <= time.time()


def test_nobody_waits_for_the_lock_of_a_transaction(root: Path) -> None:
    def work(ready: Callable[[], None]) -> None:
        with open_layout(root).open_writer() as writer:
            assert writer.has_blob(layer_of(ALWAYS))
            ready()
            sleep_for_ever()

    with forked(work), recorded_locks() as records:
        for name in ("import", "tag", "prune", "remove", "undo"):
            VERBS[name](open_store(root, lock_timeout_seconds=0.0), root)
    assert records.waited_for == set()
    assert open_store(root).prune().errors == ()


def test_who_waits_for_a_download_of_a_process_that_stands_still_goes_on_without_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "_STALLED_SECONDS", LIMIT_SECONDS)
    source = RecordingSource(memory_of({"x": IMAGE}))

    def work(ready: Callable[[], None]) -> None:
        def stand() -> None:
            ready()
            sleep_for_ever()

        with replaced_os() as system:
            system.before("write", stand, path=f"{root}/ingest/partial/")
            open_store(root).import_image(memory_of({"x": IMAGE}), "x")

    with forked(work), recorded_locks() as records, open_layout(root).open_writer() as writer:
        held = held_locks(root)
        (partial,) = [path for path in held if path.startswith("ingest/partial/")]
        digest = os.path.basename(partial).replace("-", ":", 1)
        descriptor = next(each for each in descriptors_of(IMAGE) if str(each.digest) == digest)
        start = time.monotonic()
        writer.write_blob(descriptor, source)
        assert LIMIT_SECONDS <= time.monotonic() - start < SOON_SECONDS
    assert source.opened == [(descriptor.digest, 0)]
    assert records.waited_for == {"partial"}
    check_order(records.taken | records.waited)
    open_store(root).prune()


# The note in a lock


def test_the_note_of_whoever_held_a_lock_before_does_not_stand_for_one_who_could_write_none(root: Path) -> None:
    path = f"{root}/ingest/store.lock"
    open_store(root).tag("always:1", "noted:1")
    assert b"tagging an image" in Path(path).read_bytes()
    with failing_system() as system, ExitStack() as stack:
        system.fail("pwrite", errno.ENOSPC, path="store.lock")
        stack.enter_context(locks.holding_lock(path, doing="tagging anything", timeout_seconds=1))
        busy = busy_of(lambda store: store.tag("always:1", "second:1"), root)
    assert (busy.holder_pid, busy.since, busy.doing) == (None, None, "")
    assert str(busy) == f"store busy: another process holds {path} (working)"


def test_the_note_of_one_who_shares_a_lock_no_more_does_not_stand_for_those_who_do(root: Path) -> None:
    path = f"{root}/ingest/life.lock"
    with locks.holding_lock(path, doing="staying", timeout_seconds=1, shared=True):
        with locks.holding_lock(path, doing="going", timeout_seconds=1, shared=True):
            assert locks.holder_of(path) is None, "who would share it has nobody to wait for"
        with pytest.raises(StoreBusy) as caught, locks.holding_lock(path, doing="x", timeout_seconds=0):
            raise AssertionError("it is held")
    assert caught.value.doing != "going"


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\xff\xfe",
        b"x y z\n",
        b"1\n",
        b"1 2\n",
        b"9" * 9000,
        b"-1 1.000 x\n",
        b"1 nan x\n",
        b"1 inf x\n",
        b"1 1e9 x\n",
    ],
)
def test_what_is_no_note_is_not_read_as_one(root: Path, note: bytes) -> None:
    path = f"{root}/ingest/store.lock"
    with locks.holding_lock(path, doing="sitting", timeout_seconds=1):
        Path(path).write_bytes(note)
        found = locks.holder_of(path)
    assert found is not None
    assert (found.holder_pid, found.since, found.doing) == (None, None, "")


def test_a_note_is_one_line_whatever_stands_in_it(root: Path) -> None:
    path = f"{root}/ingest/store.lock"
    with locks.holding_lock(path, doing="sitting", timeout_seconds=1):
        Path(path).write_bytes(b"7 99999999999.000 a\xff\x1b[31m\rb\n")
        found = locks.holder_of(path)
    assert str(found).isprintable()
    assert "process 7" in str(found)


def test_a_prune_that_has_removed_something_tells_it_and_who_kept_it_from_the_rest(root: Path) -> None:
    make_work(root)
    path = f"{root}/ingest/store.lock"

    def sit(ready: Callable[[], None]) -> None:
        with locks.holding_lock(path, doing="counting sheep", timeout_seconds=1):
            ready()
            sleep_for_ever()

    with forked(sit) as pid:
        report = open_store(root, lock_timeout_seconds=0.1).prune()
    # What stands under locks of its own goes all the same.
    assert {removal.kind for removal in report.removed} == {
        "transaction",
        "upload",
        "partial",
        "temporary",
        "base layer",
    }
    assert report.errors
    assert all(f"process {pid} holds {path} (counting sheep)" in error for error in report.errors)
    check_invariants(root, leftovers=True)


# ---- signals


def _is_interrupted(work: Callable[[], object], at: int, steps: Steps) -> bool:
    """Do something; return whether an interrupt came at its nth step, as a signal's handler may raise it."""

    def interrupt(number: int, _: FrameType) -> None:
        if number == at:
            raise KeyboardInterrupt

    try:
        steps.run(work, interrupt)
    except KeyboardInterrupt:
        return True
    return False


def _interrupt_everywhere(work: Callable[[], object], check: Callable[[], object], *modules: str) -> None:
    """Do something, interrupted at each step of some modules, and find nothing locked behind it."""
    steps = Steps(*modules)
    count = steps.run(work)
    interrupted = 0
    for at in range(1, count):
        interrupted += _is_interrupted(work, at, steps)
        if found := check():
            pytest.fail(f"at step {at} of {count}: {found}")
    assert interrupted > 100


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_S18_a_signal_that_raises_while_a_lock_is_taken_leaves_no_lock(tmp_path: Path, *, shared: bool) -> None:
    path = str(tmp_path / "lock")

    def work() -> None:
        with locks.holding_lock(path, doing="something", timeout_seconds=1, shared=shared):
            pass

    _interrupt_everywhere(work, lambda: locks.holder_of(path), "/_locks.py:", "/_files.py:", "/contextlib.py:")


def test_S18_a_signal_that_raises_while_a_transaction_or_an_upload_begins_or_ends_leaves_no_lock(
    tmp_path: Path,
) -> None:
    root = tmp_path / "store"
    layout = open_layout(root)
    uploads = Uploads(layout)
    identifier = uploads.begin("team/app")

    def transact() -> None:
        with living_folder(layout.paths):
            pass

    def append() -> None:
        uploads.append(identifier, "team/app", io.BytesIO(b"more"), offset=None, size_bytes=None)

    def find_locked() -> list[str]:
        found = held_locks(root)
        for lock in root.glob("ingest/*/lock"):
            shutil.rmtree(lock.parent)
        return found

    _interrupt_everywhere(transact, find_locked, "/_locks.py:", "/living.py:")
    _interrupt_everywhere(append, find_locked, "/_locks.py:", "/uploads.py:_locked")
