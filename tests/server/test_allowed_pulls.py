"""Which registries the daemon may pull from: the file of ``MINIBOX_REGISTRIES``, and where the daemon listens."""

from pathlib import Path

import pytest

from tests.server.clients import TOKEN, client_of
from tests.support.images import build_image
from tests.support.layouts import write_layout
from tests.support.scripted_registry import ScriptedRegistry, serve_image

IMAGE = build_image()


def rules(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Put down a file of registries, and name it."""
    (folder / "registries.toml").write_text(text)
    monkeypatch.setenv("MINIBOX_REGISTRIES", str(folder / "registries.toml"))


@pytest.mark.parametrize(
    "text",
    ["allowed = []", 'allowed = ["docker.io", "127.0.0.1:1"]', '[[registry]]\nprefix = "{host}"\nblocked = true'],
)
def test_a_registry_that_is_not_allowed_answers_403_and_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    client = client_of(tmp_path / "data", unpack=False)
    with ScriptedRegistry() as registry:
        rules(tmp_path, monkeypatch, text.replace("{host}", registry.host))
        image = f"{registry.host}/team/app:1"
        refused = client.post("/images/pull", params={"image": image})
        assert refused.status_code == 403
        assert refused.text.startswith(f"[error] pull failed: {image} is blocked")
        as_json = client.post("/images/pull", params={"image": image}, headers={"Accept": "application/json"})
        assert (as_json.status_code, as_json.json()["status"]) == (403, 403)
        assert not registry.requests
    assert not (tmp_path / "data").exists()


def test_a_registry_that_is_allowed_is_pulled_from_and_the_file_is_read_for_each_pull(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(tmp_path / "data", unpack=False)
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        rules(tmp_path, monkeypatch, f'allowed = ["{registry.host}/team"]')
        pulled = client.post("/images/pull", params={"image": f"{registry.host}/team/app:1"})
        assert pulled.text.endswith("[pull] Done\n")
        assert client.post("/images/pull", params={"image": f"{registry.host}/other/app:1"}).status_code == 403
        rules(tmp_path, monkeypatch, "allowed = []")
        assert client.post("/images/pull", params={"image": f"{registry.host}/team/app:1"}).status_code == 403


def test_a_file_that_cannot_be_read_ends_the_pull_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules(tmp_path, monkeypatch, "allowed = 5")
    answer = client_of(tmp_path / "data").post("/images/pull", params={"image": "127.0.0.1:1/app:1"})
    assert "[error] pull failed" in answer.text
    assert "registries.toml at allowed: expected an array" in answer.text


@pytest.mark.parametrize("text", ["allowed = 5", "=", None], ids=["wrong", "no TOML", "missing"])
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/images/pull?image=127.0.0.1:1/app:1"),
        ("POST", "/images/push?image=app:1&reference=127.0.0.1:1/app:1"),
        ("GET", "/v2/team/app/manifests/1"),
    ],
)
def test_a_file_that_cannot_be_read_is_the_operators_mistake_and_no_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, target: str, text: str | None
) -> None:
    write_layout(tmp_path / "data", {"app:1": IMAGE})
    rules(tmp_path, monkeypatch, text or "")
    if text is None:
        (tmp_path / "registries.toml").unlink()
    client = client_of(tmp_path / "data", upstream="127.0.0.1:1")
    answer = client.request(method, target, headers={"Accept": "application/x-ndjson"})
    assert answer.status_code == 500
    told = answer.json()["errors"][0]["message"] if method == "GET" else answer.json()["detail"]
    assert told.startswith("MINIBOX_REGISTRIES: ")
    assert str(tmp_path / "registries.toml") in told


@pytest.mark.parametrize(
    ("host", "said", "allows"),
    [
        *(("127.0.0.1", "", True), ("::1", "", True), ("", "", False), ("10.1.2.3", "", False)),
        *(("", "private_addresses = true", True), ("127.0.0.1", "private_addresses = false", False)),
    ],
)
def test_a_daemon_that_others_reach_connects_to_private_addresses_only_where_the_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, said: str, allows: bool
) -> None:
    rules(tmp_path, monkeypatch, said)
    client = client_of(tmp_path / "data", host=host, token=TOKEN, unpack=False, headers={"X-API-Token": TOKEN})
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        answer = client.post("/images/pull", params={"image": f"{registry.host}/team/app:1"})
        assert answer.text.endswith("[pull] Done\n") == allows
        if not allows:
            assert "is at a private address" in answer.text
            assert not registry.requests
