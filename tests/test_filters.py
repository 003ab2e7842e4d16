"""Which images a filter means in a store, and what a prune with it takes: all of that, or none if anything is wrong."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from minibox_store import (
    ImageFilter,
    IncompleteImage,
    InvalidArgument,
    InvalidFilter,
    InvalidInput,
    Label,
    PruneAdvanced,
    PruneReport,
    Removal,
    Store,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
    _files,
)
from minibox_store import _locks as locks
from minibox_store.events import Event
from minibox_store.limits import DEFAULT_LIMITS, Limits
from tests.support.forks import forked, kill, run_alone, run_forked, sleep_for_ever
from tests.support.images import BuiltImage, build_image, build_index
from tests.support.invariants import check_invariants, held_locks, open_files, reachable, read_index, read_names, stored
from tests.support.journals import DAY, HOUR, set_ages
from tests.support.layouts import write_layout
from tests.support.os_proxy import replaced_os
from tests.support.snapshots import snapshot
from tests.support.sources import copy_into, descriptors_of, memory_of
from tests.support.stores import (
    blob,
    bound,
    layer_of,
    open_layout,
    open_store,
    put,
    put_dead,
    remount,
    require_root,
    rot,
)
from tests.support.waiting import sparing_later_files

BASE = {"base": b"base" * 300}
OLD = build_image([BASE, {"old": b"o" * 100}], salt="old", config={"config": {"Labels": {"keep": "yes", "tier": "a"}}})
NEW = build_image([BASE, {"new": b"n" * 100}], salt="new", config={"config": {"Labels": {"tier": "b"}}})
PLAIN = build_image(salt="plain", config={"config": None})
MULTI = build_index([build_image(salt="m"), build_image(salt="m", platform="linux/arm64")])
DEAD = build_image(salt="dead")
ALL = ImageFilter(reference="*")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store of four names. Whatever a test does, it leaves no open file and no lock behind."""
    folder = tmp_path / "store"
    for name, image in (("app:1", OLD), ("app:2", NEW), ("team/plain:1", PLAIN), ("multi:1", MULTI)):
        put(folder, image, name)
    yield folder
    assert open_files(folder) == []
    assert held_locks(folder) == []


def listed(root: Path, *conditions: str) -> list[str]:
    """Return the names that a filter lists."""
    return [image.name for image in open_store(root).images(ImageFilter.parse(*conditions))]


def names_in(report: PruneReport) -> list[str]:
    """Return the names that went."""
    return [each.path for each in report.removed if each.kind == "name"]


def parts_of(report: PruneReport) -> set[tuple[str, str]]:
    """Return what went, by kind and path."""
    return {(each.kind, each.path) for each in report.removed}


# The grammar


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("reference=*/app:?", ImageFilter(reference="*/app:?")),
        ("reference==", ImageFilter(reference="=")),
        ("older_than=90s", ImageFilter(older_than_seconds=90)),
        ("older_than=1.5h", ImageFilter(older_than_seconds=5400)),
        ("older_than=30d", ImageFilter(older_than_seconds=2_592_000)),
        ("older_than=2w", ImageFilter(older_than_seconds=1_209_600)),
        ("older_than=0m", ImageFilter(older_than_seconds=0)),
        ("label=a", ImageFilter(labels=(Label("a"),))),
        ("label=a=", ImageFilter(labels=(Label("a", ""),))),
        ("label=a=b=c", ImageFilter(labels=(Label("a", "b=c"),))),
        ("label!=a", ImageFilter(without_labels=(Label("a"),))),
        ("label!=a=b", ImageFilter(without_labels=(Label("a", "b"),))),
        ("keep_last=0", ImageFilter(keep_last=0)),
        ("max_bytes=0", ImageFilter(max_bytes=0)),
        ("max_bytes=5GiB", ImageFilter(max_bytes=5 * 2**30)),
        ("max_bytes=5kB", ImageFilter(max_bytes=5000)),
    ],
)
def test_a_condition_is_read_as_it_is_written(condition: str, expected: ImageFilter) -> None:
    assert ImageFilter.parse(condition) == expected


@pytest.mark.parametrize(
    "conditions",
    [
        *(
            [text]
            for text in ("", "label", "older_than", "=x", "age=3d", "Reference=x", " reference=x", "label!", "!=x")
        ),
        *([text] for text in ("older_than=", "older_than=3", "older_than=d", "older_than=-3d", "older_than=3 d")),
        *(
            [text]
            for text in ("older_than=nans", "older_than=infs", "older_than=1e3s", "older_than=.5h", "older_than=3y")
        ),
        *([text] for text in ("keep_last=", "keep_last=-1", "keep_last=1.0", "keep_last=1000000000", "keep_last=two")),
        *([text] for text in ("max_bytes=", "max_bytes=1.5GiB", "max_bytes=5kiB", "max_bytes=5KB", "max_bytes=5B")),
        *([text] for text in ("max_bytes=-1", "max_bytes=1000000TB", "older_than=999999999999m", "max_bytes=5GiBs")),
        *([text] for text in ("reference=", "label=", "label==x", "label!=", "label!==")),
        *([text, text] for text in ("reference=x", "older_than=1d", "keep_last=1", "max_bytes=1")),
        ["reference=x", "reference=y"],
    ],
)
def test_what_is_no_condition_is_refused_and_named(conditions: list[str]) -> None:
    with pytest.raises(InvalidFilter) as caught:
        ImageFilter.parse(*conditions)
    assert isinstance(caught.value, InvalidInput)
    assert caught.value.text == conditions[-1]
    assert conditions[-1] in str(caught.value)


@pytest.mark.parametrize("text", ["older_than=30d", ""])
def test_the_text_of_a_filter_is_none_and_takes_no_name(tmp_path: Path, text: Any) -> None:
    put(tmp_path / "data", build_image(), "app:1")
    store = open_store(tmp_path / "data")
    for use in (store.images, store.prune):
        with pytest.raises(InvalidArgument, match=r"ImageFilter\.parse"):
            use(text)
    assert [image.name for image in store.images()] == ["app:1"]


def test_labels_may_stand_several_times_and_in_any_order() -> None:
    found = ImageFilter.parse("label=a", "keep_last=1", "label!=c", "label=b=1", "label!=d=2")
    assert found.labels == (Label("a"), Label("b", "1"))
    assert found.without_labels == (Label("c"), Label("d", "2"))
    assert str(found) == "label=a label=b=1 label!=c label!=d=2 keep_last=1"


@pytest.mark.parametrize(
    "build",
    [
        ImageFilter,
        ImageFilter.parse,
        lambda: ImageFilter(labels=(), without_labels=()),
        lambda: ImageFilter(labels=iter(())),
        lambda: attrs.evolve(ImageFilter(keep_last=1), keep_last=None),
        lambda: attrs.evolve(ImageFilter(labels=(Label("x"),)), labels=()),
    ],
)
def test_a_filter_without_a_condition_is_refused_however_it_is_built(build: Callable[[], ImageFilter]) -> None:
    with pytest.raises(InvalidFilter, match="it has no condition, and would mean every image"):
        build()


@pytest.mark.parametrize(
    "fields",
    [
        *({"older_than_seconds": each} for each in (math.nan, math.inf, -math.inf, -1, -0.001, 1e12, 1e300)),
        *({"keep_last": each} for each in (-1, 10**9, True, 1.0)),
        *({"max_bytes": each} for each in (-1, 10**18, False, 2.5, math.nan)),
        {"reference": ""},
    ],
)
def test_a_number_out_of_its_bounds_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidFilter):
        ImageFilter(**fields)


@pytest.mark.parametrize("key", ["", "a=b", "="])
def test_a_label_that_could_not_be_written_down_is_refused(key: str) -> None:
    with pytest.raises(InvalidFilter):
        Label(key, "x")


def test_a_filter_is_a_value() -> None:
    one, other = (ImageFilter(labels=[Label("a")], keep_last=1) for _ in range(2))
    assert {one: 1}[other] == 1
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.keep_last = 2  # type: ignore[misc]  # that is what is shown


# What is listed


def test_a_reference_matches_the_name_or_its_canonical_spelling(root: Path) -> None:
    assert listed(root, "reference=app:*") == ["app:1", "app:2"]
    assert listed(root, "reference=docker.io/library/*") == ["app:1", "app:2", "multi:1"]
    assert listed(root, "reference=*plain*") == ["team/plain:1"]
    assert listed(root, "reference=app:?") == ["app:1", "app:2"]
    assert listed(root, "reference=app") == []
    assert listed(root, "reference=App:1") == []


def test_an_address_in_brackets_is_no_set_of_characters(root: Path) -> None:
    open_store(root).tag("app:1", "[::1]:5000/app:1")
    assert listed(root, "reference=[::1]:5000/*") == ["[::1]:5000/app:1"]
    assert listed(root, "reference=[a]pp:1") == []


def test_labels_are_those_of_a_config_and_an_index_has_none(root: Path) -> None:
    assert listed(root, "label=keep") == ["app:1"]
    assert listed(root, "label=tier=b") == ["app:2"]
    assert listed(root, "label!=keep") == ["app:2", "multi:1", "team/plain:1"]
    assert listed(root, "label!=tier=a", "label!=tier=b") == ["multi:1", "team/plain:1"]
    assert listed(root, "label=tier", "label!=keep=yes") == ["app:2"]


@pytest.mark.parametrize("many_in", ["annotations", "config"])
def test_labels_are_read_within_the_limits_of_the_store(root: Path, many_in: str) -> None:
    many = {str(number): "" for number in range(DEFAULT_LIMITS.document_values)}
    labels: dict[str, Any] = {"config": {"Labels": {"keep": "yes"}}}
    if many_in == "annotations":
        image = build_image(salt="many", config=labels, annotations=many)
    else:
        image = build_image(salt="many", config={**labels, **many})
    store = Store(root, settle_seconds=0.0, limits=Limits(document_values=1 << 18))
    store.import_image(memory_of({"many:1": image}), "many:1")
    assert [each.name for each in store.images(ImageFilter.parse("label=keep"))] == ["app:1", "many:1"]


def test_an_index_of_which_another_tool_has_one_platform_alone_has_no_labels_either(root: Path) -> None:
    for digest in MULTI.document_digests:
        if digest != MULTI.digest:
            blob(root, digest).unlink()
    assert listed(root, "label!=keep") == ["app:2", "multi:1", "team/plain:1"]
    assert names_in(open_store(root).prune(ImageFilter.parse("label!=keep"))) == ["app:2", "multi:1", "team/plain:1"]
    assert read_names(root) == {"app:1": OLD.digest}


def test_an_age_is_that_of_the_name_in_this_store(root: Path) -> None:
    set_ages(root, {"app:1": 3 * DAY, "app:2": DAY, "team/plain:1": HOUR, "multi:1": 3 * DAY})
    assert listed(root, "older_than=2d") == ["app:1", "multi:1"]
    assert listed(root, "older_than=90m") == ["app:1", "app:2", "multi:1"]
    assert listed(root, "older_than=1w") == []
    put(root, OLD, "app:1")
    assert listed(root, "older_than=2d") == ["multi:1"]


def test_a_name_that_was_written_in_the_future_is_young(root: Path) -> None:
    set_ages(root, {"app:1": -DAY, "app:2": DAY, "team/plain:1": DAY, "multi:1": DAY})
    assert "app:1" not in listed(root, "older_than=0s")
    assert listed(root, "reference=app:*", "keep_last=1") == ["app:2"]


def test_the_last_of_each_repository_stay_of_those_that_are_alike(root: Path) -> None:
    store = open_store(root)
    for number in range(3, 6):
        store.tag("app:2", f"docker.io/library/app:{number}")
    ages = {"app:1": 5 * DAY, "app:2": 4 * DAY, **{f"docker.io/library/app:{n}": (6 - n) * DAY for n in (3, 4, 5)}}
    set_ages(root, {**ages, "team/plain:1": 9 * DAY, "multi:1": 9 * DAY})
    assert listed(root, "keep_last=2") == ["app:1", "app:2", "docker.io/library/app:3"]
    assert listed(root, "keep_last=1", "reference=app:*") == ["app:1"]
    assert listed(root, "keep_last=1", "label=tier=b") == [
        "app:2",
        "docker.io/library/app:3",
        "docker.io/library/app:4",
    ]
    # What is young is among what is kept: no old one is kept in its stead.
    assert listed(root, "keep_last=2", "older_than=84h") == ["app:1", "app:2"]
    assert len(listed(root, "keep_last=0")) == 7


def test_of_names_that_are_equally_old_the_one_that_stands_later_is_the_younger(tmp_path: Path) -> None:
    write_layout(tmp_path, {f"app:{number}": OLD for number in (8, 9, 10, 11)})
    assert listed(tmp_path, "keep_last=1") == ["app:10", "app:8", "app:9"]
    write_layout(tmp_path, {"b:1": OLD, "a:1": NEW})
    assert listed(tmp_path, f"max_bytes={NEW.size_bytes}") == ["b:1"]


def test_the_least_recently_used_go_until_the_rest_fits(root: Path) -> None:
    ages = dict.fromkeys(read_names(root), 9 * DAY)
    set_ages(root, ages, {"app:1": DAY, "app:2": 4 * DAY, "team/plain:1": 2 * DAY, "multi:1": 3 * DAY})
    whole = sum(len(content) for image in (OLD, NEW, PLAIN, MULTI) for content in image.blobs.values())
    shared = sum(len(content) for digest, content in OLD.blobs.items() if digest in NEW.blobs)
    assert shared
    own = NEW.size_bytes - shared
    total = whole - shared
    assert listed(root, f"max_bytes={total}") == []
    assert listed(root, f"max_bytes={total - 1}") == ["app:2"]
    assert listed(root, f"max_bytes={total - own}") == ["app:2"]
    assert listed(root, f"max_bytes={total - own - 1}") == ["app:2", "multi:1"]
    assert listed(root, "max_bytes=0") == sorted(ages)
    assert listed(root, f"max_bytes={total - 1}", "reference=team/*") == ["team/plain:1"]
    put_dead(root, DEAD)
    assert listed(root, f"max_bytes={total}") == [], "what no image needs takes no room from those that do"


def test_entries_without_a_name_take_room_and_do_not_go(root: Path) -> None:
    index = read_index(root)
    index["manifests"][-1].pop("annotations")
    (root / "index.json").write_text(json.dumps(index))
    assert listed(root, f"max_bytes={MULTI.size_bytes}") == ["app:1", "app:2", "team/plain:1"]
    assert open_store(root).prune(ImageFilter(max_bytes=0)).errors == ()
    assert stored(root) == set(MULTI.blobs)


def test_a_store_that_is_not_there_has_nothing_to_choose_from(tmp_path: Path) -> None:
    store = open_store(tmp_path / "none")
    assert store.images(ALL) == ()
    assert store.prune(ALL) == PruneReport()
    assert store.prune(ALL, dry_run=True) == PruneReport(dry_run=True)
    assert not (tmp_path / "none").exists()


# What goes


def test_without_a_filter_no_name_goes(root: Path) -> None:
    put_dead(root, DEAD)
    names = read_names(root)
    assert names_in(open_store(root).prune()) == []
    assert read_names(root) == names


def test_a_name_goes_with_its_reason_and_its_age_and_what_it_shares_stays(root: Path) -> None:
    set_ages(root, {"app:1": 3 * DAY})
    report = open_store(root).prune(ImageFilter.parse("older_than=1d", "reference=app:*"))
    name = report.removed[0]
    assert name == Removal(
        kind="name", path="app:1", size_bytes=0, reason="the filter chose it: reference=app:* older_than=86400.000s"
    )
    assert name.age_seconds == pytest.approx(3 * DAY, abs=60)
    assert {each.kind for each in report.removed[1:]} == {"blob"}
    assert report.bytes_freed == OLD.size_bytes - sum(len(c) for d, c in OLD.blobs.items() if d in NEW.blobs)
    assert stored(root) == {*NEW.blobs, *PLAIN.blobs, *MULTI.blobs}
    check_invariants(root)


def test_names_go_in_one_step_that_can_be_undone_as_long_as_their_blobs_are_there(root: Path) -> None:
    store = open_store(root)
    store.tag("app:1", "app:3")
    report = store.prune(ImageFilter.parse("reference=app:3"))
    assert parts_of(report) == {("name", "app:3")}
    assert [image.name for image in store.undo()] == ["app:3"]


def test_a_name_that_stands_twice_goes_with_both_its_entries(root: Path) -> None:
    ages = {"app:2": 4 * DAY, "app:1": 3 * DAY, "multi:1": 2 * DAY, "team/plain:1": DAY}
    set_ages(root, ages)
    index = read_index(root)
    index["manifests"].append({**index["manifests"][1], "annotations": index["manifests"][0]["annotations"]})
    (root / "index.json").write_text(json.dumps(index))
    assert [entry["digest"] for entry in index["manifests"]].count(NEW.digest) == 2
    # Both entries weigh, and both go: then all of OLD and NEW is free, and nothing else has to go.
    assert listed(root, f"max_bytes={PLAIN.size_bytes + MULTI.size_bytes}") == ["app:1", "app:2"]
    plan = open_store(root).prune(ImageFilter.parse("reference=app:1"), dry_run=True)
    report = open_store(root).prune(ImageFilter.parse("reference=app:1"))
    assert plan.removed == report.removed
    assert names_in(report) == ["app:1"]
    assert set(read_names(root)) == {"app:2", "team/plain:1", "multi:1"}
    assert stored(root) == reachable(root)


@pytest.mark.parametrize("name", ["blobs/sha256", "ingest/partial/x:1", "index.json/x"])
def test_a_name_is_no_path(root: Path, name: str) -> None:
    store = Store(root, settle_seconds=0.0)
    store.tag("app:1", name)
    assert parts_of(store.prune(ImageFilter(reference=name))) == {("name", name)}
    check_invariants(root)


# Nothing goes where anything is wrong


@pytest.fixture
def untouched(root: Path) -> Iterator[None]:
    """Whatever the test does, and for whatever reason, the store is in the end what it was when the test had set it."""
    set_ages(root, dict.fromkeys(read_names(root), DAY))
    yield
    assert set(read_names(root)) == {"app:1", "app:2", "team/plain:1", "multi:1"}


def refused(root: Path, error: type[StoreError], *conditions: str, match: str = ".") -> None:
    """Show that a prune with a filter fails, planned or done, and has changed nothing."""
    before = snapshot(root)
    for dry_run in (True, False):
        with pytest.raises(error, match=match):
            open_store(root).prune(ImageFilter.parse(*conditions), dry_run=dry_run)
    assert snapshot(root) == before


@pytest.mark.parametrize("harm", ["gone", "rotten"])
def test_where_what_is_left_cannot_be_read_no_name_goes(root: Path, untouched: None, harm: str) -> None:
    put_dead(root, DEAD)
    blob(root, NEW.digest).unlink() if harm == "gone" else rot(blob(root, NEW.digest))
    error = IncompleteImage if harm == "gone" else StoreDamaged
    refused(root, error, "reference=app:1")
    refused(root, error, "older_than=1h", "reference=team/*")
    refused(root, error, "max_bytes=0")
    refused(root, error, "label=keep")
    assert {"app:1"} <= set(read_names(root))


@pytest.mark.parametrize("part", ["manifest", "config"])
def test_labels_that_are_gone_make_the_image_incomplete(root: Path, untouched: None, part: str) -> None:
    digest = NEW.digest if part == "manifest" else NEW.config_digest
    blob(root, digest).unlink()
    for condition in ("label=keep", "label!=keep"):
        with pytest.raises(IncompleteImage) as caught:
            listed(root, condition)
        assert (caught.value.root, caught.value.missing) == ("app:2", (digest,))
        refused(root, IncompleteImage, condition, match="app:2")
    assert listed(root, "label=keep", "reference=app:1") == ["app:1"]


@pytest.mark.parametrize("part", ["manifest", "config"])
def test_labels_that_are_rotten_are_damage_with_the_path_of_the_file(root: Path, untouched: None, part: str) -> None:
    digest = NEW.digest if part == "manifest" else NEW.config_digest
    rot(blob(root, digest))
    with pytest.raises(StoreDamaged, match=digest.partition(":")[2]):
        listed(root, "label!=keep")
    refused(root, StoreDamaged, "label!=keep")


@pytest.mark.parametrize("execution", [{"Labels": {"keep": 5}}, {"Labels": ["keep"]}, "keep"], ids=str)
def test_labels_that_are_no_labels_are_not_taken_for_none(root: Path, execution: Any) -> None:
    put(root, build_image(salt="odd", config={"config": execution}), "odd:1")
    refused(root, StoreDamaged, "label!=keep")
    assert "odd:1" in listed(root, "reference=odd*")


def test_an_index_that_cannot_be_read_stops_everything(root: Path) -> None:
    content = (root / "index.json").read_bytes()
    (root / "index.json").write_bytes(content[:-5])
    with pytest.raises(StoreDamaged):
        listed(root, "reference=*")
    refused(root, StoreDamaged, "reference=*")


def test_an_image_that_is_damaged_may_go_itself(root: Path) -> None:
    rot(blob(root, OLD.digest))
    plan = open_store(root).prune(ImageFilter.parse("reference=app:1"), dry_run=True)
    report = open_store(root).prune(ImageFilter.parse("reference=app:1"))
    assert plan.removed == report.removed
    assert stored(root) == reachable(root) == {*NEW.blobs, *PLAIN.blobs, *MULTI.blobs}


def test_while_another_collection_runs_no_name_goes(root: Path, untouched: None) -> None:
    before = snapshot(root)
    with locks.holding_lock(str(root / "ingest/prune.lock"), doing="collecting", timeout_seconds=1):
        with pytest.raises(StoreBusy, match=r"prune\.lock \(collecting\)"):
            open_store(root, lock_timeout_seconds=0.05).prune(ALL)
        assert names_in(open_store(root).prune(ALL, dry_run=True)) == sorted(read_names(root))
    assert snapshot(root) == before


def test_while_another_process_holds_the_store_no_name_goes(root: Path, untouched: None) -> None:
    with open_layout(root).store_lock("holding"), pytest.raises(StoreBusy, match=r"store\.lock \(holding\)"):
        open_store(root, lock_timeout_seconds=0.05).prune(ALL)


def test_a_store_that_may_not_be_written_to_is_listed_and_planned_and_not_pruned(root: Path, untouched: None) -> None:
    require_root()
    put_dead(root, DEAD)
    with bound(root, root.parent / "bound") as folder:
        remount(folder, "bind,ro")
        before = snapshot(root)
        assert listed(folder, "label!=keep", "older_than=1h") == ["app:2", "multi:1", "team/plain:1"]
        plan = open_store(folder).prune(ImageFilter.parse("max_bytes=0"), dry_run=True)
        assert names_in(plan) == sorted(read_names(root))
        with pytest.raises(StoreUnavailable, match="Read-only"):
            open_store(folder).prune(ALL)
        assert snapshot(root) == before


# Races: between the choice and the lock


@contextmanager
def before_names_go(action: Callable[[], object], *, times: int = 1) -> Iterator[None]:
    """Do something each time a prune has chosen, and is about to wait for the store lock."""
    with replaced_os() as system:
        system.before("open", action, path="ingest/store.turn", times=times)
        yield


@pytest.mark.parametrize("image", [OLD, NEW], ids=["the same image", "another image"])
def test_a_name_that_is_written_between_the_choice_and_the_lock_stays(root: Path, image: BuiltImage) -> None:
    set_ages(root, {"app:1": 3 * DAY, "app:2": 3 * DAY, "team/plain:1": HOUR, "multi:1": HOUR})
    with before_names_go(lambda: put(root, image, "app:1")):
        report = open_store(root).prune(ImageFilter.parse("older_than=1d"))
    assert names_in(report) == ["app:2"]
    assert read_names(root) == {"app:1": image.digest, "team/plain:1": PLAIN.digest, "multi:1": MULTI.digest}
    assert stored(root) == reachable(root)
    check_invariants(root)


def test_an_image_that_is_used_between_the_choice_and_the_lock_is_not_the_least_recently_used(root: Path) -> None:
    ages = dict.fromkeys(read_names(root), 9 * DAY)
    set_ages(root, ages, {"app:1": 5 * DAY, "app:2": 2 * DAY, "team/plain:1": 3 * DAY, "multi:1": 2 * DAY})
    condition = f"max_bytes={open_store(root).usage().total_bytes - 1}"
    assert listed(root, condition) == ["app:1"]
    with before_names_go(lambda: open_store(root).save("app:1", root.parent / "a.tar")):
        report = open_store(root).prune(ImageFilter.parse(condition))
    assert names_in(report) == ["team/plain:1"]
    assert stored(root) == reachable(root)


def test_a_name_that_comes_between_the_choice_and_the_lock_is_chosen_too(root: Path) -> None:
    with before_names_go(lambda: open_store(root).tag("team/plain:1", "app:3")):
        report = open_store(root).prune(ImageFilter.parse("reference=app:*"))
    assert names_in(report) == ["app:1", "app:2", "app:3"]


@pytest.mark.parametrize("how", ["undo", "import"])
def test_a_name_that_comes_back_once_it_has_gone_keeps_its_blobs(root: Path, how: str) -> None:
    before = (root / "index.json").read_bytes()
    given_back: list[str] = []

    def give_back(event: Event) -> None:
        if isinstance(event, PruneAdvanced) and event.phase == "removing" and not given_back:
            given_back.append(how)
            assert "multi:1" not in read_names(root)
            open_store(root).undo() if how == "undo" else put(root, MULTI, "multi:1")
            assert (root / "index.json").read_bytes() == before, "it says the very same again"

    report = open_store(root).prune(ImageFilter(reference="multi:*"), on_event=give_back)
    assert given_back == [how]
    assert [each.kind for each in report.removed] == ["name"]
    assert read_names(root)["multi:1"] == MULTI.digest
    check_invariants(root)


def test_a_name_that_goes_meanwhile_is_no_error(root: Path) -> None:
    with before_names_go(lambda: open_store(root).remove("app:1")):
        report = open_store(root).prune(ImageFilter.parse("reference=app:*"))
    assert names_in(report) == ["app:2"]
    assert stored(root) == reachable(root)


@pytest.mark.parametrize("how", ["the same image again", "a further name"])
def test_names_that_are_written_all_the_time_make_the_store_busy(root: Path, how: str) -> None:
    put_dead(root, DEAD)
    written: list[str] = []

    def write() -> None:
        written.append("app:1" if how == "the same image again" else f"other:{len(written)}")
        # In another process: its own way to the lock is none of those that are waited for here.
        assert run_forked(lambda: write_outside(root, written[-1])) == 0

    before, names = stored(root), set(read_names(root))
    with before_names_go(write, times=100), pytest.raises(StoreBusy, match=r"changing index\.json all the time"):
        open_store(root).prune(ImageFilter.parse("reference=app:*"))
    assert len(written) == 5
    assert stored(root) == before
    assert set(read_names(root)) == names | set(written)


def write_outside(root: Path, name: str) -> None:
    """Write a name, by way of the real system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "os", os)
        open_store(root).tag("app:1", name)


def test_a_name_that_is_gone_when_a_plan_is_made_for_it_is_no_error(root: Path) -> None:
    with replaced_os() as system:
        # Behind the choice, which reads index.json first.
        system.before("open", lambda: open_store(root).remove("app:1"), path="index.json", skip=1)
        report = open_store(root).prune(ImageFilter.parse("reference=app:*"), dry_run=True)
    assert names_in(report) == ["app:1", "app:2"]
    assert set(read_names(root)) == {"app:2", "team/plain:1", "multi:1"}


def test_an_image_that_is_removed_and_collected_while_its_labels_are_read_is_passed_over(root: Path) -> None:
    def take_away() -> None:
        open_store(root).remove("app:2")
        open_store(root).prune()

    with replaced_os() as system:
        system.before("open", take_away, path=NEW.config_digest.partition(":")[2])
        assert listed(root, "label!=keep") == ["multi:1", "team/plain:1"]


def test_what_a_transaction_holds_stays_though_its_name_goes(root: Path) -> None:
    with open_layout(root).open_writer() as writer:
        assert all(writer.has_blob(each) for each in (layer_of(OLD, 0), layer_of(OLD, 1)))
        report = open_store(root).prune(ImageFilter.parse("reference=app:1"))
        assert names_in(report) == ["app:1"]
        assert stored(root) >= set(OLD.layer_digests)
    open_store(root).prune()
    assert stored(root) == reachable(root)


# keep_newer_than_seconds


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, -math.inf])
def test_a_time_that_is_less_than_nothing_is_refused(root: Path, seconds: float) -> None:
    for dry_run in (True, False):
        with pytest.raises(InvalidInput, match="keep_newer_than_seconds"):
            open_store(root).prune(keep_newer_than_seconds=seconds, dry_run=dry_run)


def test_what_has_just_changed_stays_and_is_told_of(root: Path) -> None:
    put_dead(root, DEAD)
    for seconds in (60.0, math.inf):
        plan = open_store(root).prune(keep_newer_than_seconds=seconds, dry_run=True)
        report = open_store(root).prune(keep_newer_than_seconds=seconds)
        assert plan.removed == report.removed == ()
        assert [text.partition(":")[0] for text in plan.kept] == [text.partition(":")[0] for text in report.kept]
        assert {text.partition(":")[0] for text in report.kept} == {
            "blobs/" + digest.replace(":", "/") for digest in DEAD.blobs
        }
        assert all("it was written" in text for text in report.kept)
    time.sleep(0.03)
    assert open_store(root).prune(keep_newer_than_seconds=0.02).blobs_removed == len(DEAD.blobs)


def test_the_names_that_a_filter_chose_go_and_their_young_blobs_stay(root: Path) -> None:
    report = open_store(root).prune(ImageFilter.parse("reference=app:1"), keep_newer_than_seconds=60)
    assert names_in(report) == ["app:1"]
    assert len(report.removed) == 1
    assert len(report.kept) == len(set(OLD.blobs) - set(NEW.blobs))


def test_what_another_tool_writes_between_the_plan_and_the_lock_stays(root: Path) -> None:
    put_dead(root, DEAD)
    digest = DEAD.layer_digests[0]

    def write_anew() -> None:
        fresh = root.parent / "fresh"
        fresh.write_bytes(DEAD.blobs[digest])
        os.replace(fresh, blob(root, digest))

    with replaced_os() as system:
        system.before("open", write_anew, path="ingest/store.turn")
        with sparing_later_files() as seconds:
            report = open_store(root).prune(keep_newer_than_seconds=seconds)
    assert report.blobs_removed == len(DEAD.blobs) - 1
    assert [text.partition(":")[0] for text in report.kept] == ["blobs/" + digest.replace(":", "/")]


def test_what_a_dead_transaction_held_is_as_old_as_it_was(root: Path) -> None:
    put_dead(root, DEAD)

    def hold(ready: Callable[[], None]) -> None:
        with open_layout(root).open_writer() as writer:
            assert all(writer.has_blob(each) for each in descriptors_of(DEAD))
            ready()
            sleep_for_ever()

    with forked(hold) as pid:
        kill(pid)
    time.sleep(0.6)
    plan = open_store(root).prune(keep_newer_than_seconds=0.5, dry_run=True)
    report = open_store(root).prune(keep_newer_than_seconds=0.5)
    assert parts_of(plan) == parts_of(report)
    assert report.blobs_removed == len(DEAD.blobs)
    assert (plan.kept, report.kept) == ((), ())


# Reasons, bytes and ages


def test_each_thing_in_a_plan_has_its_reason_its_bytes_and_its_age(root: Path) -> None:
    put_dead(root, DEAD)
    (root / "ingest/0123456789abcdef").mkdir()
    (root / "ingest/0123456789abcdef/lock").write_bytes(b"")
    (root / "ingest/partial" / f"sha256-{'0' * 64}").write_bytes(b"half")
    (root / "tmp-pull-1").write_bytes(b"odd")
    (root / ".index.json.0123456789abcdef.tmp").write_bytes(b"half")
    (root / "layers/one/deep").mkdir(parents=True)
    (root / "layers/one/deep/file").write_bytes(b"unpacked")
    blob(root, "sha256:" + "1" * 64).with_name("1" * 64 + ".index.json").write_bytes(b"{}")
    old = time.time() - DAY

    def check() -> None:
        plan = open_store(root).prune(ImageFilter.parse("reference=app:1"), dry_run=True, build_cache=True)
        report = open_store(root).prune(ImageFilter.parse("reference=app:1"), build_cache=True)
        for removed in (plan.removed, report.removed):
            kinds = {each.kind for each in removed}
            assert kinds == {"name", "blob", "sidecar", "transaction", "partial", "temporary", "build cache"}
            for each in removed:
                assert each.reason, each
                assert each.size_bytes > 0 or each.kind in ("name", "transaction"), each
                assert each.age_seconds is not None, each
                assert 0 <= each.age_seconds < 120, each

    for path in (root / "tmp-pull-1", root / "layers/one"):
        os.utime(path, (old, old))  # when it was put there says more than what its content says
    assert run_alone(check) == 0


def test_a_clock_that_went_back_makes_no_age_less_than_nothing(root: Path) -> None:
    put_dead(root, DEAD)
    for digest in DEAD.blobs:
        os.utime(blob(root, digest), (time.time() + DAY,) * 2)
    set_ages(root, {"app:1": -DAY})
    plan = open_store(root).prune(ImageFilter.parse("reference=app:1"), dry_run=True)
    assert {
        each.age_seconds for each in plan.removed if each.path == "app:1" or each.path.endswith(DEAD.digest[7:])
    } == {0}
    assert len(open_store(root).prune(keep_newer_than_seconds=1).kept) == len(DEAD.blobs)


def test_a_copy_into_the_store_makes_its_name_young(root: Path) -> None:
    set_ages(root, dict.fromkeys(read_names(root), 3 * DAY))
    copy_into(open_layout(root), OLD, "app:1", "app:2")
    assert listed(root, "older_than=1d") == ["multi:1", "team/plain:1"]
