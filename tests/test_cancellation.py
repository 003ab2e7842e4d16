"""Whoever cancels, also a handler of signals in the midst of what the main thread does, waits for nobody."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from minibox_store import Cancellation, Cancelled
from minibox_store.latch import Latch
from tests.support.images import build_image
from tests.support.invariants import read_names
from tests.support.registries import quick_client
from tests.support.scripted_registry import Answer, ScriptedRegistry, manifest_target, serve_image
from tests.support.steps import Steps
from tests.support.stores import open_store, put
from tests.support.upload_registry import UploadRegistry
from tests.support.waiting import SOON_SECONDS

IMAGE = build_image()
NAME = "team/app:1"
# Where what a cancel interrupts keeps its state, and where the standard library's locks are held.
PLACES = (
    *("/cancellation.py:", "/latch.py:", "/dialling.py:", "/face/pulled_trees.py:", "/archive/sinks.py:write"),
    *("/registry/target.py:open_writer", "/registry/target.py:interrupt", "/registry/repository.py:interrupt"),
    *("/threading.py:set", "/threading.py:wait", "/threading.py:notify"),
)


def in_a_thread(work: Callable[[], object]) -> BaseException | None:
    """Do something in a thread, which must come to an end; return the error that it ends with."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # whatever it is, the test looks at it
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SOON_SECONDS)
    assert not thread.is_alive(), "it waits for ever"
    return caught[0] if caught else None


class Handler:
    """Cancels from within what a thread does, as it first comes to a line: as a handler of signals would.

    Attributes:
        places: the lines that it came to.
    """

    def __init__(self, cancellation: Cancellation, place: tuple[str, int] | None) -> None:
        self.places: dict[tuple[str, int], None] = {}
        self._cancellation = cancellation
        self._place = place

    def __call__(self, number: int, frame: FrameType) -> None:
        place = (frame.f_code.co_filename, frame.f_lineno)
        if place not in self.places:
            self.places[place] = None
            if place == self._place:
                self._cancellation.cancel()


def cancel_everywhere(work: Callable[[str, Cancellation], object], is_done: Callable[[str], bool]) -> int:
    """Do something under ever new names, and cancel it from within at each line: it ends, done or with Cancelled.

    Returns how often it was cancelled.
    """

    def is_cancelled(name: str, place: tuple[str, int] | None) -> tuple[bool, Handler]:
        cancellation = Cancellation()
        handler = Handler(cancellation, place)
        error = in_a_thread(lambda: Steps(*PLACES).run(lambda: work(name, cancellation), handler))
        assert isinstance(error, Cancelled) or (error is None and is_done(name)), (place, error)
        return error is not None, handler

    was_cancelled, handler = is_cancelled("0", None)
    assert not was_cancelled
    return sum(is_cancelled(str(number), place)[0] for number, place in enumerate(handler.places, start=1))


def test_a_wait_ends_whose_time_is_over_while_a_handler_of_signals_runs() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: time.sleep(0.6))
    sending = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        sending.start()
        assert not Latch().wait(0.4)
    finally:
        sending.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_latch_wakes_all_who_wait_and_nobody_before_it_is_set() -> None:
    latch = Latch()
    assert not latch.wait(0)
    assert not latch.wait(-1)
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(latch.wait(60)), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    latch.set()
    for thread in threads:
        thread.join(SOON_SECONDS)
    assert woken == [True] * 3
    assert latch.is_set()
    assert latch.wait(60)


def test_a_handler_of_signals_ends_what_the_main_thread_waits_for(tmp_path: Path) -> None:
    cancellation = Cancellation()
    before = signal.signal(signal.SIGUSR1, lambda *_: cancellation.cancel())
    sending = threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
    held = threading.Event()
    try:
        with ScriptedRegistry() as registry:
            registry.allow("GET", manifest_target("team/app", "1"), Answer(hold=held))
            client = quick_client(silence_seconds=100.0)
            sending.start()
            with pytest.raises(Cancelled):
                open_store(tmp_path).pull(registry.reference("team/app", "1"), client=client, cancellation=cancellation)
            held.set()
    finally:
        sending.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("unpack", [False, True], ids=["alone", "unpacked"])
def test_a_pull_may_be_cancelled_from_within(tmp_path: Path, *, unpack: bool) -> None:
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        reference = registry.reference("team/app", "1")

        def pull(name: str, cancellation: Cancellation) -> None:
            store = open_store(tmp_path / name)
            store.pull(reference, name=NAME, client=quick_client(), unpack=unpack, cancellation=cancellation)

        assert cancel_everywhere(pull, lambda name: NAME in read_names(tmp_path / name)) > 20


def test_a_push_may_be_cancelled_from_within(tmp_path: Path) -> None:
    put(tmp_path, IMAGE, NAME)
    store = open_store(tmp_path)
    with UploadRegistry() as registry:

        def push(name: str, cancellation: Cancellation) -> None:
            reference = registry.reference(f"team/app{name}", "1")
            store.push(NAME, reference, client=quick_client(), cancellation=cancellation)

        assert cancel_everywhere(push, lambda name: (f"team/app{name}", "1") in registry.manifests) > 20


def test_a_save_and_a_load_through_a_pipe_may_be_cancelled_from_within(tmp_path: Path) -> None:
    put(tmp_path / "source", IMAGE, NAME)
    source = open_store(tmp_path / "source")

    def load(name: str, cancellation: Cancellation) -> None:
        reading, writing = os.pipe()
        with open(reading, "rb") as pipe:
            with open(writing, "wb") as file:
                source.save(NAME, file, cancellation=cancellation)
            open_store(tmp_path / name).load(pipe, cancellation=cancellation)

    assert cancel_everywhere(load, lambda name: NAME in read_names(tmp_path / name)) > 20
