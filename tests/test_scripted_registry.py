"""The scripted servers do what they are told: a script that is kinder than the world would prove nothing."""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Certificate, make_certificate
from tests.support.images import (
    OCI_INDEX,
    OCI_MANIFEST,
    build_image,
    build_index,
)
from tests.support.layouts import read_layout_blobs, read_layout_names
from tests.support.peers import run_skopeo
from tests.support.scripted_registry import (
    NO_ANSWER,
    Answer,
    ScriptBroken,
    ScriptedRegistry,
    ScriptedServer,
    TokenServer,
    basic_credentials,
    blob_target,
    manifest_target,
    pull_scope,
    ranged,
    redirect,
    serve_image,
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@contextlib.contextmanager
def connected(server: ScriptedServer, context: ssl.SSLContext | None = None) -> Iterator[http.client.HTTPConnection]:
    connection = (
        http.client.HTTPSConnection("127.0.0.1", server.port, timeout=5, context=context)
        if context
        else http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    )
    with contextlib.closing(connection):
        yield connection


def fetch(
    server: ScriptedServer, target: str, *, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    with connected(server) as connection:
        connection.request(method, target, headers=headers or {})
        with connection.getresponse() as response:
            return response.status, dict(response.getheaders()), response.read()


@contextlib.contextmanager
def breaking(*problems: str) -> Iterator[ScriptedServer]:
    """Give a server whose script must turn out to be broken, for these reasons."""
    report = ""
    try:
        with ScriptedServer() as server:
            yield server
    except ScriptBroken as broken:
        report = str(broken)
    assert [problem for problem in problems if problem not in report] == []


# The scripted server


def test_a_script_passes_when_exactly_what_it_lists_has_come() -> None:
    with ScriptedServer() as server:
        listed = server.expect("GET", "/a?x=1&y=2", Answer(body=b"first"), Answer(status=404, body=b"second"))
        assert fetch(server, "/a?y=2&x=1")[::2] == (200, b"first")
        assert fetch(server, "/a?x=1&y=2")[::2] == (404, b"second")
    assert [request.target for request in listed.requests] == ["/a?y=2&x=1", "/a?x=1&y=2"]


def test_a_request_that_is_not_listed_fails_the_test() -> None:
    with breaking("GET /b: is not listed") as server:
        server.allow("GET", "/a")
        assert fetch(server, "/b")[0] == 501


def test_a_request_that_comes_too_often_fails_the_test() -> None:
    with breaking("GET /a: came more often than listed") as server:
        server.expect("GET", "/a")
        server.allow("GET", "/b", at_most=1)
        assert [fetch(server, "/a")[0], fetch(server, "/b")[0], fetch(server, "/a")[0]] == [200, 200, 501]


def test_a_request_that_never_came_fails_the_test() -> None:
    with breaking("GET /a was listed 2 times and came 1 times\nwhat came:\n  GET /a -> 200") as server:
        server.expect("GET", "/a", Answer(), Answer())
        assert fetch(server, "/a")[0] == 200


def test_headers_that_are_missing_wrong_or_forbidden_fail_the_test() -> None:
    with breaking("Authorization is missing", "not 'Bearer t'", "Cookie is forbidden") as server:
        server.allow("GET", "/a", requires={"Authorization": "Bearer t"}, forbids=["Cookie"])
        for headers in ({}, {"Authorization": "Basic t"}, {"Authorization": "Bearer t", "Cookie": "c"}):
            assert fetch(server, "/a", headers=headers)[0] == 501
        assert fetch(server, "/a", headers={"Authorization": "Bearer t"})[0] == 200


def test_headers_choose_between_two_listings_of_one_target() -> None:
    with ScriptedServer() as server:
        server.allow("GET", "/a", Answer(status=401), forbids=["Authorization"])
        server.allow("GET", "/a", Answer(status=200), requires={"Authorization": None})
        assert fetch(server, "/a")[0] == 401
        assert fetch(server, "/a", headers={"Authorization": "any"})[0] == 200


def test_an_error_of_the_test_itself_is_kept_and_explained_by_what_came() -> None:
    def fails() -> None:
        with ScriptedServer() as server:
            server.expect("GET", "/never")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as error:
        fails()
    assert "GET /never was listed 1 times and came 0 times" in error.value.__notes__[0]


def test_a_scripted_function_that_raises_fails_the_test() -> None:
    def raises(_request: object) -> Answer:
        raise KeyError("mistake")

    with breaking("the script itself failed: KeyError('mistake')") as server:
        server.expect("GET", "/a", raises)
        with pytest.raises(http.client.RemoteDisconnected):
            fetch(server, "/a")


def test_a_connection_stays_open_over_several_requests_and_head_has_no_body() -> None:
    with ScriptedServer() as server, connected(server) as connection:
        for method in ("GET", "HEAD"):
            server.allow(method, "/a", Answer(body=b"12345"))
        server.expect("GET", "/chunked", Answer(body=b"abc" * 50_000, framing="chunked"))
        for method, target, body in (
            ("HEAD", "/a", b""),
            ("GET", "/chunked", b"abc" * 50_000),
            ("GET", "/a", b"12345"),
        ):
            connection.request(method, target)
            with connection.getresponse() as response:
                assert response.read() == body
                assert response.headers["Content-Length"] == (None if target == "/chunked" else "5")
    assert len({request.client_port for request in server.requests}) == 1


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_answer_is_cut_exactly_where_told(framing: str) -> None:
    answer = Answer(body=b"x" * 1000, cut_after_bytes=400, framing="chunked" if framing == "chunked" else "length")
    with ScriptedServer() as server:
        server.expect("GET", "/a", answer)
        with pytest.raises(http.client.IncompleteRead) as error:
            fetch(server, "/a")
    assert error.value.partial == b"x" * 400
    assert server.requests[0].body_bytes_sent == 400


def test_a_reset_and_a_missing_answer_reach_the_client_as_such() -> None:
    with ScriptedServer() as server:
        server.expect("GET", "/reset", Answer(body=b"x" * 10, cut_after_bytes=0, reset=True))
        server.expect("GET", "/closed", NO_ANSWER)
        server.expect("GET", "/garbage", Answer(raw=b"SSH-2.0-x\r\n\r\n"))
        with pytest.raises(ConnectionResetError):
            fetch(server, "/reset")
        with pytest.raises(http.client.RemoteDisconnected):
            fetch(server, "/closed")
        with pytest.raises(http.client.BadStatusLine):
            fetch(server, "/garbage")


def test_a_wrong_content_length_is_sent_as_scripted() -> None:
    with ScriptedServer() as server:
        server.expect("GET", "/short", Answer(body=b"12345", content_length=9))
        server.expect("GET", "/long", Answer(body=b"12345", content_length=3))
        with pytest.raises(http.client.IncompleteRead):
            fetch(server, "/short")
        assert fetch(server, "/long")[2] == b"123"


def test_a_body_drips_and_one_without_length_ends_with_the_connection() -> None:
    with ScriptedServer() as server:
        server.expect("GET", "/a", Answer(body=b"12345", drip_bytes=1, drip_seconds=0.05, framing="until_close"))
        began = time.monotonic()
        assert fetch(server, "/a")[2] == b"12345"
        assert time.monotonic() - began >= 0.2


def test_an_endless_body_flows_until_the_client_leaves_and_its_bytes_are_counted() -> None:
    with ScriptedServer() as server:
        server.expect("GET", "/a", Answer(endless=True, framing="chunked"))
        with connected(server) as connection:
            connection.request("GET", "/a")
            with connection.getresponse() as response:
                assert len(response.read(1024 * 1024)) == 1024 * 1024
    assert server.requests[0].body_bytes_sent >= 1024 * 1024
    assert not server.requests[0].was_answered


def test_an_answer_is_held_after_some_bytes_until_the_event_is_set() -> None:
    event = threading.Event()
    with ScriptedServer() as server, connected(server) as connection:
        server.expect("GET", "/a", Answer(body=b"12345678", hold=event, hold_after_bytes=3))
        connection.request("GET", "/a")
        with connection.getresponse() as response:
            assert response.read(3) == b"123"
            server.wait_for("GET", "/a")
            assert not server.requests[0].was_answered
            event.set()
            assert response.read() == b"45678"


def test_requests_held_together_are_counted_as_concurrent() -> None:
    event = threading.Event()
    with ScriptedServer() as server:
        server.expect("GET", "/a", Answer(hold=event), Answer(hold=event))
        threads = [threading.Thread(target=fetch, args=(server, "/a")) for _ in range(2)]
        for thread in threads:
            thread.start()
        server.wait_for("GET", "/a", count=2)
        event.set()
        for thread in threads:
            thread.join(5)
        assert server.peak_requests == 2


def test_leaving_a_server_ends_an_answer_that_is_still_held() -> None:
    began = time.monotonic()
    with ScriptedServer() as server, connected(server) as connection:
        server.expect("GET", "/a", Answer(hold=threading.Event()))
        connection.request("GET", "/a")
        server.wait_for("GET", "/a")
    assert time.monotonic() - began < 3


def test_a_server_may_drop_an_idle_connection_without_a_word() -> None:
    with ScriptedServer() as server, connected(server) as connection:
        server.expect("GET", "/a", Answer(body=b"x", close_silently=True))
        connection.request("GET", "/a")
        with connection.getresponse() as response:
            assert response.headers["Connection"] is None
            assert response.read() == b"x"
        assert connection.sock.recv(1) == b""


def test_a_range_is_served_exactly_and_only_where_it_is_scripted() -> None:
    with ScriptedServer() as server:
        server.allow("GET", "/plain", Answer(body=b"0123456789"))
        server.allow("GET", "/ranged", ranged(b"0123456789"))
        assert fetch(server, "/plain", headers={"Range": "bytes=4-"})[::2] == (200, b"0123456789")
        status, headers, body = fetch(server, "/ranged", headers={"Range": "bytes=4-"})
        assert (status, headers["Content-Range"], body) == (206, "bytes 4-9/10", b"456789")
        status, headers, body = fetch(server, "/ranged", headers={"Range": "bytes=10-"})
        assert (status, headers["Content-Range"], body) == (416, "bytes */10", b"")


def test_a_redirect_to_a_second_server_shows_whether_credentials_followed() -> None:
    with ScriptedServer() as origin, ScriptedServer() as storage:
        origin.expect("GET", "/a", redirect(f"{storage.url}/signed?sig=s"))
        storage.allow("GET", "/signed?sig=s", Answer(body=b"x"))
        status, headers, _ = fetch(origin, "/a", headers={"Authorization": "Bearer t"})
        assert (status, headers["Location"]) == (307, f"{storage.url}/signed?sig=s")
        assert fetch(storage, "/signed?sig=s")[2] == b"x"
        storage.assert_no_credentials()
        with pytest.raises(ScriptBroken, match="Authorization in GET /a"):
            origin.assert_no_credentials()


@pytest.mark.parametrize("line", [b"GET /a HTTP/1.0\r\nHost: x\r\n\r\n", b"GET /a HTTP/1.1\r\n\r\n", b"nonsense\r\n"])
def test_a_request_that_real_servers_refuse_fails_the_test(line: bytes) -> None:
    with (
        breaking("no HTTP/1.1 request") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as client,
    ):
        server.allow("GET", "/a")
        client.sendall(line)
        assert client.recv(1) == b""


def test_a_body_that_the_client_sends_is_recorded() -> None:
    with ScriptedServer() as server, connected(server) as connection:
        listed = server.expect("POST", "/token", Answer(), Answer())
        for body in (b"grant_type=refresh_token&scope=a%3Ab", iter([b"grant_type=refresh_token", b"&scope=a%3Ab"])):
            connection.request("POST", "/token", body=body)
            with connection.getresponse() as response:
                response.read()
    for request in listed.requests:
        assert request.form() == [("grant_type", "refresh_token"), ("scope", "a:b")]


def test_tls_is_spoken_with_a_certificate_that_only_who_knows_it_trusts(certificate: Certificate) -> None:
    with ScriptedServer(certificate=certificate) as server:
        server.expect("GET", "/a", Answer(body=b"secret"))
        with connected(server, certificate.client_context()) as connection:
            connection.request("GET", "/a")
            with connection.getresponse() as response:
                assert response.read() == b"secret"
        with connected(server, ssl.create_default_context()) as connection, pytest.raises(ssl.SSLError):
            connection.request("GET", "/a")
    assert server.url.startswith("https://127.0.0.1:")
    assert len(server.failed_handshakes) == 1


def test_a_client_that_tries_tls_on_a_plain_server_is_hung_up_on(certificate: Certificate) -> None:
    with (
        ScriptedServer() as server,
        connected(server, certificate.client_context()) as connection,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        connection.request("GET", "/a")
    assert server.failed_handshakes == ["TLS on a plain port"]


# Scripted registries


def test_a_served_image_wants_an_accept_that_names_its_type() -> None:
    image = build_index([build_image()])
    with ScriptedRegistry() as registry:
        serve_image(registry, "org/app", "1", image)
        target = manifest_target("org/app", "1")
        assert fetch(registry, target)[0] == 404
        assert fetch(registry, target, headers={"Accept": OCI_MANIFEST})[0] == 404
        status, headers, body = fetch(registry, target, headers={"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"})
        assert (status, headers["Docker-Content-Digest"], body) == (200, image.digest, image.blobs[image.digest])
        assert headers["Content-Type"] == OCI_INDEX


def test_an_exception_may_be_scripted_over_a_served_image() -> None:
    image = build_image()
    layer = image.layer_digests[0]
    target = blob_target("app", layer)
    with ScriptedRegistry() as registry:
        serve_image(registry, "app", "1", image)
        registry.expect("GET", target, Answer(status=503))
        assert fetch(registry, target)[0] == 503
        assert fetch(registry, target)[2] == image.blobs[layer]
        registry.allow("GET", target, Answer(status=404))
        assert fetch(registry, target)[0] == 404


def test_skopeo_pulls_a_served_index_through_a_token_server(tmp_path: Path) -> None:
    index = build_index([build_image(), build_image(platform="linux/arm64")], attestations=True)
    with TokenServer() as tokens, ScriptedRegistry() as registry:
        scope = pull_scope("org/app")
        tokens.expect_token("t1", service="test", scope=scope)
        challenge = tokens.challenge(service="test", scope=scope)
        serve_image(
            registry, "org/app", "1", index, authorization="Bearer t1", challenge=challenge, ranges=True, at_most=1
        )
        source = f"docker://{registry.reference('org/app', '1')}"
        run_skopeo("copy", "--all", "--src-tls-verify=false", source, f"oci:{tmp_path / 'layout'}:1")
        tokens.assert_no_credentials()
    assert read_layout_names(tmp_path / "layout")["1"]["digest"] == index.digest
    assert read_layout_blobs(tmp_path / "layout") == index.blobs


def test_a_token_server_wants_the_credentials_of_its_script() -> None:
    with TokenServer() as tokens:
        tokens.expect_token(
            "t1", "t2", service="s", scope="repository:a:pull", credentials=("user", "pass"), field="access_token"
        )
        target = "/token?scope=repository:a:pull&service=s"
        for token in ("t1", "t2"):
            _, _, body = fetch(tokens, target, headers={"Authorization": basic_credentials("user", "pass")})
            assert json.loads(body) == {"access_token": token, "expires_in": 300}
