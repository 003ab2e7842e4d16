"""Transfers, by threads and by processes of their own: what they return and tell, how they end, who outlives whom."""

import errno
import gc
import os
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import attrs
import pytest

from minibox_server.api.pulls import Pull
from minibox_server.responses import RequestError
from minibox_server.transfer_processes import Nursery, ProcessTransfers
from minibox_server.transfers import ThreadTransfers, Transfers
from minibox_store import (
    LINUX_AMD64,
    BlobAdvanced,
    BlobStored,
    Cancellation,
    Cancelled,
    Digest,
    Event,
    EventListener,
    ImageNotFound,
    InvalidArgument,
    ManifestChosen,
    ManifestUnknown,
    RegisteringName,
    Store,
    UnpackAdvanced,
)
from tests.support.daemon import DAEMON_COMMAND, running_daemon
from tests.support.families import descendants, wait_until_none_lives
from tests.support.images import build_image, digest_of, random_layer
from tests.support.invariants import check_invariants
from tests.support.scripted_registry import Answer, ScriptedRegistry, blob_target, manifest_target, serve_image

Making = Callable[[Path], Transfers]
SECONDS = 15.0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with closing(Nursery()) as nursery:
        yield nursery


@pytest.fixture(params=["thread", "process"])
def making(request: pytest.FixtureRequest, nursery: Nursery) -> Making:
    """Return what makes the transfers of a store."""

    def make(root: Path) -> Transfers:
        opener = partial(Store, root, durability="none")
        return ThreadTransfers(opener()) if request.param == "thread" else ProcessTransfers(nursery, opener)

    return make


@pytest.fixture(autouse=True)
def _in_its_place(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let no test of processes be one of threads unseen."""
    yield
    is_meant = request.function in (
        test_without_its_nursery_a_thread_does_it,
        test_where_no_process_can_begin_at_the_start_a_thread_does_it,
    )
    said = [each.getMessage() for each in caplog.get_records("call")]
    assert any("a thread does it" in each for each in said) == is_meant


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as registry:
        yield registry


def pull_of(registry: ScriptedRegistry) -> Pull:
    return Pull(name=registry.reference("app", "1"), platform=LINUX_AMD64, unpack=True)


def without_advances(events: list[Event]) -> list[Event]:
    return [each for each in events if not isinstance(each, BlobAdvanced | UnpackAdvanced)]


@attrs.frozen
class Raising:
    """What fails as nothing should."""

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        raise ZeroDivisionError("not expected")


@attrs.frozen
class Refused:
    """What tells something, and fails."""

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        on_event(RegisteringName(name="app:1"))
        raise ImageNotFound("app:1")


@attrs.frozen
class Unspeakable:
    """What returns, or raises, what cannot be sent to another process."""

    raises: bool

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        if self.raises:
            raise InvalidArgument("image", threading.Lock(), "is a lock")
        return {"lock": threading.Lock()}


@attrs.frozen
class Telling:
    """What tells in which process it is, and then so many steps, as fast as it can."""

    steps: int

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        digest = Digest.parse(digest_of(b""))
        for step in range(1, self.steps + 1):
            on_event(BlobAdvanced(digest=digest, done_bytes=step, size_bytes=self.steps))
        return {"pid": os.getpid(), "niceness": os.nice(0)}


@attrs.frozen
class TellingOfTwo:
    """What tells of two layers by turns, how far each is and how far all is."""

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        for step in range(1, 4):
            on_event(
                UnpackAdvanced(
                    digest=Digest.parse(digest_of(b"2" if step == 2 else b"1")),
                    **dict.fromkeys(("done_bytes", "size_bytes", "all_done_bytes", "all_bytes"), step),
                )
            )
        return {}


@attrs.frozen
class Waiting:
    """What tells in which process it is, and waits to be cancelled, or for too long."""

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        digest = Digest.parse(digest_of(b""))
        on_event(BlobAdvanced(digest=digest, done_bytes=os.getpid(), size_bytes=0))
        cancellation.wait(4 * SECONDS)
        raise AssertionError("it was not cancelled")


def test_a_pull_returns_tells_and_leaves_the_same_as_the_library(
    making: Making, registry: ScriptedRegistry, tmp_path: Path
) -> None:
    image = build_image([random_layer(409_600, salt="transfer")])
    serve_image(registry, "app", "1", image)
    told: list[Event] = []
    pull = pull_of(registry)
    result = making(tmp_path / "data").run(pull, told.append, Cancellation())
    expected: list[Event] = []
    assert pull(Store(tmp_path / "other", durability="none"), expected.append, Cancellation()) == result
    others, expected_others = without_advances(told), without_advances(expected)
    assert Counter(map(repr, others)) == Counter(map(repr, expected_others))
    assert (told[0], others[-1]) == (expected[0], expected_others[-1])
    # How far the bytes are is told to the end before it is told that they are stored.
    [layer] = image.layer_digests
    [stored] = [number for number, each in enumerate(told) if isinstance(each, BlobStored) and digest_is(each, layer)]
    advances = [each for each in told[:stored] if isinstance(each, BlobAdvanced) and str(each.digest) == layer]
    assert advances[-1].done_bytes == len(image.blobs[layer])
    check_invariants(tmp_path / "data")


def digest_is(event: BlobStored, digest: str) -> bool:
    return str(event.descriptor.digest) == digest


def test_what_bytes_become_is_told_in_order_and_to_the_end(making: Making, tmp_path: Path) -> None:
    told: list[Event] = []
    making(tmp_path / "data").run(Telling(5000), told.append, Cancellation())
    steps = [each.done_bytes for each in told if isinstance(each, BlobAdvanced)]
    assert steps == sorted(steps)
    assert steps[-1] == 5000


def test_what_is_told_last_is_what_is_true_of_the_whole(making: Making, tmp_path: Path) -> None:
    told: list[Event] = []
    making(tmp_path / "data").run(TellingOfTwo(), told.append, Cancellation())
    steps = [each.all_done_bytes for each in told if isinstance(each, UnpackAdvanced)]
    assert steps == sorted(steps)
    assert steps[-1] == 3


@pytest.mark.parametrize("is_listener", [False, True])
def test_no_error_waits_for_the_collector(is_listener: bool, making: Making, tmp_path: Path) -> None:
    def on_event(event: Event) -> None:
        if is_listener:
            raise Cancelled

    transfers, kept = making(tmp_path / "data"), []
    gc.disable()
    try:
        for _ in range(2):
            try:
                transfers.run(Refused(), on_event, Cancellation())
            except (Cancelled, ImageNotFound) as error:
                kept.append(weakref.ref(error))
        assert [each() for each in kept] == [None, None]
    finally:
        gc.enable()


def test_an_error_of_the_library_comes_as_it_is(making: Making, registry: ScriptedRegistry, tmp_path: Path) -> None:
    pull = pull_of(registry)
    registry.allow("GET", "/v2/", Answer())
    for method in ("GET", "HEAD"):
        registry.allow(method, manifest_target("app", "1"), Answer(status=404))
    with pytest.raises(ManifestUnknown) as caught:
        making(tmp_path / "data").run(pull, lambda event: None, Cancellation())
    with pytest.raises(ManifestUnknown) as expected:
        pull(Store(tmp_path / "data"), lambda event: None, Cancellation())
    assert (type(caught.value), caught.value.args) == (type(expected.value), expected.value.args)
    assert str(caught.value) == str(expected.value)


def test_nothing_moves_before_the_listener_lets_it(making: Making, registry: ScriptedRegistry, tmp_path: Path) -> None:
    image = build_image([random_layer(10_240, salt="turn")])
    serve_image(registry, "app", "1", image)
    [layer] = image.layer_digests
    seen: list[int] = []

    def on_event(event: Event) -> None:
        if isinstance(event, ManifestChosen):
            time.sleep(0.3)
            seen.append(registry.count("GET", blob_target("app", layer)))

    making(tmp_path / "data").run(pull_of(registry), on_event, Cancellation())
    assert seen
    assert not any(seen)


def test_what_the_listener_raises_ends_the_transfer(making: Making, registry: ScriptedRegistry, tmp_path: Path) -> None:
    serve_image(registry, "app", "1", build_image([random_layer(10_240, salt="raise")]))

    def on_event(event: Event) -> None:
        if isinstance(event, ManifestChosen):
            raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        making(tmp_path / "data").run(pull_of(registry), on_event, Cancellation())
    assert Store(tmp_path / "data").images() == ()
    check_invariants(tmp_path / "data", leftovers=True)


def test_a_transfer_that_waits_is_cancelled(making: Making, tmp_path: Path) -> None:
    cancellation = Cancellation()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        making(tmp_path / "data").run(Waiting(), lambda event: cancellation.cancel(), cancellation)
    assert time.monotonic() - begun < SECONDS


def test_one_that_was_cancelled_before_does_nothing(making: Making, tmp_path: Path) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        making(tmp_path / "data").run(Waiting(), lambda event: None, cancellation)


# ---- processes


@pytest.fixture
def transfers(nursery: Nursery, tmp_path: Path) -> ProcessTransfers:
    return ProcessTransfers(nursery, partial(Store, tmp_path / "data", durability="none"))


class SlowConnection(Connection):
    """One whose cancel takes its time."""

    def _send(self, buf: bytes, write: Callable[[int, bytes], int] = os.write) -> None:
        if b"cancel" in buf:
            time.sleep(0.5)
        super()._send(buf, write)  # type: ignore[misc]


@attrs.frozen
class SlowNursery:
    """A nursery of which each connection is slow."""

    nursery: Nursery

    def connect(self) -> Connection:
        connection = self.nursery.connect()
        return SlowConnection(os.dup(connection.fileno()))


def test_a_cancel_that_comes_with_the_end_finds_nothing_else_under_the_number_of_its_file(
    nursery: Nursery, tmp_path: Path
) -> None:
    transfers = ProcessTransfers(SlowNursery(nursery), partial(Store, tmp_path / "data"))  # type: ignore[arg-type]
    cancellation = Cancellation()
    with ThreadPoolExecutor(1) as pool:
        cancelling: list[Future[None]] = []

        def on_event(event: Event) -> None:
            cancelling.append(pool.submit(cancellation.cancel))
            time.sleep(0.1)

        with suppress(Cancelled):
            transfers.run(Telling(1), on_event, cancellation)
        [cancelled] = cancelling
        assert cancelled.exception(SECONDS) is None


def test_each_transfer_has_a_process_that_gives_way_and_leaves_nothing(transfers: ProcessTransfers) -> None:
    before = os.listdir("/proc/self/fd")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: transfers.run(Telling(10), lambda event: None, Cancellation()), range(24)))
    pids = {each["pid"] for each in results}
    assert len(pids) == 24
    assert os.getpid() not in pids
    assert all(each["niceness"] == min(19, os.nice(0) + 5) for each in results)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


def test_an_error_that_nobody_expected_says_where_it_was(transfers: ProcessTransfers) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: not expected"):
        transfers.run(Raising(), lambda event: None, Cancellation())


@pytest.mark.parametrize("raises", [False, True])
def test_an_end_that_cannot_be_sent_says_so(raises: bool, transfers: ProcessTransfers) -> None:
    with pytest.raises(RuntimeError, match="cannot pickle"):
        transfers.run(Unspeakable(raises), lambda event: None, Cancellation())


def test_where_there_is_no_room_for_a_process_the_client_is_told_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fork, begun = os.fork, os.getpid()
    monkeypatch.setattr(os, "fork", lambda: fork() if os.getpid() == begun else refuse())
    with closing(Nursery()) as nursery:
        transfers = ProcessTransfers(nursery, partial(Store, tmp_path / "data", durability="none"))
        for _ in range(2):
            with pytest.raises(RequestError, match="no process can begin for the transfer: no room") as caught:
                transfers.run(Telling(1), lambda event: None, Cancellation())
            assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})


def test_a_process_that_something_ended_is_told_and_the_next_one_begins(transfers: ProcessTransfers) -> None:
    def kill(event: Event) -> None:
        assert isinstance(event, BlobAdvanced)
        os.kill(event.done_bytes, signal.SIGKILL)

    with pytest.raises(RequestError, match="was ended by something") as caught:
        transfers.run(Waiting(), kill, Cancellation())
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})
    assert transfers.run(Telling(1), lambda event: None, Cancellation())["pid"]


def test_without_its_nursery_a_thread_does_it(tmp_path: Path) -> None:
    nursery = Nursery()
    nursery.close()
    transfers = ProcessTransfers(nursery, partial(Store, tmp_path / "data", durability="none"))
    assert transfers.run(Telling(1), lambda event: None, Cancellation())["pid"] == os.getpid()


def test_where_no_process_can_begin_at_the_start_a_thread_does_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        nursery = Nursery()
    assert "no process can begin for those of transfers: no room" in caplog.text
    transfers = ProcessTransfers(nursery, partial(Store, tmp_path / "data", durability="none"))
    with closing(nursery):
        assert transfers.run(Telling(1), lambda event: None, Cancellation())["pid"] == os.getpid()


def refuse() -> int:
    raise BlockingIOError(errno.EAGAIN, "no room")


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_daemon(
    number: signal.Signals, workers: str, registry: ScriptedRegistry, tmp_path: Path
) -> None:
    never = threading.Event()
    image = build_image([random_layer(102_400, salt="outlive")])
    serve_image(registry, "app", "1", image)
    [layer] = image.layer_digests
    registry.expect("GET", blob_target("app", layer), Answer(hold=never))
    with (
        running_daemon(tmp_path / "daemon", command=[*DAEMON_COMMAND, "--workers", workers]) as daemon,
        ThreadPoolExecutor(1) as pool,
    ):
        pulling = pool.submit(daemon.post, "/images/pull", image=registry.reference("app", "1"))
        registry.wait_for("GET", blob_target("app", layer))
        family = [daemon.process.pid, *descendants(daemon.process.pid)]
        assert len(family) >= 3
        # All of them at once, as whoever runs a group or a service tells it to end.
        for pid in family if number == signal.SIGTERM else family[:1]:
            os.kill(pid, number)
        wait_until_none_lives(family)
        never.set()
        if number == signal.SIGTERM:
            assert "cancelled" in pulling.result(SECONDS).text
    check_invariants(tmp_path / "daemon" / "data", leftovers=True)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
