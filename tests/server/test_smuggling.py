"""One request that two readers could take for two, and targets of every form: each is one answer, or the end."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.server.clients import TOKEN, exchange, read_reply
from tests.support.daemon import Daemon, running_daemon

# What stands where a body should be; an answer to it is one to a request that nobody sent as one.
SMUGGLED = b"GET /ping HTTP/1.1\r\nHost: localhost\r\nX-API-Token: %b\r\nConnection: close\r\n\r\n" % TOKEN.encode()
ANSWER_TO_IT = b"Daemon is running"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(
        tmp_path_factory.mktemp("daemon"), token=TOKEN, environment={"MINIBOX_IDLE_SECONDS": "1"}
    ) as daemon:
        yield daemon
        log = daemon.read_log()
        assert "Traceback" not in log
        assert TOKEN not in log


def request(
    *headers: str, method: str = "POST", target: str = "/system/prune?dry_run=1", version: str = "1.1"
) -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", f"X-API-Token: {TOKEN}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def received(daemon: Daemon, data: bytes, *, seconds: float = 60.0) -> bytes:
    """Send bytes, and return all that comes until the connection ends; one that does not end in time is an error."""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=seconds) as connection:
        answer, end = b"", time.monotonic() + seconds
        with suppress(ConnectionError):
            connection.sendall(data)
            while piece := connection.recv(65536):
                answer += piece
                assert time.monotonic() < end
    assert exchange(daemon.port, request(method="GET", target="/ping")).status == 200
    return answer


def statuses(answer: bytes) -> list[int]:
    """Return the status of each answer in what was received."""
    return [int(each) for each in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answer)]


BODY = b"0\r\n\r\n" + SMUGGLED
LENGTH_AND_CHUNKS = [
    [f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: chunked", f"Content-Length: {len(BODY)}"],
    ["Content-Length: 4", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: chunked", "Content-Length: 0"],
]
NO_ENCODING_THAT_IS_KNOWN = [
    ["Transfer-Encoding: xchunked"],
    ["Transfer-Encoding: chunked, identity"],
    ["Transfer-Encoding: identity, chunked"],
    ["Transfer-Encoding: gzip, chunked"],
    ["Transfer-Encoding: chunked, chunked"],
    ["Transfer-Encoding: chunked", "Transfer-Encoding: x"],
    ["Transfer-Encoding: x", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding : chunked"],
    ["X: y", "Content-Length: 0", " Transfer-Encoding: chunked"],
    ["Transfer-Encoding\t: chunked"],
    ["Transfer-Encoding: \x0bchunked"],
    ["Transfer-Encoding: chunked\x00"],
    ['Transfer-Encoding: "chunked"'],
    ["Transfer-Encoding: chunked;a=b"],
    ["Transfer-Encoding:"],
    ["X: y\rTransfer-Encoding: chunked"],
    ["Transfer_Encoding: chunked", "Transfer-Encoding: \xa0chunked"],
    ["Content-Length: 5", "Transfer-Encoding: xchunked"],
]
NO_LENGTH = [
    *(["Content-Length: 5", "Content-Length: 6"], ["Content-Length: 5, 6"], ["Content-Length: 5", "content-length: 0"]),
    *(["Content-Length: +5"], ["Content-Length: -5"], ["Content-Length: 0x5"], ["Content-Length: 5 5"]),
    *(["Content-Length: 5;"], ["Content-Length : 5"], ["Content-Length: 1e1"], ["Content-Length: \xb2"]),
    *(["Content-Length: 99999999999999999999999999"], ["Content-Length: 5_0"], ["Content-Length:"]),
]


@pytest.mark.parametrize("headers", LENGTH_AND_CHUNKS)
def test_a_length_and_chunks_at_once_are_refused(daemon: Daemon, headers: list[str]) -> None:
    answer = received(daemon, request(*headers) + BODY)
    assert statuses(answer) == [400]
    assert ANSWER_TO_IT not in answer


@pytest.mark.parametrize("headers", NO_ENCODING_THAT_IS_KNOWN)
def test_an_encoding_that_others_might_take_for_another_one_is_refused(daemon: Daemon, headers: list[str]) -> None:
    answer = received(daemon, request(*headers) + BODY)
    assert len(statuses(answer)) == 1
    assert statuses(answer)[0] in (400, 501)
    assert ANSWER_TO_IT not in answer


@pytest.mark.parametrize("headers", NO_LENGTH)
def test_a_length_that_others_might_take_for_another_one_is_refused(daemon: Daemon, headers: list[str]) -> None:
    answer = received(daemon, request(*headers) + b"12345" + SMUGGLED)
    assert len(statuses(answer)) == 1
    assert statuses(answer)[0] in (400, 413)
    assert ANSWER_TO_IT not in answer


@pytest.mark.parametrize("headers", [["Content-Length: 5", "Content-Length: 5"], ["Content-Length: 5, 5"]])
def test_the_same_length_twice_is_that_length(daemon: Daemon, headers: list[str]) -> None:
    answer = received(daemon, request(*headers) + b"12345" + SMUGGLED)
    assert statuses(answer) in ([200, 200], [400])


@pytest.mark.parametrize(
    "body",
    [
        *(b"5\n12345\n0\n\n", b"5\r\n12345\n0\r\n\r\n", b"5\r\n123450\r\n\r\n", b"5\r\n12345XX0\r\n\r\n"),
        *(b"5;a\nb\r\n12345\r\n0\r\n\r\n", b"0x5\r\n12345\r\n0\r\n\r\n", b"+5\r\n12345\r\n0\r\n\r\n", b"-1\r\n\r\n"),
        *(
            b"fffffffffffffffffffff\r\n",
            b"5_0\r\n",
            b" 5\r\n12345\r\n0\r\n\r\n",
            b"\r\n0\r\n\r\n",
            b"g\r\n",
            b"\x00\r\n",
        ),
        *(b"5\x00\r\n12345\r\n0\r\n\r\n", b"5 ;\x00=\r\n12345\r\n0\r\n\r\n", b"0\r\nno header\r\n\r\n", b"0\n\r\n"),
    ],
)
def test_chunks_that_are_not_what_they_should_be_end_the_connection(daemon: Daemon, body: bytes) -> None:
    answer = received(daemon, request("Transfer-Encoding: chunked") + body + SMUGGLED)
    assert ANSWER_TO_IT not in answer
    assert len(statuses(answer)) == 1


def test_extensions_and_trailers_of_chunks_are_passed_over(daemon: Daemon) -> None:
    body = b'5;name=value;quoted="a"\r\n12345\r\n0;last\r\nX-Trailer: y\r\nContent-Length: 3\r\n\r\n'
    answer = received(daemon, request("Transfer-Encoding: chunked") + body + SMUGGLED)
    assert statuses(answer) == [200, 200]
    assert answer.endswith(ANSWER_TO_IT)


@pytest.mark.parametrize("size", [b"ffffffffffffffff", b"fffffffffffffffffff", b"7fffffff", b"100000"])
def test_a_chunk_that_is_announced_as_huge_is_read_as_far_as_any_body(daemon: Daemon, size: bytes) -> None:
    answer = received(daemon, request("Transfer-Encoding: chunked") + size + b"\r\n" + bytes(400_000))
    assert len(statuses(answer)) <= 1
    assert set(statuses(answer)) <= {200, 400, 413}


@pytest.mark.parametrize("extension", [b";" + b"a" * 1_000_000, b";a=" + b"b" * 1_000_000])
def test_an_extension_without_end_is_cut_off(daemon: Daemon, extension: bytes) -> None:
    answer = received(
        daemon, request("Transfer-Encoding: chunked") + b"5" + extension + b"\r\n12345\r\n0\r\n\r\n" + SMUGGLED
    )
    assert ANSWER_TO_IT not in answer


def test_a_header_in_several_lines_is_one_header(daemon: Daemon) -> None:
    folded = b"POST /system/prune?dry_run=1 HTTP/1.1\r\nHost: localhost\r\nX-API-Token: %b\r\n" % TOKEN.encode()
    for more in (b"Transfer-Encoding:\r\n chunked\r\n\r\n", b"Transfer-Encoding: x\r\n\tchunked\r\n\r\n"):
        answer = received(daemon, folded + more + b"0\r\n\r\n" + SMUGGLED)
        # Either it is chunked, and then the next request is one; or it is refused, and nothing behind it is.
        assert statuses(answer) in ([200, 200], [400])


def test_lines_that_end_without_a_carriage_return_never_make_one_request_two(daemon: Daemon) -> None:
    data = request(f"Content-Length: {len(SMUGGLED)}").replace(b"\r\n", b"\n") + SMUGGLED
    answer = received(daemon, data)
    assert len(statuses(answer)) == 1
    assert ANSWER_TO_IT not in answer


@pytest.mark.parametrize("version", ["1.0", "0.9", "1.2", "2.0", "9.9", "1.1x", "01.1", "1.1 "])
def test_no_other_version_keeps_the_connection(daemon: Daemon, version: str) -> None:
    answer = received(daemon, request(method="GET", target="/images", version=version) + SMUGGLED)
    assert len(statuses(answer)) == 1
    assert ANSWER_TO_IT not in answer


def test_chunks_in_a_version_that_has_none_are_refused(daemon: Daemon) -> None:
    answer = received(daemon, request("Transfer-Encoding: chunked", version="1.0") + BODY)
    assert statuses(answer) == [400]


@pytest.mark.parametrize("value", ["websocket", "h2c", "TLS/1.0"])
def test_an_upgrade_is_passed_over(daemon: Daemon, value: str) -> None:
    headers = [f"Upgrade: {value}", "Connection: Upgrade", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"]
    answer = received(daemon, request(*headers, method="GET", target="/ping"))
    assert statuses(answer) == [200]
    assert "Unsupported upgrade" not in daemon.read_log()


def test_http_2_without_asking_is_no_request(daemon: Daemon) -> None:
    answer = received(daemon, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100))
    assert statuses(answer) == [400]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *(("GET", "http://localhost/ping"), ("GET", "https://localhost/ping"), ("GET", "http://evil.example/ping")),
        *(("GET", "HTTP://localhost/ping"), ("GET", "localhost/ping"), ("GET", "file:///etc/passwd")),
        *(("CONNECT", "localhost:80"), ("CONNECT", "127.0.0.1:22"), ("CONNECT", "/ping"), ("OPTIONS", "*")),
        *(("GET", "//localhost/ping"), ("GET", "/ping#fragment"), ("GET", "\\ping"), ("GET", "/\\ping")),
        *(("GET", "/ping/"), ("GET", "/./ping"), ("GET", "/x/../ping"), ("GET", "/ping/."), ("GET", "/%2e/ping")),
        *(("GET", "/ping%2f"), ("GET", "/%2fping"), ("GET", "/ping;a"), ("GET", "/ping."), ("GET", "/ping%20")),
        *(("GET", "/ping%00"), ("GET", "/ping%0d%0a"), ("GET", "/%ff"), ("GET", "/%c0%afping"), ("GET", "/%zz")),
        *(("TRACE", "/ping"), ("get", "/ping"), ("PROPFIND", "/ping"), ("DEBUG", "/ping"), ("POST", "/ping")),
    ],
)
def test_s21_no_other_form_of_a_target_or_method_leads_to_an_endpoint(daemon: Daemon, method: str, target: str) -> None:
    for token in (True, False):
        data = request("Connection: close", method=method, target=target)
        if not token:
            data = data.replace(f"X-API-Token: {TOKEN}\r\n".encode(), b"")
        answer = received(daemon, data)
        [status] = statuses(answer)
        assert status in ((400, 404, 405) if token else (400, 401))
        assert ANSWER_TO_IT not in answer
        assert b"\r\nlocation" not in answer.lower()


@pytest.mark.parametrize(
    "host", ["a/b?x=", "localhost/ping?", "localhost:80@evil", "localhost\\@evil", "[::1", "lo\x00"]
)
def test_s21_a_host_that_is_more_than_one_moves_no_request(daemon: Daemon, host: str) -> None:
    data = request("Connection: close", method="GET", target="/images").replace(b"localhost", host.encode())
    answer = received(daemon, data)
    assert statuses(answer)[0] in (400, 403)
    assert b"[]" not in answer


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\xfd" * 100, b"\x00" * 1000, b"GET /\xc3\x28 HTTP/1.1\r\n\r\n", b"\r\n" * 50_000]
)
def test_bytes_that_are_nothing_are_told_so_or_cut_off(daemon: Daemon, data: bytes) -> None:
    assert set(statuses(received(daemon, data))) <= {400, 408, 414, 431}


def test_a_header_that_is_no_text_is_refused_or_passed_over(daemon: Daemon) -> None:
    for value in ("a\x00b", "a\x01b", "a\x7fb", "\xff\xfe", "é"):
        answer = received(daemon, request(f"X-Odd: {value}", "Connection: close", method="GET", target="/ping"))
        assert statuses(answer) in ([200], [400])


def test_many_requests_at_once_are_answered_one_after_the_other(daemon: Daemon) -> None:
    count = 300
    answer = received(daemon, request(method="GET", target="/ping") * count)
    assert statuses(answer) == [200] * count


def test_requests_behind_one_that_was_refused_are_not_answered(daemon: Daemon) -> None:
    for bad in (b"nonsense\r\n\r\n", request("Content-Length: x"), request("Transfer-Encoding: gzip")):
        answer = received(daemon, request(method="GET", target="/images") + bad + SMUGGLED)
        assert statuses(answer) == [200, 400]
        assert ANSWER_TO_IT not in answer


def test_bodies_that_stop_take_no_thread_from_others_and_are_told_so(daemon: Daemon) -> None:
    head = request("Content-Length: 1000000", "Content-Type: application/x-tar", target="/images/load")
    with ExitStack() as stack:
        # More than there are threads that change something.
        stopped = []
        for _ in range(40):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=60))
            connection.sendall(head + bytes(1000))
            stopped.append(connection)
        assert exchange(daemon.port, request(method="GET", target="/images")).status == 200
        for connection in stopped:
            assert read_reply(connection).status == 408
    assert statuses(received(daemon, request("Connection: close"), seconds=15)) == [200]
