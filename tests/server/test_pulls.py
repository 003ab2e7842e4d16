"""POST /images/pull: the stream byte for byte, its failures, and clients that go away."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from minibox_server.api.operations import Operations
from minibox_server.api.pulls import Pull, PullAnswer, pull_call
from minibox_server.transfers import ThreadTransfers
from minibox_server.workers import Workers
from minibox_store import LINUX_AMD64, Image, Store
from tests.server.clients import client_of
from tests.support.daemon import Daemon, running_daemon
from tests.support.images import (
    IN_TOTO,
    BuiltImage,
    Layer,
    build_image,
    build_index,
    build_layer,
    digest_of,
    random_layer,
)
from tests.support.layouts import read_layout_blobs, read_layout_names
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    blob_target,
    manifest_target,
    registry_error,
    serve_image,
    unauthorized,
)
from tests.support.waiting import SOON_SECONDS


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as registry:
        yield registry


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running_daemon(tmp_path / "daemon") as daemon:
        yield daemon


def pull(data_root: Path, reference: str, **query: str) -> list[str]:
    response = client_of(data_root).post("/images/pull", params={"image": reference, **query})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert "content-length" not in response.headers
    assert response.text.endswith("\n")
    return response.text[:-1].split("\n")


def short(digest: str) -> str:
    return digest.partition(":")[2][:12]


def layers_of(image: BuiltImage) -> list[str]:
    return [layer["digest"] for layer in image.document()["layers"]]


def wait_for(is_true: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Return whether it becomes true within the time."""
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def transactions_of(data_root: Path) -> list[str]:
    """Return what lies in ``ingest/`` and belongs to work in progress."""
    ingest = data_root / "ingest"
    return [path.name for path in ingest.glob("*/lock")] if ingest.exists() else []


# ---- the stream


def test_a_pull_tells_each_step_on_a_line_of_its_own(tmp_path: Path, registry: ScriptedRegistry) -> None:
    image = build_image([{"a": b"1"}])
    index = build_index([image, build_image(platform="linux/arm64")])
    serve_image(registry, "team/app", "1", index)
    name = registry.reference("team/app", "1")
    lines = pull(tmp_path / "data", name)
    # The config and the layers move at once; which of them begins first is not promised.
    lines[3:5] = sorted(lines[3:5])
    assert lines == [
        f"[pull] fetching {name} manifest...",
        f"[pull] {name} is a manifest list, resolving amd64/linux...",
        f"[pull] manifest: {short(image.digest)}",
        f"[pull] pulling config {short(image.config_digest)}...",
        f"[pull] pulling layer 1/1 ({short(layers_of(image)[0])})...",
        "[pull] extracting layer 1/1...",
        f"[pull] registering {name} in index.json...",
        f"[pull] successfully pulled {name}",
        "[pull] Done",
    ]
    assert read_layout_names(tmp_path / "data")[name]["digest"] == image.digest
    assert read_layout_blobs(tmp_path / "data") == image.blobs


def test_what_a_registry_warns_of_is_a_line_that_it_cannot_break(tmp_path: Path, registry: ScriptedRegistry) -> None:
    image = build_image()
    warned = [
        ("Content-Type", image.media_type),
        ("Warning", '299 - "this tag goes away\x0b[pull] Done", 299 - "and this is \x7f not all"'),
        ("RateLimit-Limit", "100;w=21600"),
        ("RateLimit-Remaining", "99;w=21600"),
    ]
    serve_image(registry, "team/app", "1", image)
    registry.allow("GET", manifest_target("team/app", "1"), Answer(headers=warned, body=image.blobs[image.digest]))
    lines = pull(tmp_path / "data", registry.reference("team/app", "1"))
    assert lines[1:3] == [
        f"[pull] warning from {registry.host}: this tag goes away\\x0b[pull] Done",
        f"[pull] warning from {registry.host}: and this is \\x7f not all",
    ]
    assert lines.count("[pull] Done") == 1
    assert not [line for line in lines if "21600" in line]


def test_a_pull_by_several_threads_ends_with_done_and_tells_every_layer(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    image = build_image([random_layer(100_352, salt=str(number)) for number in range(8)])
    serve_image(registry, "app", "1", image)
    lines = pull(tmp_path / "data", registry.reference("app", "1"))
    assert lines[-1] == "[pull] Done"
    assert {
        f"[pull] pulling layer {number}/8 ({short(layer)})..." for number, layer in enumerate(layers_of(image), 1)
    } <= {*lines}
    assert [line for line in lines if "extracting" in line] == [
        f"[pull] extracting layer {number}/8..." for number in range(1, 9)
    ]
    assert len(lines) == 3 + 2 * 8 + 3


def base_layers(data_root: Path) -> list[str]:
    """Return what lies in ``base_layers/``, whatever it is."""
    return sorted(path.name for path in (data_root / "base_layers").glob("*"))


def tag_of(name: str) -> str:
    return name.replace("/", "_").replace(":", "_")


def test_what_is_pulled_is_unpacked_under_its_tag_and_only_once(tmp_path: Path, registry: ScriptedRegistry) -> None:
    image = build_image([{"a": b"1", "b": b"1"}, {"b": b"2"}])
    serve_image(registry, "team/app", "1", image)
    name = registry.reference("team/app", "1")
    lines = pull(tmp_path / "data", name)
    assert [line for line in lines if "extracting" in line] == [
        "[pull] extracting layer 1/2...",
        "[pull] extracting layer 2/2...",
    ]
    tree = tmp_path / "data" / "base_layers" / tag_of(name)
    assert {path.name: path.read_bytes() for path in tree.iterdir()} == {"a": b"1", "b": b"2"}
    assert base_layers(tmp_path / "data") == [tag_of(name), f"{tag_of(name)}.json"]
    again = pull(tmp_path / "data", name)
    assert again == [
        f"[pull] fetching {name} manifest...",
        f"[pull] manifest: {short(image.digest)}",
        f"[pull] config ({short(image.config_digest)}) is already here",
        *sorted(line for line in again if "layer" in line),
        f"[pull] registering {name} in index.json...",
        f"[pull] successfully pulled {name}",
        "[pull] Done",
    ]
    assert not [line for line in again if "extracting" in line]


def test_the_operator_may_leave_images_packed(tmp_path: Path, registry: ScriptedRegistry) -> None:
    serve_image(registry, "app", "1", build_image())
    client = client_of(tmp_path / "data", unpack=False)
    text = client.post("/images/pull", params={"image": registry.reference("app", "1")}).text
    assert text.endswith("[pull] Done\n")
    assert "extracting" not in text
    assert not (tmp_path / "data" / "base_layers").exists()


def test_of_what_has_no_root_filesystem_it_is_told_that_nothing_is_unpacked(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    statement = Layer(content=b"{}", media_type=IN_TOTO, diff_id=digest_of(b"{}"))
    serve_image(registry, "app", "1", build_image([statement]))
    name = registry.reference("app", "1")
    lines = pull(tmp_path / "data", name)
    assert f"[pull] {name} has no root filesystem, nothing is unpacked" in lines
    assert lines[-1] == "[pull] Done"
    assert not (tmp_path / "data" / "base_layers").exists()


def test_another_platform_is_chosen_where_it_is_asked_for(tmp_path: Path, registry: ScriptedRegistry) -> None:
    arm = build_image(platform="linux/arm/v7")
    serve_image(registry, "app", "1", build_index([build_image(), arm]))
    name = registry.reference("app", "1")
    lines = pull(tmp_path / "data", name, platform="linux/arm/v7")
    assert f"[pull] {name} is a manifest list, resolving arm/linux/v7..." in lines
    assert f"[pull] manifest: {short(arm.digest)}" in lines
    assert read_layout_names(tmp_path / "data")[name]["digest"] == arm.digest


def test_a_platform_that_is_not_on_offer_is_an_error_that_names_those_that_are(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    serve_image(registry, "app", "1", build_index([build_image(platform="linux/arm64")]))
    lines = pull(tmp_path / "data", registry.reference("app", "1"))
    assert lines[-1].startswith("[error] pull failed: ")
    assert "linux/amd64" in lines[-1]
    assert "linux/arm64" in lines[-1]
    assert client_of(tmp_path / "data").get("/images").json() == []


@pytest.mark.parametrize("platform", ["", "linux", "linux/", "a b/c", "linux/amd64/v1/x"])
def test_a_platform_that_is_none_names_its_parameter(tmp_path: Path, platform: str) -> None:
    response = client_of(tmp_path).post("/images/pull", params={"image": "app", "platform": platform})
    assert response.status_code == 400
    assert "platform" in response.text


@pytest.mark.parametrize("query", ["", "image=", "platform=linux/amd64"])
def test_a_pull_needs_an_image(tmp_path: Path, query: str) -> None:
    response = client_of(tmp_path).post(f"/images/pull?{query}")
    assert (response.status_code, response.text) == (400, "missing image\n")


@pytest.mark.parametrize(
    "reference",
    [
        "UPPER",
        "a//b",
        "a:b:c",
        "https://registry.example/app",
        "a@sha256:123",
        "/a",
        "a b",
        "é",
        "a\n[pull] Done",
        "\x1b[",
    ],
)
def test_a_reference_that_cannot_be_parsed_is_refused_before_the_stream(tmp_path: Path, reference: str) -> None:
    client = client_of(tmp_path / "data")
    response = client.post("/images/pull", params={"image": reference})
    assert response.status_code == 400
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text.startswith("[error] pull failed: ")
    assert response.text.count("\n") == 1
    assert response.text.endswith("\n")
    assert "\x1b" not in response.text
    response = client.post("/images/pull", params={"image": reference}, headers={"Accept": "application/json"})
    assert response.json()["detail"].startswith("[error] pull failed: ")
    assert not (tmp_path / "data").exists()


# ---- failures


def test_what_the_registry_does_not_know_ends_the_stream(tmp_path: Path, registry: ScriptedRegistry) -> None:
    registry.allow("GET", "/v2/", Answer(body=b"{}"))
    for method in ("GET", "HEAD"):
        registry.allow(method, manifest_target("app", "1"), registry_error(404, "MANIFEST_UNKNOWN"))
    name = registry.reference("app", "1")
    lines = pull(tmp_path / "data", name)
    assert lines[0] == f"[pull] fetching {name} manifest..."
    assert lines[-1].startswith("[error] pull failed: ")
    assert "[pull] Done" not in lines


def test_refused_credentials_end_the_stream(tmp_path: Path, registry: ScriptedRegistry) -> None:
    for target in ("/v2/", manifest_target("app", "1")):
        for method in ("GET", "HEAD"):
            registry.allow(method, target, unauthorized('Basic realm="r"'))
    lines = pull(tmp_path / "data", registry.reference("app", "1"))
    assert lines[-1].startswith("[error] pull failed: ")


def test_a_registry_that_lies_registers_nothing(tmp_path: Path, registry: ScriptedRegistry) -> None:
    image = build_image()
    layer = layers_of(image)[0]
    serve_image(registry, "app", "1", image.corrupted(layer))
    lines = pull(tmp_path / "data", registry.reference("app", "1"))
    assert lines[-1].startswith("[error] pull failed: ")
    assert layer in lines[-1]
    assert read_layout_names(tmp_path / "data") == {}
    assert layer not in read_layout_blobs(tmp_path / "data")
    assert transactions_of(tmp_path / "data") == []


def test_a_layer_that_cannot_be_unpacked_ends_the_stream_and_the_index_is_untouched(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    serve_image(registry, "app", "1", build_image(salt="before"))
    name = registry.reference("app", "1")
    pull(tmp_path / "data", name)
    index = (tmp_path / "data" / "index.json").read_bytes()
    good = build_layer({"a": b"1"})
    promised = digest_of(b"something else")
    wrong = build_image([Layer(content=good.content, media_type=good.media_type, diff_id=promised)])
    serve_image(registry, "app", "1", wrong)
    lines = pull(tmp_path / "data", name)
    assert lines[-2:] == [
        "[pull] extracting layer 1/1...",
        f"[error] pull failed: content of layer {layers_of(wrong)[0]}, decompressed does not match: "
        f"expected {promised}, got {good.diff_id}",
    ]
    assert (tmp_path / "data" / "index.json").read_bytes() == index
    assert base_layers(tmp_path / "data") == [tag_of(name), f"{tag_of(name)}.json"]
    assert (tmp_path / "data" / "base_layers" / tag_of(name) / "etc" / "hostname").exists()


def test_a_registry_cannot_write_a_line_by_the_names_in_a_layer(tmp_path: Path, registry: ScriptedRegistry) -> None:
    layer = build_layer({"no\n[pull] Done/../../x": b""}, compressed=False)
    serve_image(registry, "app", "1", build_image([layer]))
    lines = pull(tmp_path / "data", registry.reference("app", "1"))
    assert lines[-1].startswith("[error] pull failed: invalid archive")
    assert "[pull] Done" not in lines


def test_nobody_is_there_where_the_registry_should_be(tmp_path: Path) -> None:
    with ScriptedRegistry() as gone:
        name = gone.reference("app", "1")
    lines = pull(tmp_path / "data", name)
    assert lines[-1].startswith("[error] pull failed: ")
    assert "Traceback" not in "".join(lines)


def test_a_registry_cannot_write_a_line_of_its_own(tmp_path: Path, registry: ScriptedRegistry) -> None:
    evil = "no\r\n[pull] Done\n\x1b[2Jgone"
    registry.allow("GET", "/v2/", Answer(body=b"{}"))
    for method in ("GET", "HEAD"):
        registry.allow(method, manifest_target("app", "1"), registry_error(400, evil, evil))
    lines = pull(tmp_path / "data", registry.reference("app", "1"))
    assert "[pull] Done" not in lines
    assert "gone" not in lines[-1][:5]
    assert lines[-1].startswith("[error] pull failed: ")
    assert "\x1b" not in "".join(lines)
    assert "\r" not in "".join(lines)


def test_a_platform_from_an_index_cannot_write_a_line_of_its_own(tmp_path: Path, registry: ScriptedRegistry) -> None:
    evil = build_image(platform="linux\n[pull] Done/arm64")
    serve_image(registry, "app", "1", build_index([evil]))
    lines = pull(tmp_path / "data", registry.reference("app", "1"))
    assert "[pull] Done" not in lines
    assert lines[-1].startswith("[error] pull failed: ")


def test_an_unexpected_error_is_logged_and_ends_the_stream(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Surprising(Store):
        def pull(self, *_: object, **__: object) -> Image:
            raise TypeError

    operations = Operations(Workers())

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        pulled = Pull(name="app:1", platform=LINUX_AMD64, unpack=False)
        call = pull_call(ThreadTransfers(Surprising(tmp_path / "data")), operations, pulled)
        running = operations.join(doing="pull", limiter=anyio.CapacityLimiter(1), call=call)
        await PullAnswer(running)(scope, receive, send)

    assert TestClient(answer).post("/").text == "[error] pull failed: internal error\n"
    assert "TypeError" in caplog.text


def test_a_body_that_turns_out_to_be_too_long_ends_the_pull(tmp_path: Path, registry: ScriptedRegistry) -> None:
    never = threading.Event()
    for method in ("GET", "HEAD"):
        registry.allow(method, "/v2/", Answer(hold=never))
        registry.allow(method, manifest_target("app", "1"), Answer(hold=never))
    url = f"/images/pull?image={registry.reference('app', '1')}"
    response = client_of(tmp_path / "data").post(url, content=iter([bytes(40_000), bytes(40_000)]))
    never.set()
    assert response.text.endswith("[error] pull failed: the body is longer than 65536 bytes\n")


# ---- time


def test_each_line_is_sent_as_it_happens(daemon: Daemon, registry: ScriptedRegistry) -> None:
    image = build_image([random_layer(100_352)])
    layer = layers_of(image)[0]
    release = threading.Event()
    serve_image(registry, "app", "1", image)
    registry.allow(
        "GET", blob_target("app", layer), Answer(body=image.blobs[layer], hold=release, hold_after_bytes=5000)
    )
    name = registry.reference("app", "1")
    with daemon.stream("POST", "/images/pull", {"image": name}) as stream:
        assert (stream.status, stream.headers["transfer-encoding"]) == (200, "chunked")
        lines = iter(stream)
        first = [next(lines) for _ in range(4)]
        assert f"[pull] pulling layer 1/1 ({short(layer)})..." in first
        release.set()
        rest = list(lines)
    assert rest[-1] == "[pull] Done"


def test_a_hundred_slow_pulls_never_delay_the_list(daemon: Daemon, registry: ScriptedRegistry) -> None:
    release = threading.Event()
    held = Answer(body=b"{}", hold=release)
    for method in ("GET", "HEAD"):
        registry.allow(method, "/v2/", held)
        for number in range(100):
            registry.allow(method, manifest_target(f"app{number}", "1"), held)
    connections = []
    try:
        for number in range(100):
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
            connection.request("POST", f"/images/pull?image={registry.reference(f'app{number}', '1')}")
            connections.append(connection)
        assert wait_for(lambda: len(registry.requests) >= 30)
        times = []
        for _ in range(10):
            begin = time.monotonic()
            assert daemon.get("/images").body == b"[]"
            assert daemon.get("/v2/").status == 200
            times.append(time.monotonic() - begin)
        assert max(times) < SOON_SECONDS
    finally:
        for connection in connections:
            connection.close()
        release.set()


def test_a_client_that_goes_away_cancels_its_pull(daemon: Daemon, registry: ScriptedRegistry) -> None:
    image = build_image([random_layer(100_352)])
    layer = layers_of(image)[0]
    never = threading.Event()
    serve_image(registry, "app", "1", image)
    registry.allow("GET", blob_target("app", layer), Answer(body=image.blobs[layer], hold=never, hold_after_bytes=5000))
    with daemon.stream("POST", "/images/pull", {"image": registry.reference("app", "1")}) as stream:
        lines = iter(stream)
        while "pulling layer" not in next(lines):
            pass
        registry.wait_for("GET", blob_target("app", layer))
        assert wait_for(lambda: transactions_of(daemon.data_root) != [])
    assert wait_for(lambda: transactions_of(daemon.data_root) == []), "the worker did not end"
    assert wait_for(lambda: base_layers(daemon.data_root) == []), "what was unpacked did not go"
    never.set()
    assert daemon.get("/images").body == b"[]"
    assert read_layout_names(daemon.data_root) == {}
    serve_image(registry, "app", "1", image)
    assert daemon.post("/images/pull", image=registry.reference("app", "1")).text.endswith("[pull] Done\n")


def test_a_client_that_never_reads_does_not_keep_its_pull_from_ending(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    image = build_image([{str(number): b"x"} for number in range(100)])
    serve_image(registry, "app", "1", image)
    name = registry.reference("app", "1")
    with daemon.stream("POST", "/images/pull", {"image": name}):
        assert wait_for(lambda: [each["name"] for each in daemon.get("/images").json()] == [name], 20)
    # The name is there a moment before the transaction's folder goes.
    assert wait_for(lambda: transactions_of(daemon.data_root) == [])


def test_sigterm_during_a_pull_ends_within_ten_seconds_and_leaves_a_clean_store(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    image = build_image([random_layer(100_352)])
    layer = layers_of(image)[0]
    never = threading.Event()
    serve_image(registry, "app", "1", image)
    registry.allow("GET", blob_target("app", layer), Answer(body=image.blobs[layer], hold=never, hold_after_bytes=5000))
    with running_daemon(tmp_path / "daemon") as daemon:
        with daemon.stream("POST", "/images/pull", {"image": registry.reference("app", "1")}) as stream:
            lines = iter(stream)
            while "pulling layer" not in next(lines):
                pass
            begin = time.monotonic()
            daemon.process.terminate()
            rest = list(lines)
            assert rest[-1].startswith("[error] pull failed: ")
        daemon.process.wait(60)
        assert time.monotonic() - begin < SOON_SECONDS
    never.set()
    assert daemon.exit_status == 0
    assert "Traceback" not in daemon.read_log()
    assert read_layout_names(daemon.data_root) == {}
    assert layer not in read_layout_blobs(daemon.data_root)
    assert transactions_of(daemon.data_root) == []
    assert [*(daemon.data_root / "base_layers").iterdir()] == []
