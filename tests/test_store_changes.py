"""What happened to a store's names between two looks at it, whoever did it."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import (
    Descriptor,
    ImageNotFound,
    NameChange,
    NothingToDo,
    Store,
    StoreDamaged,
    StoreState,
    _locks,
)
from tests.support.images import build_image
from tests.support.invariants import generations, read_names
from tests.support.os_proxy import replaced_os
from tests.support.stores import open_store, put

IMAGE = build_image(salt="image")
OTHER = build_image(salt="other")
NAMES = ("a:1", "b:1", "c:1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a store."""
    return tmp_path / "store"


def told(changes: tuple[NameChange, ...]) -> list[tuple[str, str]]:
    return [(change.action, change.name) for change in changes]


def digest_of(descriptor: Descriptor | None) -> str | None:
    return None if descriptor is None else str(descriptor.digest)


def rewrite(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let another tool write index.json anew."""
    document = json.loads((root / "index.json").read_bytes())
    change(document)
    (root / "index.json").write_bytes(json.dumps(document).encode())


def test_a_name_is_created_changed_and_removed(root: Path) -> None:
    store = open_store(root)
    state = store.state()
    assert state.names == {}
    begin = time.time()
    put(root, IMAGE, "app:1")
    created = store.changes(state)
    put(root, OTHER, "app:1")
    changed = store.changes(created.state)
    store.remove("app:1")
    removed = store.changes(changed.state)
    assert [told(each.names) for each in (created, changed, removed)] == [
        [("created", "app:1")],
        [("changed", "app:1")],
        [("removed", "app:1")],
    ]
    [change] = changed.names
    assert change.before is not None
    assert change.after is not None
    assert (str(change.before.digest), str(change.after.digest)) == (IMAGE.digest, OTHER.digest)
    # A file system's clock may be a little behind.
    assert all(begin - 1 < each.names[0].time < time.time() + 1 for each in (created, changed, removed))
    assert all(each.is_complete for each in (created, changed, removed))
    assert {str(each.digest) for each in changed.state.names.values()} == {OTHER.digest}


def test_where_nothing_happened_nothing_is_told_and_the_state_is_the_same(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    state = store.state()
    assert store.changes(state).state is state
    put(root, IMAGE, "app:1")
    assert store.changes(state).names == ()
    assert store.state() == state


def test_each_step_between_two_looks_is_told_in_its_order(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    state = store.state()
    store.tag("app:1", "new:1")
    put(root, OTHER, "app:1")
    store.remove("new:1")
    store.tag("app:1", "last:1")
    changes = store.changes(state)
    assert told(changes.names) == [
        ("created", "new:1"),
        ("changed", "app:1"),
        ("removed", "new:1"),
        ("created", "last:1"),
    ]
    assert changes.is_complete
    assert changes.names[-1].position == changes.state.position
    # From each step on that was told of, one can go on.
    for number, change in enumerate(changes.names):
        found = store.find_state(change.position)
        assert found is not None
        assert told(store.changes(found).names) == told(changes.names)[number + 1 :]


def test_what_was_taken_back_in_between_is_told_too(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    state = store.state()
    content = (root / "index.json").read_bytes()
    store.tag("app:1", "new:1")
    store.remove("new:1")
    assert (root / "index.json").read_bytes() == content
    changes = store.changes(state)
    assert (told(changes.names), changes.is_complete) == ([("created", "new:1"), ("removed", "new:1")], True)
    assert store.changes(changes.state).state is changes.state


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_changes_just_before_or_after_index_json_is_opened_for_a_look_is_told_once(root: Path, when: str) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    state = store.state()

    def change() -> None:
        store.tag("app:1", "new:1")
        put(root, OTHER, "app:1")
        store.remove("new:1")

    happened: list[tuple[str, str]] = []
    for _ in range(3):
        with replaced_os() as system:
            getattr(system, when)("open", change, path="index.json")
            changes = store.changes(state)
        happened += told(changes.names)
        assert changes.is_complete
        state = changes.state
        put(root, IMAGE, "app:1")
    happened += told(store.changes(state).names)
    assert happened == 3 * [
        ("created", "new:1"),
        ("changed", "app:1"),
        ("removed", "new:1"),
        ("changed", "app:1"),
    ]


def test_what_was_seen_before_it_had_its_number_and_is_taken_back_in_the_next_look_is_told(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    store.tag("app:1", "new:1")
    unnumbered = root / "history" / "unnumbered"
    newest = generations(root)[-1]
    newest.rename(unnumbered)
    state = store.state()

    def change() -> None:
        unnumbered.rename(newest)
        store.remove("new:1")
        generations(root)[-1].rename(unnumbered)

    with replaced_os() as system:
        system.before("open", change, path="index.json")
        changes = store.changes(state)
    assert (told(changes.names), changes.is_complete) == ([("removed", "new:1")], True)
    unnumbered.rename(newest.with_stem(f"{int(newest.stem) + 1:010}"))
    assert store.changes(changes.state).state is changes.state


def test_a_store_that_is_made_is_told_from_its_beginning(root: Path) -> None:
    store = open_store(root)
    state = store.state()
    put(root, IMAGE, "app:1", "app:2")
    changes = store.changes(state)
    assert (told(changes.names), changes.is_complete) == ([("created", "app:1"), ("created", "app:2")], True)


def test_a_position_of_the_content_alone_is_not_found(root: Path) -> None:
    put(root, IMAGE, "app:1")
    content = (root / "index.json").read_bytes()
    assert open_store(root).find_state(hashlib.sha256(content).hexdigest()[:32]) is None


def test_what_another_tool_wrote_is_told_too(root: Path) -> None:
    put(root, IMAGE, "app:1", "app:2")
    store = open_store(root)
    state = store.state()
    rewrite(root, lambda document: document["manifests"].pop())
    removed = store.changes(state)
    assert told(removed.names) == [("removed", "app:2")]
    store.tag("app:1", "app:3")
    changes = store.changes(removed.state)
    assert (told(changes.names), changes.is_complete) == ([("created", "app:3")], True)


def test_what_another_tool_sets_back_is_told_where_it_was_seen_and_the_same_bytes_are_no_change(root: Path) -> None:
    put(root, IMAGE, "app:1", "app:2")
    store = open_store(root)
    content = (root / "index.json").read_bytes()
    store.remove("app:2")
    state = store.state()
    newest = (root / "index.json").read_bytes()
    # What it wrote over its own no history has: it may not have been all.
    for written, action, is_complete in (
        (content, "created", True),
        (newest, "removed", False),
        (content, "created", True),
    ):
        (root / "index.json").write_bytes(written)
        changes = store.changes(state)
        assert (told(changes.names), changes.is_complete) == ([(action, "app:2")], is_complete)
        state = changes.state
        assert store.find_state(state.position) == state
        os.utime(root / "index.json", (0, 0))
        (root / "index.json").write_bytes(written)
        assert store.changes(state).state is state
    store.tag("app:1", "app:3")
    changes = store.changes(state)
    assert (told(changes.names), changes.is_complete) == ([("created", "app:3")], True)


def test_who_missed_more_than_is_kept_is_told_the_difference_and_that_it_is_no_more(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    state = store.state()
    for number in range(12):
        store.tag("app:1", f"new:{number}")
    store.remove("new:0")
    changes = store.changes(state)
    assert not changes.is_complete
    assert {change.action for change in changes.names} == {"created"}
    assert {change.name for change in changes.names} == {f"new:{number}" for number in range(1, 12)}
    assert store.find_state(state.position) is None
    assert store.find_state("nonsense") is None


def test_a_collection_is_told_of_once_it_has_ended_and_a_dry_run_is_not(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    before = store.state()
    store.prune(dry_run=True)
    assert not store.changes(before).has_pruned(before)
    store.prune()
    changes = store.changes(before)
    assert changes.has_pruned(before)
    assert not store.changes(changes.state).has_pruned(changes.state)
    # Who holds the lock has not ended; what it leaves there is told then.
    with _locks.holding_lock(str(root / "ingest" / "prune.lock"), doing="collecting", timeout_seconds=1):
        assert not store.changes(changes.state).has_pruned(changes.state)
    assert store.changes(changes.state).has_pruned(changes.state)


def test_collections_that_end_one_behind_another_are_each_told_of(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    state = store.state()
    for _ in range(200):
        with _locks.holding_lock(str(root / "ingest" / "prune.lock"), doing="collecting", timeout_seconds=1):
            pass
        changes = store.changes(state)
        assert changes.has_pruned(state)
        state = changes.state


def test_what_cannot_be_read_is_an_error(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = Store(root, settle_seconds=0)
    state = store.state()
    (root / "index.json").write_bytes(b"{")
    for ask in (store.state, lambda: store.changes(state), lambda: store.find_state("x")):
        with pytest.raises(StoreDamaged):
            ask()


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"no index"), Path.unlink])
def test_a_generation_that_is_damaged_or_gone_ends_what_is_known(root: Path, damage: Callable[[Path], object]) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    state = store.state()
    store.tag("app:1", "app:2")
    store.tag("app:1", "app:3")
    newest, between, *_ = sorted((root / "history").iterdir(), reverse=True)
    damage(between)
    changes = store.changes(state)
    assert not changes.is_complete
    assert told(changes.names) == [("created", "app:2"), ("created", "app:3")]
    assert os.path.exists(newest)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["put", "other", "remove", "undo", "look"]), st.sampled_from(NAMES)), max_size=9)
)
def test_what_is_told_put_together_is_what_happened(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("followed") / "store"
    store = open_store(root)
    state: StoreState = store.state()
    happened: list[tuple[str, str | None, str | None]] = []
    followed: list[tuple[str, str | None, str | None]] = []
    for step, name in (*steps, ("look", "")):
        before = read_names(root)
        if step in ("put", "other"):
            put(root, IMAGE if step == "put" else OTHER, name)
        elif step in ("remove", "undo"):
            with suppress(ImageNotFound, NothingToDo):
                store.remove(name) if step == "remove" else store.undo()
        else:
            changes = store.changes(state)
            assert changes.is_complete
            followed += [(each.name, digest_of(each.before), digest_of(each.after)) for each in changes.names]
            state = changes.state
            assert followed == happened
            assert {each: digest_of(found) for each, found in state.names.items()} == before
        after = read_names(root)
        changed = sorted(each for each in before.keys() | after.keys() if before.get(each) != after.get(each))
        happened += [(each, before.get(each), after.get(each)) for each in changed]
