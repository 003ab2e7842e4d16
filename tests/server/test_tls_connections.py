"""Connections that have to agree on TLS first: they count from their first moment, and may not take their time."""

import contextlib
import ssl
import time

import pytest

from tests.server.clients import read_reply
from tests.server.serving import serving
from tests.server.test_connections import IDLE_SECONDS, Application, connect, head, read_to_end, wait_for
from tests.support.certificates import Certificate, make_certificate


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def agreed(certificate: Certificate, port: int, data: bytes = b"") -> ssl.SSLSocket:
    """Return a connection over which TLS is spoken."""
    context = certificate.client_context()
    opened = context.wrap_socket(connect(port), server_hostname="localhost")
    opened.sendall(data)
    return opened


def test_what_is_sent_at_once_behind_the_agreement_is_answered(certificate: Certificate) -> None:
    with serving(Application(), tls=certificate.server_context()) as port:
        for _ in range(20):
            with agreed(certificate, port, head() * 2 + head("/", "Connection: close")) as connection:
                assert read_to_end(connection).count(b"HTTP/1.1 200") == 3


def test_a_body_larger_than_one_record_arrives_whole(certificate: Certificate) -> None:
    application = Application()
    with serving(application, tls=certificate.server_context()) as port:
        data = bytes(300_000)
        request = head("/body", f"Content-Length: {len(data)}", method="POST") + data
        with agreed(certificate, port, request) as connection:
            assert read_reply(connection).status == 200
    assert application.bodies == [data]


def test_connections_that_never_agree_make_room_for_one_that_does(certificate: Certificate) -> None:
    with serving(Application(), most=3, tls=certificate.server_context()) as port, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(port)) for _ in range(3)]
        for _ in range(10):
            with agreed(certificate, port, head("/", "Connection: close")) as connection:
                assert read_reply(connection).status == 200
        assert read_to_end(silent[0]) == b""


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_who_does_not_agree_in_time_has_to_go(certificate: Certificate, data: bytes) -> None:
    with serving(Application(), idle_seconds=IDLE_SECONDS, tls=certificate.server_context()) as port:
        begin = time.monotonic()
        with connect(port, data) as connection:
            read_to_end(connection)
        assert time.monotonic() - begin >= IDLE_SECONDS * 0.8


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1000, b"\x15\x03\x01\x00\x02\x02\x28"])
def test_what_is_no_tls_ends_the_connection(
    certificate: Certificate, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    with serving(Application(), tls=certificate.server_context()) as port:
        with connect(port, data) as connection:
            assert b"HTTP/1.1" not in read_to_end(connection)
        with agreed(certificate, port, head()) as connection:
            assert read_reply(connection).status == 200
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_leaves_while_it_agrees_leaves_nothing(certificate: Certificate) -> None:
    with serving(Application(), most=2, tls=certificate.server_context()) as port:
        for length in range(0, 200, 20):
            with connect(port) as connection:
                hello = client_hello(certificate)
                connection.sendall(hello[:length])
        with agreed(certificate, port, head()) as connection:
            assert read_reply(connection).status == 200


def client_hello(certificate: Certificate) -> bytes:
    """Return what a client of TLS says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    agreeing = certificate.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        agreeing.do_handshake()
    return outgoing.read()


def test_a_client_that_takes_nothing_over_tls_loses_its_answer(certificate: Certificate) -> None:
    application = Application()
    with (
        serving(application, idle_seconds=IDLE_SECONDS, tls=certificate.server_context()) as port,
        agreed(certificate, port, head("/endless")),
    ):
        wait_for(lambda: application.ended == ["/endless"])
        assert application.sent_bytes < 32 * 1024 * 1024


def test_a_slow_head_over_tls_is_told_so(certificate: Certificate) -> None:
    with (
        serving(Application(), idle_seconds=IDLE_SECONDS, tls=certificate.server_context()) as port,
        agreed(certificate, port, b"GET / HT") as connection,
    ):
        assert read_reply(connection).status == 408
