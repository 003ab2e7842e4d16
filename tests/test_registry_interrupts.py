"""Whatever a session waits for, another thread ends it at once, and nothing is left open behind it."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from minibox_store import Policy
from minibox_store.cancellation import Cancellation
from minibox_store.copying import copy_graph
from minibox_store.errors import Cancelled, RegistryError
from minibox_store.memory import MemoryImages
from minibox_store.protocols import ImageSource, Interruptible
from minibox_store.registry import Proxies, RegistryRepository
from minibox_store.registry.dialling import Address, SystemNetwork
from tests.support.certificates import make_certificate
from tests.support.images import OCI_LAYER, build_image, build_index
from tests.support.registries import open_repository
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    TokenServer,
    blob_target,
    manifest_target,
    pull_scope,
    registry_error,
    serve_image,
    unauthorized,
)
from tests.support.sources import descriptor_for, descriptors_of, read_all, read_stream, root_of
from tests.support.stores import open_store
from tests.support.waiting import SOON_SECONDS

IMAGE = build_image()
CONTENT = bytes(100_000)
LAYER = descriptor_for(CONTENT, OCI_LAYER)
MANIFEST = manifest_target("team/app", "1")
BLOB = blob_target("team/app", str(LAYER.digest))


def open_patient(reference: str, **options: object) -> RegistryRepository:
    """Open a repository that would wait for a minute."""
    return open_repository(reference, **{"connect_seconds": 60.0, "silence_seconds": 60.0, **options})


def assert_interrupted(
    repository: RegistryRepository, blocked: Callable[[], object], is_blocked: Callable[[], object]
) -> None:
    """Run ``blocked`` in a thread, interrupt when ``is_blocked`` returns, and see it end within a second."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            blocked()
        except RegistryError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    is_blocked()
    time.sleep(0.05)
    assert thread.is_alive(), errors
    repository.interrupt()
    thread.join(SOON_SECONDS)
    assert not thread.is_alive()
    assert len(errors) == 1
    with pytest.raises(RegistryError, match="interrupted"):
        repository.resolve("1")


@contextmanager
def full_listener() -> Iterator[int]:
    """A port of 127.0.0.1 that lets nobody in: connecting to it takes for ever."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = []
        try:
            for _ in range(4):
                each = socket.socket()
                each.setblocking(False)
                each.connect_ex(address)
                waiting.append(each)
            yield address[1]
        finally:
            for each in waiting:
                each.close()


def test_a_repository_is_an_interruptible_source_of_images() -> None:
    with open_repository("127.0.0.1:1/team/app:1") as repository:
        source: ImageSource = repository
        assert isinstance(source, Interruptible)


def test_waiting_for_an_answer_is_interrupted() -> None:
    held = threading.Event()
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, Answer(hold=held))
        with open_patient(registry.reference("team/app", "1")) as repository:
            assert_interrupted(repository, lambda: repository.resolve("1"), lambda: registry.wait_for("GET", MANIFEST))
        held.set()


@pytest.mark.parametrize("framing", ["length", "chunked", "until_close"])
def test_reading_a_blob_is_interrupted(framing: str) -> None:
    held = threading.Event()
    with ScriptedRegistry() as registry:
        answer = Answer(body=CONTENT, framing=framing, hold=held, hold_after_bytes=1000)  # type: ignore[arg-type]
        registry.expect("GET", BLOB, answer)
        with open_patient(registry.reference("team/app", "1")) as repository:
            stream = repository.open_blob(LAYER)
            assert_interrupted(repository, lambda: read_stream(stream), lambda: None)
            stream.close()
        held.set()


def test_connecting_is_interrupted() -> None:
    with full_listener() as port, open_patient(f"127.0.0.1:{port}/team/app:1") as repository:
        assert_interrupted(repository, lambda: repository.resolve("1"), lambda: time.sleep(0.2))


class HandledNetwork(SystemNetwork):
    """A network in which a handler of signals runs as soon as a socket has begun to connect."""

    def __init__(self) -> None:
        self.handler: Callable[[], None] = lambda: None

    def begin_connect(self, opened: socket.socket, address: Address) -> None:
        """Begin to connect the socket, and let the handler run."""
        super().begin_connect(opened, address)
        self.handler()


def test_a_connection_that_just_begins_is_interrupted_by_a_handler_of_signals() -> None:
    network = HandledNetwork()
    with full_listener() as port, open_patient(f"127.0.0.1:{port}/team/app:1", network=network) as repository:
        network.handler = repository.interrupt
        begun = time.monotonic()
        with pytest.raises(RegistryError, match="interrupted"):
            repository.resolve("1")
        assert time.monotonic() < begun + SOON_SECONDS


class SilentNetwork(SystemNetwork):
    """A network whose servers of names do not answer until ``answers`` is set."""

    def __init__(self) -> None:
        self.answers = threading.Event()

    def resolve(self, host: str, port: int) -> Sequence[Address]:
        """Wait as the system's resolver would, which nothing interrupts."""
        self.answers.wait(60)
        return super().resolve("127.0.0.1", port)


@contextmanager
def silent_network() -> Iterator[SilentNetwork]:
    network = SilentNetwork()
    yield network
    network.answers.set()
    for thread in threading.enumerate():
        if thread.name.startswith("looking up "):
            thread.join(5)


@pytest.mark.parametrize("proxies", [None, Proxies(https="http://proxy.test:3128")])
def test_looking_a_name_up_is_interrupted(proxies: Proxies | None) -> None:
    with (
        silent_network() as network,
        open_patient("registry.test/team/app:1", network=network, proxies=proxies) as repository,
    ):
        assert_interrupted(repository, lambda: repository.resolve("1"), lambda: time.sleep(0.2))


def test_looking_a_name_up_is_a_part_of_connecting_and_has_its_deadline() -> None:
    options = {"connect_seconds": 0.3, "attempts": 2}
    with (
        silent_network() as network,
        open_repository("registry.test/team/app:1", network=network, **options) as repository,
    ):
        started = time.monotonic()
        with pytest.raises(RegistryError, match="address was not found: no answer came in time"):
            repository.resolve("1")
        assert 0.6 <= time.monotonic() - started < SOON_SECONDS


def test_connecting_has_a_deadline() -> None:
    with (
        full_listener() as port,
        open_repository(f"127.0.0.1:{port}/x/y:1", connect_seconds=0.3, attempts=2) as repository,
    ):
        started = time.monotonic()
        with pytest.raises(RegistryError, match="in time"):
            repository.resolve("1")
        assert time.monotonic() - started < SOON_SECONDS


def test_a_tls_handshake_is_interrupted(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as accepted:
        host = f"localhost:{silent.getsockname()[1]}"
        with open_patient(f"{host}/team/app:1", https=[host], ca_file=certificate.chain) as repository:
            assert_interrupted(
                repository,
                lambda: repository.resolve("1"),
                lambda: accepted.enter_context(silent.accept()[0]),
            )


def test_reading_over_tls_is_interrupted(tmp_path: Path) -> None:
    certificate, held = make_certificate(tmp_path), threading.Event()
    with ScriptedRegistry(certificate=certificate, hostname="localhost") as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT, hold=held, hold_after_bytes=1000))
        options = {"https": [registry.host], "ca_file": certificate.chain}
        with open_patient(registry.reference("team/app", "1"), **options) as repository:
            stream = repository.open_blob(LAYER)
            assert_interrupted(repository, lambda: read_stream(stream), lambda: None)
            stream.close()
        held.set()


def test_waiting_for_a_token_is_interrupted_for_whoever_waits_for_it() -> None:
    held = threading.Event()
    scope = pull_scope("team/app")
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        registry.allow("GET", MANIFEST, unauthorized(tokens.challenge(service="x", scope=scope)))
        tokens.expect("GET", f"/token?service=x&scope={scope}", Answer(hold=held))
        with open_patient(registry.reference("team/app", "1")) as repository:
            errors = []

            def resolve() -> None:
                with pytest.raises(RegistryError) as caught:
                    repository.resolve("1")
                errors.append(caught.value)

            threads = [threading.Thread(target=resolve, daemon=True) for _ in range(3)]
            for thread in threads:
                thread.start()
            tokens.wait_for("GET", f"/token?service=x&scope={scope.replace(':', '%3A').replace('/', '%2F')}")
            registry.wait_for("GET", MANIFEST, count=3)
            time.sleep(0.05)
            repository.interrupt()
            for thread in threads:
                thread.join(SOON_SECONDS)
                assert not thread.is_alive()
            assert len(errors) == 3
        held.set()


def test_a_pause_between_tries_is_interrupted() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, registry_error(503, "UNAVAILABLE", headers={"Retry-After": "9"}))
        with open_patient(registry.reference("team/app", "1")) as repository:
            assert_interrupted(repository, lambda: repository.resolve("1"), lambda: registry.wait_for("GET", MANIFEST))


def test_an_interrupt_before_anything_is_sent_lets_nothing_be_sent() -> None:
    with ScriptedRegistry() as registry, open_repository(registry.reference("team/app", "1")) as repository:
        repository.interrupt()
        with pytest.raises(RegistryError, match="interrupted"):
            repository.open_blob(LAYER)
        assert not registry.requests


def test_an_interrupt_ends_no_other_session_of_the_client() -> None:
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        reference = registry.reference("team/app", "1")
        with open_repository(reference) as one, open_repository(reference) as other:
            one.resolve("1")
            other.resolve("1")
            one.interrupt()
            assert other.resolve("1") == root_of(IMAGE)


def test_a_copy_that_is_cancelled_ends_within_a_second_though_the_registry_is_silent() -> None:
    held = threading.Event()
    layer = next(each for each in descriptors_of(IMAGE) if "layer" in each.media_type)
    target = blob_target("team/app", str(layer.digest))
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        registry.allow("GET", target, Answer(body=IMAGE.blobs[str(layer.digest)], hold=held))
        cancellation = Cancellation()
        with open_patient(registry.reference("team/app", "1")) as repository, MemoryImages().open_writer() as writer:
            ended_at = []

            def copy() -> None:
                with pytest.raises(Cancelled):
                    copy_graph(repository, writer, root_of(IMAGE), cancellation=cancellation)
                ended_at.append(time.monotonic())

            thread = threading.Thread(target=copy, daemon=True)
            thread.start()
            registry.wait_for("GET", target)
            cancelled_at = time.monotonic()
            cancellation.cancel()
            thread.join(SOON_SECONDS)
            assert ended_at[0] - cancelled_at < SOON_SECONDS
        held.set()


@pytest.mark.parametrize("waits_for", ["the tag", "a document"])
def test_an_import_that_is_cancelled_before_it_copies_ends_within_a_second_too(tmp_path: Path, waits_for: str) -> None:
    held = threading.Event()
    index = build_index([IMAGE])
    target = manifest_target("team/app", "1" if waits_for == "the tag" else IMAGE.digest)
    waited_for = index if waits_for == "the tag" else IMAGE
    headers = {"Content-Type": waited_for.media_type}
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", index)
        registry.allow("GET", target, Answer(headers=headers, body=waited_for.blobs[waited_for.digest], hold=held))
        cancellation, cancelled_at = Cancellation(), list[float]()

        def cancel() -> None:
            registry.wait_for("GET", target)
            cancelled_at.append(time.monotonic())
            cancellation.cancel()

        thread = threading.Thread(target=cancel, daemon=True)
        thread.start()
        policy = Policy(max_layers=9)  # which has to see the documents before anything is copied
        with open_patient(registry.reference("team/app", "1")) as repository, pytest.raises(Cancelled):
            open_store(tmp_path).import_image(repository, "1", checked_by=policy, cancellation=cancellation)
        assert time.monotonic() - cancelled_at[0] < SOON_SECONDS
        thread.join()
        held.set()


def test_nothing_is_left_open_after_a_session() -> None:
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        registry.allow("GET", BLOB, Answer(body=CONTENT))
        before = set(os.listdir("/proc/self/fd"))
        with open_repository(registry.reference("team/app", "1")) as repository:
            for descriptor in descriptors_of(IMAGE):
                read_all(repository, descriptor)
            half = repository.open_blob(LAYER)
            half.readinto(memoryview(bytearray(10)))
            other = repository.open_blob(LAYER)
            other.close()
        with pytest.raises(RegistryError):
            read_stream(half)
        half.close()
        deadline = time.monotonic() + SOON_SECONDS
        while set(os.listdir("/proc/self/fd")) - before and time.monotonic() < deadline:
            time.sleep(0.01)  # the server's ends are closed by its threads
        assert set(os.listdir("/proc/self/fd")) <= before
