"""Pulls from several places: whatever a mirror does, the next one is asked, and at last what they all stand for."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
from attrs import evolve

from minibox_store import Cancellation, Event, Mirror, MirrorFailed, RegistryRule, Store, UsingMirror
from minibox_store.errors import (
    AuthenticationRefused,
    BlobNotFound,
    Cancelled,
    ContentMismatch,
    InvalidDigest,
    InvalidDocument,
    InvalidReference,
    ManifestUnknown,
    RateLimited,
    RegistryBlocked,
    RegistryError,
)
from minibox_store.reference import Reference
from minibox_store.registry import Credentials, MirroredRepository, RegistryRepository
from minibox_store.registry.dialling import Address, SystemNetwork
from tests.support.certificates import make_certificate
from tests.support.images import OCI_LAYER, build_image, build_index, random_layer
from tests.support.invariants import check_invariants
from tests.support.processes import free_port
from tests.support.registries import PUBLIC_ADDRESS, NamedNetwork, open_mirrored, quick_client
from tests.support.scripted_registry import (
    NO_ANSWER,
    Answer,
    Request,
    Scripted,
    ScriptedRegistry,
    blob_target,
    manifest_target,
    partial_content,
    ranged,
    registry_error,
    serve_image,
    unauthorized,
)
from tests.support.sources import descriptor_for, read_all, read_stream, root_of
from tests.support.waiting import SOON_SECONDS

REPOSITORY = "team/app"
IMAGE = build_image([{"a": b"a" * 3000}, {"b": b"b"}])
OTHER = build_image([{"c": b"c"}], salt="other")
MANIFEST = manifest_target(REPOSITORY, "1")
CONTENT = bytes(range(256)) * 400
LAYER = descriptor_for(CONTENT, OCI_LAYER)
BLOB = blob_target(REPOSITORY, str(LAYER.digest))


class Places:
    """Some mirrors and what they stand for, each a scripted registry; ``rule`` names them in that order."""

    def __init__(self, stack: ExitStack, count: int = 1, **said_of_mirrors: str) -> None:
        opened = [stack.enter_context(ScriptedRegistry()) for _ in range(count + 1)]
        self.mirrors, self.home = opened[:-1], opened[-1]
        mirrors = [Mirror(location=each.host, **said_of_mirrors) for each in self.mirrors]  # type: ignore[arg-type]
        self.rule = RegistryRule(prefix=self.home.host, mirrors=mirrors)
        self.events: list[Event] = []

    @property
    def reference(self) -> str:
        return self.home.reference(REPOSITORY, "1")

    def pull(self, folder: Path, *, parallel: int = 3) -> str:
        """Pull into a store of its own, see that it is in order, and return the image's digest."""
        store = Store(folder / "store", durability="none")
        client = quick_client(registries=[self.rule])
        image = store.pull(self.reference, client=client, parallel=parallel, on_event=self.events.append)
        check_invariants(folder / "store", leftovers=True)
        assert [each.name for each in store.images()] == [self.reference]
        return str(image.digest)

    def told(self) -> list[Event]:
        return [event for event in self.events if isinstance(event, UsingMirror | MirrorFailed)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_a_mirror_that_has_everything_is_all_that_is_asked(stack: ExitStack, tmp_path: Path) -> None:
    places = Places(stack, 2)
    serve_image(places.mirrors[0], REPOSITORY, "1", IMAGE, at_most=1)
    assert places.pull(tmp_path) == IMAGE.digest
    assert places.told() == [UsingMirror(host=places.mirrors[0].host)]
    # What is repaired later is asked for under the name, not at the mirror.
    assert places.home.host in (tmp_path / "store" / "journal" / "origins").read_text()


def manifest(content: bytes, **headers: str) -> Answer:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return Answer(headers={"Content-Type": IMAGE.media_type, **named}, body=content)


ROOT = IMAGE.blobs[IMAGE.digest]
FAULTS: dict[str, tuple[Scripted, str]] = {
    "closes at once": (NO_ANSWER, "the connection was closed"),
    "no HTTP": (Answer(raw=b"\x00\x01\x02\r\n\r\n"), "not HTTP"),
    "unknown": (registry_error(404, "MANIFEST_UNKNOWN"), "404: manifest_unknown"),
    "a page": (Answer(status=404, body=b"<html>"), "404: not found"),
    "who are you": (unauthorized('Basic realm="x"'), "401"),
    "forbidden": (registry_error(403, "DENIED"), "403"),
    "asked elsewhere": (unauthorized('Bearer realm="http://127.0.0.1:1/token",service="s"'), "connection failed"),
    "too many": (registry_error(429, "TOOMANYREQUESTS", headers={"Retry-After": "3600"}), "429"),
    "soon": (registry_error(503, "UNAVAILABLE", headers={"Retry-After": "5"}), "503"),
    "broken": (registry_error(500, "UNKNOWN"), "500"),
    "gone": (Answer(status=410), "410"),
    "bad gateway": (Answer(status=502, body=b"<html>"), "502"),
    "cut": (Answer(headers={"Content-Type": IMAGE.media_type}, body=ROOT, cut_after_bytes=9), "was closed"),
    "a portal": (Answer(headers={"Content-Type": "text/html"}, body=b"<html>"), "no manifest or index"),
    "no JSON": (manifest(b"{"), "not JSON"),
    "other bytes": (manifest(ROOT[:-1] + b" }", Docker_Content_Digest=IMAGE.digest), "does not match"),
    "too large": (manifest(b" " * (5 << 20)), "larger than"),
    "schema 1": (
        Answer(headers={"Content-Type": "application/vnd.docker.distribution.manifest.v1+json"}, body=b"{}"),
        "schema 1",
    ),
    "a loop": (Answer(status=302, headers={"Location": MANIFEST}), "redirects"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_mirror_does_with_a_name_the_next_one_is_asked(stack: ExitStack, tmp_path: Path, fault: str) -> None:
    answer, problem = FAULTS[fault]
    places = Places(stack, 2)
    bad, good = places.mirrors
    bad.allow("GET", MANIFEST, answer)
    serve_image(good, REPOSITORY, "1", IMAGE, at_most=1)
    started = time.monotonic()
    assert places.pull(tmp_path) == IMAGE.digest
    assert time.monotonic() - started < SOON_SECONDS
    failed, used = places.told()
    assert used == UsingMirror(host=good.host)
    assert isinstance(failed, MirrorFailed)
    assert failed.host == bad.host
    assert problem in failed.problem


def test_a_mirror_that_is_not_reached_costs_one_look_for_the_whole_pull(stack: ExitStack, tmp_path: Path) -> None:
    home = stack.enter_context(ScriptedRegistry())
    network = NamedNetwork({"mirror.example": [[PUBLIC_ADDRESS]]}, {"mirror.example": free_port()})
    serve_image(home, REPOSITORY, "1", IMAGE, at_most=1)
    reference = home.reference(REPOSITORY, "1")
    rule = RegistryRule(prefix=home.host, mirrors=[Mirror(location="mirror.example")])

    class Both:
        def resolve(self, host: str, port: int) -> object:
            return network.resolve(host, port) if host == "mirror.example" else SystemNetwork().resolve(host, port)

        def begin_connect(self, opened: socket.socket, address: Address) -> None:
            chosen = network if address.sockaddr[0] == PUBLIC_ADDRESS else SystemNetwork()
            chosen.begin_connect(opened, address)

    client = quick_client(registries=[rule], network=Both())
    assert str(Store(tmp_path / "store").pull(reference, client=client).digest) == IMAGE.digest
    assert len(network.connected) == 2


def test_a_mirror_that_failed_is_asked_last_from_then_on(stack: ExitStack, tmp_path: Path) -> None:
    places = Places(stack)
    (mirror,) = places.mirrors
    mirror.allow("GET", MANIFEST, registry_error(500, "UNKNOWN"))
    layer = blob_target(REPOSITORY, IMAGE.layer_digests[0])
    mirror.allow("GET", layer, Answer(body=IMAGE.blobs[IMAGE.layer_digests[0]]))
    serve_image(places.home, REPOSITORY, "1", IMAGE.without(IMAGE.layer_digests[0]))
    places.home.allow("GET", layer, registry_error(404, "BLOB_UNKNOWN"))
    assert places.pull(tmp_path) == IMAGE.digest
    # It was needed all the same: for what the other place lacks.
    assert (mirror.count("GET", MANIFEST), mirror.count("GET", layer), places.home.count("GET", layer)) == (2, 1, 1)


def test_where_no_place_serves_the_error_is_that_of_the_last_and_tells_of_all(stack: ExitStack) -> None:
    places = Places(stack, 2)
    first, second = places.mirrors
    first.allow("GET", MANIFEST, registry_error(500, "UNKNOWN", "out of order"))
    second.allow("GET", MANIFEST, unauthorized('Basic realm="x"'))
    places.home.allow("GET", MANIFEST, registry_error(404, "MANIFEST_UNKNOWN", "no such manifest"))
    with open_mirrored(places.reference, places.rule) as repository, pytest.raises(ManifestUnknown) as caught:
        repository.resolve("1")
    asked = (
        f"{first.host} (500: out of order)",
        f"{second.host} (401: authentication required, and no credentials are known for it)",
    )
    assert caught.value.asked_before == asked
    assert str(caught.value) == (
        f"GET {places.home.url}{MANIFEST} (404): no such manifest [MANIFEST_UNKNOWN]; before it: {'; '.join(asked)}"
    )


def test_two_mirrors_on_one_host_are_told_of_each_by_its_repository(stack: ExitStack) -> None:
    mirror, home = (stack.enter_context(ScriptedRegistry()) for _ in range(2))
    for path in ("one", "other"):
        mirror.allow(
            "GET", manifest_target(f"{path}/{REPOSITORY}", "1"), registry_error(500, "UNKNOWN", f"{path} fails")
        )
    home.allow("GET", MANIFEST, registry_error(404, "MANIFEST_UNKNOWN"))
    rule = RegistryRule(
        prefix=home.host, mirrors=[Mirror(location=f"{mirror.host}/{path}") for path in ("one", "other")]
    )
    with (
        open_mirrored(home.reference(REPOSITORY, "1"), rule) as repository,
        pytest.raises(ManifestUnknown) as caught,
    ):
        repository.resolve("1")
    assert caught.value.asked_before == (
        f"{mirror.host}/one/{REPOSITORY} (500: one fails)",
        f"{mirror.host}/other/{REPOSITORY} (500: other fails)",
    )


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (unauthorized('Basic realm="x"'), AuthenticationRefused),
        (registry_error(429, "TOOMANYREQUESTS", headers={"Retry-After": "3600"}), RateLimited),
        (registry_error(418, "UNKNOWN"), RegistryError),
        (manifest(b"{"), InvalidDocument),
        (manifest(ROOT, Docker_Content_Digest=OTHER.digest), ContentMismatch),
    ],
)
def test_the_kind_of_the_error_is_what_the_last_place_makes_it(
    stack: ExitStack, answer: Answer, kind: type[Exception]
) -> None:
    places = Places(stack)
    places.mirrors[0].allow("GET", MANIFEST, registry_error(404, "MANIFEST_UNKNOWN"))
    places.home.allow("GET", MANIFEST, answer)
    with open_mirrored(places.reference, places.rule) as repository, pytest.raises(kind) as caught:
        repository.resolve("1")
    assert type(caught.value) is kind
    assert places.mirrors[0].host in str(caught.value)


def test_what_the_first_answer_says_of_a_tag_holds_for_every_place(stack: ExitStack, tmp_path: Path) -> None:
    places = Places(stack, 2)
    first, second = places.mirrors
    first.allow("GET", MANIFEST, manifest(ROOT))
    for digest in [IMAGE.config_digest, *IMAGE.layer_digests]:
        first.allow("GET", blob_target(REPOSITORY, digest), registry_error(404, "BLOB_UNKNOWN"))
    # The others have the blobs, and mean another image by the tag, for which they are never asked.
    serve_image(second, REPOSITORY, None, IMAGE)
    second.allow("GET", MANIFEST, manifest(OTHER.blobs[OTHER.digest]), at_most=0)
    assert places.pull(tmp_path) == IMAGE.digest


def test_a_tag_that_is_asked_for_again_is_asked_for_by_its_digest(stack: ExitStack) -> None:
    places = Places(stack)
    by_digest = manifest_target(REPOSITORY, IMAGE.digest)
    places.mirrors[0].expect("GET", MANIFEST, manifest(ROOT))
    places.mirrors[0].expect("GET", by_digest, registry_error(404, "MANIFEST_UNKNOWN"))
    places.home.expect("GET", by_digest, manifest(ROOT))
    with open_mirrored(places.reference, places.rule) as repository:
        assert repository.resolve("1") == repository.resolve("1") == root_of(IMAGE)


def test_opening_what_was_resolved_takes_no_further_request_wherever_it_came_from(stack: ExitStack) -> None:
    places = Places(stack, 2)
    places.mirrors[0].expect("GET", MANIFEST, registry_error(404, "MANIFEST_UNKNOWN"))
    places.mirrors[1].expect("GET", MANIFEST, manifest(ROOT))
    with open_mirrored(places.reference, places.rule) as repository:
        assert read_all(repository, repository.resolve("1")) == ROOT


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("cut", [1, 1000, len(CONTENT) - 1])
def test_a_stream_that_is_cut_is_gone_on_with_by_the_next_place_at_the_same_byte(
    stack: ExitStack, cut: int, reset: bool
) -> None:
    places = Places(stack)
    (mirror,) = places.mirrors
    # Of what was sent before a reset some may never arrive.
    rest = {"Range": re.compile(r"bytes=[0-9]+-[0-9]+") if reset else f"bytes={cut}-{len(CONTENT) - 1}"}
    mirror.expect("GET", BLOB, Answer(body=CONTENT, cut_after_bytes=cut, reset=reset))
    mirror.allow("GET", BLOB, NO_ANSWER)
    places.home.expect("GET", BLOB, ranged(CONTENT), requires={} if reset and cut == 1 else rest)
    with open_mirrored(places.reference, places.rule) as repository:
        assert read_all(repository, LAYER) == CONTENT
    assert mirror.count("GET", BLOB) == 2


def test_a_place_without_ranges_goes_on_with_a_cut_stream_too(stack: ExitStack) -> None:
    places = Places(stack)
    places.mirrors[0].expect("GET", BLOB, Answer(body=CONTENT, cut_after_bytes=700), NO_ANSWER)
    places.home.expect("GET", BLOB, Answer(body=CONTENT))
    with open_mirrored(places.reference, places.rule) as repository:
        assert read_all(repository, LAYER) == CONTENT


def test_each_place_that_refuses_a_range_is_asked_once_for_the_whole(stack: ExitStack) -> None:
    places, rest = Places(stack), {"Range": f"bytes=700-{len(CONTENT) - 1}"}
    for place, whole in ((places.mirrors[0], registry_error(403, "DENIED")), (places.home, Answer(body=CONTENT))):
        place.expect("GET", BLOB, registry_error(501, "UNSUPPORTED"), requires=rest)
        place.expect("GET", BLOB, whole, forbids=["Range"])
    with open_mirrored(places.reference, places.rule) as repository:
        assert read_all(repository, LAYER, 700) == CONTENT[700:]


def test_two_places_that_both_break_off_may_bring_a_blob_to_its_end_in_turns(stack: ExitStack) -> None:
    places = Places(stack)

    def some(turn: int) -> Scripted:
        # Each place gives every second ten thousand bytes and nothing else, so that it needs the other.
        def answer(request: Request) -> Answer:
            first = int((request.header("Range") or "bytes=0-")[6:].partition("-")[0])
            is_its_turn = (first // 10_000) % 2 == turn
            return replace(ranged(CONTENT)(request), cut_after_bytes=10_000) if is_its_turn else NO_ANSWER

        return answer

    places.mirrors[0].allow("GET", BLOB, some(0))
    places.home.allow("GET", BLOB, some(1))
    with open_mirrored(places.reference, places.rule) as repository:
        assert read_all(repository, LAYER) == CONTENT


def test_a_stream_that_ends_early_without_a_cut_goes_on_elsewhere(stack: ExitStack) -> None:
    places = Places(stack)
    places.mirrors[0].expect("GET", BLOB, Answer(body=CONTENT[:5000], framing="chunked"))
    places.home.expect("GET", BLOB, ranged(CONTENT), requires={"Range": f"bytes=5000-{len(CONTENT) - 1}"})
    with open_mirrored(places.reference, places.rule) as repository:
        assert read_all(repository, LAYER) == CONTENT


def test_a_stream_that_nobody_goes_on_with_tells_of_all_that_were_asked(stack: ExitStack) -> None:
    places, rest = Places(stack), {"Range": f"bytes=700-{len(CONTENT) - 1}"}
    places.mirrors[0].allow("GET", BLOB, Answer(body=CONTENT, cut_after_bytes=700))
    places.mirrors[0].allow("GET", BLOB, registry_error(410, "GONE"), requires=rest)
    places.home.allow("GET", BLOB, registry_error(404, "BLOB_UNKNOWN"))
    with (
        open_mirrored(places.reference, places.rule) as repository,
        closing(repository.open_blob(LAYER)) as stream,
        pytest.raises(BlobNotFound) as caught,
    ):
        read_stream(stream)
    assert caught.value.asked_before == (f"{places.mirrors[0].host} (410: gone)",)


def test_a_mirror_whose_bytes_were_wrong_is_asked_no_more(stack: ExitStack) -> None:
    places = Places(stack, 2)
    bad, good = places.mirrors
    second = descriptor_for(b"second", OCI_LAYER)
    bad.expect("GET", BLOB, Answer(body=bytes(len(CONTENT))))
    good.expect("GET", BLOB, Answer(body=CONTENT))
    good.expect("GET", blob_target(REPOSITORY, str(second.digest)), Answer(body=b"second"))
    events: list[Event] = []
    rule = places.rule
    client = quick_client(registries=[rule])
    with client.open_repository(Reference.parse(places.reference), on_event=events.append) as repository:
        assert isinstance(repository, MirroredRepository)
        assert read_all(repository, LAYER) != CONTENT
        assert repository.distrust(LAYER)
        assert read_all(repository, LAYER) == CONTENT
        assert read_all(repository, second) == b"second"
    assert [type(event) for event in events] == [UsingMirror, MirrorFailed, UsingMirror]
    assert events[1] == MirrorFailed(host=bad.host, problem=f"it gave wrong bytes for {LAYER.digest}")


def test_wrong_bytes_of_the_last_place_leave_nobody_to_ask_but_mirrors_that_did_not_give_them(
    stack: ExitStack,
) -> None:
    places = Places(stack)
    places.mirrors[0].allow("GET", BLOB, registry_error(404, "BLOB_UNKNOWN"))
    places.home.allow("GET", BLOB, Answer(body=bytes(len(CONTENT))))
    with open_mirrored(places.reference, places.rule) as repository:
        read_all(repository, LAYER)
        assert repository.distrust(LAYER)
        with pytest.raises(BlobNotFound):
            repository.open_blob(LAYER)
        assert not repository.distrust(LAYER)


def test_an_error_tells_of_a_mirror_that_is_asked_no_more_too(stack: ExitStack) -> None:
    places = Places(stack)
    places.mirrors[0].allow("GET", BLOB, Answer(body=bytes(len(CONTENT))))
    places.home.allow("GET", BLOB, registry_error(404, "BLOB_UNKNOWN"))
    with open_mirrored(places.reference, places.rule) as repository:
        read_all(repository, LAYER)
        assert repository.distrust(LAYER)
        with pytest.raises(BlobNotFound) as caught:
            repository.open_blob(LAYER)
    assert caught.value.asked_before == (f"{places.mirrors[0].host} (it gave wrong bytes for {LAYER.digest})",)


def test_bytes_that_came_from_two_places_cost_the_mirror_its_trust_and_not_the_place_it_stands_for(
    stack: ExitStack,
) -> None:
    places = Places(stack)
    wrong = b"?" + CONTENT[1:]
    places.mirrors[0].expect("GET", BLOB, Answer(body=wrong, cut_after_bytes=700), NO_ANSWER)
    places.home.expect("GET", BLOB, ranged(CONTENT), ranged(CONTENT))
    with open_mirrored(places.reference, places.rule) as repository:
        assert read_all(repository, LAYER) == wrong
        assert repository.distrust(LAYER)
        assert read_all(repository, LAYER) == CONTENT
        assert not repository.distrust(LAYER)


def test_another_size_than_announced_is_wrong_bytes_before_one_is_read(stack: ExitStack) -> None:
    places = Places(stack)
    places.mirrors[0].expect("GET", BLOB, Answer(body=CONTENT + b"?"))
    places.home.expect("GET", BLOB, Answer(body=CONTENT), Answer(body=CONTENT))
    with open_mirrored(places.reference, places.rule) as repository:
        assert read_all(repository, LAYER) == CONTENT
        assert read_all(repository, LAYER) == CONTENT


def test_a_mirror_that_announces_what_is_not_so_is_not_asked_again_even_where_nobody_else_serves(
    stack: ExitStack,
) -> None:
    places = Places(stack)
    places.mirrors[0].expect("GET", BLOB, Answer(body=CONTENT + b"?"))
    places.home.expect("GET", BLOB, *[registry_error(404, "BLOB_UNKNOWN")] * 2)
    with open_mirrored(places.reference, places.rule) as repository:
        for _ in range(2):
            with pytest.raises(BlobNotFound, match=f"{places.mirrors[0].host} .*does not match"):
                repository.open_blob(LAYER)


def test_a_mirror_for_digests_is_not_asked_what_a_tag_stands_for(stack: ExitStack, tmp_path: Path) -> None:
    places = Places(stack, pull="digest-only")
    places.home.expect("GET", MANIFEST, manifest(ROOT))
    for digest in [IMAGE.config_digest, *IMAGE.layer_digests]:
        places.mirrors[0].expect("GET", blob_target(REPOSITORY, digest), Answer(body=IMAGE.blobs[digest]))
    assert places.pull(tmp_path) == IMAGE.digest


def test_a_mirror_for_tags_is_asked_in_pulls_by_tag_alone(stack: ExitStack, tmp_path: Path) -> None:
    places = Places(stack, pull="tag-only")
    serve_image(places.mirrors[0], REPOSITORY, "1", IMAGE, at_most=1)
    assert places.pull(tmp_path) == IMAGE.digest
    by_digest = Places(stack, pull="tag-only")
    serve_image(by_digest.home, REPOSITORY, "1", IMAGE, at_most=1)
    reference = by_digest.home.reference(REPOSITORY, digest=IMAGE.digest)
    client = quick_client(registries=[by_digest.rule])
    assert str(Store(tmp_path / "other").pull(reference, client=client).digest) == IMAGE.digest


def test_a_name_that_is_none_is_refused_before_anybody_is_asked(stack: ExitStack) -> None:
    places = Places(stack)
    with open_mirrored(places.reference, places.rule) as repository:
        with pytest.raises(InvalidReference):
            repository.resolve("-")
        with pytest.raises(InvalidDigest):
            repository.resolve("sha256:x")


def test_the_documents_of_an_index_may_come_from_here_and_from_there(stack: ExitStack, tmp_path: Path) -> None:
    image = build_index([build_image(), build_image(platform="linux/arm64")])
    places = Places(stack)
    lacking = [image.document_digests[0]]
    serve_image(places.mirrors[0], REPOSITORY, "1", image.without(*lacking))
    for digest in lacking:
        places.mirrors[0].allow("GET", manifest_target(REPOSITORY, digest), registry_error(404, "MANIFEST_UNKNOWN"))
    serve_image(places.home, REPOSITORY, None, image)
    assert places.pull(tmp_path) in image.document_digests


def test_docker_hub_keeps_its_namespace_at_a_mirror(stack: ExitStack, tmp_path: Path) -> None:
    mirror = stack.enter_context(ScriptedRegistry())
    serve_image(mirror, "library/alpine", "3", IMAGE)
    rule = RegistryRule(prefix="docker.io", mirrors=[Mirror(location=mirror.host)])
    store = Store(tmp_path / "store")
    image = store.pull("alpine:3", client=quick_client(registries=[rule]))
    assert (str(image.digest), image.name) == (IMAGE.digest, "alpine:3")


def test_a_location_alone_is_one_place_and_no_mirror(stack: ExitStack) -> None:
    registry = stack.enter_context(ScriptedRegistry())
    serve_image(registry, "moved/team/app", "1", IMAGE)
    rule = RegistryRule(prefix="registry.example", location=f"{registry.host}/moved")
    reference = Reference.parse("registry.example/team/app:1")
    with quick_client(registries=[rule]).open_repository(reference) as repository:
        assert isinstance(repository, RegistryRepository)
        assert repository.resolve("1") == root_of(IMAGE)
    network = NamedNetwork({}, {})
    client = quick_client(registries=[rule], network=network)
    with client.open_origin(reference, access="pull,push") as changed, pytest.raises(RegistryError):
        changed.check_access()
    assert network.asked == ["registry.example"]


def test_what_is_blocked_is_refused_before_a_name_is_even_looked_up() -> None:
    network = NamedNetwork({}, {})
    rules = [
        RegistryRule(prefix="*.example", blocked=True),
        RegistryRule(prefix="good.example", mirrors=[Mirror(location="bad.example")]),
    ]
    client = quick_client(registries=rules, network=network)
    for open_it in (client.open_repository, client.open_origin):
        with pytest.raises(RegistryBlocked, match=r"^bad\.example/team/app:1 is blocked by the rule for \*\.example$"):
            open_it(Reference.parse("bad.example/team/app:1"))
    with pytest.raises(RegistryBlocked):
        client.check_credentials("bad.example", Credentials("me", "secret"))
    with pytest.raises(RegistryBlocked):
        client.open_registry("bad.example")
    assert network.asked == []


def test_a_cancel_ends_a_pull_that_waits_for_a_mirror_and_nobody_else_is_asked(
    stack: ExitStack, tmp_path: Path
) -> None:
    places = Places(stack, 2)
    held = threading.Event()
    stack.callback(held.set)
    places.mirrors[0].allow("GET", MANIFEST, manifest(ROOT))
    layer = blob_target(REPOSITORY, IMAGE.layer_digests[0])
    for digest in [IMAGE.config_digest, *IMAGE.layer_digests]:
        body = IMAGE.blobs[digest]
        places.mirrors[0].allow("GET", blob_target(REPOSITORY, digest), Answer(body=body))
    places.mirrors[0].allow("GET", layer, Answer(body=IMAGE.blobs[IMAGE.layer_digests[0]], hold=held))
    cancellation = Cancellation()
    ended: list[tuple[float, BaseException]] = []

    def pull() -> None:
        try:
            client = quick_client(registries=[places.rule], silence_seconds=60)
            Store(tmp_path / "store").pull(
                places.reference, client=client, cancellation=cancellation, on_event=places.events.append
            )
        except Cancelled as error:
            ended.append((time.monotonic(), error))

    thread = threading.Thread(target=pull, daemon=True)
    thread.start()
    places.mirrors[0].wait_for("GET", layer)
    time.sleep(0.1)
    cancelled = time.monotonic()
    cancellation.cancel()
    thread.join(SOON_SECONDS)
    assert ended
    assert ended[0][0] - cancelled < SOON_SECONDS
    # Nor is it told that the mirror failed: it did not.
    assert places.told() == [UsingMirror(host=places.mirrors[0].host)]


def test_a_head_is_answered_by_the_first_place_that_says_anything(stack: ExitStack) -> None:
    places = Places(stack, 3)
    places.mirrors[0].allow("HEAD", MANIFEST, Answer(status=500))
    places.mirrors[1].allow("HEAD", MANIFEST, Answer(status=404))
    places.mirrors[2].allow("HEAD", MANIFEST, manifest(ROOT, Docker_Content_Digest=IMAGE.digest))
    with open_mirrored(places.reference, places.rule) as repository:
        found = repository.head("1")
        assert found is not None
        assert str(found.digest) == IMAGE.digest
        with pytest.raises(InvalidReference):
            repository.head("-")


def test_a_head_that_no_place_answers_is_none_and_an_error_only_where_all_fail(stack: ExitStack) -> None:
    places = Places(stack)
    places.mirrors[0].allow("HEAD", MANIFEST, Answer(status=500))
    places.home.expect("HEAD", MANIFEST, Answer(status=404), *[Answer(status=500)] * 5)
    with open_mirrored(places.reference, places.rule) as repository:
        assert repository.head("1") is None
        with pytest.raises(RegistryError, match=r"500.*before it") as caught:
            repository.head("1")
    assert len(caught.value.asked_before) == 1


def test_an_insecure_mirror_is_not_checked_and_what_it_stands_for_is(stack: ExitStack, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "certificate")
    mirror, home = (stack.enter_context(ScriptedRegistry(certificate=certificate)) for _ in range(2))
    serve_image(mirror, REPOSITORY, "1", IMAGE)
    reference = home.reference(REPOSITORY, "1")
    insecure = RegistryRule(prefix=home.host, mirrors=[Mirror(location=mirror.host, insecure=True)])
    client = quick_client(registries=[insecure], https=[home.host, mirror.host])
    with client.open_repository(Reference.parse(reference)) as mirrored:
        assert mirrored.resolve("1") == root_of(IMAGE)
    checked = RegistryRule(prefix=home.host, mirrors=[Mirror(location=mirror.host)])
    with (
        open_mirrored(reference, checked, https=[home.host, mirror.host]) as repository,
        pytest.raises(
            RegistryError, match=r"its certificate is not trusted.*before it.*its certificate is not trusted"
        ),
    ):
        repository.resolve("1")
    # The rule for one name says nothing of the same host under another.
    with (
        client.open_repository(Reference.parse(mirror.reference(REPOSITORY, "1"))) as repository,
        pytest.raises(RegistryError, match="its certificate is not trusted"),
    ):
        repository.resolve("1")


@pytest.mark.parametrize("as_mirror", [True, False])
def test_where_a_rule_says_insecure_plain_http_will_do(stack: ExitStack, as_mirror: bool) -> None:
    registry = stack.enter_context(ScriptedRegistry())
    serve_image(registry, REPOSITORY, "1", IMAGE)
    network = NamedNetwork({"plain.example": [[PUBLIC_ADDRESS]]}, {"plain.example": registry.port})
    mirrors = [Mirror(location="plain.example", insecure=True)] if as_mirror else []
    location = None if as_mirror else "plain.example"
    rule = RegistryRule(prefix="named.example", location=location, insecure=not as_mirror, mirrors=mirrors)
    reference = Reference.parse("named.example/team/app:1")
    client = quick_client(registries=[rule], network=network)
    with client.open_repository(reference) as repository:
        assert repository.resolve("1") == root_of(IMAGE)
    # By its own name it is as secure as any other.
    with (
        client.open_repository(Reference.parse("plain.example/team/app:1")) as repository,
        pytest.raises(RegistryError, match="GET https:"),
    ):
        repository.resolve("1")


INDEX = build_index([build_image(platform="linux/arm64"), IMAGE])


@pytest.mark.parametrize("which", ["root", "manifest", "config", "layer"])
def test_wrong_bytes_of_a_mirror_cost_a_pull_no_more_than_that_mirror(
    stack: ExitStack, tmp_path: Path, which: str
) -> None:
    places = Places(stack, 2)
    bad, good = places.mirrors
    digests = {"root": INDEX.digest, "manifest": IMAGE.digest, "config": IMAGE.config_digest}
    wrong = digests.get(which, IMAGE.layer_digests[0])
    if which == "root":
        # It says of the tag what is so, and gives other bytes.
        content = INDEX.blobs[wrong][:-1] + b" "
        serve_image(bad, REPOSITORY, "1", replace(INDEX, blobs={**INDEX.blobs, wrong: content}))
    else:
        serve_image(bad, REPOSITORY, "1", INDEX.corrupted(wrong))
    serve_image(good, REPOSITORY, "1", INDEX, at_most=1)
    assert places.pull(tmp_path, parallel=1) == IMAGE.digest
    failed = [event for event in places.told() if isinstance(event, MirrorFailed)]
    assert [event.host for event in failed] == [bad.host]
    # Nothing was asked of it after that.
    assert wrong in bad.requests[-1].target or which == "root"
    assert len(bad.requests) == {"root": 1, "manifest": 2, "config": 3, "layer": 4}[which]


def test_where_every_place_gives_wrong_bytes_a_pull_fails_and_names_nothing(stack: ExitStack, tmp_path: Path) -> None:
    places = Places(stack, 2)
    for each in (*places.mirrors, places.home):
        serve_image(each, REPOSITORY, "1", IMAGE.corrupted(IMAGE.layer_digests[0]), at_most=1)
    store = Store(tmp_path / "store", durability="none")
    with pytest.raises(ContentMismatch):
        store.pull(places.reference, client=quick_client(registries=[places.rule]))
    assert store.images() == ()
    check_invariants(tmp_path / "store", leftovers=True)


def test_a_blob_that_an_older_pull_began_is_gone_on_with_by_a_mirror(stack: ExitStack, tmp_path: Path) -> None:
    image = build_image([random_layer(400 * 512)])
    (layer,) = image.layer_digests
    content = image.blobs[layer]
    home = stack.enter_context(ScriptedRegistry())
    mirror = stack.enter_context(ScriptedRegistry())
    serve_image(home, REPOSITORY, "1", image)
    serve_image(mirror, REPOSITORY, "1", image, ranges=True)
    home.allow("GET", blob_target(REPOSITORY, layer), Answer(body=content, cut_after_bytes=70_000))
    store = Store(tmp_path / "store", durability="none")
    reference = home.reference(REPOSITORY, "1")
    home.allow("GET", blob_target(REPOSITORY, layer), NO_ANSWER, requires={"Range": None})
    with pytest.raises(RegistryError):
        store.pull(reference, client=quick_client(attempts=2))
    rule = RegistryRule(prefix=home.host, mirrors=[Mirror(location=mirror.host)])
    assert str(store.pull(reference, client=quick_client(registries=[rule])).digest) == image.digest
    (request,) = [each for each in mirror.requests if each.target == blob_target(REPOSITORY, layer)]
    assert request.header("Range") == f"bytes=70000-{len(content) - 1}"


def test_what_has_rotted_is_fetched_again_by_the_mirrors_of_where_it_came_from(
    stack: ExitStack, tmp_path: Path
) -> None:
    places = Places(stack)
    serve_image(places.mirrors[0], REPOSITORY, "1", IMAGE)
    places.pull(tmp_path)
    rotten = tmp_path / "store" / "blobs" / "sha256" / IMAGE.layer_digests[0].removeprefix("sha256:")
    rotten.chmod(0o644)
    rotten.write_bytes(bytes(rotten.stat().st_size))
    # One that gives wrong bytes now is no reason to leave it as it is.
    second = stack.enter_context(ScriptedRegistry())
    serve_image(second, REPOSITORY, None, IMAGE.corrupted(IMAGE.layer_digests[0]))
    places.rule = evolve(places.rule, mirrors=[Mirror(location=second.host), *places.rule.mirrors])
    report = Store(tmp_path / "store").repair(client=quick_client(registries=[places.rule]))
    assert (len(report.mended), report.unmended) == (1, ())
    check_invariants(tmp_path / "store", leftovers=True)


def test_a_pull_without_a_client_reads_the_file_that_the_environment_names(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(stack)
    (mirror,) = places.mirrors
    serve_image(mirror, REPOSITORY, "1", IMAGE)
    file = tmp_path / "registries.toml"
    file.write_text(f'[[registry]]\nprefix = "{places.home.host}"\nmirrors = [{{ location = "{mirror.host}" }}]\n')
    monkeypatch.setenv("MINIBOX_REGISTRIES", str(file))
    store = Store(tmp_path / "store")
    assert str(store.pull(places.reference).digest) == IMAGE.digest
    file.write_text(f'[[registry]]\nprefix = "{places.home.host}"\nblocked = true\n')
    with pytest.raises(RegistryBlocked):
        store.pull(places.reference)
    file.write_text("[[registry]]\nprefix = 5\n")
    with pytest.raises(InvalidDocument, match=r"registries\.toml at registry\[0\]\.prefix: expected a string"):
        store.pull(places.reference)


def test_a_mirror_that_keeps_silent_is_given_up_on_sooner_than_what_it_stands_for(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minibox_store.registry.client._MIRROR_SILENCE_SECONDS", 0.3)
    places = Places(stack)
    held = threading.Event()
    stack.callback(held.set)
    places.mirrors[0].allow("GET", MANIFEST, replace(manifest(ROOT), hold=held))
    slow = replace(manifest(ROOT), drip_bytes=len(ROOT) // 3, drip_seconds=0.3)
    places.home.expect("GET", MANIFEST, slow)
    started = time.monotonic()
    with open_mirrored(places.reference, places.rule, silence_seconds=60) as repository:
        assert repository.resolve("1") == root_of(IMAGE)
    assert time.monotonic() - started < SOON_SECONDS
    assert places.mirrors[0].count("GET", MANIFEST) == 2


def test_an_unchanged_pull_costs_one_head_at_a_mirror(stack: ExitStack, tmp_path: Path) -> None:
    places = Places(stack, 2)
    lacking, mirror = places.mirrors
    lacking.allow("GET", MANIFEST, registry_error(404, "MANIFEST_UNKNOWN"))
    lacking.allow("HEAD", MANIFEST, Answer(status=404))
    serve_image(mirror, REPOSITORY, "1", IMAGE)
    assert places.pull(tmp_path) == IMAGE.digest
    before = len(lacking.requests), len(mirror.requests)
    store = Store(tmp_path / "store", durability="none")
    client = quick_client(registries=[places.rule])
    assert str(store.pull(places.reference, client=client, policy="if-newer").digest) == IMAGE.digest
    assert (len(lacking.requests), len(mirror.requests)) == (before[0] + 1, before[1] + 1)
    assert mirror.requests[-1].method == "HEAD"


def read_range(repository: MirroredRepository, offset: int, size_bytes: int) -> bytes:
    stream = repository.open_range(LAYER, offset, size_bytes)
    assert stream is not None
    with closing(stream):
        return read_stream(stream)


PARTS = [(0, 40_000), (40_000, 30_000), (70_000, len(CONTENT) - 70_000)]


def test_ranges_come_from_the_place_whose_turn_it_is_and_go_on_elsewhere(stack: ExitStack) -> None:
    places = Places(stack)
    (mirror,) = places.mirrors

    def some(request: Request) -> Answer:
        # It breaks off in the middle range, and does not go on with it.
        answer = ranged(CONTENT)(request)
        wanted = request.header("Range") or ""
        return replace(answer, cut_after_bytes=100) if wanted.startswith("bytes=40000-") else answer

    mirror.allow("GET", BLOB, some)
    mirror.allow("GET", BLOB, NO_ANSWER, requires={"Range": re.compile(r"bytes=40100-.*")})
    places.home.expect("GET", BLOB, ranged(CONTENT), requires={"Range": "bytes=40100-69999"})
    with open_mirrored(places.reference, places.rule) as repository:
        for offset, size_bytes in PARTS[:2]:
            assert read_range(repository, offset, size_bytes) == CONTENT[offset : offset + size_bytes]
        # Of what the two gave, the mirror's part was wrong: it is asked no more.
        places.home.expect("GET", BLOB, ranged(CONTENT), requires={"Range": f"bytes=70000-{len(CONTENT) - 1}"})
        assert repository.distrust(LAYER)
        assert read_range(repository, *PARTS[2]) == CONTENT[70_000:]


def test_a_range_that_breaks_is_gone_on_with_by_a_place_without_ranges_too(stack: ExitStack) -> None:
    places = Places(stack)
    whole = replace(partial_content(CONTENT, 40_000, 69_999), cut_after_bytes=100)
    places.mirrors[0].expect("GET", BLOB, whole, NO_ANSWER)
    places.home.expect("GET", BLOB, Answer(body=CONTENT), Answer(body=CONTENT))
    with open_mirrored(places.reference, places.rule) as repository:
        assert read_range(repository, 40_000, 30_000) == CONTENT[40_000:70_000]


def test_where_the_place_whose_turn_it_is_gives_no_ranges_there_are_none(stack: ExitStack) -> None:
    places = Places(stack)
    places.mirrors[0].expect("GET", BLOB, Answer(body=CONTENT))
    with open_mirrored(places.reference, places.rule) as repository:
        assert repository.open_range(LAYER, 40_000, 30_000) is None
        assert places.home.requests == []


def test_what_a_rule_says_of_a_host_holds_for_whatever_is_done_there(stack: ExitStack) -> None:
    registry = stack.enter_context(ScriptedRegistry())
    registry.allow("GET", "/v2/", Answer(body=b"{}"))
    network = NamedNetwork({"plain.example": [[PUBLIC_ADDRESS]]}, {"plain.example": registry.port})
    rule = RegistryRule(prefix="plain.example", insecure=True)
    client = quick_client(registries=[rule], network=network)
    client.check_credentials("plain.example", Credentials("me", "secret"))
    for opened in (
        client.open_registry("plain.example"),
        client.open_origin(Reference.parse("plain.example/team/app"), access="pull,push"),
    ):
        with opened:
            opened.check_access()
    assert registry.count("GET", "/v2/") == 3
