"""GET /images/inspect and /images/history, POST /images/tag and /images/push: what they answer and what they refuse."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.server.clients import client_of, sentence_of
from tests.support.answers import Answer, registry_error
from tests.support.images import BuiltImage, build_artifact, build_image, build_image_over, build_index
from tests.support.layouts import blob_path, read_layout_names, write_layout
from tests.support.upload_registry import UploadRegistry

NAME = "app:1"
JSON = {"Accept": "application/json"}
NDJSON = {"Accept": "application/x-ndjson"}
AMD64, ARM64 = build_image(), build_image(platform="linux/arm64")
INDEX = build_index([AMD64, ARM64], attestations=True)


@pytest.fixture
def image() -> BuiltImage:
    return build_image([{"a": b"1"}, {"b": b"2"}])


@pytest.fixture
def client(tmp_path: Path, image: BuiltImage) -> TestClient:
    """A client of a store with an image, and an index of several."""
    write_layout(tmp_path / "data", {NAME: image, "index:1": INDEX})
    return client_of(tmp_path / "data")


@pytest.fixture
def registry() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        yield running


# ---- inspect


def test_an_image_is_told_with_its_config_and_its_layers(client: TestClient, image: BuiltImage) -> None:
    told = client.get("/images/inspect", params={"image": NAME}).json()
    [listed] = [each for each in client.get("/images").json() if each["name"] == NAME]
    assert told | listed == told
    [manifest] = told["manifests"]
    document = image.document()
    assert manifest["digest"] == image.digest
    assert manifest["platform"] == "linux/amd64"
    assert manifest["config_descriptor"]["digest"] == image.config_digest
    assert [layer["digest"] for layer in manifest["layers"]] == image.layer_digests
    assert [layer["size_bytes"] for layer in manifest["layers"]] == [each["size"] for each in document["layers"]]
    config = json.loads(image.blobs[image.config_digest])
    assert [layer["diff_id"] for layer in manifest["layers"]] == config["rootfs"]["diff_ids"]
    assert [step["layer"]["digest"] for step in manifest["history"]] == image.layer_digests


def test_what_an_image_says_of_how_it_runs_is_told_as_it_stands(tmp_path: Path) -> None:
    said = {
        "User": "1000:1000",
        "Env": ["PATH=/bin", "X=\u202e\x07"],
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["true"],
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "WorkingDir": "/srv",
        "StopSignal": "SIGINT",
        "Labels": {"a": "b"},
    }
    write_layout(tmp_path / "data", {NAME: build_image_over([], [], config={"config": said, "created": None})})
    [manifest] = client_of(tmp_path / "data").get("/images/inspect", params={"image": NAME}).json()["manifests"]
    assert manifest["config"] == {
        "created": None,
        "author": None,
        "user": "1000:1000",
        "env": ["PATH=/bin", "X=\u202e\x07"],
        "entrypoint": ["/bin/sh", "-c"],
        "cmd": ["true"],
        "exposed_ports": ["80/tcp"],
        "volumes": ["/data"],
        "working_dir": "/srv",
        "stop_signal": "SIGINT",
        "labels": {"a": "b"},
    }


def test_of_an_index_each_manifest_is_told_or_the_one_that_is_wanted(client: TestClient) -> None:
    told = client.get("/images/inspect", params={"image": "index:1"}).json()
    assert [each["platform"] for each in told["manifests"] if not each["is_attestation"]] == told["platforms"]
    assert any(each["is_attestation"] for each in told["manifests"])
    one = client.get("/images/inspect", params={"image": "index:1", "platform": "linux/arm64"}).json()
    assert [each["digest"] for each in one["manifests"]] == [ARM64.digest]


def test_an_artifact_is_told_without_a_config_to_run(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {NAME: build_artifact(None)})
    [manifest] = client_of(tmp_path / "data").get("/images/inspect", params={"image": NAME}).json()["manifests"]
    assert manifest["config"] is None


@pytest.mark.parametrize("path", ["/images/inspect", "/images/history"])
def test_what_cannot_be_told_of_an_image_has_its_status(path: str, client: TestClient, tmp_path: Path) -> None:
    assert client.get(path).text == "missing image\n"
    assert client.get(path, params={"image": "none:1"}).status_code == 404
    assert client.get(path, params={"image": "a//b"}).status_code == 400
    missing = client.get(path, params={"image": "index:1", "platform": "linux/s390x"})
    assert (missing.status_code, "linux/arm64" in sentence_of(missing)) == (404, True)
    write_layout(tmp_path / "odd", {NAME: build_image_over([], [], config={"config": {"Labels": {"a": 1}}})})
    refused = client_of(tmp_path / "odd").get(path, params={"image": NAME})
    assert (refused.status_code, "Labels" in sentence_of(refused)) == (422, True)
    blob_path(tmp_path / "data", AMD64.config_digest).unlink()
    incomplete = client.get(path, params={"image": "index:1"})
    assert (incomplete.status_code, AMD64.config_digest in sentence_of(incomplete)) == (409, True)
    blob_path(tmp_path / "data", INDEX.digest).write_bytes(b"{}")
    assert client.get(path, params={"image": "index:1"}).status_code == 500


# ---- history


def test_a_history_has_each_step_with_its_layer_the_oldest_first(tmp_path: Path) -> None:
    steps: list[dict[str, object]] = [
        {"created": "2024-01-01T00:00:00Z", "created_by": "ADD a /", "comment": "first", "author": "me"},
        {"created_by": 'CMD ["sh"]', "empty_layer": True},
    ]
    [layer] = build_image([{"a": b"1"}]).document()["layers"]
    write_layout(tmp_path / "data", {NAME: build_image_over([layer], [layer["digest"]], config={"history": steps})})
    told: list[dict[str, object]] = client_of(tmp_path / "data").get("/images/history", params={"image": NAME}).json()
    assert told == [
        {
            "created": "2024-01-01T00:00:00Z",
            "created_by": "ADD a /",
            "author": "me",
            "comment": "first",
            "empty_layer": False,
            "layer": {"digest": layer["digest"], "media_type": layer["mediaType"], "size_bytes": layer["size"]},
        },
        {
            "created": None,
            "created_by": 'CMD ["sh"]',
            "author": None,
            "comment": None,
            "empty_layer": True,
            "layer": None,
        },
    ]


def test_the_history_of_an_index_is_that_of_the_usual_platform_or_of_the_wanted_one(client: TestClient) -> None:
    def layers(**query: str) -> list[str]:
        steps = client.get("/images/history", params={"image": "index:1", **query}).json()
        return [step["layer"]["digest"] for step in steps]

    assert layers() == AMD64.layer_digests
    assert layers(platform="linux/arm64") == ARM64.layer_digests


# ---- tag


def test_an_image_gets_a_further_name(client: TestClient, tmp_path: Path, image: BuiltImage) -> None:
    answer = client.post("/images/tag", params={"image": "docker.io/library/app:1", "new_name": "team/app:2"})
    assert (answer.status_code, answer.text) == (201, "Tagged image docker.io/library/app:1 as team/app:2\n")
    moved = client.post("/images/tag", params={"image": NAME, "new_name": "index:1"}, headers=JSON)
    assert (moved.status_code, moved.json()["name"], moved.json()["digest"]) == (201, "index:1", image.digest)
    names = {name: entry["digest"] for name, entry in read_layout_names(tmp_path / "data").items()}
    assert names == dict.fromkeys(("team/app:2", NAME, "index:1"), image.digest)


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [
        ("image=app:1", 400, "new_name"),
        ("new_name=app:2", 400, "image"),
        ("image=app:1&new_name=a//b", 400, "parameter new_name"),
        ("image=app:1&new_name=-a", 400, "parameter new_name"),
        ("image=none:1&new_name=a", 404, "not found"),
        ("image=a//b&new_name=a", 400, "parameter image"),
        ("image=app:1&new_name=a&new_name=b", 400, "repeated"),
    ],
)
def test_a_name_that_cannot_be_given_is_refused(
    query: str, status: int, told: str, client: TestClient, tmp_path: Path
) -> None:
    before = read_layout_names(tmp_path / "data")
    answer = client.post(f"/images/tag?{query}")
    assert (answer.status_code, told in sentence_of(answer)) == (status, True), answer.text
    assert read_layout_names(tmp_path / "data") == before


# ---- push


def test_an_image_is_pushed_and_the_answer_says_what_is_there_now(
    client: TestClient, registry: UploadRegistry, image: BuiltImage
) -> None:
    reference = registry.reference("team/app", "1")
    answer = client.post("/images/push", params={"image": NAME, "reference": reference})
    assert (answer.status_code, answer.text) == (200, f"Pushed image {NAME} to {reference}\n")
    assert registry.holds("team/app", image)
    again = client.post("/images/push", params={"image": NAME, "reference": reference}, headers=JSON)
    assert again.json() == {
        "name": NAME,
        "reference": reference,
        "digest": image.digest,
        "media_type": image.media_type,
        "size_bytes": len(image.blobs[image.digest]),
    }


def test_a_push_without_a_reference_goes_where_the_name_says(
    registry: UploadRegistry, image: BuiltImage, tmp_path: Path
) -> None:
    name = registry.reference("team/app", "1")
    write_layout(tmp_path / "data", {name: image})
    assert client_of(tmp_path / "data").post("/images/push", params={"image": name}).status_code == 200
    assert registry.tag("team/app", "1") == image.digest


def test_of_an_index_one_platform_may_be_pushed(client: TestClient, registry: UploadRegistry) -> None:
    query = {"image": "index:1", "reference": registry.reference("team/app", "1"), "platform": "linux/arm64"}
    assert client.post("/images/push", params=query).status_code == 200
    assert registry.tag("team/app", "1") == ARM64.digest


def test_a_program_is_told_how_a_push_goes_on(client: TestClient, registry: UploadRegistry, image: BuiltImage) -> None:
    query = {"image": NAME, "reference": registry.reference("team/app", "1")}
    answer = client.post("/images/push", params=query, headers=NDJSON)
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert events[0]["event"] == "resolved"
    assert events[0]["digest"] == events[-1]["digest"] == image.digest
    assert events[-1]["event"] == "result"
    stored = {each["digest"] for each in events if each["event"] == "blob" and each["phase"] == "stored"}
    assert stored == {image.config_digest, *image.layer_digests}


@pytest.mark.parametrize("headers", [{}, JSON, NDJSON])
@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (registry_error(403, "DENIED"), 403),
        (registry_error(500, "UNKNOWN"), 502),
        (registry_error(404, "NAME_UNKNOWN"), 404),
    ],
)
def test_what_the_registry_refuses_is_a_real_status(
    refusal: Answer, status: int, headers: dict[str, str], client: TestClient, registry: UploadRegistry
) -> None:
    registry.refuses = lambda request: refusal if request.method != "GET" else None
    query = {"image": NAME, "reference": registry.reference("team/app", "1")}
    answer = client.post("/images/push", params=query, headers=headers)
    assert answer.status_code == status, answer.text


def test_no_credentials_of_the_request_go_to_a_registry(client: TestClient, registry: UploadRegistry) -> None:
    registry.authorization = "Basic bWU6c2VjcmV0"
    registry.challenge = 'Basic realm="it"'
    query = {"image": NAME, "reference": registry.reference("team/app", "1")}
    given = {"Authorization": "Basic bWU6c2VjcmV0", "X-Registry-Auth": "eyJ1c2VybmFtZSI6Im1lIn0="}
    assert client.post("/images/push", params=query, headers=given).status_code == 403
    sent = {name.lower() for request in registry.requests for name, _ in request.headers}
    assert not sent & {"authorization", "x-registry-auth"}


def test_what_is_not_there_or_no_reference_is_refused_before_a_registry_is_asked(
    client: TestClient, registry: UploadRegistry
) -> None:
    reference = registry.reference("team/app", "1")
    for query, status in (
        ({"image": "none:1", "reference": reference}, 404),
        ({"image": "a//b", "reference": reference}, 400),
        ({"image": NAME, "reference": "A b"}, 400),
        ({"image": "index:1", "reference": reference, "platform": "linux/s390x"}, 404),
        ({"reference": reference}, 400),
    ):
        assert client.post("/images/push", params=query).status_code == status, query
    assert registry.requests == []


def test_a_name_that_does_not_say_where_a_push_goes_is_refused_by_the_name_of_its_parameter(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {"[odd": build_image()})
    answer = client_of(tmp_path / "data").post("/images/push", params={"image": "[odd"})
    assert answer.status_code == 400
    assert sentence_of(answer).startswith("parameter image: ")
