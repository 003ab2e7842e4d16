"""Requests as bytes, against a running daemon: S21, and what no client library would send."""

import socket
from collections.abc import Iterator

import pytest

from tests.server.clients import TOKEN, RawReply, blobs_open, exchange, read_reply
from tests.support.daemon import Daemon, running_daemon
from tests.support.images import build_image, random_layer
from tests.support.layouts import write_layout

AUTHORIZED = f"Authorization: Bearer {TOKEN}\r\n".encode()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a token, and an image in its store."""
    folder = tmp_path_factory.mktemp("daemon")
    write_layout(folder / "data", {"app:1": build_image([random_layer(8 * 1024 * 1024)])})
    with running_daemon(folder, token=TOKEN) as daemon:
        yield daemon
        assert "Traceback" not in daemon.read_log()


def head(daemon: Daemon, target: bytes = b"/images", *, host: bytes | None = None, more: bytes = b"") -> bytes:
    """Return a request that has a token."""
    name = daemon.host.encode() if host is None else host
    return b"GET %b HTTP/1.1\r\nHost: %b\r\n%b%b\r\n" % (target, name, AUTHORIZED, more)


def test_a_plain_request_is_answered(daemon: Daemon) -> None:
    reply = exchange(daemon.port, head(daemon, b"/ping"))
    assert (reply.status, reply.body) == (200, b"Daemon is running")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "server" not in reply.headers


@pytest.mark.parametrize("host", [b"a/b?x=", b"127.0.0.1/ping?", b"localhost@evil", b"evil.example", b"", b"a b"])
def test_s21_a_host_that_is_more_than_a_host_is_refused(daemon: Daemon, host: bytes) -> None:
    reply = exchange(daemon.port, head(daemon, host=host))
    assert reply.status == 403
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "target",
    [
        *(b"@evil", b"@127.0.0.1/ping", b"ping", b"*", b"http://evil.example/ping", b"http://127.0.0.1/ping", b"?x"),
        *(b"//evil.example/ping", b"/ping/../../ping", b"/PING", b"/ping%00", b"/%70ing%0a", b"/ping%0A"),
    ],
)
def test_s21_a_target_that_is_no_path_of_ours_leads_nowhere(daemon: Daemon, target: bytes) -> None:
    without = b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, daemon.host.encode())
    assert exchange(daemon.port, without).status in (400, 401)
    reply = exchange(daemon.port, head(daemon, target))
    assert reply.status in (400, 404)
    assert b"running" not in reply.body
    assert "location" not in reply.headers
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_an_encoded_path_is_the_path(daemon: Daemon) -> None:
    assert exchange(daemon.port, head(daemon, b"/%70ing")).status == 200
    without = b"GET /%%70ing HTTP/1.1\r\nHost: %b\r\n\r\n" % daemon.host.encode()
    assert exchange(daemon.port, without).status == 401


def test_s21_two_hosts_are_refused(daemon: Daemon) -> None:
    for second in (daemon.host.encode(), b"evil.example"):
        reply = exchange(daemon.port, head(daemon, more=b"Host: %b\r\n" % second))
        assert reply.status in (400, 403)
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_request_without_a_host_is_refused(daemon: Daemon) -> None:
    for version in (b"1.0", b"1.1"):
        reply = exchange(daemon.port, b"GET /images HTTP/%b\r\n%b\r\n" % (version, AUTHORIZED))
        assert reply.status in (400, 403)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /ping HTTP/2.0\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost 127.0.0.1\r\n\r\n",
        b"GET /ping HTTP/1.1\r\n Host: folded\r\n\r\n",
        b"GET /p\x00ing HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /p\xffing HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request_is_told_so_in_one_line(daemon: Daemon, data: bytes) -> None:
    reply = exchange(daemon.port, data + b"\r\n\r\n")
    assert 400 <= reply.status < 500 or reply.status == 501
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.body.endswith(b"\n")
    assert reply.body.count(b"\n") == 1
    assert exchange(daemon.port, head(daemon, b"/ping")).status == 200


def test_a_length_and_chunks_together_never_become_two_requests(daemon: Daemon) -> None:
    smuggled = head(daemon, b"/ping")
    body = b"0\r\n\r\n" + smuggled
    more = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(body)
    request = head(daemon, b"/images", more=more).replace(b"GET", b"POST", 1)
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        connection.sendall(request + body)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 400")
    assert received.count(b"HTTP/1.1") == 1


def test_a_target_that_is_too_long_is_refused(daemon: Daemon) -> None:
    for length in (17_000, 60_000, 100_000, 1_000_000):
        reply = refused(daemon, head(daemon, b"/images?" + b"a" * length))
        assert reply is None or (reply.status, reply.headers["x-content-type-options"]) == (414, "nosniff")
    assert refused(daemon, head(daemon, b"/images?" + b"a" * 17_000)) is not None


def test_headers_that_are_too_long_are_refused(daemon: Daemon) -> None:
    for more in (
        b"X: %b\r\n" % (b"a" * 40_000),
        b"X: a\r\n" * 200,
        b"X: %b\r\n" % (b"a" * 1_000_000),
        b"X: a\r\n" * 50_000,
    ):
        reply = refused(daemon, head(daemon, more=more))
        assert reply is None or (reply.status, reply.headers["x-content-type-options"]) == (431, "nosniff")
    assert refused(daemon, head(daemon, more=b"X: a\r\n" * 200)) is not None


def refused(daemon: Daemon, data: bytes) -> RawReply | None:
    """Return the answer, None where the connection was reset while so much was still being sent."""
    try:
        return exchange(daemon.port, data)
    except (ConnectionError, EOFError):
        return None


def test_a_body_that_is_announced_as_large_is_refused_before_it_is_sent(daemon: Daemon) -> None:
    more = b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n"
    request = head(daemon, b"/images/load?path=/tmp/x", more=more).replace(b"GET", b"POST", 1)
    reply = exchange(daemon.port, request)
    assert (reply.status, reply.headers["connection"]) == (413, "close")
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_s20_without_the_token_the_body_is_not_asked_for(daemon: Daemon) -> None:
    request = (
        b"POST /images/load?path=/tmp/x HTTP/1.1\r\nHost: %b\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
        % daemon.host.encode()
    )
    reply = exchange(daemon.port, request)
    assert (reply.status, reply.body) == (401, b"Unauthorized\n")
    assert reply.headers["www-authenticate"] == 'Bearer realm="minibox"'


@pytest.mark.parametrize("more", [b"", b"Content-Length: 0\r\n"])
def test_who_is_refused_and_sends_no_body_may_ask_again_on_the_same_connection(daemon: Daemon, more: bytes) -> None:
    refused = b"POST /images HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (daemon.host.encode(), more)
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        for _ in range(2):
            connection.sendall(refused)
            reply = read_reply(connection)
            assert (reply.status, reply.headers.get("connection")) == (401, None)
        connection.sendall(head(daemon, b"/ping"))
        assert read_reply(connection).body == b"Daemon is running"


@pytest.mark.parametrize("more", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_who_is_refused_before_his_body_came_is_listened_to_no_more(daemon: Daemon, more: bytes) -> None:
    refused = b"POST /images HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (daemon.host.encode(), more)
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        connection.sendall(refused)
        reply = read_reply(connection)
        assert (reply.status, reply.headers["connection"]) == (401, "close")
        assert connection.recv(1) == b""


def test_a_chunked_body_without_end_is_cut_off(daemon: Daemon) -> None:
    request = head(daemon, b"/images/pull?image=127.0.0.1:1/a:1", more=b"Transfer-Encoding: chunked\r\n")
    chunk = b"10000\r\n%b\r\n" % bytes(0x10000)
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        connection.sendall(request.replace(b"GET", b"POST", 1))
        assert pieces_taken(connection, chunk) < 1000
    assert exchange(daemon.port, head(daemon, b"/ping")).status == 200


def pieces_taken(connection: socket.socket, piece: bytes) -> int:
    """Return how often a piece could be sent, at most a thousand times, until the other side had enough."""
    for number in range(1000):
        try:
            connection.sendall(piece)
        except ConnectionError:
            return number
    return 1000


def test_pipelined_requests_are_answered_in_order(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        connection.sendall(head(daemon, b"/ping") * 3 + head(daemon, b"/nowhere"))
        received = b""
        while b"nothing is at" not in received:
            received += connection.recv(65536)
    assert received.count(b"HTTP/1.1 200 OK") == received.count(b"Daemon is running") == 3
    assert received.index(b"HTTP/1.1 404 Not Found") > received.rindex(b"Daemon is running")


def test_bytes_that_are_no_chunk_do_not_confuse_an_answer_under_way(daemon: Daemon) -> None:
    request = head(daemon, b"/images/pull?image=127.0.0.1:1/a:1", more=b"Transfer-Encoding: chunked\r\n")
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        connection.sendall(request.replace(b"GET", b"POST", 1))
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.sendall(b"not a chunk\r\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert b"HTTP/1.1" not in received


def test_a_client_that_leaves_in_the_middle_of_a_blob_leaves_nothing_open(daemon: Daemon) -> None:
    [name] = [each["name"] for each in daemon.get("/images").json()]
    manifest = daemon.get(f"/v2/{name.replace(':', '/manifests/')}").json()
    target = f"/v2/app/blobs/{manifest['layers'][0]['digest']}".encode()
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
            connection.sendall(head(daemon, target))
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
    assert blobs_open(daemon.process.pid) == 0


def test_s28_nothing_that_was_sent_as_a_secret_is_in_the_log(daemon: Daemon) -> None:
    planted = "planted-secret"
    for more in (b"", b"X-API-Token: planted-secret\r\n", b"Cookie: a=planted-secret\r\n"):
        exchange(daemon.port, head(daemon, b"/images?token=planted-secret", more=more))
        exchange(daemon.port, head(daemon, b"/v2/?token=planted-secret", host=b"planted-secret/x", more=more))
    daemon.post("/images/pull", image="https://user:planted-secret@registry.example/app")
    daemon.request("POST", "/images/load", {"path": "/tmp/planted-secret"})
    log = daemon.read_log()
    assert '"GET /images" 200' in log
    assert planted not in log
    assert TOKEN not in log
