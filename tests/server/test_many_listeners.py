"""Very many clients that read the progress of one pull: none is cut, and the daemon's memory stays small."""

import json
import resource
import selectors
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

from tests.support.daemon import running_daemon
from tests.support.families import watching_memory
from tests.support.images import build_image, random_layer
from tests.support.scripted_registry import Answer, ScriptedRegistry, blob_target, serve_image
from tests.support.trials import DEEP

CLIENTS = 500 if DEEP else 80
MOST_BYTES = 200 << 20
IMAGE = build_image([random_layer(1 << 20, salt=f"many {number}") for number in range(4)])
# The registry lets each layer drip for so long while all listen.
DRIP_SECONDS = 1.5


def read_all(clients: list[socket.socket], seconds: float) -> list[bytes]:
    """Return what comes to each until the other side ends it; who gets nothing for too long fails."""
    came = {client: bytearray() for client in clients}
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for client in clients:
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            assert ready, f"{len(selector.get_map())} clients wait still"
            for key, _ in ready:
                reader = key.fileobj
                assert isinstance(reader, socket.socket)
                piece = reader.recv(1 << 16)
                came[reader] += piece
                if not piece:
                    selector.unregister(reader)
    return [bytes(came[client]) for client in clients]


def events_of(answer: bytes) -> list[dict[str, object]]:
    """Return the events of a chunked answer of NDJSON."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        body += rest[:count]
        rest = rest[count + 2 :]
    return [json.loads(line) for line in body.split(b"\n")[:-1]]


def test_many_clients_that_read_the_progress_of_one_pull_are_all_told_to_the_end(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2048)), hard))
    go = threading.Event()
    with ScriptedRegistry() as registry, running_daemon(tmp_path / "daemon") as daemon, ExitStack() as stack:
        memory = stack.enter_context(watching_memory(daemon.process.pid))
        serve_image(registry, "app", "1", IMAGE)
        for digest in IMAGE.layer_digests:
            content = IMAGE.blobs[digest]
            steps = int(DRIP_SECONDS / 0.02)
            answer = Answer(body=content, drip_bytes=len(content) // steps + 1, drip_seconds=0.02, hold=go)
            registry.allow("GET", blob_target("app", digest), answer)
        target = f"/images/pull?image={quote(registry.reference('app', '1'))}"
        request = (
            f"POST {target} HTTP/1.1\r\nHost: {daemon.host}\r\nAccept: application/x-ndjson\r\n"
            "Content-Length: 0\r\nConnection: close\r\n\r\n"
        ).encode()
        clients = []
        for _ in range(CLIENTS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=20))
            client.sendall(request)
            clients.append(client)
        go.set()
        told = [events_of(answer) for answer in read_all(clients, 120)]
        asked = registry.count("GET", blob_target("app", IMAGE.layer_digests[0]))
    assert asked == 1
    total = sum(len(IMAGE.blobs[digest]) for digest in (IMAGE.config_digest, *IMAGE.layer_digests))
    for events in told:
        assert [each["event"] for each in events].count("result") == 1
        assert events[-1]["event"] == "result"
        last = [each for each in events if each["event"] == "progress"][-1]
        assert (last["done_bytes"], last["total_bytes"]) == (total, total)
    # They were told while it went on, and not at its end alone.
    moving = [sum(each.get("phase") == "moving" for each in events) for events in told]
    assert min(moving) >= 5
    assert memory.peak_bytes <= MOST_BYTES, f"{memory.peak_bytes >> 20} MiB"
