"""Lines that break, from a registry to the store: nothing that has come is fetched twice, nothing wrong is kept."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NoReturn

import pytest

from minibox_store import BlobAdvanced, ContentMismatch, Descriptor, Event, RegistryError, StoreError
from minibox_store.graph import RememberingSource
from minibox_store.protocols import BlobSource, Distrusting
from tests.support.certificates import make_certificate
from tests.support.cutting_proxy import CuttingProxy
from tests.support.forks import forked, kill, sleep_for_ever
from tests.support.images import BuiltImage, build_image, random_layer
from tests.support.invariants import check_invariants, read_names
from tests.support.peers import DockerRegistry, docker_registry, push_image
from tests.support.registries import open_repository, quick_client
from tests.support.scripted_registry import Answer, ScriptedRegistry, blob_target, ranged, registry_error, serve_image
from tests.support.sources import (
    LyingSource,
    SeveralPlaces,
    descriptor_for,
    memory_of,
    read_all,
    read_stream,
    root_of,
)
from tests.support.stores import blob, layer_of, open_layout, open_store, put, rot
from tests.support.waiting import SOON_SECONDS

MEBIBYTE = 1 << 20
IMAGE = build_image([random_layer(3 * MEBIBYTE, salt="broken lines"), random_layer(MEBIBYTE, salt="more of them")])
LAYER = layer_of(IMAGE)
CONTENT = IMAGE.blobs[str(LAYER.digest)]
BLOB = blob_target("team/app", str(LAYER.digest))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a store."""
    return tmp_path / "store"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A real registry with the image."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        push_image(running, "team/app", "1", IMAGE)
        yield running


def port_of(host: str) -> int:
    return int(host.rpartition(":")[2])


def partial_of(root: Path, descriptor: Descriptor = LAYER) -> Path:
    return root / "ingest" / "partial" / str(descriptor.digest).replace(":", "-")


def check_whole(root: Path, name: str, image: BuiltImage = IMAGE) -> None:
    assert read_names(root)[name] == image.digest
    for digest, content in image.blobs.items():
        assert blob(root, digest).read_bytes() == content
    assert not list((root / "ingest" / "partial").iterdir())
    check_invariants(root)


# Cuts


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_pull_that_is_cut_ten_times_fetches_hardly_a_byte_twice(
    root: Path, registry: DockerRegistry, reset: bool
) -> None:
    with CuttingProxy(port_of(registry.host), cuts=[IMAGE.size_bytes // 11] * 10, reset=reset) as line:
        open_store(root).pull(f"{line.host}/team/app:1", name="app:1", client=quick_client())
        assert line.cuts_made == 10
        assert line.sent_bytes <= 1.05 * IMAGE.size_bytes
    check_whole(root, "app:1")


def test_a_line_that_carries_a_little_each_time_brings_all_of_it(root: Path, registry: DockerRegistry) -> None:
    pieces = 60
    with CuttingProxy(port_of(registry.host), cuts=[IMAGE.size_bytes // pieces] * pieces) as line:
        client = quick_client(attempts=2, back_off_seconds=0.001)
        open_store(root).pull(f"{line.host}/team/app:1", name="app:1", client=client, parallel=1)
        assert line.cuts_made == pieces
    check_whole(root, "app:1")


def test_a_blob_that_comes_slowly_may_take_longer_than_any_silence() -> None:
    content = bytes(range(256)) * 8
    with ScriptedRegistry() as server:
        layer = descriptor_for(content, LAYER.media_type)
        target = blob_target("team/app", str(layer.digest))
        server.expect("GET", target, Answer(body=content, drip_bytes=128, drip_seconds=0.4))
        with open_repository(server.reference("team/app", "1"), silence_seconds=5.0) as repository:
            started = time.monotonic()
            assert read_all(repository, layer) == content
            assert time.monotonic() - started > 5


@pytest.mark.parametrize("framing", ["length", "until_close"])
@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
def test_what_has_come_is_given_though_the_registry_has_become_silent(
    framing: Literal["length", "until_close"], with_tls: bool, tmp_path: Path
) -> None:
    held = threading.Event()
    certificate = make_certificate(tmp_path) if with_tls else None
    with ScriptedRegistry(certificate=certificate) as server:
        server.expect("GET", BLOB, Answer(body=CONTENT, framing=framing, hold=held, hold_after_bytes=100_000))
        trust = {"https": [server.host], "ca_file": certificate.chain} if certificate else {}
        with open_repository(server.reference("team/app", "1"), silence_seconds=60.0, **trust) as repository:
            stream = repository.open_blob(LAYER)
            buffer = memoryview(bytearray(MEBIBYTE))
            started, came = time.monotonic(), 0
            while came < 100_000:
                came += stream.readinto(buffer)
            assert came == 100_000
            assert time.monotonic() - started < SOON_SECONDS
            held.set()
            assert CONTENT.endswith(rest := read_stream(stream))
            assert came + len(rest) == len(CONTENT)
            stream.close()


@pytest.mark.parametrize("part", ["status line", "headers", "chunk"])
def test_a_head_that_drips_has_to_come_within_the_time_of_silence(part: str) -> None:
    beginning = {
        "status line": b"",
        "headers": b"HTTP/1.1 200 OK\r\n",
        "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    }[part]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def drip() -> None:
            while not ended.is_set():
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client, suppress(OSError):
                    client.recv(4096)
                    client.sendall(beginning)
                    while not ended.wait(0.1):
                        client.sendall(b"1" if part == "chunk" else b"H")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        reference = f"127.0.0.1:{listener.getsockname()[1]}/team/app:1"
        with open_repository(reference, silence_seconds=0.5, attempts=1) as repository:
            started = time.monotonic()
            with pytest.raises(RegistryError, match="in time"):
                read_all(repository, LAYER)
            assert time.monotonic() - started < SOON_SECONDS
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


# What has come stays


@pytest.mark.parametrize("parallel", [1, 3])
def test_what_a_registry_gave_before_it_went_down_is_gone_on_with_at_another_one(
    root: Path, registry: DockerRegistry, parallel: int
) -> None:
    with CuttingProxy(port_of(registry.host), cuts=[2 * MEBIBYTE], goes_down=True) as line:
        with pytest.raises(RegistryError):
            open_store(root).pull(f"{line.host}/team/app:1", client=quick_client(attempts=2), parallel=parallel)
        came = line.sent_bytes
    found = partial_of(root).read_bytes()
    assert found
    assert CONTENT.startswith(found)
    assert read_names(root) == {}
    with ScriptedRegistry() as other:
        serve_image(other, "mirrored/app", "1", IMAGE, ranges=True, at_most=1)
        there = blob_target("mirrored/app", str(LAYER.digest))
        other.expect("GET", there, ranged(CONTENT), requires={"Range": f"bytes={len(found)}-{LAYER.size_bytes - 1}"})
        open_store(root).pull(other.reference("mirrored/app", "1"), name="app:1", client=quick_client())
        assert came + sum(request.body_bytes_sent for request in other.requests) <= 1.05 * IMAGE.size_bytes
    check_whole(root, "app:1")


def test_what_a_process_had_when_it_was_killed_is_gone_on_with_by_the_next(root: Path) -> None:
    held = threading.Event()
    half = 2 * MEBIBYTE
    with ScriptedRegistry() as server:
        serve_image(server, "team/app", "1", IMAGE, ranges=True)
        reference = server.reference("team/app", "1")
        server.expect("GET", BLOB, Answer(body=CONTENT, hold=held, hold_after_bytes=half), forbids=["Range"])
        server.expect("GET", BLOB, ranged(CONTENT), requires={"Range": f"bytes={half}-{LAYER.size_bytes - 1}"})

        def pull(ready: Callable[[], None]) -> None:
            def look_on(event: Event) -> None:
                if isinstance(event, BlobAdvanced) and event.digest == LAYER.digest and event.done_bytes == half:
                    ready()

            open_store(root).pull(reference, client=quick_client(silence_seconds=30.0), on_event=look_on)
            sleep_for_ever()

        with forked(pull) as pid:
            wait_until(lambda: partial_of(root).stat().st_size == half)
            kill(pid)
        held.set()
        assert partial_of(root).read_bytes() == CONTENT[:half]
        check_invariants(root, leftovers=True)
        open_store(root).pull(reference, name="app:1", client=quick_client())
    open_store(root).prune()
    check_whole(root, "app:1")


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def test_what_has_rotted_of_an_older_download_is_fetched_again_once(root: Path) -> None:
    partial_of(root).parent.mkdir(parents=True)
    partial_of(root).write_bytes(b"x" * MEBIBYTE)
    with ScriptedRegistry() as server:
        serve_image(server, "team/app", "1", IMAGE, ranges=True)
        server.expect("GET", BLOB, ranged(CONTENT), requires={"Range": f"bytes={MEBIBYTE}-{LAYER.size_bytes - 1}"})
        server.expect("GET", BLOB, ranged(CONTENT), forbids=["Range"])
        open_store(root).pull(server.reference("team/app", "1"), name="app:1", client=quick_client())
    check_whole(root, "app:1")


def test_an_older_download_is_finished_though_the_registry_refuses_every_range(root: Path) -> None:
    partial_of(root).parent.mkdir(parents=True)
    partial_of(root).write_bytes(CONTENT[:MEBIBYTE])
    with ScriptedRegistry() as server:
        serve_image(server, "team/app", "1", IMAGE)
        server.expect(
            "GET", BLOB, registry_error(403, "DENIED"), requires={"Range": f"bytes={MEBIBYTE}-{LAYER.size_bytes - 1}"}
        )
        server.expect("GET", BLOB, Answer(body=CONTENT), forbids=["Range"])
        open_store(root).pull(server.reference("team/app", "1"), name="app:1", client=quick_client())
    check_whole(root, "app:1")


# Places that are wrong


def liar(step_bytes: int = 1 << 30) -> BlobSource:
    """Return a place that gives other bytes of the right length for the layer."""
    return LyingSource(memory_of({"x": IMAGE}), {LAYER.digest: bytes(len(CONTENT))}, step_bytes=step_bytes)


def test_a_place_whose_bytes_were_wrong_is_told_of_and_the_next_is_asked_from_the_beginning(root: Path) -> None:
    source = SeveralPlaces(liar(), liar(), memory_of({"x": IMAGE}))
    assert isinstance(source, Distrusting)
    with open_layout(root).open_writer() as writer:
        writer.write_blob(LAYER, source)
    assert source.asked == [(0, 0), (1, 0), (2, 0)]
    assert source.distrusted == [LAYER.digest] * 2
    assert blob(root, str(LAYER.digest)).read_bytes() == CONTENT
    check_invariants(root)


def test_a_place_is_not_distrusted_for_what_an_older_download_left(root: Path) -> None:
    source = SeveralPlaces(memory_of({"x": IMAGE}), liar())
    partial_of(root).parent.mkdir(parents=True)
    partial_of(root).write_bytes(b"x" * 1000)
    with open_layout(root).open_writer() as writer:
        writer.write_blob(LAYER, source)
    assert source.asked == [(0, 1000), (0, 0)]
    assert source.distrusted == []


def test_a_place_that_goes_on_wrongly_is_asked_from_the_beginning_and_then_distrusted(root: Path) -> None:
    source = SeveralPlaces(liar(), memory_of({"x": IMAGE}))
    partial_of(root).parent.mkdir(parents=True)
    partial_of(root).write_bytes(CONTENT[:1000])
    with open_layout(root).open_writer() as writer:
        writer.write_blob(LAYER, source)
    assert source.asked == [(0, 1000), (0, 0), (1, 0)]
    assert source.distrusted == [LAYER.digest]


def test_when_every_place_is_wrong_that_is_told_and_nothing_is_kept(root: Path) -> None:
    source = SeveralPlaces(liar(), liar())
    with pytest.raises(ContentMismatch, match=str(LAYER.digest)), open_layout(root).open_writer() as writer:
        writer.write_blob(LAYER, source)
    assert source.asked == [(0, 0), (1, 0)]
    assert not partial_of(root).exists()
    assert not blob(root, str(LAYER.digest)).exists()
    check_invariants(root)


@pytest.mark.parametrize("is_document", [False, True], ids=["layer", "document"])
def test_a_source_that_knows_ever_more_places_is_not_asked_for_ever(root: Path, is_document: bool) -> None:
    wanted = root_of(IMAGE) if is_document else LAYER

    class Endless(LyingSource):
        asked = 0

        def distrust(self, descriptor: Descriptor, /) -> bool:
            self.asked += 1
            assert self.asked < 100, "it is asked for ever"
            return True

    source = Endless(memory_of({"x": IMAGE}), {wanted.digest: bytes(wanted.size_bytes)})
    with pytest.raises(ContentMismatch), open_layout(root).open_writer() as writer:
        RememberingSource(source).read(wanted) if is_document else writer.write_blob(wanted, source)
    assert source.asked > 1


def test_a_whole_copy_asks_the_next_place_for_a_layer_and_for_a_document(root: Path) -> None:
    honest = memory_of({"x": IMAGE})
    wrong = {root_of(IMAGE).digest: bytes(root_of(IMAGE).size_bytes), LAYER.digest: bytes(len(CONTENT))}
    bad_layer = LyingSource(honest, {LAYER.digest: wrong[LAYER.digest]})
    source = SeveralPlaces(LyingSource(honest, wrong), bad_layer, honest)

    class Named:
        resolve = staticmethod(honest.resolve)
        open_blob = staticmethod(source.open_blob)
        distrust = staticmethod(source.distrust)

    open_store(root).import_image(Named(), "x", as_name="app:1")
    assert source.distrusted == [root_of(IMAGE).digest, LAYER.digest]
    check_whole(root, "app:1")


def test_a_repair_asks_the_next_place_too(root: Path) -> None:
    put(root, IMAGE, "app:1")
    rot(blob(root, str(LAYER.digest)))
    source = SeveralPlaces(liar(), memory_of({"x": IMAGE}))
    report = open_store(root).repair(sources=[source])
    assert (len(report.mended), report.unmended) == (1, ())
    assert source.distrusted == [LAYER.digest]
    check_whole(root, "app:1")


def test_an_error_of_the_next_place_is_told_and_what_came_of_it_is_kept(root: Path) -> None:
    gone = RegistryError("GET", "https://example.org/", None, (), "the line was cut")

    class Breaking:
        def open_blob(self, descriptor: Descriptor, offset: int = 0) -> NoReturn:
            raise gone

    source = SeveralPlaces(liar(), Breaking())
    with pytest.raises(StoreError) as caught, open_layout(root).open_writer() as writer:
        writer.write_blob(LAYER, source)
    assert caught.value is gone
    assert not partial_of(root).exists()
    check_invariants(root)
