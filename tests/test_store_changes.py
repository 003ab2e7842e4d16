"""What happened to a store's names between two looks at it, whoever did it."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import NameChange, Store, StoreDamaged, StoreState, _locks
from tests.support.images import build_image
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
    assert all(each.is_complete for each in (changed, removed))
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


def test_what_was_taken_back_in_between_is_no_difference(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    state = store.state()
    store.tag("app:1", "new:1")
    store.remove("new:1")
    assert store.changes(state).state.position == state.position
    assert store.changes(state).names == ()


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


def test_what_cannot_be_read_is_an_error(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = Store(root, settle_seconds=0)
    state = store.state()
    (root / "index.json").write_bytes(b"{")
    for ask in (store.state, lambda: store.changes(state), lambda: store.find_state("x")):
        with pytest.raises(StoreDamaged):
            ask()


def test_a_generation_that_is_damaged_ends_what_is_known(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    state = store.state()
    store.tag("app:1", "app:2")
    store.tag("app:1", "app:3")
    newest, between, *_ = sorted((root / "history").iterdir(), reverse=True)
    between.write_bytes(b"no index")
    changes = store.changes(state)
    assert not changes.is_complete
    assert told(changes.names) == [("created", "app:2"), ("created", "app:3")]
    assert os.path.exists(newest)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["put", "other", "remove", "look"]), st.sampled_from(NAMES)), max_size=9))
def test_whoever_follows_what_is_told_has_what_the_store_has(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("followed") / "store"
    put(root, IMAGE, "first:1")
    store = open_store(root)
    state: StoreState = store.state()
    followed = {name: str(each.digest) for name, each in state.names.items()}
    model = dict(followed)
    for step, name in (*steps, ("look", "")):
        if step in ("put", "other"):
            image = IMAGE if step == "put" else OTHER
            put(root, image, name)
            model[name] = image.digest
        elif step == "remove" and name in model:
            store.remove(name)
            del model[name]
        elif step == "look":
            changes = store.changes(state)
            assert changes.is_complete
            for change in changes.names:
                assert (None if change.before is None else str(change.before.digest)) == followed.get(change.name)
                if change.after is None:
                    del followed[change.name]
                else:
                    followed[change.name] = str(change.after.digest)
            state = changes.state
            assert followed == model == {each: str(found.digest) for each, found in state.names.items()}
