"""GET /metrics: what was done is counted, once, under labels that nobody outside chooses."""

import re
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from minibox_server.metrics import Metrics
from minibox_server.observing import Observer
from minibox_server.responses import RequestError
from minibox_store import (
    BlobAdvanced,
    BlobStarted,
    Cancelled,
    Descriptor,
    Digest,
    Store,
    StoreBusy,
    StoreUsage,
    __version__,
)
from tests.server.clients import TOKEN, client_of
from tests.support.images import build_image, random_layer
from tests.support.layouts import write_layout
from tests.support.scripted_registry import ScriptedRegistry, manifest_target, registry_error, serve_image

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read_samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(client: TestClient) -> Samples:
    response = client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return read_samples(response.text)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def test_requests_are_counted_by_endpoint_method_and_status(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {"app:1": build_image()})
    client = client_of(tmp_path / "data")
    listed = [client.get("/images") for _ in range(3)]
    client.get("/v2/app/tags/list")
    client.get("/v2/absent/tags/list")
    client.head("/images")
    client.post("/images/remove", content=b"123")
    samples = scrape(client)
    images = {"endpoint": "/images", "method": "GET"}
    assert value(samples, "minibox_requests_total", **images, status="200") == 3
    assert value(samples, "minibox_request_seconds_count", **images) == 3
    assert value(samples, "minibox_response_bytes_total", **images) == sum(len(each.content) for each in listed)
    tags = {"endpoint": "/v2/{name:path}/tags/list", "method": "GET"}
    assert value(samples, "minibox_requests_total", **tags, status="200") == 1
    assert value(samples, "minibox_requests_total", **tags, status="404") == 1
    assert value(samples, "minibox_response_bytes_total", endpoint="/images", method="HEAD") == 0
    assert value(samples, "minibox_requests_total", endpoint="/images/remove", method="POST", status="400") == 1
    assert value(samples, "minibox_requests_now") == 1, "this one"
    assert value(samples, "minibox_build_info", version=__version__) == 1


def test_no_label_comes_from_outside(tmp_path: Path) -> None:
    client = client_of(tmp_path / "data")
    before = len(scrape(client))
    for number in range(10):
        client.request(f"EVIL{number}", f"/evil-{number}")
        client.get(f"/v2/evil/{number}/tags/list")
        client.get(f"/v2/evil{number}/blobs/sha256:{number:064x}")
        client.post("/images/remove", params={"image": f"evil:{number}"})
        client.post(
            "/images/pull", params={"image": f"127.0.0.1:1/evil:{number}"}, headers={"X-Request-ID": "evil" * 3}
        )
        client.get("/ui/" + quote(f"evil-{number}"))
    text = client.get("/metrics").text
    assert "evil" not in text.lower()
    after = len(read_samples(text))
    for number in range(10, 15):
        client.get(f"/v2/evil/{number}/tags/list")
        client.request(f"EVIL{number}", f"/evil-{number}")
    assert before < after == len(scrape(client)), "some series for each endpoint, and none for each name"


def test_two_applications_count_for_themselves(tmp_path: Path) -> None:
    first, second = client_of(tmp_path / "data"), client_of(tmp_path / "data")
    first.get("/ping")
    ping = {"endpoint": "/ping", "method": "GET", "status": "200"}
    assert value(scrape(first), "minibox_requests_total", **ping) == 1
    assert value(scrape(second), "minibox_requests_total", **ping) == 0


def test_a_pull_is_counted_with_its_bytes_and_a_second_one_finds_the_blobs(tmp_path: Path) -> None:
    image = build_image([random_layer(307_200), {"a": b"1"}])
    other = build_image([random_layer(307_200), {"b": b"2"}])
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", image)
        serve_image(registry, "team/app", "2", other)
        registry.allow("GET", manifest_target("team/app", "3"), registry_error(404, "MANIFEST_UNKNOWN", "no"))
        registry.allow("HEAD", manifest_target("team/app", "3"), registry_error(404, "MANIFEST_UNKNOWN", "no"))
        client = client_of(tmp_path / "data")
        client.post("/images/pull", params={"image": registry.reference("team/app", "1")})
        after_first = scrape(client)
        client.post("/images/pull", params={"image": registry.reference("team/app", "2")})
        client.post("/images/pull", params={"image": registry.reference("team/app", "3")})
    samples = scrape(client)
    leaves = [each for digest, each in image.blobs.items() if digest not in image.document_digests]
    assert value(after_first, "minibox_moved_bytes_total", operation="pull") == sum(map(len, leaves))
    assert value(after_first, "minibox_blobs_total", operation="pull", found="stored") == len(leaves)
    assert value(after_first, "minibox_blobs_total", operation="pull", found="present") == 0
    assert value(samples, "minibox_blobs_total", operation="pull", found="present") == 1, "the layer that both have"
    assert value(samples, "minibox_operations_started_total", operation="pull") == 3
    assert value(samples, "minibox_operations_ended_total", operation="pull", outcome="done") == 2
    assert value(samples, "minibox_operations_ended_total", operation="pull", outcome="failed") == 1
    assert value(samples, "minibox_failures_total", operation="pull", error="ManifestUnknown") == 1
    assert value(samples, "minibox_operations_now", operation="pull") == 0
    assert value(samples, "minibox_operation_seconds_count", operation="pull") == 3


@pytest.mark.parametrize(
    ("error", "outcome", "kind"),
    [
        (StoreBusy("x", 1, 0.0, "x"), "failed", "StoreBusy"),
        (RequestError(422, "x"), "failed", "RequestError422"),
        (type("Evil", (Exception,), {})(), "failed", "unexpected"),
        (Cancelled(), "cancelled", None),
    ],
)
def test_how_an_operation_ends_is_counted_once(error: Exception, outcome: str, kind: str | None) -> None:
    metrics = Metrics()
    with pytest.raises(type(error)), Observer(metrics)("save"):
        raise error
    samples = read_samples(metrics.encode().decode())
    ended = {labels: count for (name, labels), count in samples.items() if name == "minibox_operations_ended_total"}
    assert ended == {frozenset({("operation", "save"), ("outcome", outcome)}): 1}
    failures = {dict(labels)["error"] for (name, labels) in samples if name == "minibox_failures_total"}
    assert failures == ({kind} if kind else set())


def test_bytes_that_are_fetched_again_or_were_there_are_not_counted_twice() -> None:
    metrics = Metrics()
    descriptor = Descriptor(media_type="x/y", digest=Digest.parse("sha256:" + "0" * 64), size_bytes=100)

    def started(offset_bytes: int) -> BlobStarted:
        return BlobStarted(descriptor=descriptor, role="layer", position=1, total=1, offset_bytes=offset_bytes)

    def advanced(done_bytes: int) -> BlobAdvanced:
        return BlobAdvanced(digest=descriptor.digest, done_bytes=done_bytes, size_bytes=100)

    with Observer(metrics)("pull") as listener:
        for event in (started(40), advanced(50), advanced(90), started(60), advanced(100)):
            listener(event)
    assert value(read_samples(metrics.encode().decode()), "minibox_moved_bytes_total", operation="pull") == 50 + 40


def test_operations_of_many_threads_are_all_counted() -> None:
    metrics = Metrics()
    threads = [threading.Thread(target=_operate, args=(metrics,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    samples = read_samples(metrics.encode().decode())
    assert value(samples, "minibox_operations_ended_total", operation="pull", outcome="done") == 800
    assert value(samples, "minibox_operations_now", operation="pull") == 0


def _operate(metrics: Metrics) -> None:
    for _ in range(100):
        with Observer(metrics)("pull"):
            pass


def test_the_size_of_the_store_is_told_and_not_counted_at_each_scrape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image()
    write_layout(tmp_path / "data", {"app:1": image, "app:2": image})
    client = client_of(tmp_path / "data")
    counted = []
    usage = Store.usage

    def counting(store: Store) -> StoreUsage:
        counted.append(store)
        return usage(store)

    monkeypatch.setattr(Store, "usage", counting)
    for _ in range(3):
        samples = scrape(client)
    assert value(samples, "minibox_store_images") == 2
    assert value(samples, "minibox_store_bytes") == sum(map(len, image.blobs.values()))
    assert len(counted) == 1
    client.post("/images/remove?image=app:2")
    assert value(scrape(client), "minibox_store_images") == 1
    assert len(counted) == 1


def test_a_store_that_cannot_be_read_leaves_the_rest_of_the_metrics(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "index.json").write_text("{")
    samples = scrape(client_of(tmp_path / "data"))
    assert value(samples, "minibox_requests_now") == 1


def test_the_metrics_need_the_token(tmp_path: Path) -> None:
    client = client_of(tmp_path / "data", token=TOKEN)
    assert client.get("/metrics").status_code == 401
    text = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
    assert TOKEN not in text
    assert str(tmp_path) not in text
    assert re.search(r'minibox_requests_total\{endpoint="/metrics",method="GET",status="401"\} 1\.0', text)
