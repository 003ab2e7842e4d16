"""Pushing: what is sent, in which order, how a broken line is mended, and what stays as it was when it is not."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minibox_store import Store, copy
from minibox_store.cancellation import Cancellation
from minibox_store.documents import Descriptor
from minibox_store.errors import (
    AuthenticationRefused,
    Cancelled,
    ContentMismatch,
    ImageNotFound,
    IncompleteImage,
    InvalidArgument,
    InvalidDocument,
    InvalidReference,
    PlatformNotFound,
    RateLimited,
    RegistryError,
    StoreDamaged,
    StoreUnavailable,
)
from minibox_store.events import (
    BlobAdvanced,
    BlobPresent,
    BlobStarted,
    BlobStored,
    Event,
    ImageCopied,
    RegisteringName,
    render_line,
)
from minibox_store.platforms import Platform
from minibox_store.registry import Credentials
from tests.support.answers import Answer, Request, basic_credentials, redirect, registry_error, unauthorized
from tests.support.certificates import make_certificate
from tests.support.images import (
    EMPTY,
    OCI_CONFIG,
    OCI_INDEX,
    BuiltImage,
    build_artifact,
    build_image,
    build_index,
    random_layer,
)
from tests.support.pushes import for_others
from tests.support.registries import NamedNetwork, quick_client
from tests.support.scripted_registry import ScriptedServer, TokenServer
from tests.support.stores import blob, open_store, put, rot
from tests.support.upload_registry import UploadRegistry
from tests.support.waiting import SOON_SECONDS

BIG = random_layer(1 << 20)
IMAGE = build_image([{"a": b"a"}, BIG])
SMALL = build_image()
INDEX = build_index([SMALL, build_image(platform="linux/arm64")], attestations=True)
ALICE = ("alice", "pass-word-1")
UPLOADS = "/v2/team/app/blobs/uploads/"


@pytest.fixture
def registry() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    put(tmp_path / "store", IMAGE, "app:1")
    put(tmp_path / "store", SMALL, "small:1")
    put(tmp_path / "store", INDEX, "index:1")
    return open_store(tmp_path / "store")


def push(store: Store, registry: UploadRegistry, name: str = "app:1", **options: Any) -> Descriptor:
    """Push to where every test does."""
    options = {"client": quick_client(), **options}
    return store.push(name, registry.reference("team/app", "1"), **options)


# What is sent


@pytest.mark.parametrize(("name", "image"), [("app:1", IMAGE), ("small:1", SMALL), ("index:1", INDEX)])
def test_all_of_an_image_arrives_and_the_tag_comes_last(
    store: Store, registry: UploadRegistry, name: str, image: BuiltImage
) -> None:
    assert str(push(store, registry, name).digest) == image.digest
    assert registry.holds("team/app", image)
    assert registry.tag("team/app", "1") == image.digest
    last = registry.sent()[-1]
    assert last == "PUT /v2/team/app/manifests/1"
    assert registry.sent("PUT").count(last) == 1


def test_what_is_returned_says_nothing_of_the_name_in_the_store(store: Store, registry: UploadRegistry) -> None:
    pushed = push(store, registry)
    assert store.resolve("app:1").annotations
    assert pushed == store.get("app:1").descriptor


def test_each_blob_takes_three_requests_and_the_root_one(store: Store, registry: UploadRegistry) -> None:
    push(store, registry)
    blobs = len(IMAGE.blobs) - 1
    assert len(registry.sent("HEAD")) == len(registry.sent("POST")) == blobs
    assert len(registry.sent("PUT")) == blobs + 1
    assert len(registry.sent("GET", "PATCH")) == 1  # whether a registry on this machine wants TLS
    assert registry.body_bytes == IMAGE.size_bytes


def test_what_is_there_is_not_sent_again(store: Store, registry: UploadRegistry) -> None:
    push(store, registry)
    sent_bytes = registry.body_bytes
    events: list[Event] = []
    push(store, registry, on_event=events.append)
    assert registry.body_bytes == sent_bytes + len(IMAGE.blobs[IMAGE.digest])
    assert sum(isinstance(event, BlobPresent) for event in events) == len(IMAGE.blobs) - 1
    assert not any(isinstance(event, BlobStarted) for event in events)


def test_one_manifest_of_an_index_may_be_pushed(store: Store, registry: UploadRegistry) -> None:
    arm = INDEX.document()["manifests"][1]["digest"]
    pushed = push(store, registry, "index:1", platform=Platform.parse("linux/arm64"))
    assert str(pushed.digest) == arm == registry.tag("team/app", "1")
    with pytest.raises(PlatformNotFound):
        push(store, registry, "index:1", platform=Platform.parse("linux/s390x"))


def test_by_a_digest_alone_no_tag_is_written(store: Store, registry: UploadRegistry) -> None:
    store.push("app:1", registry.reference("team/app", digest=IMAGE.digest), client=quick_client())
    assert registry.holds("team/app", IMAGE)
    assert registry.sent("PUT")[-1] == f"PUT /v2/team/app/manifests/{IMAGE.digest}"
    with pytest.raises(InvalidReference, match="has the digest"):
        store.push("app:1", registry.reference("team/app", "1", digest=SMALL.digest), client=quick_client())
    assert registry.tag("team/app", "1") is None


def test_the_name_is_the_reference_where_there_is_no_other(tmp_path: Path, registry: UploadRegistry) -> None:
    name = registry.reference("team/app", "7")
    put(tmp_path, SMALL, name)
    open_store(tmp_path).push(name, client=quick_client())
    assert registry.tag("team/app", "7") == SMALL.digest


ELSEWHERE = for_others(build_image([{"a": b"a"}, {"b": b"b"}]), "https://example.com/layer")
ELSEWHERE_INDEX = build_index([ELSEWHERE, SMALL])


def test_a_layer_that_only_others_may_give_away_is_not_sent(tmp_path: Path, registry: UploadRegistry) -> None:
    put(tmp_path, ELSEWHERE, "app:1")
    push(open_store(tmp_path), registry)
    assert registry.tag("team/app", "1") == ELSEWHERE.digest
    assert not [digest for _, digest in registry.blobs if digest in ELSEWHERE.layer_digests]
    assert registry.sent("PUT").count("PUT /v2/team/app/manifests/1") == 1


@pytest.mark.parametrize("image", [ELSEWHERE, ELSEWHERE_INDEX], ids=["image", "index"])
def test_a_registry_that_takes_no_manifest_without_such_a_layer_gets_it(
    tmp_path: Path, registry: UploadRegistry, image: BuiltImage
) -> None:
    registry.needs_all_layers = True
    put(tmp_path, image, "app:1")
    store = open_store(tmp_path)
    push(store, registry)
    assert registry.tag("team/app", "1") == image.digest
    assert registry.holds("team/app", image)
    assert registry.body_bytes == image.size_bytes + len(ELSEWHERE.blobs[ELSEWHERE.digest]), "one manifest came twice"
    sent = len(registry.sent("POST"))
    push(store, registry)
    assert len(registry.sent("POST")) == sent


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_layer_that_was_left_out_and_is_sent_after_all_is_told_as_stored_in_the_end(
    tmp_path: Path, registry: UploadRegistry, parallel: int
) -> None:
    registry.needs_all_layers = True
    put(tmp_path, ELSEWHERE, "app:1")
    store = open_store(tmp_path)
    for is_there in (False, True):
        events: list[Event] = []
        push(store, registry, on_event=events.append, parallel=parallel)
        for digest in ELSEWHERE.layer_digests:
            told = [type(each) for each in events if digest == digest_told(each)]
            late = [] if is_there else [BlobStarted, BlobAdvanced, BlobStored]
            assert told == [BlobStored, *late]
        assert isinstance(events[-1], ImageCopied)


def digest_told(event: Event) -> str | None:
    match event:
        case BlobStarted() | BlobStored():
            return str(event.descriptor.digest)
        case BlobAdvanced():
            return str(event.digest)
    return None


@pytest.mark.parametrize("codes", [("MANIFEST_INVALID",), ("MANIFEST_BLOB_UNKNOWN", "UNKNOWN")])
def test_a_registry_that_refuses_such_a_manifest_for_something_else_does_not_get_the_layer(
    tmp_path: Path, registry: UploadRegistry, codes: tuple[str, ...]
) -> None:
    errors = {"errors": [{"code": code, "message": "no"} for code in codes]}
    refused = Answer(
        status=400, headers=[("Content-Type", "application/json; charset=utf-8")], body=json.dumps(errors).encode()
    )
    registry.refuses = lambda request: refused if request.method == "PUT" and "/manifests/" in request.target else None
    put(tmp_path, ELSEWHERE, "app:1")
    with pytest.raises(RegistryError, match=codes[0]):
        push(open_store(tmp_path), registry)
    assert not [digest for _, digest in registry.blobs if digest in ELSEWHERE.layer_digests]


def test_where_nobody_has_such_a_layer_the_registrys_refusal_is_told(registry: UploadRegistry) -> None:
    registry.needs_all_layers = True
    with UploadRegistry() as origin:
        origin.put("team/app", ELSEWHERE.without(*ELSEWHERE.layer_digests), tag="1")
        with pytest.raises(RegistryError, match=f"{ELSEWHERE.layer_digests[0]} is missing.*MANIFEST_BLOB_UNKNOWN"):
            copy(origin.reference("team/app", "1"), registry.reference("team/app", "1"), client=quick_client())
    assert registry.tag("team/app", "1") is None


def test_a_blob_is_taken_from_another_repository_of_the_same_registry(store: Store, registry: UploadRegistry) -> None:
    store.push("app:1", registry.reference("team/first", "1"), client=quick_client())
    sent_bytes = registry.body_bytes
    push(store, registry)
    assert registry.holds("team/app", IMAGE)
    assert registry.body_bytes == sent_bytes + len(IMAGE.blobs[IMAGE.digest])


@pytest.mark.parametrize("refusal", ["begins an upload", "refuses"])
def test_where_a_blob_cannot_be_taken_from_there_it_is_sent(
    store: Store, registry: UploadRegistry, refusal: str
) -> None:
    store.push("app:1", registry.reference("team/first", "1"), client=quick_client())
    registry.mounts = False
    if refusal == "refuses":
        for digest in (*IMAGE.layer_digests, IMAGE.config_digest):
            target = f"{UPLOADS}?mount={digest}&from=team/first"
            registry.expect("POST", target, registry_error(403, "DENIED"))
    push(store, registry)
    assert registry.holds("team/app", IMAGE)
    posts = len(registry.sent("POST"))
    assert posts == (len(IMAGE.blobs) - 1) * (3 if refusal == "refuses" else 2)


# What refers to something else

SIGNATURE = build_image(
    [{"signature": b"s"}], subject=SMALL.root, annotations={"org.example.by": "alice"}, salt="signature"
)
OTHER_SIGNATURE = build_image([{"signature": b"t"}], subject=SMALL.root, salt="other signature")
LIST = f"sha256-{SMALL.digest.partition(':')[2]}"


@pytest.fixture
def signed(tmp_path: Path, store: Store) -> Store:
    put(tmp_path / "store", SIGNATURE, "signature:1")
    put(tmp_path / "store", OTHER_SIGNATURE, "other:1")
    return store


def test_a_registry_that_knows_of_subjects_lists_referrers_itself(signed: Store, registry: UploadRegistry) -> None:
    push(signed, registry, "signature:1")
    assert registry.tag("team/app", "1") == SIGNATURE.digest
    assert registry.tag("team/app", LIST) is None
    assert not [each for each in registry.sent("GET") if LIST in each]


def test_where_a_registry_lists_no_referrers_they_are_listed_under_a_tag(
    signed: Store, registry: UploadRegistry
) -> None:
    registry.knows_subjects = False
    for name in ("signature:1", "other:1", "signature:1"):
        push(signed, registry, name)
    media_type, content = registry.manifests["team/app", LIST]
    listed = json.loads(content)
    assert media_type == listed["mediaType"] == OCI_INDEX
    kind = {"artifactType": OCI_CONFIG}
    assert listed["manifests"] == [
        {**SIGNATURE.root, **kind, "annotations": {"org.example.by": "alice"}},
        {**OTHER_SIGNATURE.root, **kind},
    ]


def test_what_says_an_empty_type_is_listed_by_that_of_its_config(signed: Store, registry: UploadRegistry) -> None:
    artifact = build_artifact(SMALL.root, kind="")
    put(Path(signed.root), artifact, "artifact:1")
    registry.knows_subjects = False
    push(signed, registry, "artifact:1")
    (listed,) = json.loads(registry.manifests["team/app", LIST][1])["manifests"]
    assert listed == {**artifact.root, "artifactType": EMPTY}


@pytest.mark.parametrize("subject", [SMALL, INDEX], ids=["manifest", "index"])
@pytest.mark.parametrize("is_itself", [True, False], ids=["itself", "another"])
def test_what_is_no_list_of_referrers_is_left_as_it_is(
    signed: Store, registry: UploadRegistry, subject: BuiltImage, *, is_itself: bool
) -> None:
    place, there = subject.digest.replace(":", "-"), subject if is_itself else IMAGE
    registry.put("team/app", there, tag=place)
    registry.knows_subjects = False
    put(Path(signed.root), build_artifact(subject.root), "artifact:1")
    with pytest.raises(InvalidDocument, match="no list of referrers"):
        push(signed, registry, "artifact:1")
    assert registry.tag("team/app", place) == there.digest


def test_a_referrer_that_cannot_be_listed_leaves_the_tag_as_it_was(signed: Store, registry: UploadRegistry) -> None:
    push(signed, registry, "small:1")
    registry.knows_subjects = False
    registry.allow("PUT", f"/v2/team/app/manifests/{LIST}", registry_error(403, "DENIED"))
    with pytest.raises(AuthenticationRefused, match="DENIED"):
        push(signed, registry, "signature:1")
    assert registry.tag("team/app", "1") == SMALL.digest


def test_lists_of_referrers_that_refer_to_each_other_have_an_end(signed: Store, registry: UploadRegistry) -> None:
    lists = [build_index([], subject=SMALL.root), build_index([], subject=SIGNATURE.root)]
    registry.put("team/app", lists[0], tag=f"sha256-{SIGNATURE.digest.partition(':')[2]}")
    registry.put("team/app", lists[1], tag=LIST)
    registry.knows_subjects = False
    push(signed, registry, "signature:1")
    assert len(registry.sent("PUT")) == len(SIGNATURE.blobs) + 2
    listed = json.loads(registry.manifests["team/app", LIST][1])
    assert [each["digest"] for each in listed["manifests"]] == [SIGNATURE.digest]


def test_no_list_of_referrers_is_written_that_nobody_could_read(signed: Store, registry: UploadRegistry) -> None:
    entry = {**OTHER_SIGNATURE.root, "annotations": {"org.example.long": "x" * ((4 << 20) - 500)}}
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
    registry.put("team/app", OTHER_SIGNATURE)
    registry.manifests["team/app", LIST] = (OCI_INDEX, content)
    registry.knows_subjects = False
    with pytest.raises(InvalidDocument, match=f"{LIST}.* larger than 4194304 bytes"):
        push(signed, registry, "signature:1")
    assert registry.manifests["team/app", LIST] == (OCI_INDEX, content)
    assert registry.tag("team/app", "1") is None


# Chunks


def chunk_sizes(registry: UploadRegistry) -> list[int]:
    return [len(request.body) for request in registry.requests if request.method == "PATCH"]


def test_chunks_are_sent_where_they_are_asked_for(store: Store, registry: UploadRegistry) -> None:
    push(store, registry, chunk_bytes=300_000)
    assert registry.holds("team/app", IMAGE)
    assert max(chunk_sizes(registry)) == 300_000
    assert sum(chunk_sizes(registry)) == IMAGE.size_bytes - len(IMAGE.blobs[IMAGE.digest])


def test_no_chunk_is_smaller_than_the_registry_says(store: Store, registry: UploadRegistry) -> None:
    registry.least_chunk_bytes = 500_000
    push(store, registry, chunk_bytes=1000)
    assert registry.holds("team/app", IMAGE)
    assert sorted(size for size in chunk_sizes(registry) if size > 48_576) == [500_000, 500_000]


def test_a_registry_that_takes_no_body_so_large_gets_smaller_ones(store: Store, registry: UploadRegistry) -> None:
    registry.largest_body_bytes = 100_000
    push(store, registry)
    assert registry.holds("team/app", IMAGE)
    assert max(chunk_sizes(registry)) > 0


@pytest.mark.parametrize(
    ("cuts", "chunk_bytes"), [([None, 500_000], None), ([], 300_000)], ids=["after a cut", "in chunks"]
)
def test_ghcr_says_of_a_chunk_that_is_too_large_that_its_range_is_wrong(
    tmp_path: Path, registry: UploadRegistry, cuts: list[int | None], chunk_bytes: int | None
) -> None:
    image = build_image([BIG])
    put(tmp_path / "store", image, "large:1")

    def refuse(request: Request) -> Answer | None:
        is_large = request.method == "PATCH" and len(request.body) > 100_000
        return registry_error(416, "REQUESTED_RANGE_NOT_SATISFIABLE") if is_large else None

    registry.cuts, registry.refuses = list(cuts), refuse
    push(open_store(tmp_path / "store"), registry, "large:1", chunk_bytes=chunk_bytes)
    assert registry.holds("team/app", image)


@pytest.mark.parametrize("attempts", [1, 5])
def test_every_size_down_to_the_smallest_is_tried_however_few_tries_there_are(
    tmp_path: Path, registry: UploadRegistry, attempts: int
) -> None:
    image = build_image([random_layer(20 << 20)])
    put(tmp_path / "store", image, "large:1")
    registry.largest_body_bytes = 64 << 10
    push(open_store(tmp_path / "store"), registry, "large:1", client=quick_client(attempts=attempts))
    assert registry.holds("team/app", image)


def test_a_body_that_is_refused_while_it_is_sent_is_sent_no_further(tmp_path: Path, registry: UploadRegistry) -> None:
    image = build_image([random_layer(32 << 20)])
    put(tmp_path, image, "app:1")
    registry.largest_body_bytes = 8 << 20
    registry.refuses_unread = True
    begun = time.monotonic()
    push(open_store(tmp_path), registry, client=quick_client(silence_seconds=60.0))
    assert time.monotonic() - begun < SOON_SECONDS
    assert registry.holds("team/app", image)
    assert chunk_sizes(registry) == [8 << 20] * 4


def test_over_tls_a_refusal_is_heard_once_nothing_more_is_taken(tmp_path: Path) -> None:
    image = build_image([random_layer(32 << 20)])
    put(tmp_path / "store", image, "app:1")
    certificate = make_certificate(tmp_path / "certificate")
    with UploadRegistry(certificate=certificate) as registry:
        registry.largest_body_bytes = 8 << 20
        registry.refuses_unread, registry.stalls = True, threading.Event()
        client = quick_client(https=[registry.host], ca_file=certificate.chain, silence_seconds=1.0)
        push(open_store(tmp_path / "store"), registry, client=client)
        registry.stalls.set()
        assert registry.holds("team/app", image)
        assert chunk_sizes(registry) == [8 << 20] * 4


@pytest.mark.parametrize("told", ["100 Continue", "102 Processing", "103 Early Hints\r\nLink: </x>; rel=preload"])
@pytest.mark.parametrize("chunk_bytes", [None, 300_000])
def test_what_is_said_before_the_answer_is_none(
    store: Store, registry: UploadRegistry, told: str, chunk_bytes: int | None
) -> None:
    registry.interim = f"HTTP/1.1 {told}\r\n\r\n".encode()
    push(store, registry, chunk_bytes=chunk_bytes)
    assert registry.holds("team/app", IMAGE)
    assert len(registry.sent("PUT")) == len(IMAGE.blobs)


def test_a_registry_that_takes_no_blob_in_its_last_request_gets_it_before(
    store: Store, registry: UploadRegistry
) -> None:
    registry.takes_whole = False
    push(store, registry)
    assert registry.holds("team/app", IMAGE)


def test_a_registry_that_takes_less_than_it_was_sent_gets_the_rest(store: Store, registry: UploadRegistry) -> None:
    registry.most_taken_bytes = 70_000
    push(store, registry, chunk_bytes=100_000)
    assert registry.holds("team/app", IMAGE)
    assert registry.sent("GET") == ["GET /v2/"]  # nothing was in doubt
    assert not [request for request in registry.requests if request.status in (404, 416) and request.method == "PATCH"]


# Lines that break


@pytest.mark.parametrize("chunk_bytes", [None, 400_000])
def test_an_upload_that_was_cut_goes_on_where_it_was(
    store: Store, registry: UploadRegistry, chunk_bytes: int | None
) -> None:
    registry.cuts = [None, None, 300_000, 300_000, 300_000]
    push(store, registry, parallel=1, chunk_bytes=chunk_bytes)
    assert registry.holds("team/app", IMAGE)
    assert registry.body_bytes == IMAGE.size_bytes
    assert f"GET {UPLOADS}" in {each.rpartition("/")[0] + "/" for each in registry.sent("GET")}


@pytest.mark.parametrize("what", ["keeps nothing", "forgets the upload"])
def test_an_upload_of_which_nothing_stayed_begins_anew(store: Store, registry: UploadRegistry, what: str) -> None:
    registry.cuts = [None, None, 900_000]
    registry.keeps_cut = what != "keeps nothing"
    registry.forgets_cut = what == "forgets the upload"
    push(store, registry, parallel=1)
    assert registry.holds("team/app", IMAGE)
    assert registry.body_bytes == IMAGE.size_bytes + 900_000


def test_an_upload_that_is_cut_ever_again_and_gets_nowhere_fails(store: Store, registry: UploadRegistry) -> None:
    registry.cuts = [0] * 100
    with pytest.raises(RegistryError) as caught:
        push(store, registry, client=quick_client(attempts=3))
    assert caught.value.method == "PUT"
    assert caught.value.status is None
    assert registry.tag("team/app", "1") is None
    assert 100 - len(registry.cuts) <= 3 * (3 + 4)


def test_an_upload_that_gets_on_and_loses_it_all_ever_again_fails(store: Store, registry: UploadRegistry) -> None:
    """Each second time nothing is taken; else all of it, in chunks, and it is lost at the end."""
    begun: list[str] = []

    def refuse(request: Request) -> Answer | None:
        upload = request.path.rpartition("/")[2]
        if not upload.startswith("upload-") or len(begun) > 100:
            return None
        if request.method == "PATCH" and upload not in begun:
            begun.append(upload)
            return Answer(status=503) if len(begun) % 2 else None
        if request.method == "GET":
            return registry_error(404, "BLOB_UPLOAD_UNKNOWN")
        return Answer(status=503) if request.method == "PUT" else None

    registry.refuses = refuse
    with pytest.raises(RegistryError) as caught:
        push(store, registry, "small:1", chunk_bytes=100, parallel=1)
    assert caught.value.status == 503
    assert len(begun) < 30


def test_a_blob_whose_answer_got_lost_is_not_sent_again(store: Store, registry: UploadRegistry) -> None:
    push(store, registry, "small:1")
    layer = IMAGE.layer_digests[1]

    def lose(request: object) -> Answer:
        registry.blobs["team/app", layer] = IMAGE.blobs[layer]
        registry.uploads.clear()
        return Answer(raw=b"")

    registry.expect("POST", UPLOADS, Answer(status=202, headers={"Location": f"{UPLOADS}lost"}))
    registry.expect("PUT", f"{UPLOADS}lost?digest={layer}", lose)
    registry.blobs["team/app", IMAGE.config_digest] = IMAGE.blobs[IMAGE.config_digest]
    registry.blobs["team/app", IMAGE.layer_digests[0]] = IMAGE.blobs[IMAGE.layer_digests[0]]
    push(store, registry)
    assert registry.tag("team/app", "1") == IMAGE.digest
    assert len([each for each in registry.requests if each.method == "PUT" and len(each.body) == len(BIG.content)]) == 1


@pytest.mark.parametrize("status", [500, 503, 429])
def test_what_a_registry_cannot_do_now_is_tried_again(store: Store, registry: UploadRegistry, status: int) -> None:
    registry.expect("POST", UPLOADS, registry_error(status, "BUSY"))
    registry.expect("PUT", "/v2/team/app/manifests/1", registry_error(status, "BUSY"))
    push(store, registry)
    assert registry.tag("team/app", "1") == IMAGE.digest


# Where uploads go on


@pytest.mark.parametrize("location", ["{path}", "http://{host}{path}", "//{host}{path}"])
def test_the_address_of_an_upload_may_be_relative(store: Store, registry: UploadRegistry, location: str) -> None:
    registry.location = location.replace("{host}", registry.host)
    push(store, registry)
    assert registry.holds("team/app", IMAGE)


def test_an_upload_may_go_on_at_another_host_which_sees_no_credentials_s1_s3(store: Store) -> None:
    with UploadRegistry() as registry, UploadRegistry() as elsewhere:
        registry.authorization = basic_credentials(*ALICE)
        registry.uploads = elsewhere.uploads
        elsewhere.blobs = registry.blobs
        registry.location = f"{elsewhere.url}{{path}}"
        push(store, registry, client=quick_client(credentials={registry.host: Credentials(*ALICE)}))
        assert registry.holds("team/app", IMAGE)
        assert {request.method for request in elsewhere.requests} == {"PUT"}
        elsewhere.assert_no_credentials()


def test_an_upload_that_is_begun_elsewhere_goes_on_there(store: Store) -> None:
    with UploadRegistry() as registry, UploadRegistry() as elsewhere:
        elsewhere.blobs = registry.blobs
        elsewhere.takes_whole = False
        registry.authorization = basic_credentials(*ALICE)
        registry.allow("POST", UPLOADS, redirect(f"{elsewhere.url}{UPLOADS}", status=307))
        push(store, registry, client=quick_client(credentials={registry.host: Credentials(*ALICE)}))
        assert registry.holds("team/app", IMAGE)
        assert {request.method for request in elsewhere.requests} == {"POST", "PATCH", "PUT"}
        elsewhere.assert_no_credentials()


def test_an_upload_does_not_go_on_at_this_machine_for_a_registry_elsewhere_s2(store: Store) -> None:
    with UploadRegistry(hostname="registry.example") as registry, ScriptedServer() as near:
        registry.location = f"{near.url}{{path}}"
        network = NamedNetwork(
            {"registry.example": [["203.0.113.7"]], "127.0.0.1": [["127.0.0.1"]]},
            {"registry.example": registry.port, "127.0.0.1": near.port},
        )
        client = quick_client(network=network, plain_http=[registry.host])
        with pytest.raises(RegistryError, match="address of this machine"):
            push(store, registry, client=client)
        assert near.requests == []


@pytest.mark.parametrize("location", ["ftp://example.com/x", "http://user:secret@127.0.0.1/x", ""])
def test_an_upload_without_a_place_to_go_on_at_is_refused(
    store: Store, registry: UploadRegistry, location: str
) -> None:
    registry.location = location
    headers = {"Location": location} if location else {}
    registry.allow("POST", UPLOADS, Answer(status=202, headers=headers))
    with pytest.raises(RegistryError, match="goes on at is refused") as caught:
        push(store, registry)
    assert "secret" not in str(caught.value)


def test_an_upload_that_is_redirected_goes_where_it_is_sent_and_no_get_comes_of_it(
    store: Store, registry: UploadRegistry
) -> None:
    registry.expect("PUT", "/v2/team/app/manifests/1", redirect("/v2/team/app/manifests/moved", status=307))
    push(store, registry, "small:1")
    assert registry.tag("team/app", "moved") == SMALL.digest
    registry.expect("PUT", "/v2/team/app/manifests/1", redirect("/v2/team/app/manifests/moved", status=302))
    with pytest.raises(RegistryError) as caught:
        push(store, registry, "small:1")
    assert caught.value.status == 302


# Credentials


def test_a_token_that_ends_in_the_middle_is_renewed(store: Store, registry: UploadRegistry) -> None:
    with TokenServer() as tokens:
        scope = "repository:team/app:pull,push"
        registry.challenge = tokens.challenge(service="registry", scope=scope)
        tokens.expect_token("first-token", "second-token", service="registry", scope=scope, credentials=ALICE)
        registry.authorization = "Bearer first-token"

        def expire(_: object) -> Answer:
            registry.authorization = "Bearer second-token"
            return unauthorized(registry.challenge)

        registry.expect("PUT", "/v2/team/app/manifests/1", expire)
        client = quick_client(credentials={registry.host: Credentials(*ALICE)}, realms={registry.host: [tokens.url]})
        push(store, registry, client=client)
        assert registry.tag("team/app", "1") == IMAGE.digest


def test_one_token_is_good_for_the_whole_push_though_its_first_request_only_reads(
    store: Store, registry: UploadRegistry
) -> None:
    with TokenServer() as tokens:
        registry.challenge = tokens.challenge(service="registry", scope="repository:team/app:pull")
        scope = "repository:team/app:pull,push"
        tokens.expect_token("the-token", service="registry", scope=scope)
        registry.authorization = "Bearer the-token"
        push(store, registry, client=quick_client(realms={registry.host: [tokens.url]}))
        assert len(tokens.requests) == 1


def test_a_token_that_may_read_the_other_repository_is_one_of_its_own(store: Store, registry: UploadRegistry) -> None:
    store.push("small:1", registry.reference("team/first", "1"), client=quick_client())
    with TokenServer() as tokens:
        scope = "repository:team/app:pull,push"
        registry.challenge = tokens.challenge(service="registry", scope=scope)
        tokens.expect_token("the-token", service="registry", scope=scope)
        both = f"/token?service=registry&scope={scope}&scope=repository:team/first:pull"
        refused = tokens.allow("GET", both, registry_error(401, "UNAUTHORIZED", "that one is not yours"))
        registry.authorization = "Bearer the-token"
        push(store, registry, "small:1", client=quick_client(realms={registry.host: [tokens.url]}), parallel=1)
    assert refused.requests
    assert registry.holds("team/app", SMALL)


@pytest.mark.parametrize("secret", [ALICE[1], basic_credentials(*ALICE).partition(" ")[2], "secret-signature"])
def test_no_secret_is_told_of_s28(store: Store, registry: UploadRegistry, secret: str) -> None:
    registry.authorization = basic_credentials(*ALICE)
    registry.location = "{path}&signature=secret-signature"
    said: list[str] = []
    client = quick_client(credentials={registry.host: Credentials(*ALICE)})
    push(store, registry, client=client, on_event=lambda event: said.append(repr(event) + str(render_line(event))))
    registry.blobs.clear()
    place = f"{UPLOADS}x?signature=secret-signature"
    registry.allow("POST", UPLOADS, Answer(status=202, headers={"Location": place}))
    for digest in (*IMAGE.layer_digests, IMAGE.config_digest):
        registry.allow("PUT", f"{place}&digest={digest}", registry_error(403, "DENIED", f"because of {secret}"))
    with pytest.raises(AuthenticationRefused, match="because of") as caught:
        push(store, registry, client=client, on_event=lambda event: said.append(repr(event)))
    said += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
    assert not [text for text in said if secret in text]


# What fails


@pytest.mark.parametrize("repeated", [ALICE[1], basic_credentials(*ALICE), basic_credentials(*ALICE)[6:]])
def test_a_header_that_repeats_a_secret_is_not_quoted_s28(
    store: Store, registry: UploadRegistry, repeated: str
) -> None:
    registry.authorization = basic_credentials(*ALICE)
    client = quick_client(credentials={registry.host: Credentials(*ALICE)})
    registry.allow("PUT", "/v2/team/app/manifests/1", Answer(status=201, headers={"Docker-Content-Digest": repeated}))
    with pytest.raises(ContentMismatch) as caught:
        push(store, registry, "small:1", client=client)
    told = str(caught.value)
    assert "***" in told
    assert ALICE[1] not in told
    assert basic_credentials(*ALICE)[6:] not in told


def test_a_push_that_fails_leaves_the_tag_as_it_was(store: Store, registry: UploadRegistry) -> None:
    push(store, registry, "small:1")
    layer = IMAGE.layer_digests[1]
    registry.allow("HEAD", f"/v2/team/app/blobs/{layer}", registry_error(403, "DENIED"))
    with pytest.raises(AuthenticationRefused):
        push(store, registry)
    assert registry.tag("team/app", "1") == SMALL.digest
    assert not [each for each in registry.sent("PUT") if "manifests" in each][1:]


def test_a_registry_that_keeps_something_else_is_told_of(store: Store, registry: UploadRegistry) -> None:
    answer = Answer(status=201, headers={"Docker-Content-Digest": SMALL.digest})
    registry.expect("PUT", "/v2/team/app/manifests/1", answer)
    with pytest.raises(ContentMismatch, match="manifest 1") as caught:
        push(store, registry)
    assert caught.value.expected == IMAGE.digest


def test_a_rate_limit_is_told_of(store: Store, registry: UploadRegistry) -> None:
    registry.expect("POST", UPLOADS, registry_error(429, "TOOMANYREQUESTS", headers={"Retry-After": "900"}))
    with pytest.raises(RateLimited) as caught:
        push(store, registry, parallel=1)
    assert caught.value.retry_after_seconds == 900


def test_a_blob_that_has_rotted_in_the_store_is_not_pushed(
    tmp_path: Path, store: Store, registry: UploadRegistry
) -> None:
    path = blob(tmp_path / "store", IMAGE.layer_digests[1])
    rot(path)
    with pytest.raises(StoreDamaged) as caught:
        push(store, registry)
    assert caught.value.path == str(path)
    assert registry.tag("team/app", "1") is None
    assert ("team/app", IMAGE.layer_digests[1]) not in registry.blobs


def test_a_file_that_became_shorter_is_told_of(tmp_path: Path, store: Store, registry: UploadRegistry) -> None:
    path = blob(tmp_path / "store", IMAGE.layer_digests[1])

    def shorten(_: object) -> Answer:
        path.chmod(0o600)
        os.truncate(path, 1000)
        return Answer(status=202, headers={"Location": f"{UPLOADS}x"})

    for digest in (IMAGE.layer_digests[0], IMAGE.config_digest):
        registry.blobs["team/app", digest] = IMAGE.blobs[digest]
    registry.expect("POST", UPLOADS, shorten)
    with pytest.raises(StoreUnavailable, match="shorter"):
        push(store, registry)
    assert registry.tag("team/app", "1") is None


def test_a_registry_that_finds_right_bytes_wrong_is_told_of(store: Store, registry: UploadRegistry) -> None:
    place = f"{UPLOADS}x"
    registry.allow("POST", UPLOADS, Answer(status=202, headers={"Location": place}))
    refused = [
        registry.allow("PUT", f"{place}?digest={digest}", registry_error(400, "DIGEST_INVALID"))
        for digest in (*IMAGE.layer_digests, IMAGE.config_digest)
    ]
    with pytest.raises(RegistryError, match="DIGEST_INVALID"):
        push(store, registry)
    assert max(len(each.requests) for each in refused) == 3


def test_what_is_not_there_is_not_pushed(tmp_path: Path, store: Store, registry: UploadRegistry) -> None:
    with pytest.raises(ImageNotFound):
        push(store, registry, "nothing:1")
    blob(tmp_path / "store", IMAGE.layer_digests[0]).unlink()
    with pytest.raises(IncompleteImage):
        push(store, registry)
    assert registry.requests == []


@pytest.mark.parametrize("options", [{"parallel": 0}, {"chunk_bytes": 0}, {"chunk_bytes": -1}])
def test_what_cannot_be_asked_for_is_refused_before_anything_is_sent(
    store: Store, registry: UploadRegistry, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument):
        push(store, registry, **options)
    assert registry.requests == []


@pytest.mark.parametrize("where", ["an upload", "the tag"])
def test_a_cancel_ends_a_push_that_waits_for_the_registry(store: Store, registry: UploadRegistry, where: str) -> None:
    hold = threading.Event()
    cancellation = Cancellation()
    method, target = ("POST", UPLOADS) if where == "an upload" else ("PUT", "/v2/team/app/manifests/1")
    registry.allow(method, target, Answer(status=201, hold=hold))
    caught: list[Exception] = []

    def run() -> None:
        try:
            push(store, registry, cancellation=cancellation, client=quick_client(silence_seconds=30.0))
        except Exception as error:  # noqa: BLE001 - it is looked at below
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    registry.wait_for(method, target)
    begun = time.monotonic()
    cancellation.cancel()
    thread.join(SOON_SECONDS)
    assert time.monotonic() - begun < SOON_SECONDS
    hold.set()
    assert [type(error) for error in caught] == [Cancelled]


@pytest.mark.parametrize("ended_by", ["a cancel", "the time of silence"])
def test_a_registry_that_reads_no_more_is_not_waited_for_without_end(
    tmp_path: Path, registry: UploadRegistry, ended_by: str
) -> None:
    image = build_image([random_layer(32 << 20)])
    put(tmp_path, image, "app:1")
    registry.stalls, cancellation = threading.Event(), Cancellation()
    timer = threading.Timer(0.5, cancellation.cancel)
    seconds = 30.0
    if ended_by == "a cancel":
        timer.start()
    else:
        seconds = 0.5
    client = quick_client(silence_seconds=seconds, attempts=2)
    begun = time.monotonic()
    with pytest.raises(Cancelled if ended_by == "a cancel" else RegistryError):
        push(open_store(tmp_path), registry, client=client, cancellation=cancellation)
    assert time.monotonic() - begun < SOON_SECONDS
    registry.stalls.set()
    timer.cancel()


def test_a_blob_is_there_though_where_it_is_kept_no_head_is_answered(store: Store, registry: UploadRegistry) -> None:
    push(store, registry)
    sent_bytes = registry.body_bytes
    with ScriptedServer() as kept:
        for digest in (*IMAGE.layer_digests, IMAGE.config_digest):
            for method in ("HEAD", "GET"):
                registry.allow(method, f"/v2/team/app/blobs/{digest}", redirect(f"{kept.url}/{digest[7:]}?signature=x"))
            kept.allow("GET", f"/{digest[7:]}?signature=x", Answer(body=IMAGE.blobs[digest]))
        push(store, registry)
    assert registry.body_bytes == sent_bytes + len(IMAGE.blobs[IMAGE.digest])


def test_one_upload_that_fails_ends_those_that_wait(store: Store, registry: UploadRegistry) -> None:
    hold = threading.Event()
    first, second = IMAGE.layer_digests
    registry.allow("HEAD", f"/v2/team/app/blobs/{first}", Answer(hold=hold))

    def refuse(_: object) -> Answer:
        registry.wait_for("HEAD", f"/v2/team/app/blobs/{first}")
        return registry_error(403, "DENIED")

    registry.allow("HEAD", f"/v2/team/app/blobs/{second}", refuse)
    begun = time.monotonic()
    with pytest.raises(AuthenticationRefused):
        push(store, registry, client=quick_client(silence_seconds=30.0))
    assert time.monotonic() - begun < SOON_SECONDS
    hold.set()


def test_progress_is_told_by_the_whole_reference(store: Store, registry: UploadRegistry) -> None:
    events: list[Event] = []
    push(store, registry, on_event=events.append)
    reference = registry.reference("team/app", "1")
    assert RegisteringName(name=reference) in events
    assert events[-1] == ImageCopied(name=reference)
    assert render_line(events[-1], doing="push") == f"[push] successfully pushed {reference}"
