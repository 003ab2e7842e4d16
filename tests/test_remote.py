"""What is done with registries without a store: copies that keep nothing, lists that have an end, and deleting."""

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import minibox_store
from minibox_store import remote
from minibox_store.cancellation import Cancellation
from minibox_store.errors import (
    AuthenticationRefused,
    Cancelled,
    ContentMismatch,
    InvalidArgument,
    InvalidDocument,
    InvalidReference,
    ManifestUnknown,
    PlatformNotFound,
    RegistryError,
)
from minibox_store.events import Event, ImageCopied, MirrorFailed
from minibox_store.platforms import Platform
from minibox_store.registry import Credentials, MachineCredentials
from minibox_store.registry.catalog import next_target
from minibox_store.registry.urls import Url
from minibox_store.registry_rules import Mirror, RegistryRule
from tests.support.answers import NO_ANSWER, Answer, Request, basic_credentials, ranged, registry_error
from tests.support.images import BuiltImage, build_image, build_index, random_layer
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedServer, TokenServer, serve_image
from tests.support.upload_registry import UploadRegistry
from tests.support.waiting import SOON_SECONDS

IMAGE = build_image([{"a": b"a"}, random_layer(1 << 20)])
ARM = build_image(platform="linux/arm64")
INDEX = build_index([IMAGE, ARM], attestations=True)
ALICE = ("alice", "pass-word-1")
BOB = ("bob", "word-of-bob-2")
TAGS = "/v2/team/app/tags/list"


@pytest.fixture
def source() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        fill(running, "team/app", "1", INDEX)
        yield running


@pytest.fixture
def target() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        yield running


def fill(registry: UploadRegistry, repository: str, tag: str, image: BuiltImage) -> None:
    """Let a registry have an image, however it came there."""
    for digest, content in image.blobs.items():
        if digest in image.document_digests:
            registry.manifests[repository, digest] = (image.media_types[digest], content)
        else:
            registry.blobs[repository, digest] = content
    registry.manifests[repository, tag] = (image.media_type, image.blobs[image.digest])


def copy(source: UploadRegistry, target: UploadRegistry, **options: Any) -> str:
    """Copy to where every test does, and return the digest."""
    options = {"client": quick_client(), **options}
    return str(remote.copy(source.reference("team/app", "1"), target.reference("copies/app", "2"), **options).digest)


# Copies


@pytest.mark.parametrize("chunk_bytes", [None, 300_000])
def test_all_of_an_image_is_copied(source: UploadRegistry, target: UploadRegistry, chunk_bytes: int | None) -> None:
    assert copy(source, target, chunk_bytes=chunk_bytes) == INDEX.digest == target.tag("copies/app", "2")
    assert target.holds("copies/app", INDEX)
    assert target.sent()[-1] == "PUT /v2/copies/app/manifests/2"


def test_each_blob_and_document_is_fetched_once(source: UploadRegistry, target: UploadRegistry) -> None:
    copy(source, target)
    assert len(source.sent("GET")) == len(INDEX.blobs)
    copy(source, target)
    assert len(source.sent("GET")) == len(INDEX.blobs) + len(INDEX.document_digests)


def test_one_manifest_of_an_index_may_be_copied(source: UploadRegistry, target: UploadRegistry) -> None:
    assert copy(source, target, platform=Platform.parse("linux/arm64")) == ARM.digest
    assert target.tag("copies/app", "2") == ARM.digest
    assert target.holds("copies/app", ARM)
    assert not target.holds("copies/app", IMAGE)
    with pytest.raises(PlatformNotFound):
        copy(source, target, platform=Platform.parse("linux/s390x"))


def test_within_one_registry_no_blob_crosses_the_wire(source: UploadRegistry) -> None:
    copy(source, source)
    assert source.tag("copies/app", "2") == INDEX.digest
    assert source.holds("copies/app", INDEX)
    assert source.body_bytes == sum(len(INDEX.blobs[digest]) for digest in INDEX.document_digests)
    assert not [each for each in source.sent("GET") if "/blobs/" in each]


def test_within_one_repository_a_tag_is_added(source: UploadRegistry) -> None:
    reference = source.reference("team/app", "1")
    remote.copy(reference, source.reference("team/app", "latest"), client=quick_client())
    assert source.tag("team/app", "latest") == INDEX.digest
    assert not source.sent("POST")


def test_each_registry_sees_its_own_credentials_alone(source: UploadRegistry, target: UploadRegistry) -> None:
    source.authorization, target.authorization = basic_credentials(*ALICE), basic_credentials(*BOB)
    client = quick_client(credentials={source.host: Credentials(*ALICE), target.host: Credentials(*BOB)})
    copy(source, target, client=client)
    assert target.holds("copies/app", INDEX)
    for registry, others in ((source, BOB), (target, ALICE)):
        assert basic_credentials(*others) not in {request.header("Authorization") for request in registry.requests}


def test_a_download_that_is_cut_goes_on_into_the_same_upload(target: UploadRegistry) -> None:
    layer = IMAGE.layer_digests[1]
    content = IMAGE.blobs[layer]
    with UploadRegistry() as source:
        serve_image(source, "team/app", "1", IMAGE)
        cut = Answer(body=content, cut_after_bytes=400_000)
        source.allow("GET", f"/v2/team/app/blobs/{layer}", cut, ranged(content))
        copy(source, target)
    assert target.holds("copies/app", IMAGE)
    assert target.body_bytes == IMAGE.size_bytes


def test_an_upload_that_is_cut_goes_on_with_what_is_fetched_again(
    source: UploadRegistry, target: UploadRegistry
) -> None:
    target.cuts = [None, None, 400_000]
    copy(source, target, parallel=1)
    assert target.holds("copies/app", INDEX)
    assert target.body_bytes == INDEX.size_bytes


@pytest.mark.parametrize("lie", ["short", "long", "other"])
def test_wrong_bytes_are_never_a_blob_at_the_target(source: UploadRegistry, target: UploadRegistry, lie: str) -> None:
    layer = IMAGE.layer_digests[1]
    content = IMAGE.blobs[layer]
    wrong = {"short": content[:-1], "long": content + b"x", "other": content[:-1] + bytes([content[-1] ^ 1])}[lie]
    source.allow("GET", f"/v2/team/app/blobs/{layer}", Answer(body=wrong, framing="chunked"))
    with pytest.raises(ContentMismatch):
        copy(source, target)
    assert target.tag("copies/app", "2") is None
    assert ("copies/app", layer) not in target.blobs


@pytest.mark.parametrize("chunk_bytes", [None, 300_000])
@pytest.mark.parametrize("blob", ["layer", "config"])
def test_wrong_bytes_of_a_mirror_are_followed_by_those_of_what_it_stands_for(
    source: UploadRegistry, target: UploadRegistry, blob: str, chunk_bytes: int | None
) -> None:
    manifest = json.loads(IMAGE.blobs[IMAGE.digest])
    digest = manifest["config"]["digest"] if blob == "config" else manifest["layers"][1]["digest"]
    wrong = IMAGE.blobs[digest][:-1] + bytes([IMAGE.blobs[digest][-1] ^ 1])
    events: list[Event] = []
    with UploadRegistry() as mirror:
        fill(mirror, "team/app", "1", INDEX)
        mirror.blobs["team/app", digest] = wrong
        rule = RegistryRule(prefix=source.host, mirrors=[Mirror(location=mirror.host)])
        minibox_store.copy(
            source.reference("team/app", "1"),
            target.reference("team/new", "2"),
            client=quick_client(registries=[rule]),
            parallel=1,
            chunk_bytes=chunk_bytes,
            on_event=events.append,
        )
        assert mirror.sent("GET").count(f"GET /v2/team/app/blobs/{digest}") == 1
    assert target.holds("team/new", INDEX)
    assert target.tag("team/new", "2") == INDEX.digest
    assert [each for each in events if isinstance(each, MirrorFailed)] == [
        MirrorFailed(host=mirror.host, problem=f"it gave wrong bytes for {digest}")
    ]


def test_what_fails_at_either_end_is_told_of_and_leaves_the_tag(source: UploadRegistry, target: UploadRegistry) -> None:
    fill(target, "copies/app", "2", ARM)
    for registry, other in ((source, "team"), (target, "copies")):
        name = f"/v2/{other}/app/blobs/{IMAGE.layer_digests[0]}"
        denied = registry.expect("GET" if registry is source else "HEAD", name, registry_error(403, "DENIED"))
        with pytest.raises(AuthenticationRefused, match=registry.host):
            copy(source, target, parallel=1)
        assert denied.requests
        assert target.tag("copies/app", "2") == ARM.digest
    with pytest.raises(ManifestUnknown):
        remote.copy(source.reference("no/such", "1"), target.reference("a/b", "1"), client=quick_client())


def test_what_cannot_be_copied_is_refused_before_anything_is_written(
    source: UploadRegistry, target: UploadRegistry
) -> None:
    for options in ({"parallel": 0}, {"chunk_bytes": 0}):
        with pytest.raises(InvalidArgument):
            copy(source, target, **options)
    wrong = target.reference("copies/app", digest=ARM.digest)
    with pytest.raises(InvalidReference, match="has the digest"):
        remote.copy(source.reference("team/app", "1"), wrong, client=quick_client())
    assert target.requests == []


def test_a_cancel_ends_a_copy_whichever_end_it_waits_for(source: UploadRegistry, target: UploadRegistry) -> None:
    layer = IMAGE.layer_digests[0]
    for registry, method, name in (
        (source, "GET", f"/v2/team/app/blobs/{layer}"),
        (target, "POST", "/v2/copies/app/blobs/uploads/"),
    ):
        hold, cancellation = threading.Event(), Cancellation()
        registry.allow(method, name, Answer(hold=hold), at_most=1)

        def cancel(
            registry: ScriptedServer = registry,
            method: str = method,
            name: str = name,
            cancellation: Cancellation = cancellation,
        ) -> None:
            registry.wait_for(method, name)
            cancellation.cancel()

        thread = threading.Thread(target=cancel, daemon=True)
        thread.start()
        begun = time.monotonic()
        with pytest.raises(Cancelled):
            copy(source, target, cancellation=cancellation, parallel=1, client=quick_client(silence_seconds=30.0))
        assert time.monotonic() - begun < SOON_SECONDS
        thread.join(5)
        hold.set()


def test_progress_is_told_by_the_target(source: UploadRegistry, target: UploadRegistry) -> None:
    events: list[Event] = []
    copy(source, target, on_event=events.append)
    assert events[-1] == ImageCopied(name=target.reference("copies/app", "2"))


# Lists


def test_tags_and_repositories_are_listed_page_by_page(source: UploadRegistry) -> None:
    wanted = [f"v{number:03}" for number in range(25)]
    for tag in wanted:
        fill(source, "team/tags", tag, ARM)
    for page_names in (1000, 25, 10, 1):
        source.page_names = page_names
        assert remote.tags(source.reference("team/tags"), client=quick_client()) == tuple(wanted)
        assert remote.catalog(source.host, client=quick_client()) == ("team/app", "team/tags")


@pytest.mark.parametrize("document", [{"tags": None}, {"tags": []}, {}])
def test_a_repository_may_have_no_tags(source: UploadRegistry, document: dict[str, object]) -> None:
    source.allow("GET", f"{TAGS}?n=1000", Answer(body=json.dumps(document).encode()))
    assert remote.tags(source.reference("team/app"), client=quick_client()) == ()


@pytest.mark.parametrize(
    "document",
    [
        {"tags": "a"},
        {"tags": [1]},
        {"tags": ["a b"]},
        {"tags": ["\u001b[31m"]},
        {"tags": [""]},
        {"tags": ["a" * 256]},
        [],
        1,
    ],
    ids=repr,
)
def test_what_is_no_list_of_names_is_refused(source: UploadRegistry, document: object) -> None:
    source.allow("GET", f"{TAGS}?n=1000", Answer(body=json.dumps(document).encode()))
    with pytest.raises(InvalidDocument, match="list of tags"):
        remote.tags(source.reference("team/app"), client=quick_client())


def page(names: list[str], link: str) -> Answer:
    return Answer(headers={"Link": link}, body=json.dumps({"tags": names}).encode())


@pytest.mark.parametrize(
    "link",
    [
        '</v2/team/app/tags/list?last=b>; rel="next"',
        "<list?last=b>; rel=next",
        '<{url}/v2/team/app/tags/list?last=b>; title="x"; rel="next"',
        '<{url}/v2/team/app/tags/list?last=b>; title="x, y; z"; rel="next"',
        '</v2/team/app/tags/list?last=b>;REL = "last next"; ;title="\\", rel=prev"',
        '</v2/elsewhere>; title="; rel=next", </v2/team/app/tags/list?last=b> ; rel=NEXT',
        '</v2/elsewhere>; rel="prev", </v2/team/app/tags/list?last=b>; rel="next"',
    ],
)
def test_links_are_understood_however_they_are_written(source: UploadRegistry, link: str) -> None:
    source.expect("GET", f"{TAGS}?n=1000", page(["a", "b"], link.replace("{url}", source.url)))
    source.expect("GET", f"{TAGS}?last=b", Answer(body=b'{"tags": ["c"]}'))
    assert remote.tags(source.reference("team/app"), client=quick_client()) == ("a", "b", "c")


@pytest.mark.parametrize(
    "link",
    ['<a>; rel="' + "\\" * 60_000, "<a>" + " ;" * 30_000, "<" * 60_000, '<a>; x="' * 7_000, "<a>;x=" * 10_000],
    ids=["escapes", "parameters", "links", "texts", "values"],
)
def test_links_are_read_in_linear_time(link: str) -> None:
    before = time.thread_time()
    next_target(Url.parse("https://registry.test/v2/"), link)
    assert time.thread_time() - before < 2.0


@pytest.mark.parametrize("place", ["{url}/repository/proxy", "/artifactory/api/docker/proxy"])
def test_nexus_puts_before_the_path_of_a_link_what_is_not_served_there(source: UploadRegistry, place: str) -> None:
    link = f'<{place.replace("{url}", source.url)}/v2/team/app/tags/list?last=/v2/b>; rel="next"'
    source.expect("GET", f"{TAGS}?n=1000", page(["a", "b"], link))
    source.expect("GET", f"{TAGS}?last=/v2/b", Answer(body=b'{"tags": ["c"]}'))
    assert remote.tags(source.reference("team/app"), client=quick_client()) == ("a", "b", "c")


def test_where_no_page_may_be_so_large_the_registry_says_how_large_one_is(source: UploadRegistry) -> None:
    source.allow("GET", "/v2/_catalog?n=1000", registry_error(400, "PAGINATION_NUMBER_INVALID"))
    link = '</v2/_catalog?last=a&n=1>; rel="next"'
    source.expect("GET", "/v2/_catalog", Answer(headers={"Link": link}, body=b'{"repositories": ["a"]}'))
    source.expect("GET", "/v2/_catalog?last=a&n=1", Answer(body=b'{"repositories": ["b"]}'))
    assert remote.catalog(source.host, client=quick_client()) == ("a", "b")
    source.allow("GET", "/v2/_catalog", registry_error(400, "PAGINATION_NUMBER_INVALID"))
    with pytest.raises(RegistryError, match="400"):
        remote.catalog(source.host, client=quick_client())


def test_a_link_leads_to_no_other_host(source: UploadRegistry) -> None:
    source.authorization = basic_credentials(*ALICE)
    client = quick_client(credentials={source.host: Credentials(*ALICE)})
    with ScriptedServer() as elsewhere:
        answer = page(["a"], f'<{elsewhere.url}{TAGS}?last=a>; rel="next"')
        source.expect("GET", f"{TAGS}?n=1000", answer, requires={"Authorization": source.authorization})
        source.expect("GET", f"{TAGS}?last=a", Answer(body=b'{"tags": ["b"]}'))
        assert remote.tags(source.reference("team/app"), client=client) == ("a", "b")
        assert elsewhere.requests == []


def test_a_list_has_an_end_whatever_the_registry_says(source: UploadRegistry) -> None:
    source.allow("GET", f"{TAGS}?n=1000", page(["a"], f'<{TAGS}?last=a>; rel="next"'))
    source.allow("GET", f"{TAGS}?last=a", page(["a"], f'<{TAGS}?last=a>; rel="next"'))
    with pytest.raises(RegistryError, match="leads back"):
        remote.tags(source.reference("team/app"), client=quick_client())
    source.allow("GET", f"{TAGS}?last=a", page([], f'<{TAGS}?last=a>; rel="next"'))
    assert remote.tags(source.reference("team/app"), client=quick_client()) == ("a",)


def test_pages_without_a_name_lead_on_but_not_for_ever(source: UploadRegistry) -> None:
    pages = itertools.count(1)
    source.refuses = lambda _: page([], f'<{TAGS}?at={next(pages)}>; rel="next"')
    with pytest.raises(RegistryError, match="more than 1000 pages without a name"):
        remote.tags(source.reference("team/app"), client=quick_client())
    assert len(source.requests) < 1010
    source.refuses = lambda _: None
    source.allow("GET", f"{TAGS}?n=1000", page([], f'<{TAGS}?last=a>; rel="next"'))
    source.allow("GET", f"{TAGS}?last=a", Answer(body=b'{"tags": ["b"]}'))
    assert remote.tags(source.reference("team/app"), client=quick_client()) == ("b",)


def test_more_names_than_anybody_has_are_refused_s25(source: UploadRegistry) -> None:
    names = ["t"] * 300_000
    for number in range(4):
        target = f"{TAGS}?n=1000" if not number else f"{TAGS}?last={number}"
        source.allow("GET", target, page(names, f'<{TAGS}?last={number + 1}>; rel="next"'))
    with pytest.raises(RegistryError, match="more than 1000000 names"):
        remote.tags(source.reference("team/app"), client=quick_client())


def test_an_endless_list_is_cut_off(source: UploadRegistry) -> None:
    source.allow("GET", f"{TAGS}?n=1000", Answer(body=b'{"tags": [' + b" " * 65_526, endless=True, framing="chunked"))
    with pytest.raises(InvalidDocument, match="larger than"):
        remote.tags(source.reference("team/app"), client=quick_client())


def test_what_is_not_there_or_not_told_is_an_error(source: UploadRegistry) -> None:
    source.allow("GET", "/v2/no/such/tags/list?n=1000", registry_error(404, "NAME_UNKNOWN"))
    with pytest.raises(ManifestUnknown):
        remote.tags(source.reference("no/such"), client=quick_client())
    source.allow("GET", "/v2/_catalog?n=1000", registry_error(401, "UNAUTHORIZED"))
    with pytest.raises(AuthenticationRefused):
        remote.catalog(source.host, client=quick_client())


def test_lists_ask_for_tokens_that_are_good_for_them_alone(source: UploadRegistry) -> None:
    with TokenServer() as tokens:
        client = quick_client(realms={source.host: [tokens.url]})
        source.authorization = "Bearer the-token"
        for scope, run in (
            ("repository:team/app:pull", lambda: remote.tags(source.reference("team/app"), client=client)),
            ("registry:catalog:*", lambda: remote.catalog(source.host, client=client)),
            (
                "repository:team/app:pull,delete",
                lambda: remote.delete(source.reference("team/app", "1"), client=client),
            ),
        ):
            source.challenge = f'Bearer realm="{tokens.realm}",service="registry"'
            tokens.expect_token("the-token", service="registry", scope=scope)
            run()


# Deleting


def test_a_tag_is_deleted_alone(source: UploadRegistry) -> None:
    fill(source, "team/app", "2", INDEX)
    remote.delete(source.reference("team/app", "1"), client=quick_client())
    assert remote.tags(source.reference("team/app"), client=quick_client()) == ("2",)
    with pytest.raises(ManifestUnknown):
        remote.delete(source.reference("team/app", "1"), client=quick_client())


def test_where_no_tag_can_be_deleted_alone_nothing_is_and_the_digest_is_told(source: UploadRegistry) -> None:
    source.deletes_tags = False
    fill(source, "team/app", "2", INDEX)
    with pytest.raises(RegistryError, match=re.escape(INDEX.digest)) as caught:
        remote.delete(source.reference("team/app", "1"), client=quick_client())
    assert caught.value.status == 405
    assert source.tag("team/app", "1") == INDEX.digest
    remote.delete(source.reference("team/app", digest=INDEX.digest), client=quick_client())
    assert remote.tags(source.reference("team/app"), client=quick_client()) == ()


@pytest.mark.parametrize("how", ["unavailable", "cut", "cut on a connection in use"])
def test_what_was_deleted_when_only_the_answer_was_lost_is_no_error(source: UploadRegistry, how: str) -> None:
    target = "/v2/team/app/manifests/1"

    def lose(request: Request) -> Answer | None:
        if request.method != "DELETE" or ("team/app", "1") not in source.manifests:
            return None
        del source.manifests["team/app", "1"]
        return Answer(status=503) if how == "unavailable" else NO_ANSWER

    if how == "cut on a connection in use":
        source.authorization = basic_credentials(*ALICE)
    source.refuses = lose
    client = quick_client(credentials={source.host: Credentials(*ALICE)})
    remote.delete(source.reference("team/app", "1"), client=client)
    assert source.count("DELETE", target) >= 2
    with pytest.raises(ManifestUnknown):
        remote.delete(source.reference("team/app", "1"), client=client)


def test_the_functions_are_public() -> None:
    assert minibox_store.copy is remote.copy
    assert minibox_store.tags is remote.tags
    assert minibox_store.catalog is remote.catalog
    assert minibox_store.delete is remote.delete


# What the grammar of references has, and nobody can be connected to.
NOWHERE = ("registry.test:99999", "registry.test:0", "127.0.0.1:65536", f"{'a' * 64}.test")


@pytest.mark.parametrize("host", NOWHERE)
@pytest.mark.parametrize("asked", ["pull", "plan", "copy", "tags", "referrers", "catalog", "delete", "login"])
def test_a_host_or_port_that_there_cannot_be_is_an_invalid_reference(asked: str, host: str, tmp_path: Path) -> None:
    client, name, store = quick_client(), f"{host}/team/app:1", minibox_store.Store(tmp_path / "store")
    machine = MachineCredentials(environment={"DOCKER_CONFIG": str(tmp_path)})
    calls: dict[str, Callable[[], object]] = {
        "pull": lambda: store.pull(name, client=client),
        "plan": lambda: store.plan_pull(name, client=client),
        "copy": lambda: minibox_store.copy(name, name, client=client),
        "tags": lambda: minibox_store.tags(name, client=client),
        "referrers": lambda: minibox_store.referrers(name, client=client),
        "catalog": lambda: minibox_store.catalog(host, client=client),
        "delete": lambda: minibox_store.delete(name, client=client),
        "login": lambda: minibox_store.login(host, Credentials(*ALICE), client=client, machine=machine),
    }
    with pytest.raises(InvalidReference, match=re.escape(host)):
        calls[asked]()
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("platform", ["all", "linux/amd64", [Platform.parse("linux/amd64")]])
def test_what_is_no_platform_is_refused_before_anything_is_asked(platform: Any, tmp_path: Path) -> None:
    store, name = minibox_store.Store(tmp_path / "store"), "127.0.0.1:1/team/app:1"
    sending: list[Callable[[], object]] = [
        lambda: minibox_store.copy(name, name, platform=platform, client=quick_client()),
        lambda: store.push(name, platform=platform, client=quick_client()),
    ]
    for send in sending:
        with pytest.raises(InvalidArgument, match="platform"):
            send()
