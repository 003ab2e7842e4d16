"""The log of the daemon: one line a request, the id that the answer carries too, and no secret."""

import asyncio
import base64
import io
import json
import logging
import logging.config
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minibox_server.declarations import Answer, Endpoint, EndpointTable
from minibox_server.guard import Guard
from minibox_server.logs import JsonFormatter, TextFormatter, logging_settings
from minibox_server.settings import Settings
from minibox_server.zero_copy import EXTENSION as ZERO_COPY
from tests.server.clients import BASE_URL, TOKEN, client_of
from tests.support.daemon import Daemon, running_daemon
from tests.support.images import build_image
from tests.support.layouts import write_layout
from tests.support.processes import wait_until
from tests.support.scripted_registry import Answer as ScriptedAnswer
from tests.support.scripted_registry import ScriptedRegistry, manifest_target, unauthorized

HEADER = "X-Request-ID"


@contextmanager
def written(formatter: logging.Formatter) -> Iterator[io.StringIO]:
    """Give what the daemon's loggers write, in this form."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(formatter)
    logger = logging.getLogger("minibox_server")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        yield text
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def lines_of(text: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.getvalue().splitlines()]


def broken_client() -> TestClient:
    async def fail(request: Request, query: Any) -> Response:
        raise LookupError("what only\nthe log may say")

    answers = (Answer(what="it"),)
    endpoints = EndpointTable([Endpoint(method="GET", path="/{name}", what="x", call=fail, answers=answers)])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await endpoints.routes[0].app(scope, receive, send)

    return TestClient(Guard(app, Settings(), endpoints), base_url=BASE_URL)


# ---- ids


def test_every_answer_carries_an_id_of_its_own(tmp_path: Path) -> None:
    client = client_of(tmp_path / "data")
    answers = [client.get(path) for path in ("/ping", "/nowhere", "/v2/", "/images/remove", "/ping?" + "x" * 20_000)]
    assert [each.status_code for each in answers] == [200, 404, 200, 405, 414]
    ids = [each.headers[HEADER] for each in answers]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{16}", each) for each in ids)


@pytest.mark.parametrize("given", ["01234567", "7c1e4b0e-3f57-4f2d-9d5c-6a3f6b0f0b3a", "trace_1.span-2", "a" * 64])
def test_an_id_of_the_usual_form_is_taken_over(tmp_path: Path, given: str) -> None:
    assert client_of(tmp_path / "data").get("/ping", headers={HEADER: given}).headers[HEADER] == given


@pytest.mark.parametrize(
    "given",
    ["", "short", "a" * 65, "with space", "semi;colon1", "-begins-so", "é" * 10, 'quo"te1234', "<script>1"],
)
def test_any_other_id_is_passed_over(tmp_path: Path, given: str) -> None:
    answer = client_of(tmp_path / "data").get("/ping", headers=[(HEADER.encode(), given.encode("latin-1"))])
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers[HEADER])


def test_an_id_that_is_given_twice_is_passed_over(tmp_path: Path) -> None:
    answer = client_of(tmp_path / "data").get("/ping", headers=[(HEADER, "first-one-1"), (HEADER, "second-one")])
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers[HEADER])


# ---- lines


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_line_is_bounded_however_long_what_was_asked_for_is(tmp_path: Path, formatter: logging.Formatter) -> None:
    with written(formatter) as text:
        client_of(tmp_path / "data").request("A" * 20_000, "/" + "b" * 15_000)
    [line] = text.getvalue().splitlines()
    assert "AAAA" in line
    assert "/bbbb" in line
    assert len(line) < 2500


def test_a_line_in_json_says_what_was_asked_and_answered(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {"app:1": build_image()})
    client = client_of(tmp_path / "data")
    with written(JsonFormatter()) as text:
        answer = client.get("/v2/app/tags/list?n=1&last=a-secret", headers={"X-API-Token": "a-secret"})
        client.post("/nowhere?a-secret=1", content=b"12345")
        client.head("/images")
    [listed, absent, head] = lines_of(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", listed.pop("time"))
    assert 0 < listed.pop("duration_ms") < 60_000
    assert listed == {
        "level": "INFO",
        "logger": "minibox_server.access",
        "message": "request",
        "request_id": answer.headers[HEADER],
        "client": "testclient",
        "method": "GET",
        "path": "/v2/app/tags/list",
        "route": "/v2/{name:path}/tags/list",
        "status": 200,
        "bytes_in": 0,
        "bytes_out": len(answer.content),
        "ended_early": False,
    }
    assert (absent["route"], absent["status"]) == (None, 404)
    assert (head["method"], head["route"], head["status"], head["bytes_out"]) == ("HEAD", "/images", 200, 0)
    assert "secret" not in text.getvalue()


def test_an_error_and_its_traceback_are_one_line_of_json_with_the_id_of_the_request() -> None:
    with written(JsonFormatter()) as text:
        answer = broken_client().get("/it")
    [error, request] = lines_of(text)
    assert answer.status_code == 500
    assert error["level"] == "ERROR"
    assert "Traceback" in error["traceback"]
    assert "what only\nthe log may say" in error["traceback"]
    assert error["request_id"] == request["request_id"] == answer.headers[HEADER]
    assert (request["route"], request["status"]) == ("/{name}", 500)


def test_a_line_of_text_has_the_id_and_no_line_has_two(tmp_path: Path) -> None:
    client = client_of(tmp_path / "data")
    with written(TextFormatter()) as text:
        answer = client.get("/ping")
        client.get("/a%0aline")
    [ping, broken] = text.getvalue().splitlines()
    request_id = answer.headers[HEADER]
    assert re.fullmatch(
        rf'\S+ \S+ INFO minibox_server.access \[{request_id}\]: testclient "GET /ping" 200 \d+ ms', ping
    )
    assert '"GET /a\\x0aline" 400' in broken


@pytest.mark.parametrize("separator", ["\n", "\r", "\u2028", "\x1b[31m", "\x85"])
def test_what_comes_from_outside_is_one_line_in_json_too(separator: str) -> None:
    record = logging.LogRecord("minibox_server", logging.INFO, "", 0, "%s", (f"a{separator}b",), None)
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == f"a{separator}b"


def test_the_settings_of_both_forms_are_taken_by_the_logging_library() -> None:
    for log_format in ("text", "json"):
        settings = logging_settings(log_format)
        settings["loggers"] = {"tests.a_logger_of_its_own": {"handlers": ["stderr"], "propagate": False}}
        logging.config.dictConfig(settings)
        [handler] = logging.getLogger("tests.a_logger_of_its_own").handlers
        assert isinstance(handler.formatter, JsonFormatter if log_format == "json" else TextFormatter)
        logging.getLogger("tests.a_logger_of_its_own").removeHandler(handler)


# ---- how a request ended

GONE: Message = {"type": "http.disconnect"}
START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def told_of(app: ASGIApp, *incoming: Message) -> tuple[dict[str, Any], list[Message]]:
    """Return what the log tells of one request to an application, and what was sent to the client."""
    sent: list[Message] = []
    messages = iter(incoming)

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", b"5")]
    scope = {"type": "http", "method": "POST", "path": "/it", "query_string": b"", "headers": headers}
    endpoints = EndpointTable([])
    with written(JsonFormatter()) as text:
        asyncio.run(Guard(app, Settings(), endpoints)({**scope, "scheme": "http"}, receive, send))
    return lines_of(text)[-1], sent


def answering(*pieces: Message, then_listens: bool = False) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for piece in (START, *pieces):
            await send({**piece})
        if then_listens:
            await receive()

    return app


BODY: Message = {"type": "http.request", "body": b"12345"}
WHOLE: Message = {"type": "http.response.body", "body": b"123"}
PART: Message = {**WHOLE, "more_body": True}
BY_THE_KERNEL: Message = {"type": ZERO_COPY, "count": 7}


@pytest.mark.parametrize(
    ("pieces", "bytes_out", "ended_early"),
    [
        ((WHOLE,), 3, False),
        ((PART, WHOLE), 6, False),
        ((PART,), 3, True),
        ((), 0, True),
        ((BY_THE_KERNEL,), 7, False),
        (({**BY_THE_KERNEL, "more_body": True},), 7, True),
    ],
)
@pytest.mark.parametrize("then_leaves", [False, True])
def test_an_answer_ended_early_if_its_last_piece_was_not_sent_before_the_client_went(
    pieces: tuple[Message, ...], bytes_out: int, ended_early: bool, then_leaves: bool
) -> None:
    line, _ = told_of(answering(*pieces, then_listens=then_leaves), BODY, GONE)
    assert (line["bytes_in"], line["bytes_out"], line["ended_early"]) == (5, bytes_out, ended_early)


def test_an_answer_to_a_client_that_had_gone_ended_early() -> None:
    line, _ = told_of(answering(WHOLE), GONE)
    assert (line["status"], line["ended_early"]) == (200, True)


def test_who_waits_for_an_answer_as_the_daemon_ends_is_told_to_come_again() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    line, (start, body) = told_of(app, BODY)
    assert (line["status"], start["status"], b"shutting down" in body["body"]) == (503, 503, True)
    assert (b"retry-after", b"5") in start["headers"]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("unexpected")], ids=["the end", "an error"])
def test_an_answer_that_has_begun_is_cut_short_and_no_other_follows(error: BaseException) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**START})
        await send({**PART})
        raise error

    line, sent = told_of(app, BODY)
    assert [message["type"] for message in sent] == [START["type"], PART["type"]]
    assert (line["status"], line["ended_early"]) == (200, True)


# ---- the daemon as it runs


PLANTED = ("planted-token-0123456789", "planted-password", "planted-query", "planted-user", "planted-header")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("logs")
    write_layout(folder / "data", {"app:1": build_image()})
    environment = {"MINIBOX_LOG_FORMAT": "json", "MINIBOX_ARCHIVE_PREFIXES": str(folder)}
    with running_daemon(folder, data_root=folder / "data", token=PLANTED[0], environment=environment) as daemon:
        yield daemon


def test_s28_no_planted_secret_is_in_the_log(daemon: Daemon, tmp_path: Path) -> None:
    token, password, query, user, header = PLANTED
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    with ScriptedRegistry() as registry:
        registry.allow("GET", "/v2/", ScriptedAnswer())
        for method in ("GET", "HEAD"):
            registry.allow(method, manifest_target("team/denied", "1"), unauthorized(f'Basic realm="{header}"'))
        secret = {"planted": query, "token": query}
        for headers in (
            {"Authorization": f"Bearer {token}"},
            {"X-API-Token": f"{token}x"},
            {"Authorization": f"Basic {basic}"},
            {"Authorization": f"Bearer {header} {header}"},
            {"Cookie": header, "X-API-Token": token, "Referer": f"http://127.0.0.1/{header}"},
            {HEADER: f"{header} {header}", "X-API-Token": token},
            {"Host": f"{header}.example.com", "X-API-Token": token},
            {"Origin": f"https://{header}.example.com", "X-API-Token": token},
        ):
            for method, path in (("GET", "/images"), ("GET", "/nowhere"), ("POST", "/images/remove"), ("GET", "/v2/")):
                daemon.request(method, path, secret, headers=headers, with_token=False)
        daemon.request("POST", "/images/pull", {"image": registry.reference("team/denied", "1"), "planted": query})
        daemon.request("POST", "/images/pull", {"image": f"{user}:{password}@127.0.0.1:1/{query}:x"})
        daemon.request("POST", "/images/load", {"path": "/nowhere", "planted": query}, body=header.encode())
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=5) as connection:
        connection.sendall(f"GET /ping?{query} HTTP/1.1\r\nX-Broken {header}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    log = daemon.read_log()
    assert len(log.splitlines()) > 30
    assert [each for each in PLANTED if each in log] == []
    assert basic not in log


def test_a_client_that_goes_away_is_told_of_as_such(daemon: Daemon, tmp_path: Path) -> None:
    with ScriptedRegistry() as registry:
        registry.allow("GET", "/v2/", ScriptedAnswer(hold=threading.Event()))
        registry.allow("GET", manifest_target("team/slow", "1"), ScriptedAnswer(hold=threading.Event()))
        registry.allow("HEAD", manifest_target("team/slow", "1"), ScriptedAnswer(hold=threading.Event()))
        request_id = "goes-away-early"
        query = {"image": registry.reference("team/slow", "1")}
        with daemon.stream("POST", "/images/pull", query, headers={HEADER: request_id}) as stream:
            assert stream.headers[HEADER.lower()] == request_id
            assert next(iter(stream)).startswith("[pull] fetching")
        wait_until(lambda: f'"{request_id}"' in daemon.read_log(), daemon.process, log=daemon.log)
    wait_until(lambda: len(lines_with(daemon, request_id)) == 2, daemon.process, log=daemon.log)
    lines = {line["message"]: line for line in lines_with(daemon, request_id)}
    request, operation = lines["request"], lines["operation"]
    assert (request["status"], request["ended_early"], request["route"]) == (200, True, "/images/pull")
    assert (operation["operation"], operation["outcome"], operation["error"]) == ("pull", "cancelled", None)


def lines_with(daemon: Daemon, request_id: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, daemon.read_log().splitlines()) if line["request_id"] == request_id]


def test_an_operation_has_a_line_with_the_id_of_who_asked_for_it(daemon: Daemon) -> None:
    for path, error in (("/nowhere.tar", "RequestError403"), (f"{daemon.data_root.parent}/x.tar", "RequestError400")):
        answer = daemon.request("POST", "/images/load", {"path": path})
        request_id = answer.headers[HEADER.lower()]
        wait_until(lambda: len(lines_with(daemon, request_id)) == 2, daemon.process, log=daemon.log)  # noqa: B023
        lines = {line["message"]: line for line in lines_with(daemon, request_id)}
        assert lines["request"]["status"] == answer.status
        assert (lines["operation"]["operation"], lines["operation"]["outcome"]) == ("load", "failed")
        assert lines["operation"]["error"] == error
        assert lines["operation"]["duration_ms"] > 0


def test_every_line_of_the_daemon_is_json(daemon: Daemon) -> None:
    daemon.get("/ping")
    lines = [json.loads(line) for line in daemon.read_log().splitlines()]
    assert lines[0]["message"].startswith("listening on")
    assert all({"time", "level", "logger", "message", "request_id"} <= set(line) for line in lines)
    assert TOKEN not in daemon.read_log()
