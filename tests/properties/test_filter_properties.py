"""Laws of filters: what is written can be read, what is chosen is what the words say, what is listed is what goes."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minibox_store import ImageFilter, InvalidFilter, Label
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.selection import Candidate, Weights, choose_images
from tests.support.images import BuiltImage, build_image, build_index
from tests.support.invariants import check_invariants, reachable, read_names, stored
from tests.support.journals import set_ages
from tests.support.layouts import blob_path, write_layout
from tests.support.snapshots import snapshot
from tests.support.stores import open_store

TEXTS = st.text(max_size=12)
LABELS = st.builds(Label, TEXTS.filter(lambda key: key and "=" not in key), st.none() | TEXTS)
KEYS = ("reference", "older_than", "label", "label!", "keep_last", "max_bytes")


def has_condition(fields: dict[str, Any]) -> bool:
    return any(value is not None and value != () for value in fields.values())


def filters() -> st.SearchStrategy[ImageFilter]:
    """Every filter that there is."""
    fields: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
        {},
        optional={
            "reference": TEXTS.filter(bool),
            "older_than_seconds": st.floats(0, 10**12 - 1) | st.integers(0, 10**12 - 1),
            "labels": st.lists(LABELS, max_size=3).map(tuple),
            "without_labels": st.lists(LABELS, max_size=3).map(tuple),
            "keep_last": st.integers(0, 10**9 - 1),
            "max_bytes": st.integers(0, 10**18 - 1),
        },
    )
    return fields.filter(has_condition).map(lambda chosen: ImageFilter(**chosen))


# ---- the grammar


@settings(max_examples=300)
@given(chosen_by=filters())
@example(chosen_by=ImageFilter(older_than_seconds=0.0004))
@example(chosen_by=ImageFilter(older_than_seconds=-0.0))
@example(chosen_by=ImageFilter(older_than_seconds=10**12 - 0.001))
@example(chosen_by=ImageFilter(max_bytes=10**18 - 1, keep_last=10**9 - 1))
@example(chosen_by=ImageFilter(labels=(Label("a", ""), Label("a"), Label("b", "=c=")), reference="label=x"))
def test_a_filter_that_is_written_down_and_read_again_is_equal(chosen_by: ImageFilter) -> None:
    assert ImageFilter.parse(*chosen_by.conditions()) == chosen_by
    assert str(chosen_by) == " ".join(chosen_by.conditions())


@settings(max_examples=500)
@given(
    conditions=st.lists(
        st.text(max_size=20)
        | st.tuples(st.sampled_from(KEYS), st.text(max_size=20)).map("=".join)
        | st.tuples(
            st.sampled_from(["older_than", "keep_last", "max_bytes"]),
            st.text("0123456789.-+_eE smhdwkKMGTiB\n٣", max_size=24),
        ).map("=".join),
        max_size=3,
    )
)
@example(conditions=["older_than=999999999999w"])
@example(conditions=["max_bytes=999999999999999999TiB"])
@example(conditions=["max_bytes=1kiB"])
@example(conditions=["keep_last=\u0663"])
@example(conditions=["older_than=1h\n"])
@example(conditions=["\ud800=\ud800"])
@example(conditions=["label==x"])
def test_any_texts_are_a_filter_or_refused_with_a_sentence(conditions: list[str]) -> None:
    found: ImageFilter | str
    try:
        found = ImageFilter.parse(*conditions)
    except InvalidFilter as error:
        found = str(error)
    if isinstance(found, str):
        assert found.startswith("invalid filter")
        assert found.isprintable()
    else:
        assert conditions
        assert ImageFilter.parse(*found.conditions()) == found


@given(seconds=st.floats().filter(lambda each: not 0 <= each < 10**12 - 1) | st.integers(max_value=-1))
def test_a_time_out_of_bounds_is_refused(seconds: float) -> None:
    if -0.0005 <= seconds <= 0:
        assert math.copysign(1, ImageFilter(older_than_seconds=seconds).older_than_seconds or 0.0) == 1
        return
    with pytest.raises(InvalidFilter, match="less than nothing, or longer than all time"):
        ImageFilter(older_than_seconds=seconds)


# ---- the choice, against the plainest model

# Names, their repositories and other spelling; those of one repository stand under several spellings.
NAMES = {
    "app:1": ("docker.io/library/app", "docker.io/library/app:1"),
    "app:2": ("docker.io/library/app", "docker.io/library/app:2"),
    "docker.io/library/app:3": ("docker.io/library/app", "docker.io/library/app:3"),
    "team/app:1": ("docker.io/team/app", "docker.io/team/app:1"),
    "[::1]:5000/app:1": ("[::1]:5000/app", "[::1]:5000/app:1"),
    "Odd Name:1": ("Odd Name", "Odd Name:1"),
    "Odd Name:2": ("Odd Name", "Odd Name:2"),
}
GLOBS = [
    "*",
    "app:*",
    "docker.io/library/*",
    "*app*",
    "?pp:1",
    "[::1]:5000/app:1",
    "[a]pp:1",
    "Odd Name:?",
    "none",
    "**",
]
MODEL_LABELS = [Label("a"), Label("a", "1"), Label("a", "2"), Label("b"), Label("b", "")]
BLOBS = [Digest.of(bytes([number])) for number in range(6)]
NOW = 1_000_000.0


def matches(text: str, glob: str) -> bool:
    if not glob:
        return not text
    if glob[0] == "*":
        return any(matches(text[skip:], glob[1:]) for skip in range(len(text) + 1))
    return bool(text) and glob[0] in ("?", text[0]) and matches(text[1:], glob[1:])


def is_on(label: Label, labels: dict[str, str]) -> bool:
    return any(key == label.key and label.value in (None, value) for key, value in labels.items())


class Thing:
    """One name of a model's index."""

    def __init__(self, name: str, written: int, used: int, labels: dict[str, str], blobs: set[Digest]) -> None:
        self.name, self.written, self.used, self.labels, self.blobs = name, written, max(written, used), labels, blobs
        self.repository, self.canonical = NAMES[name]

    def candidate(self) -> Candidate:
        return Candidate(
            name=self.name,
            descriptor=Descriptor(media_type="x", digest=BLOBS[0], size_bytes=1),
            written_seconds=NOW + self.written,
            used_seconds=NOW + self.used,
            read_labels=lambda: self.labels,
        )


def model(
    chosen_by: ImageFilter, things: list[Thing], nameless: list[set[Digest]], sizes: dict[Digest, int]
) -> set[str]:
    """Return the names that a filter chooses, by one plain look at each."""
    glob = chosen_by.reference
    alike = [
        thing
        for thing in things
        if (glob is None or matches(thing.name, glob) or matches(thing.canonical, glob))
        and all(is_on(label, thing.labels) for label in chosen_by.labels)
        and not any(is_on(label, thing.labels) for label in chosen_by.without_labels)
    ]
    chosen = []
    for thing in alike:
        place = (thing.written, things.index(thing))
        younger = [
            each for each in alike if each.repository == thing.repository and (each.written, things.index(each)) > place
        ]
        is_kept = chosen_by.keep_last is not None and len(younger) < chosen_by.keep_last
        is_young = chosen_by.older_than_seconds is not None and -thing.written <= chosen_by.older_than_seconds
        if not is_kept and not is_young:
            chosen.append(thing)
    if chosen_by.max_bytes is None:
        return {thing.name for thing in chosen}
    chosen.sort(key=lambda thing: (thing.used, things.index(thing)))
    for count in range(len(chosen) + 1):
        going = {thing.name for thing in chosen[:count]}
        left = [thing.blobs for thing in things if thing.name not in going]
        if sum(sizes[digest] for digest in set().union(*left, *nameless)) <= chosen_by.max_bytes:
            break
    return going


@st.composite
def stocks(draw: st.DrawFn) -> tuple[list[Thing], list[set[Digest]], dict[Digest, int]]:
    """What a store holds: names in some order, entries without one, and what each blob weighs."""
    some = st.sets(st.sampled_from(BLOBS), max_size=4)
    times = st.integers(-5, 1) | st.just(-3)  # many alike, and one in the future
    labels = st.dictionaries(st.sampled_from("ab"), st.sampled_from(["", "1", "2"]), max_size=2)
    names = draw(st.lists(st.sampled_from(list(NAMES)), unique=True))
    things = [Thing(name, draw(times), draw(times), draw(labels), draw(some)) for name in names]
    return things, draw(st.lists(some, max_size=2)), {digest: draw(st.integers(0, 9)) for digest in BLOBS}


def model_filters() -> st.SearchStrategy[ImageFilter]:
    labels = st.lists(st.sampled_from(MODEL_LABELS), max_size=2).map(tuple)
    fields: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
        {},
        optional={
            "reference": st.sampled_from(GLOBS),
            "older_than_seconds": st.integers(0, 5),
            "labels": labels,
            "without_labels": labels,
            "keep_last": st.integers(0, 3),
            "max_bytes": st.integers(0, 60),
        },
    )
    return fields.filter(has_condition).map(lambda chosen: ImageFilter(**chosen))


@settings(max_examples=600)
@given(chosen_by=model_filters(), stock=stocks())
def test_what_is_chosen_is_what_the_words_say(
    chosen_by: ImageFilter, stock: tuple[list[Thing], list[set[Digest]], dict[Digest, int]]
) -> None:
    things, nameless, sizes = stock
    weights = Weights(
        [*((thing.name, frozenset(thing.blobs)) for thing in things), *((None, frozenset(each)) for each in nameless)],
        sizes,
    )
    candidates = [thing.candidate() for thing in things]
    chosen = choose_images(chosen_by, candidates, now_seconds=NOW, read_weights=lambda: weights)
    names = [each.name for each in chosen]
    assert names == sorted(names)
    assert set(names) == model(chosen_by, things, nameless, sizes)


@given(chosen_by=model_filters(), stock=stocks())
def test_a_filter_reads_no_more_than_it_asks_for(
    chosen_by: ImageFilter, stock: tuple[list[Thing], list[set[Digest]], dict[Digest, int]]
) -> None:
    def fail() -> Any:
        raise AssertionError("nobody has asked for this")

    candidates = [thing.candidate() for thing in stock[0]]
    weights = Weights([], {}) if chosen_by.max_bytes is not None else None
    if not chosen_by.labels and not chosen_by.without_labels:
        candidates = [
            Candidate(
                name=each.name,
                descriptor=each.descriptor,
                written_seconds=each.written_seconds,
                used_seconds=each.used_seconds,
                read_labels=fail,
            )
            for each in candidates
        ]
    chosen = choose_images(chosen_by, candidates, now_seconds=NOW, read_weights=lambda: weights or fail())
    assert {each.name for each in chosen} <= {each.name for each in candidates}


# ---- stores

LAYERS = [{"a": b"one" * 50}, {"b": b"two" * 500}, {"c": b"three" * 5000}]
IMAGES = [
    build_image([LAYERS[0]], salt="0"),
    build_image([LAYERS[0], LAYERS[1]], salt="1", docker=True),
    build_image([LAYERS[1], LAYERS[2]], salt="2", algorithm="sha512"),
    build_index([build_image([LAYERS[2]], salt="3"), build_image([LAYERS[0]], salt="3", platform="linux/arm64")]),
]
DEAD = build_image([LAYERS[1]], salt="dead")
STORE_NAMES = [name for name in NAMES if " " not in name]
AGES = st.sampled_from([100.0, 200.0, 200.0, 300.0])


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as path:
        yield Path(path) / "store"


def store_filters() -> st.SearchStrategy[ImageFilter]:
    labels = st.lists(st.sampled_from([Label("salt"), *(Label("salt", str(each)) for each in range(3))]), max_size=1)
    most = sum(len(content) for image in IMAGES for content in image.blobs.values())
    fields: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
        {},
        optional={
            "reference": st.sampled_from(GLOBS),
            "older_than_seconds": st.sampled_from([50, 150, 250, 350]),
            "labels": labels.map(tuple),
            "without_labels": labels.map(tuple),
            "keep_last": st.integers(0, 2),
            "max_bytes": st.integers(0, most),
        },
    )
    return fields.filter(has_condition).map(lambda chosen: ImageFilter(**chosen))


@settings(max_examples=60)
@given(
    chosen_by=store_filters(),
    held=st.dictionaries(st.sampled_from(STORE_NAMES), st.tuples(st.sampled_from(IMAGES), AGES, AGES), min_size=1),
    with_dead=st.booleans(),
)
def test_what_a_prune_removes_is_what_the_filter_lists_and_then_what_no_name_reaches(
    chosen_by: ImageFilter, held: dict[str, tuple[BuiltImage, float, float]], with_dead: bool
) -> None:
    with folder() as root:
        write_layout(root, {name: image for name, (image, _, _) in held.items()})
        for digest, content in DEAD.blobs.items() if with_dead else ():
            blob_path(root, digest).parent.mkdir(parents=True, exist_ok=True)
            blob_path(root, digest).write_bytes(content)
        set_ages(
            root,
            {name: written for name, (_, written, _) in held.items()},
            {name: used for name, (_, written, used) in held.items() if used < written},
        )
        before, names = snapshot(root), set(read_names(root))
        listed = {image.name for image in open_store(root).images(chosen_by)}
        plan = open_store(root).prune(chosen_by, dry_run=True)
        assert snapshot(root) == before
        report = open_store(root).prune(chosen_by)
        assert plan.removed == report.removed
        assert (plan.dry_run, report.dry_run, report.errors, report.kept) == (True, False, (), ())
        gone = [each.path for each in report.removed if each.kind == "name"]
        assert gone == sorted(listed)
        assert set(read_names(root)) == names - listed
        assert stored(root) == reachable(root)
        assert report.bytes_freed == sum(len(content) for content in blobs_gone(held, listed, with_dead))
        check_invariants(root, history_behind=not gone)
        assert all(each.reason and each.age_seconds is not None and each.age_seconds >= 0 for each in report.removed)


def blobs_gone(held: dict[str, tuple[BuiltImage, float, float]], listed: set[str], with_dead: bool) -> Iterator[bytes]:
    before = {digest: content for image, _, _ in held.values() for digest, content in image.blobs.items()}
    before |= DEAD.blobs if with_dead else {}
    after = {digest for name, (image, _, _) in held.items() if name not in listed for digest in image.blobs}
    return (content for digest, content in before.items() if digest not in after)
