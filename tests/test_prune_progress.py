"""What a prune tells as it goes on, and how it is ended on its way: between two things, and the store stays whole."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from minibox_store import (
    Cancellation,
    Cancelled,
    Event,
    ImageFilter,
    IncompleteImage,
    PruneAdvanced,
    PruneReport,
    StoreError,
)
from minibox_store.face import collection_progress as collection_progress_module
from minibox_store.layout import leftovers, sweeping
from tests.support.derived import UNFINISHED, base_layer, extracted, file_index, plant_tree, write_sidecar
from tests.support.images import build_image, digest_of
from tests.support.invariants import check_invariants, held_locks, open_files, read_names, stored
from tests.support.os_proxy import replaced_os
from tests.support.snapshots import snapshot
from tests.support.stores import blob, open_store, put, put_dead

IMAGES = [build_image(salt=f"kept {number}") for number in range(3)]
LIVING = {digest for image in IMAGES for digest in image.blobs}
DEAD = build_image(salt="dead")
REFERRER = build_image(salt="referrer", subject=DEAD.root)
GONE = "sha256:" + "d" * 64

Ending = Callable[[int], None]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three images, and of everything that a prune takes."""
    root = tmp_path_factory.mktemp("prepared") / "store"
    for number, image in enumerate(IMAGES):
        put(root, image, f"kept:{number}")
    put_dead(root, DEAD)
    (root / "blobs" / "sha256" / f"{'d' * 64}.index.json").write_bytes(b"{}")
    (root / "ingest" / "partial" / f"sha256-{'d' * 64}").write_bytes(b"half")
    transaction = root / "ingest" / "0123456789abcdef"
    transaction.mkdir()
    (transaction / "lock").touch()
    (root / f".index.json.{'0' * 16}.tmp").write_bytes(b"{")
    base_layer(root, "gone_1", "gone:1", DEAD)
    plant_tree(root / "base_layers" / f".gone_2.{UNFINISHED}")
    write_sidecar(root, "gone_3", "gone:3", DEAD)
    extracted(root, GONE)
    file_index(root, GONE)
    (root / "lazy" / ("d" * 64)).mkdir(parents=True)
    return root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return fresh(prepared, tmp_path)


@pytest.fixture
def told_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is told, and a batch is one thing."""
    monkeypatch.setattr(collection_progress_module, "_PACE_SECONDS", 0.0)
    monkeypatch.setattr(sweeping, "_BATCH", 1)
    monkeypatch.setattr(leftovers, "BATCH", 1)


def fresh(prepared: Path, tmp_path: Path) -> Path:
    """Return a copy of the store; an older one is gone."""
    folder = tmp_path / "store"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared, folder, symlinks=True)
    return folder


def sizes(report: PruneReport) -> tuple[int, int]:
    """Return how many things a report tells of, and their bytes."""
    return len(report.removed), sum(each.size_bytes for each in report.removed)


class Listener:
    """Keeps what it is told, and does something at one of the events."""

    def __init__(self, at: int | None = None, action: Callable[[], object] = lambda: None) -> None:
        self.events: list[PruneAdvanced] = []
        self._at = at
        self._action = action

    def __call__(self, event: Event) -> None:
        assert isinstance(event, PruneAdvanced)
        self.events.append(event)
        if len(self.events) - 1 == self._at:
            self._action()

    def of(self, phase: str) -> list[PruneAdvanced]:
        """Return the events of one phase."""
        return [each for each in self.events if each.phase == phase]

    @property
    def last(self) -> PruneAdvanced:
        """The last one."""
        return self.events[-1]


# What is told


@pytest.mark.usefixtures("told_each")
@pytest.mark.parametrize("dry_run", [True, False], ids=["plan", "prune"])
def test_the_events_go_from_nothing_to_what_the_report_says(root: Path, dry_run: bool) -> None:
    listener = Listener()
    report = open_store(root).prune(dry_run=dry_run, on_event=listener)
    count, size_bytes = sizes(report)
    kinds = {"blob", "sidecar", "partial", "transaction", "temporary", "extracted layer", "base layer", "mount point"}
    assert {each.kind for each in report.removed} == kinds
    marking, removing = listener.of("marking"), listener.of("removing")
    assert listener.events == marking + removing
    assert [(each.done_count, each.total_count) for each in marking] == [(done, 3) for done in range(4)]
    assert {(each.done_bytes, each.total_bytes) for each in marking} == {(0, 0)}
    assert (removing[0].done_count, removing[0].total_count) == (0, len(DEAD.blobs))
    assert removing[0].total_bytes == DEAD.size_bytes
    assert (listener.last.total_count, listener.last.total_bytes) == (count, size_bytes)
    done = [(each.done_count, each.done_bytes) for each in removing]
    if dry_run:
        assert set(done) == {(0, 0)}
    else:
        assert done == sorted(done)
        # Each is told, but that one tree and the file beside it go together.
        assert sorted(later[0] - earlier[0] for earlier, later in pairwise(done)) == [*[1] * (count - 2), 2]
        # The transaction that had ended goes first, and what goes is the same as long as blobs do.
        while_blobs_go = {each.total_count for each in removing if 1 <= each.done_count <= len(DEAD.blobs)}
        assert while_blobs_go == {1 + len(DEAD.blobs)}
        assert done[-1] == (count, size_bytes)
    assert all(each.done_count <= each.total_count and each.done_bytes <= each.total_bytes for each in removing)


@pytest.mark.usefixtures("told_each")
def test_what_is_kept_for_another_counts_among_what_is_marked(root: Path) -> None:
    for name, referrer in {"one": REFERRER, "another": build_image(salt="another", subject=DEAD.root)}.items():
        put(root, referrer, f"{name}:1")
        mark_as_referrer(root, f"{name}:1")
    listener = Listener()
    open_store(root).prune(on_event=listener)
    told = [(each.done_count, each.total_count) for each in listener.of("marking")]
    assert told == [(done, 5) for done in range(6)]


@pytest.mark.usefixtures("told_each")
def test_no_listener_is_called_while_a_lock_is_held_that_a_commit_waits_for(root: Path) -> None:
    held: list[list[str]] = []
    # What goes with its subject goes under the same lock, with a change of index.json.
    put(root, DEAD, "subject:1")
    put(root, REFERRER, "referrer:1")
    mark_as_referrer(root, "referrer:1")
    open_store(root).remove("subject:1")

    def listen(event: Event) -> None:
        held.append(held_locks(root))

    report = open_store(root).prune(on_event=listen)
    assert "referrer" in {each.kind for each in report.removed}
    assert len(held) > len(report.removed)
    assert {tuple(each) for each in held} == {("ingest/prune.lock",)}
    held.clear()
    open_store(root).prune(dry_run=True, on_event=listen)
    assert {tuple(each) for each in held} == {()}


def mark_as_referrer(root: Path, name: str) -> None:
    """Let the entry of a name be one that is kept for what it refers to alone."""
    index = root / "index.json"
    text = index.read_text()
    old = f'"org.opencontainers.image.ref.name":"{name}"'
    assert text.count(old) == 1
    index.write_text(text.replace(old, '"dev.minibox.store.referrer":"true"'))


def test_of_very_many_things_little_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_BATCH", 1)  # it might be told of each
    for number in range(400):
        content = b"dead %d" % number
        blob(root, digest_of(content)).write_bytes(content)
    listener = Listener()
    began = time.monotonic()
    report = open_store(root).prune(on_event=listener)
    took_seconds = time.monotonic() - began
    assert report.blobs_removed == 400 + len(DEAD.blobs)
    # Besides what each tenth of a second brings, the first and the last of each phase.
    assert len(listener.events) <= 4 + took_seconds / 0.1
    assert listener.last.done_count == len(report.removed)


def test_a_store_that_holds_nothing_and_one_that_is_not_there(tmp_path: Path) -> None:
    listener = Listener()
    assert open_store(tmp_path / "store").prune(on_event=listener).removed == ()
    assert listener.events == []
    put_dead(tmp_path / "store", DEAD)
    open_store(tmp_path / "store").prune()
    open_store(tmp_path / "store").prune(on_event=listener)
    assert listener.events == [
        PruneAdvanced(phase="marking", done_count=0, total_count=0),
        PruneAdvanced(phase="removing", done_count=0, total_count=0),
    ]


def test_a_root_that_cannot_be_read_is_an_error_behind_what_was_marked(root: Path) -> None:
    blob(root, IMAGES[2].digest).unlink()
    listener = Listener()
    before = snapshot(root)
    with pytest.raises(IncompleteImage):
        open_store(root).prune(on_event=listener)
    assert {each.phase for each in listener.events} == {"marking"}
    assert listener.last.done_count < 3
    assert snapshot(root) == before


# How it is ended


def check_ended_on_the_way(root: Path, plan: PruneReport, last: PruneAdvanced) -> None:
    """Check a store whose prune was ended: what it had not taken is there, and the next one takes just that."""
    check_invariants(root, leftovers=True)
    assert stored(root) >= LIVING
    done_count, done_bytes = (last.done_count, last.done_bytes) if last.phase == "removing" else (0, 0)
    rest = open_store(root).prune()
    assert (done_count + len(rest.removed), done_bytes + sizes(rest)[1]) == sizes(plan)
    assert {each.path for each in rest.removed} <= {each.path for each in plan.removed}
    assert rest.errors == ()
    check_invariants(root)
    assert stored(root) == LIVING


@pytest.mark.usefixtures("told_each")
def test_a_cancel_at_any_event_ends_it_and_the_next_prune_takes_the_rest(prepared: Path, tmp_path: Path) -> None:
    plan = open_store(prepared).prune(dry_run=True)
    told = Listener()
    open_store(fresh(prepared, tmp_path)).prune(on_event=told)
    assert len(told.events) > len(plan.removed)
    for position, at in enumerate(told.events[:-1]):
        root = fresh(prepared, tmp_path)
        before = snapshot(root)
        cancellation = Cancellation()
        listener = Listener(position, cancellation.cancel)
        with pytest.raises(Cancelled):
            open_store(root).prune(on_event=listener, cancellation=cancellation)
        assert held_locks(root) == open_files(root) == []
        # Nothing goes behind a cancel, and what had gone is told.
        assert (listener.last.phase, listener.last.done_count) == (at.phase, at.done_count)
        assert len(listener.events) == position + 1
        if at.phase == "marking":
            assert snapshot(root) == before
        check_ended_on_the_way(root, plan, listener.last)


def test_a_cancel_ends_a_batch_behind_the_blob_that_is_just_going(prepared: Path, tmp_path: Path) -> None:
    plan = open_store(prepared).prune(dry_run=True)
    for position in range(len(DEAD.blobs)):
        root = fresh(prepared, tmp_path)
        cancellation, listener = Cancellation(), Listener()
        with replaced_os() as system:
            system.after("unlink", cancellation.cancel, path=f"{root}/blobs/", skip=position)
            with pytest.raises(Cancelled):
                open_store(root).prune(on_event=listener, cancellation=cancellation)
        gone = len(DEAD.blobs) - len(stored(root) - LIVING)
        assert gone == position + 1
        # The transaction that had ended went before; behind the last blob a sidecar is known to go.
        is_last = gone == len(DEAD.blobs)
        assert (listener.last.done_count, listener.last.total_count) == (gone + 1, len(DEAD.blobs) + 1 + is_last)
        assert held_locks(root) == open_files(root) == []
        check_ended_on_the_way(root, plan, listener.last)


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_is_cancelled_beforehand_changes_nothing(root: Path, dry_run: bool) -> None:
    cancellation, listener = Cancellation(), Listener()
    cancellation.cancel()
    before = snapshot(root)
    with pytest.raises(Cancelled):
        open_store(root).prune(dry_run=dry_run, on_event=listener, cancellation=cancellation)
    assert snapshot(root) == before
    assert listener.events == []


@pytest.mark.usefixtures("told_each")
def test_a_plan_that_is_cancelled_changes_nothing(root: Path) -> None:
    before = snapshot(root)
    told = Listener()
    open_store(root).prune(dry_run=True, on_event=told)
    for position in (0, 2, *range(4, len(told.events) - 1, 4)):
        cancellation = Cancellation()
        listener = Listener(position, cancellation.cancel)
        with pytest.raises(Cancelled):
            open_store(root).prune(dry_run=True, on_event=listener, cancellation=cancellation)
        assert snapshot(root) == before


def test_a_cancel_as_the_last_thing_goes_leaves_what_is_done_done(root: Path) -> None:
    told = Listener()
    cancellation = Cancellation()
    with replaced_os() as system:
        system.after("unlink", cancellation.cancel, path=".index.json.")
        report = open_store(root).prune(on_event=told, cancellation=cancellation)
    assert cancellation.is_cancelled
    assert told.last.done_count == told.last.total_count == len(report.removed)
    check_invariants(root)


def test_a_cancel_is_seen_before_what_another_program_has_left(root: Path) -> None:
    (root / "tmp-pull-0").mkdir()
    cancellation = Cancellation()
    with replaced_os() as system:
        system.after("unlink", cancellation.cancel, path=".index.json.")
        with pytest.raises(Cancelled):
            open_store(root).prune(cancellation=cancellation)
    assert (root / "tmp-pull-0").exists()
    check_invariants(root)


@pytest.mark.usefixtures("told_each")
@pytest.mark.parametrize(
    ("error", "step"), [(ZeroDivisionError(), 12), (BrokenPipeError(32, ""), 6)], ids=["any", "of the system"]
)
def test_what_a_listener_raises_ends_it_too(prepared: Path, tmp_path: Path, error: Exception, step: int) -> None:
    def refuse() -> None:
        raise error

    plan = open_store(prepared).prune(dry_run=True)
    told = Listener()
    open_store(fresh(prepared, tmp_path)).prune(on_event=told)
    # Some of each phase: each takes a store of its own.
    for position in {*range(0, len(told.events), step), len(told.events) - 1}:
        root = fresh(prepared, tmp_path)
        listener = Listener(position, refuse)
        with pytest.raises(type(error)) as caught:
            open_store(root).prune(on_event=listener)
        assert caught.value is error
        assert len(listener.events) == position + 1, "it is not called again"
        check_ended_on_the_way(root, plan, listener.last)


@pytest.mark.usefixtures("told_each")
def test_names_that_a_filter_chose_go_only_where_no_cancel_came_before(prepared: Path, tmp_path: Path) -> None:
    chosen_by = ImageFilter.parse("reference=kept:0")
    kept = {"kept:1": IMAGES[1].digest, "kept:2": IMAGES[2].digest}
    everything = {"kept:0": IMAGES[0].digest, **kept}
    told = Listener()
    report = open_store(fresh(prepared, tmp_path)).prune(chosen_by, on_event=told)
    assert told.last.done_count == len(report.removed)
    first = len(told.of("marking"))
    for position in (0, first - 1, first, len(told.events) - 2):
        root = fresh(prepared, tmp_path)
        at = told.events[position]
        cancellation = Cancellation()
        listener = Listener(position, cancellation.cancel)
        with pytest.raises(Cancelled):
            open_store(root).prune(chosen_by, on_event=listener, cancellation=cancellation)
        assert read_names(root) == (everything if at.phase == "marking" else kept)
        check_invariants(root, leftovers=True)
        rest = open_store(root).prune()
        if at.phase == "removing":
            # The name is among what has gone.
            assert listener.last.done_count >= 1
            assert listener.last.done_count + len(rest.removed) == len(report.removed)
        check_invariants(root)


@pytest.mark.parametrize("condition", ["label=a", "max_bytes=1"])
def test_a_cancel_is_seen_while_it_is_looked_for_what_a_filter_means(root: Path, condition: str) -> None:
    cancellation = Cancellation()
    before = snapshot(root)
    with replaced_os() as system:
        system.after("open", cancellation.cancel, path=f"{root}/blobs/")
        with pytest.raises(Cancelled):
            open_store(root).prune(ImageFilter.parse(condition), cancellation=cancellation)
        read = {os.path.basename(path) for call in system.calls for path in call.paths if "/blobs/sha256/" in path}
    assert not {image.digest.partition(":")[2] for image in IMAGES} <= read, "no other image was looked at"
    assert snapshot(root) == before


def test_where_the_system_ends_it_what_had_gone_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_BATCH", 1)
    listener = Listener()
    with replaced_os() as system:
        system.fail("open", errno.EIO, path="ingest/store.lock", skip=3)
        with pytest.raises(StoreError):
            open_store(root).prune(on_event=listener)
    gone = len(DEAD.blobs) - len(stored(root) - LIVING)
    assert gone > 0
    assert listener.last.done_count == gone + 1  # and the transaction that had ended
    assert held_locks(root) == open_files(root) == []
    check_invariants(root, leftovers=True)
