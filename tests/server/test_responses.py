"""The table from errors to statuses, row by row of the contract, and the forms that an error has."""

import inspect
from typing import Any

import pytest
from starlette.exceptions import HTTPException

import minibox_store
from minibox_server.responses import RequestError, describe, error_response, status_of
from minibox_store import (
    AuthenticationRefused,
    BlobNotFound,
    Cancelled,
    ContentMismatch,
    CredentialHelperFailed,
    ImageNotFound,
    IncompleteImage,
    InvalidArchive,
    InvalidArgument,
    InvalidDigest,
    InvalidDocument,
    InvalidFilter,
    InvalidPath,
    InvalidPlatform,
    InvalidReference,
    ManifestUnknown,
    MissingLibrary,
    NothingToDo,
    PathNotFound,
    PlatformNotFound,
    PolicyRefused,
    RateLimited,
    RegistryBlocked,
    RegistryError,
    StillNeeded,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UploadNotFound,
    UploadOutOfOrder,
)

URL = "https://registry.example/v2/app/manifests/1"
TABLE: list[tuple[StoreError, int]] = [
    (CredentialHelperFailed("docker-credential-pass", "it is in no folder"), 500),
    (InvalidReference("A", "it is upper case"), 400),
    (InvalidDigest("x", "it has no colon"), 400),
    (InvalidPlatform("x", "it is none"), 400),
    (InvalidFilter("x", "it is none"), 400),
    (InvalidArgument("parallel", 0, "it is none"), 400),
    (InvalidPath("/x", "it is none"), 400),
    (ImageNotFound("app:1"), 404),
    (BlobNotFound("sha256:00"), 404),
    (PathNotFound("app:1", "/etc/nothing"), 404),
    (PlatformNotFound("app:1", "linux/s390x", ("linux/amd64",)), 404),
    (ManifestUnknown("GET", URL, 404, ("MANIFEST_UNKNOWN",), "no such manifest"), 404),
    (AuthenticationRefused("GET", URL, 401, ("UNAUTHORIZED",), "refused"), 403),
    (RegistryBlocked("docker.io/library/alpine:3", "docker.io"), 403),
    (RateLimited("GET", URL, 429, (), "too many", 17.2), 429),
    (RegistryError("GET", URL, 500, (), "failed"), 502),
    (RegistryError("GET", URL, None, (), "no connection"), 502),
    (ContentMismatch("sha256:00", "1 bytes", "2 bytes"), 502),
    (InvalidDocument("layers[0]", "it is none"), 502),
    (InvalidArchive("it is none"), 422),
    (IncompleteImage("app:1", ("sha256:00",)), 409),
    (NothingToDo("/data", "no change to undo"), 409),
    (StoreBusy("/data/ingest/store.lock", 1, None, "pruning"), 503),
    (PolicyRefused("app:1", "max_layers", "it has 9 layers"), 403),
    (Cancelled("pull"), 503),
    (StoreFull("/data"), 507),
    (StoreDamaged("/data/index.json", "no JSON"), 500),
    (StoreUnavailable("/data", "read-only"), 500),
    (MissingLibrary("a layer in zstd", "zstd"), 501),
    (UploadNotFound("0" * 32), 404),
    (UploadOutOfOrder("0" * 32, 5, 7), 400),
    (StillNeeded("sha256:00", "app:1"), 409),
]


def scope_of(path: str = "/images", accept: str | None = None, method: str = "GET") -> dict[str, Any]:
    headers = [] if accept is None else [(b"accept", accept.encode())]
    return {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}


def text_of(error: Exception, **asked: str) -> str:
    return bytes(error_response(error, scope_of(**asked)).body).decode()


@pytest.mark.parametrize(("error", "status"), TABLE)
def test_each_error_of_the_library_has_the_status_of_the_contract(error: StoreError, status: int) -> None:
    assert status_of(error) == status
    assert error_response(error, scope_of()).status_code == status


def test_the_table_names_every_error_that_the_library_has() -> None:
    classes = [getattr(minibox_store, name) for name in minibox_store.__all__]
    errors = {each for each in classes if inspect.isclass(each) and issubclass(each, StoreError)}
    bases = {base for each in errors for base in each.__mro__[1:]} - {RegistryError}
    assert errors - bases == {type(error) for error, _ in TABLE} - bases


def test_an_error_that_is_new_to_the_table_counts_as_its_ancestor() -> None:
    class Unheard(StoreFull):
        pass

    assert status_of(Unheard("/data")) == 507
    assert status_of(StoreError("something")) == 500


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (RateLimited("GET", URL, 429, (), "too many", 17.2), "18"),
        (RateLimited("GET", URL, 429, (), "too many", None), "60"),
        (RateLimited("GET", URL, 429, (), "too many", -3.0), "0"),
        (StoreBusy("/lock", None, None, ""), "5"),
    ],
)
def test_who_should_come_back_is_told_when(error: StoreError, seconds: str) -> None:
    assert error_response(error, scope_of()).headers["retry-after"] == seconds


def test_an_error_is_one_line_of_text() -> None:
    response = error_response(StoreFull("/data"), scope_of())
    assert bytes(response.body) == b"no space left for /data\n"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "accept",
    [
        *("application/json", "text/html, application/json;q=0.9", "APPLICATION/JSON", "application/problem+json"),
        *("application/json;q=0.001", "application/json;q=0, application/problem+json"),
    ],
)
def test_a_program_that_accepts_json_gets_a_problem_document(accept: str) -> None:
    import json

    response = error_response(StoreFull("/data"), scope_of(accept=accept))
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(bytes(response.body)) == {
        "type": "about:blank",
        "title": "Insufficient Storage",
        "status": 507,
        "detail": "no space left for /data",
    }


@pytest.mark.parametrize(
    "accept",
    [
        *("*/*", "text/plain", "application/*", "application/jsonx", ""),
        *("application/json;q=0", "text/plain, application/json; Q=0.000", "application/json;charset=utf-8;q=0."),
    ],
)
def test_everybody_else_gets_text(accept: str) -> None:
    assert text_of(StoreFull("/data"), accept=accept) == "no space left for /data\n"


def test_under_v2_an_error_is_that_of_the_distribution_api() -> None:
    assert text_of(StoreFull("/data"), path="/v2/app/tags/list") == (
        '{"errors":[{"code":"UNKNOWN","message":"no space left for /data"}]}'
    )
    assert '"code":"MANIFEST_UNKNOWN"' in text_of(RequestError(404, "no", code="MANIFEST_UNKNOWN"), path="/v2/")


def test_an_unexpected_error_shows_nothing_of_itself() -> None:
    described = describe(ValueError("secret of the program"), scope_of())
    assert (described.status, described.sentence) == (500, "internal error")


@pytest.mark.parametrize("path", ["/images", "/v2/app"])
@pytest.mark.parametrize("accept", ["application/json", "text/plain"])
def test_control_characters_are_written_out_in_every_form(path: str, accept: str) -> None:
    text = text_of(RequestError(400, "a\n[pull] Done\r\x1b[2J\x00\u2028\x7f"), path=path, accept=accept)
    assert r"a\x0a[pull] Done\x0d\x1b[2J\x00\u2028\x7f" in text.replace("\\\\", "\\")
    assert text.count("\n") <= 1


@pytest.mark.parametrize("path", ["/v2/" + "a" * 15_000, "/" + "a" * 15_000])
@pytest.mark.parametrize("accept", ["application/json", "text/plain"])
def test_a_sentence_is_bounded_however_long_what_it_names_is(path: str, accept: str) -> None:
    assert 900 < len(text_of(HTTPException(404), path=path, accept=accept)) < 1200


def test_routing_errors_are_sentences_too() -> None:
    assert text_of(HTTPException(404), path="/a\nb") == "nothing is at /a\\x0ab\n"
    error = HTTPException(405, headers={"Allow": "HEAD, GET"})
    response = error_response(error, scope_of(method="PUT"))
    assert bytes(response.body) == b"PUT is not allowed for /images; allowed: GET, HEAD\n"
    assert response.headers["allow"] == "GET, HEAD"
