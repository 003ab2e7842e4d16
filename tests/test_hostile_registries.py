"""What a pull from one place is guarded against, a push, a copy, a list and a pull from mirrors are too.

Each rule is tested in depth where a pull meets it; here stands that no other road goes round it.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store import Mirror, RegistryRule, Store, remote
from minibox_store.digest import Digest
from minibox_store.errors import InvalidDigest, RegistryError, StoreError
from minibox_store.events import Event, render_line
from minibox_store.layout.paths import LayoutPaths
from minibox_store.registry import Credentials
from tests.support.answers import Answer, Request, Scripted, basic_credentials, redirect, registry_error
from tests.support.certificates import make_certificate
from tests.support.compression import grows_by_less_than
from tests.support.images import BuiltImage, build_image, digest_of, random_layer
from tests.support.invariants import check_invariants
from tests.support.layouts import read_layout_blobs
from tests.support.registries import PUBLIC_ADDRESS, NamedNetwork, open_repository, quick_client
from tests.support.scripted_registry import (
    ScriptedRegistry,
    ScriptedServer,
    TokenServer,
    blob_target,
    document_answer,
    manifest_target,
    serve_image,
)
from tests.support.stores import layer_of, open_store, put
from tests.support.strategies import digests
from tests.support.upload_registry import UploadRegistry

MEBIBYTE = 1 << 20
IMAGE = build_image([{"a": b"a"}, random_layer(256 << 10, salt="hostile")])
LAYER = layer_of(IMAGE, 1)
ALICE = ("alice", "pass-word-1")
PULL, PUSH = "repository:team/app:pull", "repository:team/app:pull,push"
UPLOADS = "/v2/team/app/blobs/uploads/"
MANIFEST = manifest_target("team/app", "1")
# What is done with the registry that a test is about, by what it is called.
ROADS = ("pull", "push", "copy from", "copy to", "tags", "mirror")

Road = Callable[..., None]


@pytest.fixture
def registry() -> Iterator[UploadRegistry]:
    """What a test is about: it has the image, and takes it in anew where it is asked to."""
    with UploadRegistry() as running:
        fill(running, IMAGE)
        yield running


@pytest.fixture
def honest() -> Iterator[UploadRegistry]:
    """A registry that has nothing to hide."""
    with UploadRegistry() as running:
        fill(running, IMAGE)
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    put(tmp_path / "store", IMAGE, "app:1")
    yield open_store(tmp_path / "store")
    check_invariants(tmp_path / "store", leftovers=True)


@pytest.fixture
def go(honest: UploadRegistry, store: Store, tmp_path: Path) -> Road:
    """Do something with a registry, on one of the roads there are."""

    def run(road: str, registry: ScriptedServer, **options: Any) -> None:
        on_event = options.pop("on_event", lambda _: None)
        here, there = f"{registry.host}/team/app:1", honest.reference("team/app", "1")
        if road == "mirror":
            rule = RegistryRule(prefix=honest.host, mirrors=(Mirror(location=registry.host),))
            options["registries"] = [rule]
        client = quick_client(**{"attempts": 2, **options})
        fresh = open_store(tmp_path / "fresh")
        if road == "pull":
            fresh.pull(here, client=client, on_event=on_event)
        elif road == "mirror":
            fresh.pull(there, client=client, on_event=on_event)
        elif road == "push":
            store.push("app:1", here, client=client, on_event=on_event)
        elif road == "copy from":
            remote.copy(here, honest.reference("copies/app", "1"), client=client, on_event=on_event)
        elif road == "copy to":
            remote.copy(there, here, client=client, on_event=on_event)
        else:
            list(remote.tags(f"{registry.host}/team/app", client=client))

    return run


def fill(registry: UploadRegistry, image: BuiltImage) -> None:
    """Let a registry have an image."""
    for digest, content in image.blobs.items():
        if digest in image.document_digests:
            registry.manifests["team/app", digest] = (image.media_types[digest], content)
        else:
            registry.blobs["team/app", digest] = content
    registry.manifests["team/app", "1"] = (image.media_type, image.blobs[image.digest])


def as_alice(registry: ScriptedServer, **options: Any) -> dict[str, Any]:
    """Options of a client that has credentials for a registry."""
    return {"credentials": {registry.host: Credentials(*ALICE)}, **options}


def going_on(action: Callable[[], None], road: str) -> None:
    """Check that something is refused; by mirrors it is passed over, since the registry behind them is honest."""
    if road == "mirror":
        action()
        return
    with pytest.raises(StoreError) as caught:
        action()
    assert ALICE[1] not in str(caught.value)


# S1: token servers


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    "realm", ["{evil}/token", "http://{host}@{evil_host}/token", "ftp://{host}/token", "http://{host}.evil.example/"]
)
def test_s1_no_token_server_that_a_registry_makes_up_is_told_credentials(
    go: Road, registry: UploadRegistry, road: str, realm: str
) -> None:
    with TokenServer() as evil:
        named = realm.format(evil=evil.url, evil_host=evil.host, host=registry.host)
        registry.authorization = "Bearer never"
        registry.challenge = f'Bearer realm="{named}",service="x",scope="{PULL}"'
        going_on(lambda: go(road, registry, **as_alice(registry)), road)
        registry.assert_no_credentials()
        assert not evil.requests


@pytest.mark.parametrize("road", ["copy from", "copy to"])
def test_s1_neither_end_of_a_copy_sees_what_is_for_the_other(
    go: Road, registry: UploadRegistry, honest: UploadRegistry, road: str
) -> None:
    registry.authorization = basic_credentials(*ALICE)
    go(road, registry, **as_alice(registry))
    honest.assert_no_credentials()


def test_s1_the_next_page_of_a_list_is_nowhere_else(registry: UploadRegistry) -> None:
    registry.authorization = basic_credentials(*ALICE)
    with ScriptedServer() as evil:
        link = {"Link": f'<{evil.url}/v2/team/app/tags/list?last=1>; rel="next"'}
        page = Answer(headers={"Content-Type": "application/json", **link}, body=json.dumps({"tags": ["1"]}).encode())
        token = {"Authorization": registry.authorization}
        registry.allow("GET", "/v2/team/app/tags/list?n=1000", page, requires=token)
        # Only what follows the host is taken from a link.
        assert list(remote.tags(f"{registry.host}/team/app", client=quick_client(**as_alice(registry)))) == ["1"]
        assert registry.requests[-1].target == "/v2/team/app/tags/list?last=1"
        assert not evil.requests


# S2: addresses


@pytest.mark.parametrize("road", ["pull", "push", "copy from", "copy to", "mirror"])
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1"])
def test_s2_nobody_far_away_leads_to_what_is_near(go: Road, honest: UploadRegistry, road: str, address: str) -> None:
    with UploadRegistry(hostname="registry.example") as registry, ScriptedServer() as near:
        if "to" not in road and road != "push":
            fill(registry, IMAGE)
        network = NamedNetwork(
            {
                "registry.example": [[PUBLIC_ADDRESS]],
                "near.example": [[address]],
                # The other end is on this machine, as it may be.
                "127.0.0.1": [["127.0.0.1"]],
            },
            {"registry.example": registry.port, "near.example": near.port, "127.0.0.1": honest.port},
        )
        registry.location = f"http://near.example:{near.port}{{path}}"
        for digest in IMAGE.blobs:
            if digest not in IMAGE.document_digests:
                target = blob_target("team/app", digest)
                registry.allow("GET", target, redirect(f"http://near.example:{near.port}/"))
        options = {"network": network, "plain_http": [registry.host, honest.host, f"near.example:{near.port}"]}
        going_on(lambda: go(road, registry, **options), road)
        assert not near.requests


# S3: what crosses to another origin


@pytest.mark.parametrize("road", ["pull", "copy from", "mirror"])
def test_s3_where_a_registry_keeps_its_blobs_no_credentials_are_seen(
    go: Road, registry: UploadRegistry, road: str
) -> None:
    registry.authorization = basic_credentials(*ALICE)
    with ScriptedServer() as storage:
        for digest, content in IMAGE.blobs.items():
            if digest not in IMAGE.document_digests:
                registry.allow(
                    "GET",
                    blob_target("team/app", digest),
                    redirect(f"{storage.url}/{digest}"),
                    requires={"Authorization": registry.authorization},
                )
                storage.allow("GET", f"/{digest}", Answer(body=content), forbids=["Authorization"])
        go(road, registry, **as_alice(registry))
        assert len(storage.requests) == len(IMAGE.blobs) - 1
        storage.assert_no_credentials()


@pytest.mark.parametrize("road", ["push", "copy to"])
def test_s3_an_upload_that_begins_with_tls_does_not_go_on_without(go: Road, road: str, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with UploadRegistry(certificate=certificate, hostname="localhost") as registry, ScriptedServer() as plain:
        registry.location = f"http://localhost:{plain.port}{{path}}"
        options = {"https": [registry.host], "ca_file": certificate.chain}
        with pytest.raises(RegistryError, match="goes on at is refused"):
            go(road, registry, **options)
        assert not plain.requests


# S4: what is no digest


@pytest.mark.parametrize("road", ["pull", "copy from", "mirror"])
@pytest.mark.parametrize(
    "digest", ["sha256:../../x", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "md5:" + "a" * 32, "\0"]
)
def test_s4_what_is_no_digest_is_asked_for_nowhere_and_goes_nowhere(
    go: Road, registry: UploadRegistry, honest: UploadRegistry, road: str, digest: str
) -> None:
    document = IMAGE.document()
    document["layers"][1]["digest"] = digest
    content = json.dumps(document).encode()
    registry.manifests["team/app", "1"] = registry.manifests["team/app", digest_of(content)] = (
        IMAGE.media_type,
        content,
    )
    going_on(lambda: go(road, registry), road)
    assert not [request for request in registry.requests if "/blobs/" in request.path and road != "mirror"]
    assert not [request for request in registry.requests if digest in request.target or ".." in request.target]
    assert honest.tag("copies/app", "1") is None


WORDS = ["sha256", "sha512", ":", "..", "/", "\\", "\0", ".", "a" * 64, "A" * 64, "\u0660" * 64]
NEARLY_DIGESTS = st.text(max_size=80) | st.lists(st.sampled_from(WORDS)).map("".join) | digests().map(str)


@given(text=NEARLY_DIGESTS)
def test_s4_no_text_leads_out_of_the_folders_of_a_store(text: str) -> None:
    paths = LayoutPaths("/store")
    try:
        digest = Digest.parse(text)
    except InvalidDigest:
        return
    for path, folder in ((paths.blob(digest), "/store/blobs"), (paths.partial(digest), "/store/ingest/partial")):
        assert os.path.normpath(path) == path
        assert path.startswith(f"{folder}/")


# S5: documents of two meanings


@pytest.mark.parametrize("road", ["pull", "copy from", "mirror"])
def test_s5_what_is_index_and_manifest_goes_nowhere(
    go: Road, registry: UploadRegistry, honest: UploadRegistry, road: str
) -> None:
    content = json.dumps({**IMAGE.document(), "manifests": []}).encode()
    registry.manifests["team/app", "1"] = registry.manifests["team/app", digest_of(content)] = (
        IMAGE.media_type,
        content,
    )
    going_on(lambda: go(road, registry), road)
    assert honest.tag("copies/app", "1") is None


# S7: bounds


ENDLESS: dict[str, Answer] = {
    "error": Answer(status=500, endless=True, framing="chunked"),
    "refusal": Answer(status=403, endless=True, content_length=1 << 50),
    "begun": Answer(status=202, headers={"Location": f"{UPLOADS}x"}, endless=True, framing="until_close"),
    "unauthorized": Answer(status=401, headers={"WWW-Authenticate": "Basic"}, endless=True, framing="chunked"),
}


@pytest.mark.parametrize("answer", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("road", ["push", "copy to"])
@pytest.mark.parametrize("asked", ["HEAD blob", "POST", "PUT manifest"])
def test_s7_an_answer_without_an_end_to_an_upload_is_cut_and_costs_no_memory(
    go: Road, road: str, answer: Answer, asked: str
) -> None:
    def send() -> None:
        with UploadRegistry() as registry:
            listed = {
                "POST": lambda: registry.allow("POST", UPLOADS, answer),
                "PUT manifest": lambda: registry.allow("PUT", MANIFEST, answer),
                "HEAD blob": lambda: registry.allow("HEAD", blob_target("team/app", str(LAYER.digest)), answer),
            }[asked]()
            with suppress(StoreError):
                go(road, registry)
            # What it has sent may be on the line, read by nobody.
            assert sum(request.body_bytes_sent for request in listed.requests) < 32 * MEBIBYTE

    assert grows_by_less_than(40 * MEBIBYTE, send)


# S9: encodings


@pytest.mark.parametrize("road", ROADS)
def test_s9_nobody_is_asked_for_anything_compressed_on_its_way(go: Road, registry: UploadRegistry, road: str) -> None:
    if road in ("push", "copy to"):
        registry.blobs.clear()
    go(road, registry)
    assert registry.requests
    assert {request.header("Accept-Encoding") for request in registry.requests} == {"identity"}


@pytest.mark.parametrize("road", ["pull", "copy from", "mirror"])
def test_s9_what_comes_compressed_all_the_same_goes_nowhere(
    go: Road, registry: UploadRegistry, honest: UploadRegistry, road: str
) -> None:
    answer = Answer(headers={"Content-Encoding": "gzip"}, body=IMAGE.blobs[str(LAYER.digest)])
    registry.allow("GET", blob_target("team/app", str(LAYER.digest)), answer)
    going_on(lambda: go(road, registry), road)
    assert honest.tag("copies/app", "1") is None


def test_s9_a_range_that_comes_compressed_is_none(registry: UploadRegistry) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Range": f"bytes 0-99/{LAYER.size_bytes}"}
    answer = Answer(status=206, headers=headers, body=b"x" * 100)
    registry.allow("GET", blob_target("team/app", str(LAYER.digest)), answer)
    with (
        open_repository(registry.reference("team/app", "1"), attempts=1) as repository,
        pytest.raises(RegistryError, match="compressed on its way"),
    ):
        repository.open_range(LAYER, 0, 100)


# S26: lengths


@pytest.mark.parametrize("road", ["copy from", "mirror", "pull"])
@pytest.mark.parametrize("difference", [-1, 1])
def test_s26_a_blob_of_another_length_than_announced_goes_nowhere(
    go: Road, registry: UploadRegistry, honest: UploadRegistry, road: str, difference: int
) -> None:
    content = IMAGE.blobs[str(LAYER.digest)]
    body = content[:-1] if difference < 0 else content + b"x"
    for framing in ("length", "chunked"):
        registry.allow("GET", blob_target("team/app", str(LAYER.digest)), Answer(body=body, framing=framing))
        going_on(lambda: go(road, registry), road)
        assert ("copies/app", str(LAYER.digest)) not in honest.blobs


@pytest.mark.parametrize("told", ["0-262143", "0-999999999999", "0-18446744073709551615", "5-9", "0--1", "bytes=0-1e9"])
def test_s26_a_registry_that_says_to_have_more_of_an_upload_than_was_sent_gets_all_of_it(go: Road, told: str) -> None:
    class Lying(UploadRegistry):
        def _go_on(self, request: Request, repository: str, name: str) -> Answer:
            if request.method == "GET":
                return Answer(status=204, headers={"Location": request.target, "Range": told})
            return super()._go_on(request, repository, name)

    with Lying() as registry:
        registry.cuts = [100_000, 100_000, 100_000]
        go("push", registry, attempts=5)
        assert registry.holds("team/app", IMAGE)


# S27: what was resolved


def moving(digests: list[BuiltImage]) -> Scripted:
    """Return a tag that stands for another image each time it is asked for."""
    left = list(digests)

    def answer(request: Request) -> Answer:
        return document_answer(left.pop(0) if len(left) > 1 else left[0])(request)

    return answer


def test_s27_a_copy_of_a_tag_that_moves_is_of_what_it_stood_for_first(go: Road, honest: UploadRegistry) -> None:
    other = build_image(salt="other")
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", None, other)
        serve_image(registry, "team/app", "1", IMAGE)
        registry.allow("GET", MANIFEST, moving([IMAGE, other]))
        go("copy from", registry)
    assert honest.tag("copies/app", "1") == IMAGE.digest
    assert honest.holds("copies/app", IMAGE)


def test_s27_the_bytes_of_a_manifest_that_are_pushed_are_those_that_the_store_has(
    go: Road, registry: UploadRegistry, store: Store
) -> None:
    registry.manifests.clear()
    go("push", registry)
    found = {content for (_, name), (_, content) in registry.manifests.items() if name in ("1", IMAGE.digest)}
    root = Path(store.info().root)
    assert found == {read_layout_blobs(root)[IMAGE.digest]}


# S28: secrets


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("place", ["message", "body", "warning"])
def test_s28_what_was_sent_is_in_no_log_no_event_and_no_error(
    go: Road, registry: UploadRegistry, road: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = basic_credentials(*ALICE).partition(" ")[2]
    registry.authorization = basic_credentials(*ALICE)

    def echo(request: Request) -> Answer:
        sent = f"cannot take {request.header('Authorization')} for {request.target}?X-Amz-Signature=planted"
        if place == "message":
            return registry_error(400, "DENIED", sent)
        if place == "body":
            return Answer(status=418, headers={"Content-Type": "text/plain"}, body=sent.encode())
        return Answer(status=500, headers={"Warning": f'299 - "{sent}"'})

    token = {"Authorization": registry.authorization}
    for method, target in (
        ("GET", MANIFEST),
        ("POST", UPLOADS),
        ("GET", "/v2/team/app/tags/list"),
        ("GET", "/v2/team/app/tags/list?n=1000"),
        ("PUT", MANIFEST),
    ):
        registry.allow(method, target, echo, requires=token)
    said: list[str] = []

    def note(event: Event) -> None:
        said.extend((repr(event), str(render_line(event))))

    registry.blobs.clear()
    try:
        go(road, registry, on_event=note, **as_alice(registry))
    except StoreError as error:
        said += [str(error), repr(error), repr(error.__cause__), str(error.__context__)]
    else:
        assert road == "mirror"
    assert not [text for text in [*said, caplog.text] if secret in text or ALICE[1] in text or "planted" in text]
