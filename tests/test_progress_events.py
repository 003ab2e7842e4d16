"""What the events of an operation say as numbers: how much there is in all, what was tried again, what is unpacked."""

import io
from contextlib import suppress
from pathlib import Path

import pytest

from minibox_store import (
    BlobAdvanced,
    BlobNotFound,
    BlobRetried,
    BlobsCounted,
    BlobStarted,
    BlobStored,
    Event,
    ManifestChosen,
    UnpackAdvanced,
    UnpackingLayer,
)
from minibox_store.reference import Reference
from minibox_store.registry_rules import Mirror, RegistryRule
from tests.support.archives import members_of, pack
from tests.support.images import BuiltImage, build_image, random_layer
from tests.support.registries import quick_client
from tests.support.scripted_registry import (
    NO_ANSWER,
    Answer,
    ScriptedRegistry,
    blob_target,
    ranged,
    registry_error,
    serve_image,
)
from tests.support.sources import LyingSource, SeveralPlaces, memory_of, read_all
from tests.support.stores import layer_of, open_store, put

IMAGE = build_image([random_layer(100_352, salt="progress"), {"a": b"1"}])
# One layer twice: it lies there, and moves, once.
DOUBLE = build_image([{"a": b"1"}, {"b": b"2"}, {"a": b"1"}])
LAYER = layer_of(IMAGE)
CONTENT = IMAGE.blobs[str(LAYER.digest)]
BLOB = blob_target("team/app", str(LAYER.digest))


def leaf_bytes(*images: BuiltImage) -> tuple[int, int]:
    """Return how many configs and layers images have together, and their bytes."""
    leaves = {digest: content for image in images for digest, content in image.blobs.items()}
    documents = {digest for image in images for digest in image.document_digests}
    sizes = [len(content) for digest, content in leaves.items() if digest not in documents]
    return len(sizes), sum(sizes)


def counted(events: list[Event]) -> list[tuple[int, int]]:
    return [(event.count, event.size_bytes) for event in events if isinstance(event, BlobsCounted)]


@pytest.mark.parametrize("image", [IMAGE, DOUBLE], ids=["each once", "one twice"])
def test_a_pull_tells_what_there_is_in_all_before_a_byte_of_it(tmp_path: Path, image: BuiltImage) -> None:
    events: list[Event] = []
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", image)
        name = registry.reference("team/app", "1")
        open_store(tmp_path / "store").pull(name, client=quick_client(), on_event=events.append)
    assert counted(events) == [leaf_bytes(image)]
    kinds = [type(event) for event in events]
    assert kinds.index(ManifestChosen) < kinds.index(BlobsCounted) < kinds.index(BlobStarted)
    sizes = {event.descriptor.digest: event.descriptor.size_bytes for event in events if isinstance(event, BlobStored)}
    assert sum(sizes.values()) == counted(events)[0][1]
    assert [event.name for event in events if isinstance(event, ManifestChosen)] == [name]


def test_a_save_tells_each_image_and_what_they_have_together(tmp_path: Path) -> None:
    events: list[Event] = []
    for number, image in enumerate((IMAGE, DOUBLE)):
        put(tmp_path / "store", image, f"app:{number}")
    open_store(tmp_path / "store").save(["app:0", "app:1"], tmp_path / "a.tar", format="oci", on_event=events.append)
    chosen = {event.name: str(event.descriptor.digest) for event in events if isinstance(event, ManifestChosen)}
    assert chosen == {"app:0": IMAGE.digest, "app:1": DOUBLE.digest}
    assert counted(events) == [leaf_bytes(IMAGE, DOUBLE)]


def test_a_load_tells_each_image_by_the_name_that_it_gets(tmp_path: Path) -> None:
    events: list[Event] = []
    archive = io.BytesIO(pack(members_of(IMAGE, "app:0")))
    open_store(tmp_path / "store").load(archive, names=lambda name: f"other/{name}", on_event=events.append)
    chosen = {event.name: str(event.descriptor.digest) for event in events if isinstance(event, ManifestChosen)}
    assert chosen == {"other/app:0": IMAGE.digest}


def test_a_check_tells_what_it_will_read_and_reads_that(tmp_path: Path) -> None:
    events: list[Event] = []
    for number, image in enumerate((IMAGE, DOUBLE)):
        put(tmp_path / "store", image, f"app:{number}")
    assert open_store(tmp_path / "store").verify(on_event=events.append) == ()
    assert counted(events) == [leaf_bytes(IMAGE, DOUBLE)]
    assert (
        sum({each.digest: each.done_bytes for each in events if isinstance(each, BlobAdvanced)}.values())
        == (leaf_bytes(IMAGE, DOUBLE)[1])
    )


def read_layer(registry: ScriptedRegistry, events: list[Event], *rules: RegistryRule) -> bytes:
    """Return what comes of the layer from a registry, and keep what is told meanwhile."""
    reference = Reference.parse(registry.reference("team/app", "1"))
    with quick_client(registries=rules).open_repository(reference, on_event=events.append) as repository:
        return read_all(repository, LAYER)


def test_a_line_that_is_cut_is_told_of_with_where_it_goes_on() -> None:
    events: list[Event] = []
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT, cut_after_bytes=1000), registry_error(503, "UNAVAILABLE"))
        registry.expect("GET", BLOB, ranged(CONTENT))
        assert read_layer(registry, events) == CONTENT
    assert events == [BlobRetried(digest=LAYER.digest, offset_bytes=1000)] * 2


@pytest.mark.parametrize("answer", [Answer(body=CONTENT), registry_error(404, "BLOB_UNKNOWN")], ids=["here", "absent"])
def test_what_is_tried_once_is_not_told_of_as_tried_again(answer: Answer) -> None:
    events: list[Event] = []
    with ScriptedRegistry() as registry, suppress(BlobNotFound):
        registry.expect("GET", BLOB, answer)
        read_layer(registry, events)
    assert events == []


def test_a_place_that_goes_on_with_what_another_began_is_a_further_try() -> None:
    events: list[Event] = []
    with ScriptedRegistry() as mirror, ScriptedRegistry() as home:
        mirror.expect("GET", BLOB, Answer(body=CONTENT, cut_after_bytes=700), NO_ANSWER)
        home.expect("GET", BLOB, ranged(CONTENT))
        rule = RegistryRule(prefix=home.host, mirrors=[Mirror(location=mirror.host)])
        assert read_layer(home, events, rule) == CONTENT
    # The mirror is asked once more, and then whom it stands for.
    assert [event for event in events if isinstance(event, BlobRetried)] == [
        BlobRetried(digest=LAYER.digest, offset_bytes=700)
    ] * 2


def test_bytes_that_were_wrong_begin_anew(tmp_path: Path) -> None:
    events: list[Event] = []
    honest = memory_of({"x": IMAGE})
    source = SeveralPlaces(LyingSource(honest, {LAYER.digest: bytes(len(CONTENT))}), honest)

    class Named:
        resolve = staticmethod(honest.resolve)
        open_blob = staticmethod(source.open_blob)
        distrust = staticmethod(source.distrust)

    open_store(tmp_path / "store").import_image(Named(), "x", on_event=events.append)
    own = [event for event in events if getattr(event, "digest", None) == LAYER.digest]
    assert [event for event in own if isinstance(event, BlobRetried)] == [
        BlobRetried(digest=LAYER.digest, offset_bytes=0)
    ]
    done = [event.done_bytes for event in own[own.index(BlobRetried(digest=LAYER.digest, offset_bytes=0)) :][1:]]  # type: ignore[union-attr]
    assert done == sorted(done)
    assert done[-1] == len(CONTENT)
    assert len([event for event in events if isinstance(event, BlobStarted)]) == 3


@pytest.mark.parametrize("image", [IMAGE, DOUBLE], ids=["each once", "one twice"])
def test_unpacking_tells_how_far_it_is_with_the_layer_and_with_all(tmp_path: Path, image: BuiltImage) -> None:
    events: list[Event] = []
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", image)
        name = registry.reference("team/app", "1")
        open_store(tmp_path / "store").pull(name, client=quick_client(), unpack=True, on_event=events.append)
    told = [event for event in events if isinstance(event, UnpackAdvanced)]
    sizes = [len(image.blobs[digest]) for digest in image.layer_digests]
    assert {event.all_bytes for event in told} == {sum(sizes)}
    done = [event.all_done_bytes for event in told]
    assert done == sorted(done)
    assert done[-1] == sum(sizes)
    assert all(0 < event.done_bytes <= event.size_bytes for event in told)
    unpacking = [event for event in events if isinstance(event, UnpackAdvanced | UnpackingLayer)]
    whole = [event.size_bytes for event in told if event.done_bytes == event.size_bytes]
    assert whole == sizes
    assert isinstance(unpacking[0], UnpackingLayer)
