"""GET /images/files: the directories of an image."""

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from tests.server.clients import client_of, sentence_of
from tests.support.images import build_image, build_index
from tests.support.layouts import blob_path, write_layout

LOWER = {"etc/hostname": b"minibox\n", "bin/hello": b"#!/bin/sh\n", "srv/data": b"x" * 3000}


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """A client of a store with an image of two layers, and an index of two platforms."""
    platforms = [build_image(platform=each) for each in ("linux/amd64", "linux/arm64")]
    images = {"app:1": build_image([LOWER, {"srv/more": b"yy"}]), "both:1": build_index(platforms)}
    write_layout(tmp_path / "data", images)
    return client_of(tmp_path / "data")


def ask(client: TestClient, **query: str) -> Any:
    response = client.get(f"/images/files?{urlencode(query)}")
    assert response.status_code == 200, response.text
    return response.json()


def test_the_root_is_listed_where_no_path_is_given(client: TestClient) -> None:
    listed = ask(client, image="app:1")
    assert (listed["image"], listed["path"], listed["complete"]) == ("app:1", "/", True)
    assert [(each["name"], each["kind"]) for each in listed["entries"]] == [
        ("bin", "directory"),
        ("etc", "directory"),
        ("srv", "directory"),
    ]


def test_each_file_has_its_size_and_mode_and_the_layer_that_it_comes_from(client: TestClient) -> None:
    data, more = ask(client, image="app:1", path="/srv")["entries"]
    assert data == {
        "name": "data",
        "kind": "file",
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "size_bytes": 3000,
        "modified": "1970-01-01T00:00:00Z",
        "layer": 1,
    }
    assert (more["name"], more["size_bytes"], more["layer"]) == ("more", 2, 2)


def test_a_directory_is_listed_page_by_page(client: TestClient) -> None:
    whole = ask(client, image="app:1")
    listed, start, pages = [], "0", 0
    while start != "None":
        page = ask(client, image="app:1", n="2", start=start)
        listed += page["entries"]
        assert page["complete"] == (page["next"] is None)
        start, pages = str(page["next"]), pages + 1
    assert (listed, pages, whole["next"]) == (whole["entries"], 2, None)
    beyond = ask(client, image="app:1", start="7")
    assert (beyond["entries"], beyond["complete"], beyond["next"]) == ([], True, None)
    for wrong in ("n=0", "n=x", "start=-1"):
        assert client.get(f"/images/files?image=app:1&{wrong}").status_code == 400


def test_the_platform_chooses_from_an_index(client: TestClient) -> None:
    assert ask(client, image="both:1", platform="linux/arm64")["entries"]
    response = client.get("/images/files?image=both:1&platform=linux/s390x")
    assert response.status_code == 404
    assert "linux/arm64" in sentence_of(response)


@pytest.mark.parametrize(
    ("query", "status", "part"),
    [
        ({"image": "other:1"}, 404, "other:1"),
        ({"image": "app:1", "path": "/nothing"}, 404, "/nothing"),
        ({"image": "app:1", "path": "/../../etc/passwd"}, 404, "passwd"),
        ({"image": "app:1", "path": "/etc/hostname"}, 400, "no directory"),
        ({"path": "/"}, 400, "image"),
        ({"image": "../app:1"}, 400, "parameter image"),
        ({"image": "app 1"}, 400, "parameter image"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(
    client: TestClient, query: dict[str, str], status: int, part: str
) -> None:
    response = client.get(f"/images/files?{urlencode(query)}")
    assert response.status_code == status
    assert part in sentence_of(response)


def test_what_is_wrong_with_an_image_itself_is_blamed_on_no_registry(tmp_path: Path) -> None:
    config = {"rootfs": {"type": "layers", "diff_ids": "none"}}
    images = {"odd:1": build_image([LOWER], config=config), "app:1": build_image([LOWER])}
    write_layout(tmp_path / "data", images)
    damaged = blob_path(tmp_path / "data", images["app:1"].config_digest)
    damaged.write_bytes(b"[" + damaged.read_bytes()[1:])
    client = client_of(tmp_path / "data")
    statuses = {
        (path, name): client.get(path, params={"image": name}).status_code
        for path in ("/images/files", "/images/inspect")
        for name in images
    }
    assert statuses == {
        ("/images/files", "odd:1"): 422,
        ("/images/inspect", "odd:1"): 422,
        ("/images/files", "app:1"): 500,
        ("/images/inspect", "app:1"): 500,
    }


def test_a_directory_of_very_many_files_is_told_in_part(tmp_path: Path) -> None:
    many = {f"many/{number:05}": b"" for number in range(5001)}
    write_layout(tmp_path / "many", {"many:1": build_image([many])})
    listed = ask(client_of(tmp_path / "many"), image="many:1", path="many")
    assert (len(listed["entries"]), listed["complete"]) == (5000, False)
