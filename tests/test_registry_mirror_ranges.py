"""A large layer by several ranges from a mirror that breaks them off, or gives wrong ones, in a pull as it is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from minibox_store import Event, Mirror, MirrorFailed, RegistryRule, Store, UsingMirror
from minibox_store.limits import MEBIBYTE
from tests.support.images import build_image, random_layer
from tests.support.invariants import check_invariants
from tests.support.layouts import read_layout_blobs
from tests.support.registries import quick_client
from tests.support.scripted_registry import (
    NO_ANSWER,
    Answer,
    Request,
    ScriptedRegistry,
    blob_target,
    ranged,
    serve_image,
)
from tests.support.small_pieces import make_pieces_small

KIBIBYTE = 1024
RANGES = 3
IMAGE = build_image([random_layer(4 * MEBIBYTE)])
(LAYER,) = IMAGE.layer_digests
CONTENT = IMAGE.blobs[LAYER]
BLOB = blob_target("team/app", LAYER)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pieces_small(monkeypatch)


@pytest.fixture
def places() -> Iterator[tuple[ScriptedRegistry, ScriptedRegistry]]:
    with ExitStack() as stack:
        mirror, home = (stack.enter_context(ScriptedRegistry()) for _ in range(2))
        serve_image(mirror, "team/app", "1", IMAGE, ranges=True)
        serve_image(home, "team/app", "1", IMAGE, ranges=True)
        yield mirror, home


def pull(places: tuple[ScriptedRegistry, ScriptedRegistry], folder: Path) -> list[Event]:
    """Pull, see that all of the image is there, and return what was told of the mirror."""
    mirror, home = places
    events: list[Event] = []
    client = quick_client(registries=[RegistryRule(prefix=home.host, mirrors=[Mirror(location=mirror.host)])])
    Store(folder / "store", durability="none").pull(
        home.reference("team/app", "1"), client=client, ranges=RANGES, on_event=events.append
    )
    assert read_layout_blobs(folder / "store") == IMAGE.blobs
    check_invariants(folder / "store")
    return [event for event in events if isinstance(event, UsingMirror | MirrorFailed)]


def after_some(count: int, then: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
    """Return a script that is honest so often, and then no more."""
    lock, seen = threading.Lock(), list[Request]()

    def answer(request: Request) -> Answer:
        with lock:
            seen.append(request)
            is_honest = len(seen) <= count
        return ranged(CONTENT)(request) if is_honest else then(request)

    return answer


def test_ranges_of_a_mirror_are_all_that_is_needed(
    places: tuple[ScriptedRegistry, ScriptedRegistry], tmp_path: Path
) -> None:
    mirror, home = places
    assert pull(places, tmp_path) == [UsingMirror(host=mirror.host)]
    assert mirror.count("GET", BLOB) > RANGES
    assert home.requests == []


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_mirror_that_breaks_off_in_the_middle_of_ranges_is_taken_over_from(
    places: tuple[ScriptedRegistry, ScriptedRegistry], tmp_path: Path, count: int
) -> None:
    mirror, home = places

    mirror.allow("GET", BLOB, after_some(count, lambda request: NO_ANSWER))
    assert [type(event) for event in pull(places, tmp_path)] == [UsingMirror, MirrorFailed]
    ranges = [request.header("Range") for request in home.requests if request.target == BLOB]
    assert ranges
    # What had come by then is not asked for again.
    assert count == 0 or None not in ranges


def test_a_mirror_that_breaks_off_again_and_again_and_goes_on_is_all_that_is_needed(
    places: tuple[ScriptedRegistry, ScriptedRegistry], tmp_path: Path
) -> None:
    mirror, home = places
    mirror.allow("GET", BLOB, after_some(2, lambda request: replace(ranged(CONTENT)(request), cut_after_bytes=50_000)))
    assert pull(places, tmp_path) == [UsingMirror(host=mirror.host)]
    assert home.requests == []


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_mirror_that_gives_wrong_ranges_is_found_out_and_asked_no_more(
    places: tuple[ScriptedRegistry, ScriptedRegistry], tmp_path: Path, count: int
) -> None:
    mirror, home = places

    def wrong(request: Request) -> Answer:
        right = ranged(CONTENT)(request)
        return replace(right, body=bytes(len(right.body)))

    mirror.allow("GET", BLOB, after_some(count, wrong))
    told = pull(places, tmp_path)
    assert told == [
        UsingMirror(host=mirror.host),
        MirrorFailed(host=mirror.host, problem=f"it gave wrong bytes for {LAYER}"),
    ]
    assert home.count("GET", BLOB) >= 1
