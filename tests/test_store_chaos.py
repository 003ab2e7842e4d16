"""Whatever registries do, a pull into a store, a push and a copy end well or in one error, and nothing stays open.

A deep run, of many more scripts, is asked for by MINIBOX_DEEP=1.
"""

import os
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from minibox_store import Mirror, RegistryRule, Store, remote
from minibox_store.errors import StoreError
from minibox_store.layout import pieces, ranged_fetch
from tests.support.answers import NO_ANSWER, Answer, Request, Scripted, redirect, registry_error, unauthorized
from tests.support.images import build_image, random_layer
from tests.support.invariants import check_invariants
from tests.support.layouts import read_layout_blobs
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedRegistry, blob_target, manifest_target
from tests.support.snapshots import snapshot
from tests.support.stores import open_store, put
from tests.support.trials import DEEP, trial_count
from tests.support.upload_registry import UploadRegistry
from tests.test_registry_chaos import FAULTS, LOCATIONS, RAW, STATUSES, Fault, Slowness, honest

pytestmark = pytest.mark.timeout(3600 if DEEP else 300)

KIBIBYTE, MEBIBYTE = 1 << 10, 1 << 20
IMAGE = build_image([{"a": b"b" * 3000}, random_layer(256 * KIBIBYTE, salt="chaos")], salt="chaos")
KEPT = build_image(salt="kept")
# For all that is not an answer which takes long by itself.
DEADLINE_SECONDS = 10.0
# Of everything in this process, servers included, for an image of 270 KiB. A journal is read by one call that has room
# for all that there may be of it, 64 MiB, of which the kernel fills what there is.
MOST_BYTES = (64 + 32) * MEBIBYTE
PATIENCE: dict[str, Any] = {
    "attempts": 3,
    "back_off_seconds": 0.001,
    "silence_seconds": 2.0,
    "longest_wait_seconds": 0.5,
}

Script = dict[str, tuple[list[Fault], bool]]
SCRIPTS: st.SearchStrategy[Script] = st.fixed_dictionaries(
    {digest: st.tuples(st.lists(FAULTS, max_size=4), st.booleans()) for digest in IMAGE.blobs}
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a layer of 256 KiB be a large one, which comes by several ranges."""
    monkeypatch.setattr(ranged_fetch, "LEAST_BLOB_BYTES", 128 * KIBIBYTE)
    monkeypatch.setattr(ranged_fetch, "LEAST_BYTES", 16 * KIBIBYTE)
    monkeypatch.setattr(pieces, "LEAST_BYTES", 16 * KIBIBYTE)
    monkeypatch.setattr(pieces, "MOST_BYTES", 64 * KIBIBYTE)
    monkeypatch.setattr(ranged_fetch, "MOST_BYTES", 64 * KIBIBYTE)


@contextmanager
def nothing_left_over(places: int = 1) -> Iterator[Slowness]:
    """Check that what is done takes bounded time and memory, and leaves no thread and no descriptor.

    Args:
        places: from how many, or how often, the image may come; their slow answers are to be noted in what is given.
    """
    slowness = Slowness()
    before = _open_descriptors()
    started = time.monotonic()
    tracemalloc.start()
    try:
        yield slowness
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < DEADLINE_SECONDS + slowness.seconds
    assert slowness.answers <= PATIENCE["attempts"] * len(IMAGE.blobs) * places
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("minibox")]
    assert _open_descriptors() == before


def _open_descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


# Pulling


def serve(registry: ScriptedRegistry, script: Script, slowness: Slowness) -> None:
    """List what a place answers: for each blob its faults, and from then on the last of them, or the truth."""
    registry.allow("GET", "/loop", redirect("/loop"))
    for digest, (faults, ends_well) in script.items():
        content, media_type = IMAGE.blobs[digest], IMAGE.media_types[digest]
        chosen = [*faults, honest] if ends_well or not faults else faults
        answers = [slowness.noted(fault(content, media_type)) for fault in chosen]
        names = [blob_target("team/app", digest)]
        if digest == IMAGE.digest:
            names = [manifest_target("team/app", name) for name in ("1", digest)]
        for name in names:
            for target in (name, f"{name}?x"):
                registry.allow("GET", target, *answers)
                registry.allow("HEAD", target, *answers)


@settings(max_examples=trial_count(40, 2000))
@given(
    scripts=st.lists(SCRIPTS, min_size=1, max_size=3),
    ranges=st.sampled_from([None, 1, 4]),
    policy=st.sampled_from(["always", "if-newer", "if-missing"]),
)
def test_a_pull_into_a_store_ends_in_the_image_or_in_one_error_and_leaves_nothing_open(
    scripts: list[Script], ranges: int | None, policy: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder, nothing_left_over(len(scripts)) as slowness, ExitStack() as stack:
        root = Path(folder) / "store"
        put(root, KEPT, "kept:1")
        registries = [stack.enter_context(ScriptedRegistry()) for _ in scripts]
        for registry, script in zip(registries, scripts, strict=True):
            serve(registry, script, slowness)
        home = registries[-1]
        mirrors = tuple(Mirror(location=each.host) for each in registries[:-1])
        rules = [RegistryRule(prefix=home.host, mirrors=mirrors)] if mirrors else []
        client = quick_client(registries=rules, **PATIENCE)
        store = Store(root, durability="none")
        expected = {"kept:1": KEPT.digest}
        try:
            store.pull(home.reference("team/app", "1"), name="app:1", client=client, ranges=ranges, policy=policy)
        except StoreError as error:
            event(type(error).__name__)
        else:
            event("the image")
            expected["app:1"] = IMAGE.digest
            assert IMAGE.blobs.items() <= read_layout_blobs(root).items()
        assert {image.name: str(image.digest) for image in store.images()} == expected
        check_invariants(root, leftovers=True)
        assert not list(root.glob("ingest/*/range-*"))


# Pushing and copying


@dataclass(frozen=True, kw_only=True)
class Harm:
    """What becomes of one request to a registry that takes uploads.

    Attributes:
        answer: What it is answered with.
        is_done: Whether the request is carried out all the same, so that only its answer is lost.
    """

    answer: Answer
    is_done: bool = False

    @property
    def is_lie(self) -> bool:
        """Whether the client may think that something was done which was not."""
        says_so = self.answer.status < 300 if self.answer.raw is None else b" 200 " in self.answer.raw
        return says_so and not self.is_done


@dataclass
class Mood:
    """How a registry behaves: for each kind of request what becomes of the next ones, and what it makes odd."""

    harms: dict[str, list[Harm]]
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def is_honest(self) -> bool:
        """Whether what it says that it has done was done."""
        return not any(harm.is_lie for harms in self.harms.values() for harm in harms)


class MoodyRegistry(UploadRegistry):
    """A registry that takes uploads, unless it is in a mood."""

    mood = Mood({})

    def _choose(self, request: Request) -> Scripted:
        harms = self.mood.harms.get(kind_of(request), [])
        if request.path == "/loop":
            return redirect("/loop")
        if not harms:
            return super()._choose(request)
        harm = harms.pop(0)
        if harm.is_done:
            super()._choose(request)
        return harm.answer


def kind_of(request: Request) -> str:
    """Return what a request is for, roughly."""
    if "/manifests/" in request.path:
        return f"{request.method} manifest"
    return f"{request.method} {'upload' if '/uploads/' in request.path else 'blob'}"


ODD_HEADERS = st.dictionaries(
    st.sampled_from(["Location", "Range", "Docker-Content-Digest", "OCI-Chunk-Min-Length", "Content-Type"]),
    st.sampled_from(
        [*LOCATIONS, "0-", "0-0", "0-99", "0-99999999999", "sha256:" + "0" * 64, "-1", "1" * 30, "text/html"]
    ),
    max_size=3,
)
ANSWERS = st.one_of(
    st.builds(
        lambda status, headers: Answer(status=status, headers=headers),
        st.sampled_from([*STATUSES, 200, 201, 202]),
        ODD_HEADERS.map(lambda headers: {key: value for key, value in headers.items() if value.isprintable()}),
    ),
    st.sampled_from(STATUSES).map(lambda status: registry_error(status, "CODE", "words")),
    st.sampled_from(["0", "1", "7200", "x"]).map(lambda wait: registry_error(429, "X", headers={"Retry-After": wait})),
    st.sampled_from(RAW).map(lambda raw: Answer(raw=raw) if raw else NO_ANSWER),
    st.sampled_from(LOCATIONS).map(redirect),
    st.sampled_from(["Basic", 'Bearer realm="http://127.0.0.1:1/t"', "x"]).map(unauthorized),
    st.sampled_from([202, 400, 500]).map(lambda status: Answer(status=status, endless=True, framing="chunked")),
    st.just(Answer(status=500, body=b"drip" * 50, drip_bytes=4, drip_seconds=0.005)),
)
KINDS = ("HEAD blob", "POST upload", "PUT upload", "PATCH upload", "GET upload", "HEAD manifest", "PUT manifest")
MOODS = st.builds(
    Mood,
    st.dictionaries(
        st.sampled_from(KINDS), st.lists(st.builds(Harm, answer=ANSWERS, is_done=st.booleans()), max_size=5), max_size=3
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "cuts": st.lists(st.none() | st.integers(0, 300_000), max_size=8),
            "keeps_cut": st.booleans(),
            "forgets_cut": st.booleans(),
            "largest_body_bytes": st.sampled_from([1, 70_000]),
            "least_chunk_bytes": st.just(100_000),
            "most_taken_bytes": st.sampled_from([1000, 100_000]),
            "takes_whole": st.booleans(),
        },
    ),
)


@contextmanager
def moody_registry(mood: Mood) -> Iterator[MoodyRegistry]:
    """Run a registry of this mood."""
    with MoodyRegistry() as registry:
        registry.mood = Mood({kind: list(harms) for kind, harms in mood.harms.items()})
        for name, value in mood.settings.items():
            setattr(registry, name, list(value) if isinstance(value, list) else value)
        yield registry


def check_sent(send: Callable[[MoodyRegistry, Slowness], object], mood: Mood) -> None:
    """Send the image to a registry, and check that it is there, or that its tag stands for nothing less."""
    tries = PATIENCE["attempts"]  # each of which reads what it sends from its beginning
    with nothing_left_over(tries) as slowness, moody_registry(mood) as registry:
        try:
            send(registry, slowness)
        except StoreError as error:
            event(type(error).__name__)
        else:
            event("the image")
            if mood.is_honest:
                assert registry.holds("copies/app", IMAGE)
                assert registry.tag("copies/app", "2") == IMAGE.digest
        if registry.tag("copies/app", "2") is not None:
            assert registry.holds("copies/app", IMAGE)


@settings(max_examples=trial_count(100, 2000))
@given(mood=MOODS, chunk_bytes=st.sampled_from([None, 100_000]))
def test_a_push_arrives_or_ends_in_one_error_and_the_tag_never_stands_for_less(
    mood: Mood, chunk_bytes: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        put(root, IMAGE, "app:1")
        before = snapshot(root)
        store = open_store(root)

        def push(registry: MoodyRegistry, _: Slowness) -> None:
            client = quick_client(**PATIENCE)
            store.push("app:1", registry.reference("copies/app", "2"), client=client, chunk_bytes=chunk_bytes)

        check_sent(push, mood)
        assert snapshot(root) == before
        check_invariants(root)


@settings(max_examples=trial_count(40, 1000))
@given(script=SCRIPTS, mood=MOODS)
def test_a_copy_arrives_or_ends_in_one_error_whatever_both_ends_do(script: Script, mood: Mood) -> None:
    def copy(registry: MoodyRegistry, slowness: Slowness) -> None:
        with ScriptedRegistry() as source:
            serve(source, script, slowness)
            client = quick_client(**PATIENCE)
            remote.copy(source.reference("team/app", "1"), registry.reference("copies/app", "2"), client=client)

    check_sent(copy, mood)
