"""What the distribution API gives of a store, over the application in this process."""

import shutil
from pathlib import Path
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from tests.server.clients import client_of, code_of
from tests.support.images import OCI_INDEX, BuiltImage, build_image, build_index, random_layer
from tests.support.layouts import blob_path, write_layout

ABSENT = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def images() -> dict[str, BuiltImage]:
    app = build_image(salt="app")
    return {
        "app:1": app,
        "app:2": build_image(salt="second"),
        "other:1": build_image(salt="other"),
        "quay.io/org/app:2": build_image(salt="quay", docker=True),
        "multi": build_index([app, build_image(platform="linux/arm64")]),
        "sha:512": build_image(salt="512", algorithm="sha512"),
    }


@pytest.fixture
def client(tmp_path: Path, images: dict[str, BuiltImage]) -> TestClient:
    write_layout(tmp_path / "data", images)
    return client_of(tmp_path / "data")


def layer_of(image: BuiltImage) -> str:
    return str(image.document()["layers"][0]["digest"])


def test_the_api_says_that_it_is_there(client: TestClient) -> None:
    for path in ("/v2/", "/v2"):
        response = client.get(path)
        assert (response.status_code, response.json()) == (200, {})
        assert response.headers["docker-distribution-api-version"] == "registry/2.0"
    assert client.head("/v2/").status_code == 200


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("app/manifests/1", "app:1"),
        ("library/app/manifests/2", "app:2"),
        ("org/app/manifests/2", "quay.io/org/app:2"),
        ("multi/manifests/latest", "multi"),
        ("sha/manifests/512", "sha:512"),
    ],
)
def test_a_manifest_is_served_by_tag_and_by_digest_exactly_as_it_is_stored(
    client: TestClient, images: dict[str, BuiltImage], target: str, name: str
) -> None:
    image = images[name]
    for path in (f"/v2/{target}", f"/v2/{target.rpartition('/')[0]}/{image.digest}"):
        response = client.get(path)
        assert response.status_code == 200
        assert response.content == image.blobs[image.digest]
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        for each in (response, head):
            assert each.headers["content-type"] == image.media_type
            assert each.headers["docker-content-digest"] == image.digest
            assert each.headers["etag"] == f'"{image.digest}"'
            assert each.headers["content-length"] == str(len(image.blobs[image.digest]))


def test_the_manifests_of_an_index_are_served_by_digest(client: TestClient, images: dict[str, BuiltImage]) -> None:
    index = images["multi"]
    for entry in index.document()["manifests"]:
        response = client.get(f"/v2/multi/manifests/{entry['digest']}")
        assert response.content == index.blobs[entry["digest"]]
        assert response.headers["content-type"] == entry["mediaType"]
    assert client.get("/v2/multi/manifests/latest").headers["content-type"] == OCI_INDEX


def test_every_blob_of_an_image_is_served(client: TestClient, images: dict[str, BuiltImage]) -> None:
    for name, repository in [
        ("app:1", "app"),
        ("quay.io/org/app:2", "org/app"),
        ("multi", "multi"),
        ("sha:512", "sha"),
    ]:
        for digest, content in images[name].blobs.items():
            response = client.get(f"/v2/{repository}/blobs/{digest}")
            assert (response.status_code, response.content) == (200, content)
            head = client.head(f"/v2/{repository}/blobs/{digest}")
            assert (head.status_code, head.content) == (200, b"")
            for each in (response, head):
                assert each.headers["content-type"] == "application/octet-stream"
                assert each.headers["content-length"] == str(len(content))
                assert each.headers["docker-content-digest"] == digest
                assert each.headers["accept-ranges"] == "bytes"


def test_a_repository_serves_only_what_its_own_images_reach(client: TestClient, images: dict[str, BuiltImage]) -> None:
    layer, config = layer_of(images["other:1"]), images["other:1"].config_digest
    assert client.get(f"/v2/other/blobs/{config}").status_code == 200
    for digest in (config, images["other:1"].digest, images["quay.io/org/app:2"].digest):
        response = client.get(f"/v2/app/blobs/{digest}")
        assert (response.status_code, code_of(response)) == (404, "BLOB_UNKNOWN")
        response = client.get(f"/v2/app/manifests/{digest}")
        assert (response.status_code, code_of(response)) == (404, "MANIFEST_UNKNOWN")
    assert client.get(f"/v2/other/blobs/{layer}").status_code == 200


def test_a_blob_that_nothing_names_is_not_served(client: TestClient, tmp_path: Path) -> None:
    blob_path(tmp_path / "data", ABSENT).write_bytes(b"secret")
    assert code_of(client.get(f"/v2/app/blobs/{ABSENT}")) == "BLOB_UNKNOWN"


def test_where_names_collide_the_exact_one_has_the_tag_and_the_other_its_digest(tmp_path: Path) -> None:
    hub, quay = build_image(salt="hub"), build_image(salt="quay")
    write_layout(tmp_path / "data", {"quay.io/org/app:2": quay, "org/app:2": hub})
    client = client_of(tmp_path / "data")
    assert client.get("/v2/org/app/manifests/2").headers["docker-content-digest"] == hub.digest
    assert client.get(f"/v2/org/app/manifests/{quay.digest}").content == quay.blobs[quay.digest]
    assert client.get(f"/v2/org/app/blobs/{quay.config_digest}").content == quay.blobs[quay.config_digest]


def test_a_config_is_a_blob_and_no_manifest(client: TestClient, images: dict[str, BuiltImage]) -> None:
    for digest in (images["app:1"].config_digest, layer_of(images["app:1"])):
        assert code_of(client.get(f"/v2/app/manifests/{digest}")) == "MANIFEST_UNKNOWN"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/nowhere/manifests/1", 404, "NAME_UNKNOWN"),
        ("/v2/nowhere/tags/list", 404, "NAME_UNKNOWN"),
        (f"/v2/nowhere/blobs/{ABSENT}", 404, "NAME_UNKNOWN"),
        ("/v2/app/manifests/3", 404, "MANIFEST_UNKNOWN"),
        ("/v2/app/manifests/-not-a-tag", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/app/manifests/{ABSENT}", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/app/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
        ("/v2/app/manifests/sha256:abc", 400, "DIGEST_INVALID"),
        ("/v2/app/manifests/md5:" + "0" * 32, 400, "DIGEST_INVALID"),
        ("/v2/app/blobs/sha256:" + "A" * 64, 400, "DIGEST_INVALID"),
        ("/v2/app/blobs/1", 400, "DIGEST_INVALID"),
        ("/v2/app/blobs/sha256:..%2f..%2findex.json", 404, "NAME_UNKNOWN"),
        ("/v2/App/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a%20b/tags/list", 400, "NAME_INVALID"),
        ("/v2//tags/list", 400, "NAME_INVALID"),
        ("/v2/app%e2%82%ac/tags/list", 400, "NAME_INVALID"),
        ("/v2/..%2f..%2fetc/manifests/1", 400, "NAME_INVALID"),
        ("/v2/app", 404, "NAME_UNKNOWN"),
        ("/v2/app/blobs/uploads/" + "0" * 32, 404, "BLOB_UPLOAD_UNKNOWN"),
        ("/v2/app/blobs/uploads/..%2f..%2findex.json", 404, "NAME_UNKNOWN"),
        ("/v2/app/referrers/sha256:abc", 400, "DIGEST_INVALID"),
        ("/v2/App/referrers/" + ABSENT, 400, "NAME_INVALID"),
    ],
)
def test_what_is_not_there_has_the_code_of_the_specification(
    client: TestClient, path: str, status: int, code: str
) -> None:
    response = client.get(path)
    assert (response.status_code, code_of(response)) == (status, code)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v2/app/manifests/1", "DELETE, GET, HEAD, PUT"),
        ("PUT", f"/v2/app/blobs/{ABSENT}", "DELETE, GET, HEAD"),
        ("GET", "/v2/app/blobs/uploads/", "POST"),
        ("POST", "/v2/app/blobs/uploads/1", "DELETE, GET, HEAD, PATCH, PUT"),
        ("POST", "/v2/", "GET, HEAD"),
        ("POST", "/v2/app/tags/list", "GET, HEAD"),
        ("DELETE", "/v2/_catalog", "GET, HEAD"),
        ("PUT", f"/v2/app/referrers/{ABSENT}", "GET, HEAD"),
    ],
)
def test_a_method_that_a_path_has_not_is_refused(client: TestClient, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path, content=b"{}")
    assert (response.status_code, code_of(response)) == (405, "UNSUPPORTED")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=10-19", 10, 19), ("bytes=100-", 100, None), ("bytes=-7", -7, None)],
)
def test_one_range_of_a_blob_is_served(
    client: TestClient, images: dict[str, BuiltImage], header: str, first: int, last: int | None
) -> None:
    layer = layer_of(images["app:1"])
    content = images["app:1"].blobs[layer]
    response = client.get(f"/v2/app/blobs/{layer}", headers={"Range": header})
    expected = content[first:] if last is None else content[first : last + 1]
    begin = content.index(expected)
    assert (response.status_code, response.content) == (206, expected)
    assert response.headers["content-range"] == f"bytes {begin}-{begin + len(expected) - 1}/{len(content)}"
    assert response.headers["content-length"] == str(len(expected))


def test_a_range_beyond_the_end_is_not_satisfiable(client: TestClient, images: dict[str, BuiltImage]) -> None:
    layer = layer_of(images["app:1"])
    size = len(images["app:1"].blobs[layer])
    for header in (f"bytes={size}-", "bytes=-0"):
        response = client.get(f"/v2/app/blobs/{layer}", headers={"Range": header})
        assert response.status_code == 416
        assert response.headers["content-range"] == f"bytes */{size}"


@pytest.mark.parametrize(
    "header", ["bytes=0-1,5-6", "bytes=" + ",".join(["0-"] * 1000), "lines=0-1", "bytes=x-", "bytes=-"]
)
def test_s22_several_ranges_are_answered_with_the_whole_once(
    client: TestClient, images: dict[str, BuiltImage], header: str
) -> None:
    layer = layer_of(images["app:1"])
    response = client.get(f"/v2/app/blobs/{layer}", headers={"Range": header})
    assert (response.status_code, response.content) == (200, images["app:1"].blobs[layer])


def test_a_range_of_another_version_is_not_served(client: TestClient, images: dict[str, BuiltImage]) -> None:
    layer = layer_of(images["app:1"])
    for tag, status in [(f'"{layer}"', 206), ('"other"', 200), (f'W/"{layer}"', 200)]:
        headers = {"Range": "bytes=0-9", "If-Range": tag}
        assert client.get(f"/v2/app/blobs/{layer}", headers=headers).status_code == status
    assert client.head(f"/v2/app/blobs/{layer}", headers={"Range": "bytes=0-9"}).status_code == 200


def test_a_large_blob_is_served_whole_and_from_any_offset(tmp_path: Path) -> None:
    image = build_image([random_layer(3 * 1024 * 1024 + 512)])
    write_layout(tmp_path / "data", {"big:1": image})
    client = client_of(tmp_path / "data")
    layer = layer_of(image)
    content = image.blobs[layer]
    assert client.get(f"/v2/big/blobs/{layer}").content == content
    offset = 1024 * 1024 + 7
    part = client.get(f"/v2/big/blobs/{layer}", headers={"Range": f"bytes={offset}-"})
    assert part.content == content[offset:]


def test_an_image_that_lacks_a_blob_serves_the_rest(
    client: TestClient, tmp_path: Path, images: dict[str, BuiltImage]
) -> None:
    layer, config = layer_of(images["app:1"]), images["app:1"].config_digest
    blob_path(tmp_path / "data", config).unlink()
    for method in ("GET", "HEAD"):
        assert client.request(method, f"/v2/app/blobs/{config}").status_code == 404
    assert client.get(f"/v2/app/blobs/{layer}").status_code == 200


def test_damage_to_one_image_hides_no_other_of_its_repository(
    client: TestClient, tmp_path: Path, images: dict[str, BuiltImage]
) -> None:
    blob_path(tmp_path / "data", images["app:1"].digest).write_bytes(b"{}")
    assert client.get(f"/v2/app/blobs/{images['app:2'].config_digest}").status_code == 200
    assert client.get(f"/v2/app/blobs/{ABSENT}").status_code == 500
    assert client.get("/v2/app/manifests/1").status_code == 500


def test_where_a_manifest_is_missing_nobody_is_told_that_nothing_refers_or_that_there_is_no_such_list(
    client: TestClient, tmp_path: Path, images: dict[str, BuiltImage]
) -> None:
    missing = images["app:1"].digest
    blob_path(tmp_path / "data", missing).unlink()
    for digest in (images["app:2"].digest, missing, ABSENT):
        answer = client.get(f"/v2/app/referrers/{digest}")
        assert (answer.status_code, missing in answer.text, "app:1" in answer.text) == (409, True, True), answer.text


def test_tags_are_listed_in_order_and_in_pages(tmp_path: Path) -> None:
    image = build_image()
    write_layout(tmp_path / "data", {f"app:{tag}": image for tag in ("b", "10", "a", "9", "B")})
    client = client_of(tmp_path / "data")
    whole = client.get("/v2/app/tags/list")
    assert whole.json() == {"name": "app", "tags": ["10", "9", "a", "B", "b"]}
    assert "link" not in whole.headers
    seen, path = [], "/v2/app/tags/list?n=2"
    while path:
        page = client.get(path)
        assert len(page.json()["tags"]) <= 2
        seen += page.json()["tags"]
        target, _, relation = page.headers.get("link", "").partition(">; ")
        assert not target or relation == 'rel="next"'
        path = urljoin(path, target[1:]) if target else ""
    assert seen == ["10", "9", "a", "B", "b"]


def test_tags_after_one_that_does_not_exist_are_those_that_sort_after_it(client: TestClient) -> None:
    assert client.get("/v2/app/tags/list?last=0").json()["tags"] == ["1", "2"]
    assert client.get("/v2/app/tags/list?last=1x").json()["tags"] == ["2"]
    assert client.get("/v2/app/tags/list?last=zzz").json() == {"name": "app", "tags": []}


def test_no_tags_are_listed_where_none_are_asked_for(client: TestClient) -> None:
    response = client.get("/v2/app/tags/list?n=0")
    assert response.json() == {"name": "app", "tags": []}
    assert "link" not in response.headers


def test_s25_a_page_of_tags_never_has_more_than_a_thousand(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {})
    image = build_image()
    write_layout(tmp_path / "data", {f"app:{number:04}": image for number in range(1001)})
    client = client_of(tmp_path / "data")
    for query in ("", "?n=1000000", "?n=" + "9" * 4000):
        response = client.get(f"/v2/app/tags/list{query}")
        assert len(response.json()["tags"]) == 1000
        assert response.headers["link"] == '</v2/app/tags/list?n=1000&last=0999>; rel="next"'


@pytest.mark.parametrize("query", ["n=-1", "n=x", "n=", "n=1&n=2"])
def test_a_number_of_tags_that_is_none_is_refused(client: TestClient, query: str) -> None:
    response = client.get(f"/v2/app/tags/list?{query}")
    assert response.status_code == 400
    assert response.json()["errors"][0]["message"]


def test_a_name_with_a_digest_alone_is_reached_by_it_and_has_no_tag(tmp_path: Path) -> None:
    image = build_image()
    write_layout(tmp_path / "data", {f"app@{image.digest}": image})
    client = client_of(tmp_path / "data")
    assert client.get("/v2/app/tags/list").json() == {"name": "app", "tags": []}
    assert client.get(f"/v2/app/manifests/{image.digest}").status_code == 200


def test_a_descriptor_of_a_foreign_type_is_not_served_as_a_page(tmp_path: Path) -> None:
    image = build_image()
    page = BuiltImage(root={**image.root, "mediaType": "text/html"}, blobs=image.blobs, media_types=image.media_types)
    write_layout(tmp_path / "data", {"app:1": page})
    response = client_of(tmp_path / "data").get("/v2/app/manifests/1")
    assert not response.headers["content-type"].startswith("text/html")


def test_what_is_new_or_gone_in_the_store_is_so_here(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/v2/app/manifests/1").status_code == 200
    client.post("/images/remove?image=app:1")
    assert code_of(client.get("/v2/app/manifests/1")) == "MANIFEST_UNKNOWN"
    shutil.rmtree(tmp_path / "data")
    assert code_of(client.get("/v2/app/manifests/1")) == "NAME_UNKNOWN"


def test_no_descriptor_stays_open_after_any_answer(client: TestClient, images: dict[str, BuiltImage]) -> None:
    import os

    layer = layer_of(images["app:1"])
    size = len(images["app:1"].blobs[layer])
    requests = [("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=0-1"}), ("GET", {"Range": f"bytes={size}-"})]
    with client:
        for method, headers in requests:
            client.request(method, f"/v2/app/blobs/{layer}", headers=headers)
        before = len(os.listdir("/proc/self/fd"))
        for method, headers in requests * 3:
            client.request(method, f"/v2/app/blobs/{layer}", headers=headers)
            client.request(method, "/v2/app/manifests/1", headers=headers)
        assert len(os.listdir("/proc/self/fd")) == before
