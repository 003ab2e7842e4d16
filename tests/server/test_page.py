"""The files of the page, as the daemon gives them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.server.clients import TOKEN, client_of

STATIC = Path(__file__).parents[2] / "minibox_server" / "page" / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
PARTS = sorted(file.name for file in STATIC.iterdir() if file.name != "index.html")


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """A client without a token of a daemon that wants one."""
    return client_of(tmp_path / "data", token=TOKEN)


def sources() -> Iterator[tuple[str, str]]:
    for file in sorted(STATIC.iterdir()):
        yield file.name, file.read_text()


def test_the_page_is_given_without_a_token_and_nothing_else_is(client: TestClient) -> None:
    response = client.get("/ui")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text == (STATIC / "index.html").read_text()
    assert client.get("/images").status_code == 401
    assert client.post("/ui").status_code == 401


@pytest.mark.parametrize("name", PARTS)
def test_each_part_is_given_as_it_stands(client: TestClient, name: str) -> None:
    response = client.get(f"/ui/{name}")
    assert (response.status_code, response.content) == (200, (STATIC / name).read_bytes())
    kinds = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
    assert response.headers["content-type"] == kinds[name.rpartition(".")[2]]


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/main.js", "/ui/style.css"])
def test_every_answer_has_the_strict_headers(client: TestClient, path: str) -> None:
    headers = client.get(path, follow_redirects=False).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert headers.get_list("x-content-type-options") == ["nosniff"]
    assert "camera=()" in headers["permissions-policy"]


@pytest.mark.parametrize("path", ["/ui", "/ui/main.js"])
def test_what_a_client_has_already_is_not_sent_again(client: TestClient, path: str) -> None:
    first = client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    changed = client.get(path, headers={"If-None-Match": '"other"'})
    assert changed.status_code == 200


def test_a_slash_behind_it_leads_to_the_page_of_whatever_host_was_asked(client: TestClient) -> None:
    response = client.get("/ui/", follow_redirects=False)
    assert (response.status_code, response.headers["location"], response.content) == (308, "../ui", b"")
    assert client.get("/ui/").url.path == "/ui"


@pytest.mark.parametrize(
    "name", ["index.html", "nothing.js", "__init__.py", "..%2f__init__.py", "%2e%2e", "static", "main.js%00", "a/b"]
)
def test_nothing_but_the_parts_can_be_had(client: TestClient, name: str) -> None:
    assert client.get(f"/ui/{name}").status_code in (400, 401, 404)


def test_nothing_stands_at_the_root(tmp_path: Path) -> None:
    assert client_of(tmp_path / "data").get("/").status_code == 404


def test_the_page_of_another_site_cannot_have_it(client: TestClient) -> None:
    assert client.get("/ui", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.get("/ui", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "pattern",
    [
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|setHTML|\beval\b|new Function",
        r"localStorage|sessionStorage|indexedDB|document\.cookie",
        r"https?://(?!www\.w3\.org/(2000|1999)/)",
        r"\bstyle=|<style|<script(?! type=\"module\" src=\"ui/)|javascript:",
    ],
    ids=["reads text as HTML", "keeps something", "names another host", "has style or script within"],
)
def test_no_part(pattern: str) -> None:
    assert not [name for name, text in sources() if re.search(pattern, text)]


def test_no_part_is_long_and_no_line_of_a_script_is_wide() -> None:
    assert not [name for name, text in sources() if len(text.splitlines()) > 300]
    assert not [name for name, text in sources() if name.endswith(".js") and max(map(len, text.splitlines())) > 120]


def test_every_part_that_is_named_is_there_and_each_that_is_there_is_named() -> None:
    named = {name for _, text in sources() for name in re.findall(r"""["'](?:\./|ui/)([\w.]+)["']""", text)}
    assert named == set(PARTS)
