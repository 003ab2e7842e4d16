"""GET /openapi.json: it is valid, it has every route, and what it declares is what is answered.

Every client that :func:`tests.server.clients.client_of` makes holds its answers to it as well, refusals above all.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx2
import openapi_spec_validator
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from minibox_server.app import create_app
from minibox_server.declarations import TEXT, Answer, Endpoint, EndpointTable, NoQuery, parameter, parameters_of
from minibox_server.openapi import PLACES, describe_api, plain_path, refusals_of
from minibox_server.schemas import COUNT_SCHEMA, record
from minibox_server.settings import Settings
from tests.server.clients import BASE_URL, TOKEN, client_of, hold_to_description
from tests.support.described import Description
from tests.support.images import BuiltImage, build_image, build_index, digest_of
from tests.support.layouts import write_layout
from tests.support.upload_registry import UploadRegistry


@pytest.fixture
def app(tmp_path: Path) -> Starlette:
    return create_app(Settings(data_root=str(tmp_path / "data"), archive_prefixes=(str(tmp_path),)))


@pytest.fixture
def document(app: Starlette) -> Any:
    response = TestClient(app, base_url=BASE_URL).get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    return response.json()


def test_the_description_is_valid(document: Any) -> None:
    openapi_spec_validator.validate(document)
    assert document["openapi"].startswith("3.1.")


def test_every_route_of_the_application_is_described_with_each_of_its_methods(app: Starlette, document: Any) -> None:
    routes = {
        (plain_path(route.path), method.lower())
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    assert len(app.routes) == len({route.path for route in app.routes if isinstance(route, Route)})
    described = {(path, method) for path, operations in document["paths"].items() for method in operations}
    assert routes == described


def test_each_parameter_that_is_decoded_is_described_and_no_other(app: Starlette, document: Any) -> None:
    for endpoint in app.state.endpoints.endpoints:
        operation = document["paths"][plain_path(endpoint.path)][endpoint.method.lower()]
        described = {each["name"]: each["required"] for each in operation["parameters"] if each["in"] == "query"}
        decoded = {name: is_needed for name, (_, is_needed) in parameters_of(endpoint.query).items()}
        assert described == decoded, endpoint.path
        assert (operation["security"] == []) == endpoint.is_open
        assert {int(status) for status, answer in operation["responses"].items() if "$ref" in answer} == {
            *refusals_of(endpoint)
        }


def test_each_part_of_a_path_is_described(app: Starlette) -> None:
    names = {name for each in app.state.endpoints.endpoints for name in re.findall(r"\{(\w+)", each.path)}
    assert names == set(PLACES)


def test_the_token_is_named_as_what_it_is(document: Any) -> None:
    assert document["paths"]["/images"]["get"]["security"] == [{"bearer": []}, {"token": []}]
    assert document["paths"]["/v2/"]["get"]["security"] == [{"bearer": []}, {"token": []}, {"basic": []}]


def test_the_description_needs_the_token(tmp_path: Path) -> None:
    client = client_of(tmp_path / "data", token=TOKEN)
    assert client.get("/openapi.json").status_code == 401
    assert client.get("/openapi.json", headers={"X-API-Token": TOKEN}).status_code == 200


# ---- each declared answer is given


@attrs.frozen
class Scene:
    """What the requests of :func:`each_request` ask about."""

    client: TestClient
    image: BuiltImage
    folder: Path
    registry: UploadRegistry


def each_request(scene: Scene) -> Iterator[httpx2.Response]:
    """Ask for each answer that is declared, in an order in which each is to be had."""
    yield from requests_about_the_daemon(scene.client)
    yield from requests_about_images(scene)
    yield from requests_for_content(scene)
    yield from requests_that_push(scene)
    yield from requests_that_remove(scene)


def requests_about_the_daemon(client: TestClient) -> Iterator[httpx2.Response]:
    for path in ("/ping", "/openapi.json", "/metrics", "/healthz", "/readyz", "/images", "/v2", "/v2/", "/v2/_catalog"):
        yield client.get(path)
    for path in ("/ui", "/ui/", "/ui/style.css", "/ui/main.js", "/ui/icon.svg"):
        page = client.get(path, follow_redirects=False)
        yield page
        if "etag" in page.headers:
            yield client.get(path, headers={"If-None-Match": page.headers["etag"]})


def requests_about_images(scene: Scene) -> Iterator[httpx2.Response]:
    archive = str(scene.folder / "app.tar")
    for accepted in FORMS:
        headers = {"Accept": accepted}
        query = {"image": scene.registry.reference("team/app", "1")}
        yield scene.client.post("/images/pull", params=query, headers=headers)
        yield scene.client.post("/images/save", params={"image": "app:1", "path": archive}, headers=headers)
        yield scene.client.post("/images/load", params={"path": archive}, headers=headers)
        content = Path(archive).read_bytes()
        yield scene.client.post(
            "/images/load", content=content, headers={**headers, "Content-Type": "application/x-tar"}
        )
        query = {"image": "app:1", "reference": scene.registry.reference("team/pushed", "1")}
        yield scene.client.post("/images/push", params=query, headers=headers)
        query = {"image": "app:1", "new_name": "tagged:1"}
        yield scene.client.post("/images/tag", params=query, headers=headers)
        for path in ("/system/verify", "/system/repair", "/system/prune?dry_run=1", "/system/prune?build_cache=1"):
            yield scene.client.post(path, headers=headers)
    for path in ("/images/files", "/images/inspect", "/images/history"):
        yield scene.client.get(f"{path}?image=app:1")
        yield scene.client.get(f"{path}?image=multi&platform=linux/amd64")
    for path in ("/system/df", "/system/df?blobs=1", "/system/info"):
        yield scene.client.get(path)


def requests_for_content(scene: Scene) -> Iterator[httpx2.Response]:
    layer = scene.image.document()["layers"][0]["digest"]
    for name in ("app/manifests/1", "multi/manifests/latest", "docker/manifests/1", "docker/manifests/list"):
        yield scene.client.get(f"/v2/{name}")
    for path in (f"/v2/app/blobs/{layer}", "/images/archive?image=app:1"):
        whole = scene.client.get(path)
        yield whole
        yield scene.client.get(path, headers={"Range": "bytes=0-0"})
    yield scene.client.get("/images/archive?image=app:1", headers={"If-None-Match": whole.headers["etag"]})
    yield scene.client.get("/v2/app/tags/list")
    yield scene.client.get("/v2/app/tags/list?n=1")
    yield scene.client.get(f"/v2/app/referrers/{scene.image.digest}")
    yield scene.client.get(f"/v2/app/referrers/{scene.image.digest}?artifactType=x/y")


def requests_that_push(scene: Scene) -> Iterator[httpx2.Response]:
    client, content = scene.client, b"some bytes"
    digest = digest_of(content)
    yield client.post(f"/v2/app/blobs/uploads/?digest={digest}", content=content)
    begun = client.post("/v2/app/blobs/uploads/")
    yield begun
    upload = begun.headers["location"]
    yield client.get(upload)
    yield client.patch(upload, content=content, headers={"Content-Range": f"0-{len(content) - 1}"})
    yield client.put(f"{upload}?digest={digest}")
    yield client.delete(client.post("/v2/app/blobs/uploads/").headers["location"])
    manifest, media_type = scene.image.blobs[scene.image.digest], scene.image.media_types[scene.image.digest]
    yield client.put("/v2/app/manifests/new", content=manifest, headers={"Content-Type": media_type})
    yield client.delete(f"/v2/app/blobs/{digest}")


def requests_that_remove(scene: Scene) -> Iterator[httpx2.Response]:
    yield scene.client.delete("/v2/app/manifests/new")
    yield scene.client.post("/images/remove?image=app:2")


FORMS = ("*/*", "application/json", "application/x-ndjson", "text/event-stream")
# They end with their client alone: tests/server/test_changes.py holds what comes to what is declared.
NEVER_GIVEN = {("get", "/events", 200, "text/event-stream"), ("get", "/events", 200, "application/x-ndjson")}


def test_each_answer_that_is_declared_is_given_and_each_that_is_given_is_declared(tmp_path: Path) -> None:
    image = build_image(salt="app")
    docker = build_image(salt="docker", docker=True)
    images = {
        "app:1": image,
        "app:2": build_image(salt="second"),
        "multi": build_index([image]),
        "docker:1": docker,
        "docker:list": build_index([docker], docker=True),
    }
    write_layout(tmp_path / "data", images)
    with UploadRegistry() as registry:
        registry.put("team/app", image, tag="1")
        client = client_of(tmp_path / "data", archive_prefixes=(str(tmp_path),))
        description = hold_to_description(client, client.app)  # type: ignore[arg-type]  # it is what was made
        description.seen.clear()
        scene = Scene(client=client, image=image, folder=tmp_path, registry=registry)
        for response in each_request(scene):
            assert response.status_code < 400, response.text
    declared = {each for each in description.declared() if each[0] != "head"} - NEVER_GIVEN
    assert declared - set(description.seen) == set()


def test_head_is_answered_as_get_is_without_the_body(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {"app:1": build_image()})
    client = client_of(tmp_path / "data")
    for path in ("/ping", "/images", "/openapi.json", "/v2/", "/v2/app/tags/list", "/v2/app/manifests/1"):
        assert client.head(path).status_code == 200
    for path in ("/v2/nowhere/tags/list", "/v2/app/manifests/absent"):
        assert client.head(path).status_code == 404


# ---- what is not declared fails


Make = Callable[[], Response]


@attrs.frozen(kw_only=True)
class ModeQuery:
    """What the endpoint below is asked for."""

    image: str = parameter(TEXT, "which")


def endpoint_that_answers(answer: Make, **declared: Any) -> Endpoint:
    async def call(request: Request, query: Any) -> Response:
        return answer()

    what = Answer(what="it", media_type="application/json", schema=record({"count": COUNT_SCHEMA}))
    values = {"answers": (what,), "query": NoQuery, **declared}
    return Endpoint(method="GET", path="/it", what="Answer.", call=call, **values)


GOOD_HEADERS = {"X-Content-Type-Options": "nosniff", "X-Request-ID": "0123456789abcdef"}


def described_client(answer: Make, **declared: Any) -> TestClient:
    endpoints = EndpointTable([endpoint_that_answers(answer, **declared)])
    app = Starlette(routes=[*endpoints.routes, Route("/other", lambda request: PlainTextResponse("x"))])
    app.state.endpoints = endpoints
    client = TestClient(app, base_url=BASE_URL)
    hold_to_description(client, app)
    return client


def test_an_answer_as_it_is_declared_passes() -> None:
    response = described_client(lambda: JSONResponse({"count": 1}, headers=GOOD_HEADERS)).get("/it")
    assert response.json() == {"count": 1}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda: JSONResponse({"count": 1}, 201, headers=GOOD_HEADERS), "201: of /it only"),
        (lambda: JSONResponse({"count": "1"}, headers=GOOD_HEADERS), "is not of type 'integer'"),
        (lambda: JSONResponse({"count": 1, "more": 1}, headers=GOOD_HEADERS), "Additional properties"),
        (lambda: JSONResponse({}, headers=GOOD_HEADERS), "is a required property"),
        (lambda: JSONResponse({"count": 1}, headers={"X-Request-ID": "x"}), "lacks {'x-content-type-options'}"),
        (lambda: JSONResponse({"count": 1}, headers=GOOD_HEADERS | {"X-More": "1"}), "'x-more'"),
        (lambda: PlainTextResponse("x", headers=GOOD_HEADERS), "is text/plain"),
        (lambda: PlainTextResponse("x", 418, headers=GOOD_HEADERS), "418: of /it only"),
        (lambda: JSONResponse({"count": 1}, 404, headers=GOOD_HEADERS), "404: of /it only"),
        (lambda: JSONResponse({"count": 1}, 400, headers=GOOD_HEADERS), "is application/json"),
    ],
)
def test_an_answer_that_is_not_declared_fails(answer: Make, problem: str) -> None:
    with pytest.raises(AssertionError) as caught:
        described_client(answer).get("/it")
    assert problem in str(caught.value)


def test_an_answer_of_a_route_that_is_not_declared_fails() -> None:
    with pytest.raises(AssertionError, match="GET /other 200 is not declared"):
        described_client(lambda: JSONResponse({})).get("/other")


def test_a_stream_is_held_line_by_line() -> None:
    schema = record({"count": COUNT_SCHEMA})
    answers = tuple(
        Answer(what="it", media_type=f, schema=schema) for f in ("application/x-ndjson", "text/event-stream")
    )
    for media_type, good, bad in (
        ("application/x-ndjson", b'{"count":1}\n{"count":2}\n', b'{"count":1}\n{"count":-2}\n'),
        ("text/event-stream", b': quiet\n\ndata: {"count":1}\n\n', b'data: {"count":1}\n\ndata: {}\n\n'),
    ):

        def answer(body: bytes, media_type: str = media_type) -> Make:
            return lambda: Response(body, media_type=media_type, headers=GOOD_HEADERS)

        assert described_client(answer(good), answers=answers).get("/it").status_code == 200
        with pytest.raises(AssertionError):
            described_client(answer(bad), answers=answers).get("/it")


def test_what_an_endpoint_declares_stands_in_the_description() -> None:
    endpoint = endpoint_that_answers(Response, query=ModeQuery, refusals=(409,), is_open=True)
    described: Any = json.loads(json.dumps(describe_api(EndpointTable([endpoint]), version="7")))
    openapi_spec_validator.validate(described)
    operation = described["paths"]["/it"]["get"]
    assert operation["security"] == []
    assert "401" not in operation["responses"]
    assert operation["responses"]["409"] == {"$ref": "#/components/responses/Refused409"}
    assert [(each["name"], each["required"]) for each in operation["parameters"]] == [("image", True)]
    assert Description(described).declared() == {("get", "/it", 200, "application/json"), ("head", "/it", 200, None)}
