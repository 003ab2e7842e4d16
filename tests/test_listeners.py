"""What a listener raises comes out as it is, and is taken for no failure of the store, of a file, or of a mirror."""

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from minibox_store import Cancelled, Event, Mirror, RegistryRule, RegistryWarning, Store, UsingMirror
from minibox_store.copying import heard, ignore_events
from minibox_store.errors import ManifestUnknown, StoreError
from minibox_store.listeners import is_of_listener
from minibox_store.registry import RegistryClient
from tests.support.answers import Answer, Request
from tests.support.images import build_image, build_index
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedRegistry, document_answer, manifest_target, serve_image
from tests.support.upload_registry import UploadRegistry

IMAGE = build_image([{"a": b"a" * 3000}, {"b": b"b"}])
INDEX = build_index([IMAGE])
FOUND = [("Warning", '299 - "this tag is old"'), ("RateLimit-Limit", "100"), ("RateLimit-Remaining", "7")]

Operation = Callable[[Store, Callable[[Event], None]], object]


class Loud:
    """A listener that raises at one of the events, counted from 0."""

    def __init__(self, position: int, error: Exception) -> None:
        self.events: list[Event] = []
        self.position = position
        self.error = error

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) == self.position + 1:
            raise self.error


def gone() -> OSError:
    """What a print to a terminal that is gone raises."""
    return BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as running:
        serve(running)
        yield running


def serve(registry: ScriptedRegistry) -> None:
    serve_image(registry, "team/app", "1", INDEX)

    def answer(request: Request) -> Answer:
        found = document_answer(INDEX)(request)
        return replace(found, headers=[*found.header_items(), *FOUND])

    registry.allow("GET", manifest_target("team/app", "1"), answer)


def open_store(folder: Path) -> Store:
    return Store(folder / "store", durability="none")


def check_each(
    tmp_path: Path, prepare: Callable[[Store], object], run: Operation, make: Callable[[], Exception]
) -> int:
    """Let a listener raise at each event of an operation in turn; return how many there are."""
    position = 0
    while True:
        store, listener = open_store(tmp_path / str(position)), Loud(position, make())
        prepare(store)
        raised: list[Exception] = []
        try:
            run(store, listener)
        except (OSError, StoreError) as error:
            raised.append(error)
        assert raised == [listener.error][: len(raised)], f"at {listener.events[-1]!r}"
        if not raised:
            assert len(listener.events) <= position, f"lost at {listener.events[position]!r}"
            return position
        position += 1


def pulled(registry: ScriptedRegistry) -> Callable[[Store], object]:
    return lambda store: store.pull(registry.reference("team/app", "1"), client=quick_client())


def test_a_terminal_that_is_gone_is_no_failure_of_the_store(registry: ScriptedRegistry, tmp_path: Path) -> None:
    name = registry.reference("team/app", "1")
    spoilt: list[Path] = []

    def spoil(store: Store) -> None:
        pulled(registry)(store)
        blob = Path(store.root) / "blobs/sha256" / store.inspect(name).manifests[0].layers[0].descriptor.digest.hex
        blob.chmod(0o644)
        blob.write_bytes(b"x" * blob.stat().st_size)
        spoilt.append(blob)

    def removed(store: Store) -> None:
        pulled(registry)(store)
        store.remove(name)

    archive = tmp_path / "saved.tar"
    pulled(registry)(open_store(tmp_path / "first"))
    open_store(tmp_path / "first").save(name, archive)
    with UploadRegistry() as target:
        place = target.reference("team/new", "2")
        operations: dict[str, tuple[Callable[[Store], object], Operation]] = {
            "pull": (lambda _: None, lambda store, on: store.pull(name, client=quick_client(), on_event=on)),
            "unpack": (
                lambda _: None,
                lambda store, on: store.pull(name, client=quick_client(), unpack=True, on_event=on),
            ),
            "fetch": (lambda _: None, lambda store, on: store.fetch(name, client=quick_client(), on_event=on)),
            "plan": (lambda _: None, lambda store, on: store.plan_pull(name, client=quick_client(), on_event=on)),
            "push": (pulled(registry), lambda store, on: store.push(name, place, client=quick_client(), on_event=on)),
            "load": (lambda _: None, lambda store, on: store.load(archive, on_event=on)),
            "save": (pulled(registry), lambda store, on: store.save(name, tmp_path / "again.tar", on_event=on)),
            "verify": (pulled(registry), lambda store, on: store.verify(on_event=on)),
            "repair": (spoil, lambda store, on: store.repair(client=quick_client(), on_event=on)),
            "prune": (removed, lambda store, on: store.prune(on_event=on)),
        }
        for what, (prepare, run) in operations.items():
            assert check_each(tmp_path / what, prepare, run, gone) > 0, what
    assert spoilt


@pytest.mark.parametrize(
    "make", [gone, Cancelled, lambda: ManifestUnknown("GET", "https://elsewhere.test/", 404, (), "unknown")]
)
def test_what_a_listener_raises_ends_a_pull_from_a_mirror_too(make: Callable[[], Exception], tmp_path: Path) -> None:
    with ExitStack() as stack:
        mirror, home = (stack.enter_context(ScriptedRegistry()) for _ in range(2))
        serve(mirror)
        rule = RegistryRule(prefix=home.host, mirrors=[Mirror(location=mirror.host)])
        client = RegistryClient(registries=[rule])
        name, seen = home.reference("team/app", "1"), set[type]()

        def pull(store: Store, on_event: Callable[[Event], None]) -> None:
            def noting(event: Event) -> None:
                seen.add(type(event))
                on_event(event)

            store.pull(name, client=client, on_event=noting)

        assert check_each(tmp_path, lambda _: None, pull, make) > 10
        assert {UsingMirror, RegistryWarning} <= seen
        assert not home.requests


def test_whoever_takes_no_notice_is_not_counted_for() -> None:
    assert heard(ignore_events) is ignore_events
    assert not is_of_listener(gone())
