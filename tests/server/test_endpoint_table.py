"""Every endpoint there is, tried by whoever may not ask: the table of the application itself says which there are."""

import ast
import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

import minibox_server
from minibox_server.app import create_app
from minibox_server.declarations import PASSED_OVER_BYTES, Endpoint, EndpointTable, parameters_of
from minibox_server.guard import Guard
from minibox_server.responses import is_distribution
from minibox_server.settings import Settings
from tests.server.clients import BASE_URL, TOKEN
from tests.support.asgi import asking

# What may be asked without a token, and nothing else: an endpoint that becomes open has to be put down here.
OPEN = {
    *(("GET", "/ui"), ("GET", "/ui/"), ("GET", "/ui/{file}")),
    *(("GET", "/healthz"), ("GET", "/readyz")),
}
OPEN_PATHS = {path for _, path in OPEN}
FILLING = {"name": "team/app", "reference": "1", "digest": "sha256:" + "0" * 64, "rest": "x", "file": "main.js"}
AUTHORIZED = {"X-API-Token": TOKEN}


def application(data_root: Path, **settings: Any) -> Starlette:
    return create_app(Settings(data_root=str(data_root), token=TOKEN, **settings))


def table_of(app: Starlette) -> EndpointTable:
    """Return the table that the application's guard decides by."""
    [table] = [each for guard in app.user_middleware for each in guard.args if isinstance(each, EndpointTable)]
    return table


def target_of(endpoint: Endpoint) -> str:
    """Return a target that leads to an endpoint."""
    return re.sub(r"\{(\w+)(:\w+)?\}", lambda found: FILLING.get(found[1], "x"), endpoint.path)


def client_of(app: Starlette) -> TestClient:
    return TestClient(app, base_url=BASE_URL, raise_server_exceptions=False, follow_redirects=False)


@pytest.fixture
def app(tmp_path: Path) -> Starlette:
    return application(tmp_path / "data")


def closed(app: Starlette) -> list[Endpoint]:
    return [each for each in table_of(app).endpoints if not each.is_open]


def test_s20_exactly_these_endpoints_are_open(app: Starlette) -> None:
    found = {(each.method, each.path) for each in table_of(app).endpoints if each.is_open}
    assert found <= OPEN
    assert all(method == "GET" for method, _ in found)


def test_the_table_is_what_is_served(app: Starlette) -> None:
    table = table_of(app)
    assert list(app.routes) == table.routes
    for each in table.endpoints:
        scope = {"type": "http", "method": each.method, "path": target_of(each), "root_path": "", "headers": []}
        found = table.find(scope)
        # An earlier path may cover the same target; it must not be open where this one is not.
        assert found is not None
        assert found.is_open == each.is_open


def test_s20_no_endpoint_but_an_open_one_answers_without_the_token(app: Starlette, tmp_path: Path) -> None:
    client = client_of(app)
    for each in table_of(app).endpoints:
        response = client.request(each.method, target_of(each))
        assert (response.status_code == 401) == (not each.is_open), f"{each.method} {each.path}"
        if not each.is_open:
            assert "minibox" in response.headers["www-authenticate"]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_s20_no_endpoint_answers_another_site_open_or_not_with_the_token_or_without(
    app: Starlette, tmp_path: Path, headers: dict[str, str]
) -> None:
    client = client_of(app)
    for each in table_of(app).endpoints:
        for more in ({}, AUTHORIZED):
            response = client.request(each.method, target_of(each), headers={**headers, **more})
            assert response.status_code == 403, f"{each.method} {each.path}"
            assert not [name for name in response.headers if name.startswith("access-control-")]
    assert not (tmp_path / "data").exists()


def body_that_nobody_reads() -> Iterator[bytes]:
    raise AssertionError("the body was read")
    yield b""


def test_s20_no_endpoint_reads_a_body_before_it_knows_who_asks(app: Starlette) -> None:
    client = client_of(app)
    for each in closed(app):
        for method in {each.method, "POST", "PUT", "PATCH", "DELETE"}:
            response = client.request(method, target_of(each), content=body_that_nobody_reads())
            assert response.status_code == 401, f"{method} {each.path}"
            assert response.headers["connection"] == "close"
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        for each in table_of(app).endpoints:
            more = {**headers, **AUTHORIZED}
            response = client.request(each.method, target_of(each), content=body_that_nobody_reads(), headers=more)
            assert response.status_code == 403


def asked(app: Starlette, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Ask for a path as it comes from a socket, which no client has made a better one of; without the token."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": unquote(path), "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(b"host", b"localhost")], "root_path": "", "scheme": "http", "http_version": "1.1"}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_s20_an_open_path_is_open_in_its_one_spelling_and_method(app: Starlette) -> None:
    for each in table_of(app).endpoints:
        if not each.is_open:
            continue
        path = target_of(each)
        content = asked(app, path)
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"):
            assert asked(app, path, method)[0] == 401, f"{method} {path}"
        spellings = [
            f"/{path}",
            f"{path}/..",
            f"{path}/../images",
            f"{path}/.",
            f"{path}//",
            f"/x/..{path}",
            f"/.{path}",
        ]
        spellings += [f"{path}%2f", f"{path}/%2e%2e/images", f"{path};x", f"{path}%3fx", path.upper(), f"{path}%00"]
        spellings += [f"{path}%0a", f"{path}%20", f"{path}\\..\\images", f"/%2e{path}", f"{path}.", f"{path}%c0%af"]
        for spelling in spellings:
            if unquote(spelling) in OPEN_PATHS:
                continue
            # A name below /ui that is none is looked up, and not there.
            status, body = asked(app, spelling)
            assert status in (400, 401, 404), spelling
            assert body not in (content[1], b"[]"), spelling


@pytest.mark.parametrize(
    "path",
    ["/ui/../images", "/ui/%2e%2e/images", "/ui/..%2fimages", "/ui//images", "/healthz/../images", "/ui/./images"],
)
def test_s20_nothing_is_reached_by_way_of_what_is_open(app: Starlette, path: str) -> None:
    assert asked(app, path)[0] in (400, 401, 404)


def test_no_open_endpoint_takes_a_body_or_a_path_of_several_segments(app: Starlette) -> None:
    for each in table_of(app).endpoints:
        if each.is_open:
            assert each.body is None
            assert ":path" not in each.path


def test_s22_every_body_that_is_not_the_stores_own_is_bounded(app: Starlette) -> None:
    for each in table_of(app).endpoints:
        if each.body is not None and each.body.most_bytes is not None:
            assert each.body.most_bytes <= 4 * 1024 * 1024, f"{each.method} {each.path}"


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("application/x-www-form-urlencoded", b"image=app:1&path=/tmp/x&platform=linux/amd64&new_name=b:1"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\napp:1\r\n--b\r\n'
            b'Content-Disposition: form-data; name="path"; filename="x"\r\n\r\n/tmp/x\r\n--b--\r\n',
        ),
        ("application/json", b'{"image": "app:1", "path": "/tmp/x"}'),
    ],
)
def test_s22_no_parameter_is_taken_from_a_body(tmp_path: Path, media_type: str, body: bytes) -> None:
    client = client_of(application(tmp_path / "data"))
    for path in ("/images/pull", "/images/save", "/images/remove"):
        response = client.post(path, content=body, headers={"Content-Type": media_type, **AUTHORIZED})
        assert response.status_code == 400
        assert "missing" in response.text


def test_s22_a_body_that_nobody_asked_for_is_bounded_at_every_endpoint(app: Starlette) -> None:
    client = client_of(app)
    for each in table_of(app).endpoints:
        if each.body is None:
            headers = {**AUTHORIZED, "Content-Length": str(PASSED_OVER_BYTES + 1)}
            assert client.request(each.method, target_of(each), headers=headers).status_code == 413


def test_s22_the_server_has_none_of_what_reads_forms_or_many_ranges() -> None:
    read = {"form", "json"}
    imported = {"FileResponse", "StaticFiles", "FormParser", "MultiPartParser", "CORSMiddleware"}
    [folder] = minibox_server.__path__
    files = list(Path(folder).rglob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr in read | imported), f"{file.name}: {node.attr}"
            assert not (isinstance(node, ast.alias) and node.name in imported), f"{file.name}: {node.name}"


@pytest.mark.parametrize("n", ["99999999999999999999999", "9" * 5000, "1e9", "-1", "0x10", "", "٣"])
def test_s25_how_much_is_listed_at_once_is_not_for_the_client_to_say(app: Starlette, n: str) -> None:
    client = client_of(app)
    paged = [each for each in table_of(app).endpoints if "n" in parameters_of(each.query)]
    assert {each.path for each in paged} >= {"/v2/{name:path}/tags/list"}
    for each in paged:
        response = client.get(target_of(each), params={"n": n}, headers=AUTHORIZED)
        assert response.status_code in (200, 400, 404)
        assert len(response.content) < 1000


def test_a_parameter_that_an_endpoint_does_not_have_is_refused_before_anything_is_done(
    app: Starlette, tmp_path: Path
) -> None:
    client = client_of(app)
    for each in closed(app):
        if is_distribution(each.path) or each.path in ("/ping", "/images/load"):
            continue
        known = parameters_of(each.query)
        needed = "".join(f"{name}=x&" for name, (_, is_needed) in known.items() if is_needed)
        for query, name in (("DRY_RUN=1", "DRY_RUN"), ("%0A[pull]+Done%FF", "\\x0a[pull] Done\\udcff")):
            response = client.request(each.method, f"{target_of(each)}?{needed}{query}", headers=AUTHORIZED)
            assert response.status_code == 400, f"{each.method} {each.path}"
            assert response.text == f"parameter {name} is unknown; known here: {', '.join(known) or 'none'}\n"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("path", ["/v2/?ns=docker.io", "/ui?a=1", "/ui/main.js?a=1", "/healthz?verbose", "/readyz?t=1"])
def test_clients_of_the_distribution_and_of_what_is_open_may_say_more(app: Starlette, path: str) -> None:
    assert client_of(app).get(path, headers=AUTHORIZED).status_code == 200


def test_requests_above_the_most_at_once_are_told_to_come_again(tmp_path: Path) -> None:
    full = client_of(application(tmp_path / "data", max_requests=0))
    for each in table_of(application(tmp_path / "data")).endpoints:
        response = full.request(each.method, target_of(each), headers=AUTHORIZED)
        assert (response.status_code == 503) == (not each.is_open), f"{each.method} {each.path}"
        if not each.is_open:
            assert response.headers["retry-after"] == "1"
    # Who may not ask is not told more.
    assert full.get("/images").status_code == 401


def test_as_many_requests_as_may_be_are_answered_at_once_and_one_that_has_ended_makes_room() -> None:
    async def run() -> None:
        goes_on = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await goes_on.wait()
            await Response()(scope, receive, send)

        guard = Guard(app, Settings(max_requests=2), EndpointTable([]))
        async with asking(guard, "GET", "/a") as first, asking(guard, "GET", "/b") as second:
            async with asking(guard, "GET", "/c") as refused:
                assert (await refused.end()).status == 503
            goes_on.set()
            assert [(await each.end()).status for each in (first, second)] == [200, 200]
        for _ in range(3):
            async with asking(guard, "GET", "/d") as again:
                assert (await again.end()).status == 200

    asyncio.run(run())
