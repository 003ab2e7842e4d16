"""POST /images/pull as a program sees it: real registries, cut lines, several listeners, turns, and how it ends."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from minibox_server.api.progress import Doing, Progress
from minibox_server.app import create_app
from minibox_server.settings import Settings
from minibox_store import (
    BlobAdvanced,
    BlobPresent,
    BlobRetried,
    BlobsCounted,
    BlobStarted,
    BlobStored,
    Cancellation,
    Cancelled,
    Descriptor,
    Digest,
    Event,
    EventListener,
    ImageCopied,
    ManifestChosen,
    RegisteringName,
    RegistryWarning,
    ResolvingName,
    StoreFull,
)
from tests.server.test_operations import application
from tests.support.asgi import Exchange, asking
from tests.support.cutting_proxy import CuttingProxy
from tests.support.images import BuiltImage, build_image, random_layer
from tests.support.layouts import read_layout_names
from tests.support.peers import docker_registry, push_image
from tests.support.pushes import for_others
from tests.support.registries import quick_client
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    blob_target,
    manifest_target,
    registry_error,
    serve_image,
    unauthorized,
)
from tests.support.stores import open_store, put
from tests.support.upload_registry import UploadRegistry

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
IMAGE = build_image([random_layer(1 << 20, salt="progress"), {"a": b"1"}])
SMALL = build_image([random_layer(100_352, salt="small")])
BIG_LAYER = IMAGE.layer_digests[0]


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as registry:
        yield registry


def app_of(root: Path, **said: Any) -> Starlette:
    return create_app(Settings(data_root=str(root), **said))


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90):
            await test()

    asyncio.run(bounded())


def of_kind(exchange: Exchange, kind: str) -> list[dict[str, Any]]:
    return [each for each in exchange.events() if each["event"] == kind]


def check_stream(exchange: Exchange) -> None:
    """See what holds for every stream: how it begins and ends, and that of each blob its bytes only grow."""
    events = exchange.events()
    assert exchange.is_whole
    assert [each["event"] in ("result", "error") for each in events].count(True) == 1
    assert events[-1]["event"] in ("result", "error")
    assert len(of_kind(exchange, "resolved")) == 1
    seen: dict[tuple[Any, ...], int] = {}
    for each in of_kind(exchange, "blob"):
        assert 0 <= each["done_bytes"] <= each["size_bytes"]
        key = (each["digest"], each["attempt"], each["phase"] == "unpacking")
        assert each["done_bytes"] >= seen.get(key, 0)
        seen[key] = each["done_bytes"]
    for each in of_kind(exchange, "progress"):
        assert each["total_bytes"] is None or each["done_bytes"] <= each["total_bytes"]


def hold_layer(registry: ScriptedRegistry, image: BuiltImage, repository: str = "app") -> threading.Event:
    """Let a registry hold back an image's first layer, in its middle, until the event that is returned is set."""
    release = threading.Event()
    digest = image.layer_digests[0]
    content = image.blobs[digest]
    serve_image(registry, repository, "1", image)
    answer = Answer(body=content, hold=release, hold_after_bytes=len(content) // 2)
    registry.allow("GET", blob_target(repository, digest), answer)
    return release


def states_of(doing: Doing, run: Callable[[EventListener], object]) -> list[dict[str, Any]]:
    """Return what is told of an operation, were each of its events a tick of the clock."""
    states: list[dict[str, Any]] = []
    progress = Progress(doing, lambda _: None)

    def listen(event: Event) -> None:
        progress.on_event(event)
        states.extend(dict(state or {}) for _, state in progress.take_state())

    run(listen)
    return states


def check_blobs(states: list[dict[str, Any]], image: BuiltImage) -> None:
    """See that the bytes of each blob only grow, but for another attempt, and that each is stored in the end."""
    last: dict[str, dict[str, Any]] = {}
    for each in (each for each in states if each["event"] == "blob"):
        before = last.get(each["digest"], each)
        assert (each["attempt"], each["done_bytes"]) >= (before["attempt"], before["done_bytes"])
        last[each["digest"]] = each
    assert {(digest, each["phase"]) for digest, each in last.items()} == {
        (digest, "stored") for digest in image.blobs.keys() - set(image.document_digests)
    }


def test_of_a_save_all_moves_and_is_stored_then(tmp_path: Path) -> None:
    put(tmp_path / "store", IMAGE, "app:1")
    store = open_store(tmp_path / "store")
    states = states_of("save", lambda listen: store.save("app:1", tmp_path / "a.tar", on_event=listen))
    check_blobs(states, IMAGE)
    whole = [each for each in states if each["event"] == "progress"]
    assert {each["phase"] for each in whole} == {"moving"}
    assert [each["done_bytes"] for each in whole] == sorted(each["done_bytes"] for each in whole)
    first = next(each for each in states if each["event"] == "blob")
    assert (first["phase"], first["done_bytes"]) == ("started", 0)


def test_of_a_layer_that_is_left_out_of_a_push_and_sent_after_all_that_is_another_attempt(tmp_path: Path) -> None:
    image = for_others(SMALL, "https://layers.example/one")
    put(tmp_path / "store", image, "app:1")
    store = open_store(tmp_path / "store")
    with UploadRegistry() as registry:
        registry.needs_all_layers = True
        reference = registry.reference("team/app", "1")
        push = partial(store.push, "app:1", reference, client=quick_client())
        check_blobs(states_of("push", lambda listen: push(on_event=listen)), image)


@pytest.mark.parametrize(("doing", "done"), [("pull", "pulled"), ("load", "loaded"), ("save", "saved")])
def test_a_message_has_the_words_of_its_operation(doing: Doing, done: str) -> None:
    progress = Progress(doing, lambda _: None)
    progress.on_event(ImageCopied(name="app:1"))
    assert [told for _, told in progress.take_urgent()] == [{"event": "message", "text": f"successfully {done} app:1"}]


@pytest.mark.parametrize("accept", [NDJSON, SSE])
def test_a_pull_from_a_real_registry_over_a_line_that_is_cut_tells_all_of_it(tmp_path: Path, accept: str) -> None:
    async def test() -> None:
        with docker_registry(tmp_path / "registry") as real:
            push_image(real, "team/app", "1", IMAGE)
            with CuttingProxy(int(real.host.rpartition(":")[2]), cuts=[1 << 18] * 3) as line:
                name = f"{line.host}/team/app:1"
                query = {"image": name}
                async with asking(app_of(tmp_path / "data"), "POST", "/images/pull", query, accept=accept) as pull:
                    await pull.end()
                assert line.cuts_made == 3
        check_stream(pull)
        [resolved] = of_kind(pull, "resolved")
        assert resolved == {
            "event": "resolved",
            "name": name,
            "digest": IMAGE.digest,
            "media_type": IMAGE.media_type,
        }
        last = {each["digest"]: each for each in of_kind(pull, "blob")}
        assert set(last) == {IMAGE.config_digest, *IMAGE.layer_digests}
        assert {each["size_bytes"] for each in last.values()} == {len(IMAGE.blobs[digest]) for digest in last}
        assert all(each["done_bytes"] == each["size_bytes"] for each in last.values())
        assert sum(each["attempt"] - 1 for each in last.values()) == 3
        overall = of_kind(pull, "progress")[-1]
        total = sum(len(IMAGE.blobs[digest]) for digest in last)
        assert overall == {"event": "progress", "phase": "registering", "done_bytes": total, "total_bytes": total}
        result = pull.events()[-1]
        assert (result["event"], result["name"], result["digest"]) == ("result", name, IMAGE.digest)
        assert read_layout_names(tmp_path / "data")[name]["digest"] == IMAGE.digest

    run(test)


def test_what_a_cancelled_pull_left_is_told_as_resumed(tmp_path: Path, registry: ScriptedRegistry) -> None:
    async def test() -> None:
        app, query = app_of(tmp_path / "data"), {"image": registry.reference("app", "1")}
        release = hold_layer(registry, IMAGE)
        half = len(IMAGE.blobs[BIG_LAYER]) // 2
        async with asking(app, "POST", "/images/pull", query, accept=NDJSON) as first:
            await first.until(f'"done_bytes":{half},')
        release.set()
        while list((tmp_path / "data" / "ingest").glob("*/lock")):
            await asyncio.sleep(0.02)
        serve_image(registry, "app", "1", IMAGE, ranges=True)
        async with asking(app, "POST", "/images/pull", query, accept=NDJSON) as second:
            await second.end()
        check_stream(second)
        assert {each["resumed_bytes"] for each in of_kind(second, "blob") if each["digest"] == BIG_LAYER} == {half}
        async with asking(app, "POST", "/images/pull", query, accept=NDJSON) as third:
            await third.end()
        assert {each["phase"] for each in of_kind(third, "blob")} == {"present"}

    run(test)


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (404, registry_error(404, "MANIFEST_UNKNOWN")),
        (403, unauthorized('Basic realm="r"')),
        (429, registry_error(429, "TOOMANYREQUESTS")),
    ],
)
@pytest.mark.parametrize("accept", [NDJSON, SSE])
def test_what_cannot_be_resolved_is_a_status_and_no_stream(
    tmp_path: Path, registry: ScriptedRegistry, status: int, answer: Answer, accept: str
) -> None:
    if status == 429:
        answer = Answer(status=429, headers=[*answer.headers, ("Retry-After", "60")], body=answer.body)

    async def test() -> None:
        registry.allow("GET", "/v2/", Answer(body=b"{}") if status != 403 else answer)
        for method in ("GET", "HEAD"):
            registry.allow(method, manifest_target("app", "1"), answer)
        query = {"image": registry.reference("app", "1")}
        async with asking(app_of(tmp_path / "data"), "POST", "/images/pull", query, accept=accept) as pull:
            await pull.end()
        assert pull.status == status
        assert pull.headers["content-type"] == "application/problem+json"
        assert ("retry-after" in pull.headers) == (status == 429)

    run(test)


def test_a_pull_that_fails_in_its_middle_says_so_to_all_and_registers_nothing(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    async def test() -> None:
        app, query = app_of(tmp_path / "data"), {"image": registry.reference("app", "1")}
        release = hold_layer(registry, IMAGE.corrupted(BIG_LAYER))
        async with AsyncExitStack() as stack:
            pulls = [
                await stack.enter_async_context(asking(app, "POST", "/images/pull", query, accept=accept))
                for accept in (NDJSON, SSE, "text/plain")
            ]
            for each in pulls[:2]:
                await each.until("resolved")
            release.set()
            for each in pulls:
                await each.end()
        for each in pulls[:2]:
            check_stream(each)
            assert each.events()[-1]["event"] == "error"
            assert (each.events()[-1]["status"], each.events()[-1]["title"]) == (502, "Bad Gateway")
            assert BIG_LAYER in each.events()[-1]["detail"]
        detail = pulls[0].events()[-1]["detail"]
        assert pulls[2].body.decode().endswith(f"\n[error] pull failed: {detail}\n")
        assert read_layout_names(tmp_path / "data") == {}

    run(test)


def test_two_pulls_of_the_same_are_one_and_text_is_the_same_for_who_comes_late(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    async def test() -> None:
        app, query = app_of(tmp_path / "data"), {"image": registry.reference("app", "1")}
        release = hold_layer(registry, IMAGE)
        async with (
            asking(app, "POST", "/images/pull", query) as text,
            asking(app, "POST", "/images/pull", query, accept=NDJSON) as deaf,
        ):
            await text.until("pulling layer 1/2")
            async with (
                asking(app, "POST", "/images/pull", query) as late,
                asking(app, "POST", "/images/pull", query, accept=SSE) as later,
            ):
                await late.until("pulling layer 1/2")
                await later.until('"phase":"moving"')
                deaf.leave()
                release.set()
                for each in (text, late, later):
                    await each.end()
        assert text.body == late.body
        assert text.body.decode().endswith("[pull] Done\n")
        check_stream(later)
        assert later.events()[-1]["event"] == "result"
        assert registry.count("GET", manifest_target("app", "1")) == 1
        assert registry.count("GET", blob_target("app", BIG_LAYER)) == 1

    run(test)


def test_another_platform_or_name_is_another_pull(tmp_path: Path, registry: ScriptedRegistry) -> None:
    async def test() -> None:
        app, name = app_of(tmp_path / "data", unpack=False), registry.reference("app", "1")
        release = hold_layer(registry, SMALL)
        async with (
            asking(app, "POST", "/images/pull", {"image": name}, accept=NDJSON) as first,
            asking(app, "POST", "/images/pull", {"image": f"{name}@{SMALL.digest}"}, accept=NDJSON) as second,
        ):
            await first.until("resolved")
            await second.until("resolved")
            release.set()
            await first.end()
            await second.end()
        assert {each.events()[-1]["event"] for each in (first, second)} == {"result"}
        assert len(read_layout_names(tmp_path / "data")) == 2

    run(test)


def test_when_all_have_gone_the_pull_is_cancelled_also_those_who_read_text(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    async def test() -> None:
        app, query = app_of(tmp_path / "data"), {"image": registry.reference("app", "1")}
        release = hold_layer(registry, IMAGE)
        ingest = tmp_path / "data" / "ingest"
        async with (
            asking(app, "POST", "/images/pull", query) as text,
            asking(app, "POST", "/images/pull", query, accept=NDJSON) as program,
        ):
            await program.until('"phase":"moving"')
            await text.until("pulling layer 1/2")
            program.leave()
            await program.end()
            await asyncio.sleep(0.3)
            assert list(ingest.glob("*/lock"))
            text.leave()
            await text.end()
            async with asyncio.timeout(10):
                while list(ingest.glob("*/lock")):
                    await asyncio.sleep(0.02)
        release.set()
        assert read_layout_names(tmp_path / "data") == {}

    run(test)


def test_the_pulls_beyond_those_that_may_move_wait_for_their_turn_and_say_so(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    images = [build_image([random_layer(100_352, salt=f"turn {number}")]) for number in range(4)]

    async def test() -> None:
        app = app_of(tmp_path / "data", max_pulls=1, unpack=False)
        releases = [hold_layer(registry, image, f"app{number}") for number, image in enumerate(images)]
        async with AsyncExitStack() as stack:
            pulls: list[Exchange] = []
            for number in range(4):
                query = {"image": registry.reference(f"app{number}", "1")}
                accept = "text/plain" if number == 1 else NDJSON
                pull = await stack.enter_async_context(asking(app, "POST", "/images/pull", query, accept=accept))
                await pull.until("pulling layer" if number == 0 and accept != NDJSON else "manifest")
                await pull.until("waiting" if number else '"phase":"moving"')
                pulls.append(pull)
            assert "[pull] waiting: 1 pulls are ahead\n" in pulls[1].body.decode()
            assert [each["ahead"] for each in of_kind(pulls[3], "waiting")] == [3]
            assert of_kind(pulls[3], "blob") == []
            # One that waits goes away: whoever comes after it gets nearer.
            pulls[2].leave()
            await pulls[2].end()
            await pulls[3].until('"ahead":2')
            for number in (0, 1, 3):
                releases[number].set()
                await pulls[number].end()
        assert [each["ahead"] for each in of_kind(pulls[3], "waiting")][:2] == [3, 2]
        assert pulls[1].body.decode().endswith("[pull] Done\n")
        assert [pulls[number].events()[-1]["event"] for number in (0, 3)] == ["result"] * 2
        assert set(read_layout_names(tmp_path / "data")) == {
            registry.reference(f"app{number}", "1") for number in (0, 1, 3)
        }

    run(test)


# ---- whatever a library tells


LEAVES = [Descriptor(media_type="x/y", digest=Digest.of(bytes([number])), size_bytes=100) for number in range(3)]
MANIFEST = Descriptor(media_type="x/z", digest=Digest.of(b"manifest"), size_bytes=8)


STATUSES: dict[Callable[[], Exception] | None, int] = {
    None: 200,
    partial(StoreFull, "/data"): 507,
    Cancelled: 503,
    ZeroDivisionError: 500,
}


def leaf_events() -> st.SearchStrategy[Event]:
    """Return any event of any of three layers, in whatever order."""
    leaf = st.sampled_from(LEAVES)
    placed = {"role": st.just("layer"), "position": st.integers(1, 3), "total": st.just(3)}
    return st.one_of(
        st.builds(BlobStarted, descriptor=leaf, offset_bytes=st.integers(0, 100), **placed),
        st.builds(
            BlobAdvanced,
            digest=leaf.map(lambda each: each.digest),
            done_bytes=st.integers(0, 100),
            size_bytes=st.just(100),
        ),
        st.builds(BlobRetried, digest=leaf.map(lambda each: each.digest), offset_bytes=st.integers(0, 100)),
        st.builds(BlobPresent, descriptor=leaf, **placed),
        st.builds(BlobStored, descriptor=leaf, **placed),
        st.builds(RegistryWarning, host=st.just("host"), text=st.text(max_size=20)),
        st.just(BlobsCounted(count=3, size_bytes=300)),
        st.just(RegisteringName(name="app:1")),
        st.just(ResolvingName(name="app:1")),
        st.just(ManifestChosen(name="app:1", descriptor=MANIFEST)),
    )


def told_of(event: Event) -> Descriptor | None:
    """Return the layer that an event names by its digest alone."""
    return next((leaf for leaf in LEAVES if leaf.digest == getattr(event, "digest", None)), None)


# Not made smaller where it fails: each try takes a loop and its threads, and a dozen events can be read.
@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    events=st.lists(leaf_events(), max_size=12),
    error=st.sampled_from(list(STATUSES)),
    forms=st.lists(st.sampled_from([NDJSON, SSE, None]), min_size=1, max_size=3),
)
def test_whatever_happens_each_listener_has_one_end_and_the_last_state(
    events: list[Event], error: Callable[[], Exception] | None, forms: list[str | None]
) -> None:
    def call(on_event: EventListener, cancellation: Cancellation) -> dict[str, object]:
        for event in events:
            on_event(event)
        if error is not None:
            raise error()
        return {"name": "app:1"}

    async def test() -> None:
        app = application(call, key="same")
        async with AsyncExitStack() as stack:
            asked = [await stack.enter_async_context(asking(app, "POST", "/", accept=form)) for form in forms]
            for exchange in asked:
                await exchange.end()
        began = any(
            not isinstance(event, ResolvingName | RegistryWarning | BlobRetried | BlobAdvanced) for event in events
        )
        status = STATUSES[error]
        for form, exchange in zip(forms, asked, strict=True):
            assert exchange.is_whole
            if form is None or (error is not None and not began):
                assert exchange.status == status
                continue
            assert exchange.status == 200
            ends = [each for each in exchange.events() if each["event"] in ("result", "error")]
            assert ends == [exchange.events()[-1]]
            assert ends[0].get("status", 200) == status
            last = {each["digest"]: each for each in of_kind(exchange, "blob")}
            for leaf in LEAVES:
                own = [
                    e
                    for e in events
                    if leaf.digest
                    in (getattr(e, "digest", None), getattr(getattr(e, "descriptor", None), "digest", None))
                ]
                placed = [number for number, each in enumerate(own) if not isinstance(each, BlobAdvanced | BlobRetried)]
                assert (str(leaf.digest) in last) == bool(placed)
                if placed and isinstance(own[-1], BlobStored | BlobPresent):
                    assert last[str(leaf.digest)]["done_bytes"] == 100
                if placed and isinstance(own[-1], BlobAdvanced):
                    assert last[str(leaf.digest)]["done_bytes"] == own[-1].done_bytes

    run(test)
