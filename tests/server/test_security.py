"""Who may ask, and from where: S20, S21, and what every answer carries."""

import base64
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from minibox_server.app import create_app
from minibox_server.settings import Settings
from tests.server.clients import BASE_URL, TOKEN, client_of, code_of, sentence_of

CREDENTIALS = [
    {"Authorization": f"Bearer {TOKEN}"},
    {"Authorization": f"bearer  {TOKEN}"},
    {"X-API-Token": TOKEN},
    {"X-API-Token": TOKEN, "Authorization": "Bearer wrong"},
]
NO_CREDENTIALS = [
    {},
    {"Authorization": TOKEN},
    {"Authorization": f"Token {TOKEN}"},
    {"Authorization": f"Bearer{TOKEN}"},
    {"Authorization": "Bearer"},
    {"Authorization": f"Bearer {TOKEN}x"},
    {"Authorization": f"Bearer {TOKEN[:-1]}"},
    {"Authorization": f"Bearer {TOKEN.upper()}"},
    {"Authorization": f"Bearer {TOKEN} {TOKEN}"},
    {"Authorization": "Digest " + base64.b64encode(f"user:{TOKEN}".encode()).decode()},
    {"X-API-Token": ""},
    {"X-API-Token": f"Bearer {TOKEN}"},
    {"Cookie": f"token={TOKEN}"},
]
ENDPOINTS = [
    ("GET", "/ping"),
    ("GET", "/images"),
    ("POST", "/images/pull?image=a"),
    ("POST", "/images/save?image=a&path=/tmp/x"),
    ("POST", "/images/load?path=/tmp/x"),
    ("POST", "/images/remove?image=a"),
    ("POST", "/system/prune"),
    ("GET", "/nothing"),
    ("DELETE", "/images"),
    ("GET", "/v2/"),
    ("GET", "/v2/app/tags/list"),
]


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(("method", "target"), ENDPOINTS)
def test_s20_no_endpoint_answers_without_the_token(tmp_path: Path, method: str, target: str) -> None:
    response = client_of(tmp_path / "data", token=TOKEN).request(method, target)
    assert response.status_code == 401
    if target.startswith("/v2"):
        assert response.headers["www-authenticate"] == 'Basic realm="minibox"'
        assert code_of(response) == "UNAUTHORIZED"
    else:
        assert response.headers["www-authenticate"] == 'Bearer realm="minibox"'
        assert response.text == "Unauthorized\n"


@pytest.mark.parametrize("headers", CREDENTIALS)
def test_s20_the_token_is_taken_from_either_header(tmp_path: Path, headers: dict[str, str]) -> None:
    assert client_of(tmp_path, token=TOKEN).get("/ping", headers=headers).text == "Daemon is running"
    assert client_of(tmp_path, token=TOKEN).get("/v2/", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", NO_CREDENTIALS)
def test_s20_nothing_else_is_taken_for_the_token(tmp_path: Path, headers: dict[str, str]) -> None:
    assert client_of(tmp_path, token=TOKEN).get("/ping", headers=headers).status_code == 401
    assert client_of(tmp_path, token=TOKEN).get("/v2/", headers=headers).status_code == 401


@pytest.mark.parametrize("name", ["Authorization", "X-API-Token"])
def test_s20_a_repeated_credential_counts_as_none(tmp_path: Path, name: str) -> None:
    value = f"Bearer {TOKEN}" if name == "Authorization" else TOKEN
    response = client_of(tmp_path, token=TOKEN).get("/ping", headers=[(name, value), (name, value)])
    assert response.status_code == 401


@pytest.mark.parametrize("user", ["", "anybody"])
def test_under_v2_the_token_is_also_a_password_of_any_user(tmp_path: Path, user: str) -> None:
    client = client_of(tmp_path, token=TOKEN)
    assert client.get("/v2/", headers=basic(user, TOKEN)).status_code == 200
    assert client.get("/ping", headers=basic(user, TOKEN)).status_code == 401


@pytest.mark.parametrize(
    "value", ["Basic", "Basic !!!", "Basic " + base64.b64encode(TOKEN.encode()).decode(), f"Basic {TOKEN}"]
)
def test_malformed_basic_credentials_are_refused(tmp_path: Path, value: str) -> None:
    assert client_of(tmp_path, token=TOKEN).get("/v2/", headers={"Authorization": value}).status_code == 401


def test_a_password_that_is_not_the_token_is_refused(tmp_path: Path) -> None:
    client = client_of(tmp_path, token=TOKEN)
    for user, password in [(TOKEN, ""), ("user", "wrong"), ("user", TOKEN + ":")]:
        assert client.get("/v2/", headers=basic(user, password)).status_code == 401


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2/app/manifests/1", "/v2/nowhere/else", "/v2/%0a"])
def test_every_answer_under_v2_names_the_version_of_the_api(tmp_path: Path, path: str) -> None:
    for client in (client_of(tmp_path), client_of(tmp_path, token=TOKEN)):
        response = client.get(path)
        assert response.headers["docker-distribution-api-version"] == "registry/2.0"
        assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/v20", "/v2x/", "/V2/", "//v2/", "/images"])
def test_nothing_else_is_taken_for_a_part_of_v2(tmp_path: Path, path: str) -> None:
    response = client_of(tmp_path, token=TOKEN).get(path, headers=basic("user", TOKEN))
    assert response.status_code == 401
    assert "docker-distribution-api-version" not in response.headers


@pytest.mark.parametrize(("method", "target"), ENDPOINTS)
def test_every_answer_says_nosniff(tmp_path: Path, method: str, target: str) -> None:
    for headers in ({}, {"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        for token in (None, TOKEN):
            response = client_of(tmp_path / "data", token=token).request(method, target, headers=headers)
            assert response.headers.get_list("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:1", "LOCALHOST:8080", "127.0.0.1", "127.8.9.10:80", "[::1]:8080", "[0:0:0:0:0:0:0:1]"],
)
def test_s20_a_loopback_name_is_a_host_of_this_daemon(tmp_path: Path, host: str) -> None:
    assert client_of(tmp_path).get("/ping", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1"),
        *("", "a/b?x=", "localhost/", "user@localhost", "localhost:80:80", "[::1", "::1", "[::2]", "localhost:x"),
        *(
            "127.0.0.1#",
            "127.1",
            "0.0.0.0",
            "localhost,evil.example",
            "127.0.0.1:99999",
            "[127.0.0.1]",
            "local host",
            "[::1%lo]",
        ),
    ],
)
def test_s20_any_other_host_is_refused(tmp_path: Path, host: str) -> None:
    response = client_of(tmp_path).get("/images", headers={"Host": host})
    assert response.status_code == 403
    assert "host" in sentence_of(response).lower()


def test_s20_two_hosts_are_refused(tmp_path: Path) -> None:
    headers = [("Host", "localhost"), ("Host", "localhost")]
    assert client_of(tmp_path).get("/ping", headers=headers).status_code == 403


def test_s20_the_address_that_is_listened_on_is_a_host(tmp_path: Path) -> None:
    client = client_of(tmp_path, host="minibox.example", port=80)
    assert client.get("/ping", headers={"Host": "Minibox.Example"}).status_code == 200
    assert client.get("/ping", headers={"Host": "other.example"}).status_code == 403


@pytest.mark.parametrize("url", ["http://10.1.2.3:8080", "http://[2001:db8::5]:8080"])
def test_s20_the_local_address_of_the_connection_is_a_host(tmp_path: Path, url: str) -> None:
    client = TestClient(create_app(Settings(data_root=str(tmp_path), host="")), base_url=url)
    assert client.get("/ping").status_code == 200
    assert client.get("/ping", headers={"Host": "10.1.2.4"}).status_code == 403


def test_s20_a_name_is_never_taken_for_the_local_address(tmp_path: Path) -> None:
    client = TestClient(create_app(Settings(data_root=str(tmp_path), host="")), base_url="http://rebound.example")
    assert client.get("/ping").status_code == 403


def test_hosts_that_the_operator_lists_are_allowed_with_their_port_or_any(tmp_path: Path) -> None:
    client = client_of(tmp_path, allowed_hosts=(("a.example", None), ("b.example", 81)))
    statuses = [
        client.get("/ping", headers={"Host": host}).status_code
        for host in ("a.example", "A.example:5", "b.example:81", "b.example", "b.example:82", "x.a.example")
    ]
    assert statuses == [200, 200, 200, 403, 403, 403]


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("localhost", "https://localhost:443"),
        ("[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_s20_a_page_of_this_daemon_may_ask(tmp_path: Path, host: str, origin: str) -> None:
    headers = {"Host": host, "Origin": origin, "Sec-Fetch-Site": "same-origin"}
    assert client_of(tmp_path).get("/ping", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        *("http://evil.example", "null", "", "http://127.0.0.1:8081", "http://127.0.0.1", "https://127.0.0.1"),
        *("http://localhost:8080", "file://", "127.0.0.1:8080", "http://127.0.0.1:8080/", "http://127.0.0.1:8080@evil"),
        *("ftp://127.0.0.1:8080", "http://127.0.0.1:8080 http://evil.example", "http://127.0.0.1:99999"),
    ],
)
def test_s20_another_origin_is_refused(tmp_path: Path, origin: str) -> None:
    headers = {"Host": "127.0.0.1:8080", "Origin": origin}
    for method, target in ENDPOINTS:
        assert client_of(tmp_path / "data").request(method, target, headers=headers).status_code == 403
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("path", ["/ping%0a", "/v2%0a", "/v2/%0a", "/images%00", "/%1b[2J", "/%e2%80%a8"])
def test_s21_a_path_with_control_characters_is_no_path(tmp_path: Path, path: str) -> None:
    response = client_of(tmp_path).get(path)
    assert response.status_code == 400
    assert "\x1b" not in response.text


@pytest.mark.parametrize("site", ["cross-site", "same-site", "unheard-of", ""])
def test_s20_what_another_site_makes_a_browser_send_is_refused(tmp_path: Path, site: str) -> None:
    client = client_of(tmp_path / "data")
    assert client.post("/system/prune", headers={"Sec-Fetch-Site": site}).status_code == 403
    assert client.get("/v2/", headers={"Sec-Fetch-Site": site}).status_code == 403


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_s20_what_a_person_types_into_a_browser_is_answered(tmp_path: Path, site: str) -> None:
    assert client_of(tmp_path).get("/ping", headers={"Sec-Fetch-Site": site}).status_code == 200


def test_s20_no_answer_lets_another_origin_read_it(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    preflight = client.options("/images", headers={"Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 405
    for response in (preflight, client.get("/images"), client.get("/v2/")):
        assert not [name for name in response.headers if name.startswith("access-control-")]


def test_s20_the_refusal_comes_before_the_body_is_read(tmp_path: Path) -> None:
    def body() -> object:
        raise AssertionError("the body was read")
        yield b""

    client = client_of(tmp_path, token=TOKEN)
    response = client.post("/images/load?path=/tmp/x", content=body())  # type: ignore[arg-type]
    assert response.status_code == 401
    assert response.headers["connection"] == "close"


def test_s21_the_path_alone_decides_who_needs_what(tmp_path: Path) -> None:
    client = client_of(tmp_path, token=TOKEN)
    for path in ("/v2/../images", "/ping/../images", "/images?/v2/", "/images;/v2/", "/images#/v2/"):
        assert client.get(path, headers=basic("user", TOKEN)).status_code == 401


def test_a_slash_at_the_end_leads_nowhere_and_redirects_nobody(tmp_path: Path) -> None:
    response = client_of(tmp_path).get("/ping/", follow_redirects=False)
    assert response.status_code == 404
    assert "location" not in response.headers


def test_a_query_that_is_too_long_is_refused(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    assert client.get("/ping?" + "a" * 16_000).status_code == 200
    assert client.get("/ping?" + "a" * 17_000).status_code == 414
    assert client.get("/" + "a" * 17_000).status_code == 414


def test_headers_that_are_too_many_or_too_long_are_refused(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    assert client.get("/ping", headers={"X-Long": "a" * 30_000}).status_code == 200
    assert client.get("/ping", headers={"X-Long": "a" * 33_000}).status_code == 431
    assert client.get("/ping", headers=[(f"X-{number}", "a") for number in range(101)]).status_code == 431


@pytest.mark.parametrize(
    ("length", "status"), [("0", 200), ("65536", 200), ("65537", 413), ("9" * 5000, 413), ("-1", 400), ("1e3", 400)]
)
def test_a_body_that_is_announced_as_too_large_is_refused(tmp_path: Path, length: str, status: int) -> None:
    response = client_of(tmp_path).post("/system/prune", headers={"Content-Length": length})
    assert response.status_code == status


def test_a_websocket_is_not_opened(tmp_path: Path) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client_of(tmp_path).websocket_connect(BASE_URL.replace("http", "ws")):
        raise AssertionError("it was opened")
    assert client_of(tmp_path).get("/ping").status_code == 200
