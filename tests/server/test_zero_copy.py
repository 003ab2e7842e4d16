"""Blobs that the kernel sends: the same bytes as ever, whatever the client does meanwhile."""

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from minibox_server.app import create_app
from minibox_server.settings import Settings
from minibox_server.zero_copy import EXTENSION
from tests.server.clients import blobs_open, exchange, read_reply
from tests.support.daemon import Daemon, running_daemon
from tests.support.images import BuiltImage, build_image, random_layer
from tests.support.layouts import blob_path, write_layout
from tests.support.processes import end_process, wait_until

MIB = 1024 * 1024
LARGE_BYTES = 24 * MIB + 512
# More than there are threads that send.
SLOW_CLIENTS = 60


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    return build_image([random_layer(LARGE_BYTES), random_layer(3072)])


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, image: BuiltImage) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    write_layout(folder / "data", {"app:1": image})
    with running_daemon(folder) as daemon:
        yield daemon
        assert "Traceback" not in daemon.read_log()


def layers_of(image: BuiltImage) -> list[str]:
    return [str(layer["digest"]) for layer in image.document()["layers"]]


def request(daemon: Daemon, digest: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} /v2/app/blobs/{digest} HTTP/{version}", f"Host: {daemon.host}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_the_application_hands_over_the_open_file_where_that_is_offered(tmp_path: Path, image: BuiltImage) -> None:
    write_layout(tmp_path / "data", {"app:1": image})
    large, _ = layers_of(image)
    sent = bytearray()
    messages: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.append(message)
        if message["type"] == EXTENSION:
            sent.extend(os.pread(message["file"], message["count"], message["offset"]))
        sent.extend(message.get("body", b""))

    path = f"/v2/app/blobs/{large}"
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "scheme": "http",
        "server": ("127.0.0.1", 1),
    }
    headers = [(b"host", b"localhost"), (b"range", b"bytes=5-")]
    scope |= {"headers": headers, "extensions": {EXTENSION: {}}, "root_path": ""}
    asyncio.run(create_app(Settings(data_root=str(tmp_path / "data")))(scope, receive, send))
    assert messages[0]["status"] == 206
    assert not any(message.get("body") for message in messages), "no byte of it is in memory"
    assert bytes(sent) == image.blobs[large][5:]


def test_a_blob_comes_whole_in_part_or_not_at_all_as_it_is_asked_for(daemon: Daemon, image: BuiltImage) -> None:
    for digest in layers_of(image):
        content = image.blobs[digest]
        whole = exchange(daemon.port, request(daemon, digest))
        assert (whole.status, whole.body) == (200, content)
        part = exchange(daemon.port, request(daemon, digest, "Range: bytes=1000-2500"))
        assert (part.status, part.body) == (206, content[1000:2501])
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        connection.sendall(request(daemon, digest, "Connection: close", method="HEAD"))
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert f"content-length: {len(content)}\r\n".encode() in received
    assert received.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_it_ends_with_the_connection_where_that_is_wanted(daemon: Daemon, image: BuiltImage, version: str) -> None:
    large, _ = layers_of(image)
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        connection.sendall(request(daemon, large, "Connection: close", version=version))
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.partition(b"\r\n\r\n")[2] == image.blobs[large]


def test_answers_on_one_connection_keep_their_order(daemon: Daemon, image: BuiltImage) -> None:
    large, small = layers_of(image)
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        last = request(daemon, small, "Connection: close")
        connection.sendall(request(daemon, small) + request(daemon, large) + last)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    for digest in (small, large, small):
        _, _, received = received.partition(b"\r\n\r\n")
        content = image.blobs[digest]
        assert received.startswith(content)
        received = received[len(content) :]
    assert not received


def test_clients_that_do_not_read_keep_nobody_waiting_and_lose_nothing(daemon: Daemon, image: BuiltImage) -> None:
    large, small = layers_of(image)
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(SLOW_CLIENTS):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=20))
            connection.sendall(request(daemon, large))
            slow.append(connection)
        for _ in range(3):  # none of those takes anything before all of these have been answered
            assert exchange(daemon.port, request(daemon, small)).body == image.blobs[small]
        for connection in slow[:4]:
            assert hashlib.sha256(read_reply(connection).body).hexdigest() == large.partition(":")[2]


def test_a_connection_that_is_given_up_keeps_no_blob_open_though_its_client_does_not_read(
    daemon: Daemon, image: BuiltImage
) -> None:
    large, _ = layers_of(image)
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        connection.sendall(request(daemon, large, "Transfer-Encoding: chunked"))
        assert connection.recv(1000)
        time.sleep(0.3)  # until the kernel takes no more, and the daemon waits
        connection.sendall(b"not a chunk\r\n")
        assert blobs_open(daemon.process.pid) == 0


def test_a_blob_that_is_cut_short_meanwhile_is_a_cut_answer(tmp_path: Path, image: BuiltImage) -> None:
    write_layout(tmp_path / "data", {"app:1": image})
    large, _ = layers_of(image)
    with (
        running_daemon(tmp_path) as daemon,
        socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection,
    ):
        connection.sendall(request(daemon, large))
        received = connection.recv(1000)
        os.truncate(blob_path(tmp_path / "data", large), 20 * MIB)
        while piece := connection.recv(65536):
            received += piece
        content = received.partition(b"\r\n\r\n")[2]
        assert image.blobs[large].startswith(content)
        assert len(content) == 20 * MIB
        assert daemon.get("/ping").status == 200


def test_it_ends_in_time_though_a_client_does_not_read(tmp_path: Path, image: BuiltImage) -> None:
    write_layout(tmp_path / "data", {"app:1": image})
    large, _ = layers_of(image)
    with (
        running_daemon(tmp_path) as daemon,
        socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection,
    ):
        connection.sendall(request(daemon, large))
        assert connection.recv(1000)
        assert end_process(daemon.process, timeout_seconds=60)
        assert daemon.exit_status == 0


def test_a_client_that_goes_is_seen_to_go_and_the_rest_is_not_said_to_nobody(daemon: Daemon, image: BuiltImage) -> None:
    large, _ = layers_of(image)
    known = daemon.read_log()
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        connection.sendall(request(daemon, large))
        assert connection.recv(1000)
        time.sleep(0.3)  # until the kernel takes no more
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: large in daemon.read_log()[len(known) :], daemon.process, log=daemon.log)
    (line,) = [line for line in daemon.read_log()[len(known) :].splitlines() if large in line]
    assert line.endswith("ended early")
