"""Errors: each is one sentence, travels between processes, and stands on the branch where callers look for it."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from minibox_store import _files, errors
from minibox_store._file_errors import file_errors
from minibox_store.errors import StoreError, StoreUnavailable
from minibox_store.reports.rate_limits import RateLimit

DIGEST = "sha256:" + "a" * 64
REGISTRY = ("GET", "https://registry.example/v2/app/manifests/1", 500, ("UNKNOWN",), "the answer is no manifest")

EXAMPLES: list[tuple[StoreError, str]] = [
    (errors.InvalidReference("A", "must be lower case"), "invalid image reference 'A': must be lower case"),
    (errors.InvalidDigest("x", "it has no colon"), "invalid digest 'x': it has no colon"),
    (errors.InvalidPlatform("x", "no form"), "invalid platform 'x': no form"),
    (errors.InvalidArgument("parallel", 0, "one has to move"), "invalid parallel 0: one has to move"),
    (errors.IncompleteImage("app:1", ()), "image app:1 is incomplete: a blob is missing"),
    (errors.InvalidFilter("x=1", "no condition"), "invalid filter 'x=1': no condition"),
    (errors.InvalidFilter("", "it has no condition"), "invalid filter: it has no condition"),
    (errors.InvalidPath("/etc/passwd", "outside"), "cannot use path '/etc/passwd': outside"),
    (errors.InvalidDocument("layers[0].size", "not an integer"), "invalid document at layers[0].size: not an integer"),
    (errors.InvalidDocument("", "no JSON", "index.json"), "invalid index.json: no JSON"),
    (errors.InvalidArchive("it is empty"), "invalid archive: it is empty"),
    (errors.InvalidArchive("a link", "../x"), "invalid archive at member '../x': a link"),
    (
        errors.InvalidArchive("a link", "../x", path="/srv/a.tar"),
        "invalid archive '/srv/a.tar' at member '../x': a link",
    ),
    (errors.ImageNotFound("app:1"), "image 'app:1' not found"),
    (errors.BlobNotFound(DIGEST), f"blob {DIGEST} not found"),
    (errors.PathNotFound("app:1", "/etc/x\n"), "image 'app:1' has no file '/etc/x\\n'"),
    (
        errors.PlatformNotFound("app:1", "linux/amd64", ("linux/arm64", "linux/s390x")),
        "app:1 has no image for platform linux/amd64; on offer: linux/arm64, linux/s390x",
    ),
    (
        errors.PlatformNotFound("app:1", "linux/amd64", ()),
        "app:1 has no image for platform linux/amd64; on offer: none",
    ),
    (
        errors.ContentMismatch("blob", "3 bytes", "2 bytes"),
        "content of blob does not match: expected 3 bytes, got 2 bytes",
    ),
    (errors.IncompleteImage("app:1", (DIGEST,)), f"image app:1 is incomplete: {DIGEST} is missing"),
    (errors.IncompleteImage("app:1", (DIGEST, "b", "c")), f"image app:1 is incomplete: {DIGEST} is missing and 2 more"),
    (
        errors.PolicyRefused("app:1", "max_layers", "it has 9 layers"),
        "image 'app:1' is refused by max_layers: it has 9 layers",
    ),
    (
        errors.RegistryError(*REGISTRY),
        "GET https://registry.example/v2/app/manifests/1 (500): the answer is no manifest [UNKNOWN]",
    ),
    (
        errors.RegistryError("GET", "https://registry.example/v2/", None, (), "no route"),
        "GET https://registry.example/v2/: no route",
    ),
    (
        errors.ManifestUnknown("GET", "https://registry.example/v2/", 404, (), "not known"),
        "GET https://registry.example/v2/ (404): not known",
    ),
    (
        errors.AuthenticationRefused("GET", "https://registry.example/v2/", 401, (), "refused"),
        "GET https://registry.example/v2/ (401): refused",
    ),
    (
        errors.RateLimited("GET", "https://registry.example/v2/", 429, (), "too many", 2.4),
        "GET https://registry.example/v2/ (429): too many; try again in 2 s",
    ),
    (
        errors.RateLimited(
            "GET", "https://registry.example/v2/", 429, (), "too many", None, RateLimit(limit=100, remaining=0)
        ),
        "GET https://registry.example/v2/ (429): too many; 0 of 100 requests are left",
    ),
    (
        errors.RateLimited("GET", "https://registry.example/v2/", 429, (), "too many", 9.0, RateLimit(remaining=3)),
        "GET https://registry.example/v2/ (429): too many; try again in 9 s",
    ),
    (
        errors.RateLimited("GET", "https://registry.example/v2/", 429, (), "too many"),
        "GET https://registry.example/v2/ (429): too many",
    ),
    (
        errors.ManifestUnknown("GET", "https://registry.example/v2/", 404, (), "not known").after(
            ["mirror.example (no answer came in time)", "other.example (401: who are you\n)"]
        ),
        "GET https://registry.example/v2/ (404): not known; before it: mirror.example (no answer came in time); "
        "other.example (401: who are you\\x0a)",
    ),
    (
        errors.RegistryBlocked("docker.io/library/alpine:3", "docker.io"),
        "docker.io/library/alpine:3 is blocked by the rule for docker.io",
    ),
    (
        errors.CredentialHelperFailed("docker-credential-pass", "get ended with status 1"),
        "credential helper docker-credential-pass: get ended with status 1",
    ),
    (errors.StoreDamaged("/store/index.json", "no JSON"), "store damaged: /store/index.json: no JSON"),
    (errors.StoreUnavailable("/store", "permission denied"), "cannot use /store: permission denied"),
    (
        errors.MissingLibrary("a layer in zstd", "zstd"),
        "a layer in zstd needs a library that is not installed: pip install 'minibox-store[zstd]'",
    ),
    (errors.NothingToDo("/store", "no change to undo"), "nothing to do for /store: no change to undo"),
    (errors.StoreFull("/store"), "no space left for /store"),
    (
        errors.StoreBusy("/store/.lock", 7, 1.5, "prune"),
        "store busy: process 7 holds /store/.lock (prune) since 1970-01-01T00:00:01Z",
    ),
    (
        errors.StoreBusy("/store/.lock", None, None, ""),
        "store busy: another process holds /store/.lock (working)",
    ),
    (errors.Cancelled("pull of app:1"), "pull of app:1 was cancelled"),
    (errors.Cancelled(), "operation was cancelled"),
]
# Branches, which callers catch and nobody raises.
BRANCHES: list[type[StoreError]] = [StoreError, errors.InvalidInput, errors.NotFound]


def subclasses(root: type[StoreError]) -> Iterator[type[StoreError]]:
    yield root
    for child in root.__subclasses__():
        yield from subclasses(child)


def test_every_error_of_the_library_has_an_example_here() -> None:
    defined = {kind for kind in subclasses(StoreError) if kind.__module__ == errors.__name__}
    assert {type(error) for error, _ in EXAMPLES} == defined - set(BRANCHES)


@pytest.mark.parametrize(("error", "sentence"), EXAMPLES)
def test_an_error_is_one_sentence_on_one_line(error: StoreError, sentence: str) -> None:
    assert str(error) == sentence
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(("error", "sentence"), EXAMPLES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling_with_its_fields(error: StoreError, sentence: str, protocol: int) -> None:
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == sentence


@pytest.mark.parametrize(("error", "sentence"), EXAMPLES)
def test_an_error_can_be_raised_from_another_and_keeps_its_cause(error: StoreError, sentence: str) -> None:
    copy = pickle.loads(pickle.dumps(error))
    cause = OSError("below")
    with pytest.raises(StoreError) as caught:
        raise copy from cause
    assert caught.value.__cause__ is cause
    assert str(caught.value) == sentence


@pytest.mark.parametrize("kind", BRANCHES)
def test_a_branch_has_no_fields_and_pickles_too(kind: type[StoreError]) -> None:
    assert not attrs.has(kind)
    assert type(pickle.loads(pickle.dumps(kind()))) is kind


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (errors.InvalidReference, (errors.InvalidInput, ValueError)),
        (errors.InvalidDigest, (errors.InvalidInput, ValueError)),
        (errors.InvalidPlatform, (errors.InvalidInput, ValueError)),
        (errors.InvalidFilter, (errors.InvalidInput, ValueError)),
        (errors.InvalidArgument, (errors.InvalidInput, ValueError)),
        (errors.InvalidDocument, (errors.InvalidInput, ValueError)),
        (errors.InvalidArchive, (errors.InvalidInput, ValueError)),
        (errors.ImageNotFound, (errors.NotFound, LookupError)),
        (errors.BlobNotFound, (errors.NotFound, LookupError)),
        (errors.PathNotFound, (errors.NotFound, LookupError)),
        (errors.PlatformNotFound, (errors.NotFound, LookupError)),
        (errors.ManifestUnknown, (errors.RegistryError, errors.NotFound)),
        (errors.AuthenticationRefused, (errors.RegistryError,)),
        (errors.RateLimited, (errors.RegistryError,)),
    ],
)
def test_an_error_is_caught_by_the_branch_on_which_callers_act(
    kind: type[StoreError], bases: tuple[type[Exception], ...]
) -> None:
    assert all(issubclass(kind, base) for base in bases)


def test_text_from_outside_cannot_break_the_line_of_an_error() -> None:
    hostile = "a\n[pull] Done\r\x1b[2J\x00"
    quoting = [
        errors.InvalidReference(hostile, "no form"),
        errors.InvalidDigest(hostile, "no form"),
        errors.InvalidPlatform(hostile, "no form"),
        errors.InvalidFilter(hostile, "no form"),
        errors.InvalidPath(hostile, "no form"),
        errors.InvalidArchive("a link", hostile),
        errors.ImageNotFound(hostile),
        errors.PolicyRefused(hostile, "verify", hostile),
    ]
    assert all(str(error).isprintable() for error in quoting)


def test_text_from_outside_takes_as_much_room_as_it_does_where_it_is_written() -> None:
    # Each of these is six characters there.
    hostile = "\udcff" * 5000
    quoting = [
        errors.InvalidReference(hostile, "no form"),
        errors.InvalidDigest(hostile, "no form"),
        errors.InvalidPlatform(hostile, "no form"),
        errors.InvalidFilter(hostile, "no form"),
        errors.InvalidArchive("a link", hostile),
        errors.PathNotFound("app:1", hostile),
        errors.PolicyRefused(hostile, "verify", "no form"),
    ]
    assert {len(str(error)) < 300 for error in quoting} == {True}
    assert all("\\udcff..." in str(error) for error in quoting)


def test_a_sentence_is_bounded_whatever_stands_in_it_and_keeps_its_end() -> None:
    long = "\x01" * 4000
    quoting = [
        errors.InvalidDocument(long, "no form"),
        errors.RegistryError("GET", long, 404, (), "no form"),
        errors.StoreDamaged(long, "no form"),
        errors.PlatformNotFound("app:1", "linux/amd64", (long,) * 20 + ("no form",)),
        errors.ImageNotFound("app:1").after([long, "no form"]),
    ]
    assert all(len(str(error)) == 999 for error in quoting)
    assert [str(error)[-7:] for error in quoting if "; on offer" not in str(error)] == ["no form"] * 4


def test_an_error_with_a_sentence_of_its_own_keeps_it_when_it_is_pickled() -> None:
    error = errors.StoreError("a sentence")
    assert str(pickle.loads(pickle.dumps(error))) == "a sentence"


def test_what_the_system_refuses_below_an_open_folder_is_told_with_the_store_that_it_is_of(tmp_path: Path) -> None:
    with _files.opened_directory(str(tmp_path)) as folder:
        with pytest.raises(StoreUnavailable) as caught, file_errors("/a/store"):
            os.mkdir("nowhere/etc", dir_fd=folder)
        assert caught.value.path == "/a/store", "a name below an open folder says nothing by itself"
        assert "nowhere/etc" in str(caught.value)
    with pytest.raises(StoreUnavailable) as caught, file_errors("/a/store"):
        os.mkdir("/nowhere/etc")
    assert caught.value.path == "/nowhere/etc"
