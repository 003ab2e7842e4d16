"""Laws of inspecting: no layer of an image is left out or told twice, and none is given to a step that made another."""

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from minibox_store.documents import HistoryEntry
from minibox_store.graph import RememberingSource
from minibox_store.inspecting import describe_manifests, read_image
from minibox_store.reports.inspection import ManifestDetails
from tests.support.document_strategies import histories, image_configs
from tests.support.images import OCI_LAYER, BuiltImage, build_image, build_image_over, build_index, digest_of
from tests.support.sources import blobs_of, memory_of, root_of

PLATFORMS = ["linux/amd64", "linux/arm64", "linux/arm/v7", "windows/amd64"]
LAYERS = [b"one", b"two", b"three", b"four"]


def describe(image: BuiltImage) -> list[ManifestDetails]:
    source = RememberingSource(memory_of({"app:1": image}))
    return list(describe_manifests(read_image(source, root_of(image), root_of(image))))


def image_over(contents: list[bytes], config: dict[str, Any]) -> BuiltImage:
    """Return an image, without the bytes of its layers, which are asked for by nobody."""
    layers = [{"mediaType": OCI_LAYER, "digest": digest_of(each), "size": len(each)} for each in contents]
    return build_image_over(layers, [], config=config)


@given(contents=st.lists(st.sampled_from(LAYERS), max_size=4), config=image_configs())
@example(contents=[], config={"history": [{"empty_layer": True}]})
@example(contents=[b"one", b"one"], config={"history": [{}, {"empty_layer": True}, {"created_by": "x"}]})
def test_a_history_has_each_layer_of_the_manifest_once_and_in_order(
    contents: list[bytes], config: dict[str, Any]
) -> None:
    (manifest,) = describe(image_over(contents, {"history": None, **config}))
    layers = [step.layer for step in manifest.history if step.layer is not None]
    assert layers == [each.descriptor for each in manifest.layers]
    assert [str(layer.digest) for layer in layers] == [digest_of(each) for each in contents]
    assert not any(step.empty_layer and step.layer is not None for step in manifest.history)


@given(count=st.integers(0, 4), history=histories())
def test_the_steps_of_a_history_stand_as_they_are_and_have_layers_where_their_number_agrees(
    count: int, history: list[dict[str, Any]]
) -> None:
    (manifest,) = describe(image_over(LAYERS[:count], {"history": history}))
    assert manifest.config is not None
    found = [(step.created, step.created_by, step.author, step.comment) for step in manifest.history]
    keys = ("created", "created_by", "author", "comment")
    assert found[: len(history)] == [tuple(step.get(key) for key in keys) for step in history]
    making = [step for step in manifest.history[: len(history)] if not step.empty_layer]
    if len(making) == count:
        assert len(found) == len(history)
        assert all(step.layer is not None for step in making)
    else:
        assert manifest.history[: len(history)] == manifest.config.history
        assert all(step == HistoryEntry(layer=step.layer) for step in manifest.history[len(history) :])


@given(
    parts=st.lists(
        st.tuples(st.sampled_from(PLATFORMS), st.booleans(), st.integers(0, 3), st.text("ab", max_size=2)),
        min_size=1,
        max_size=4,
    ),
    nested=st.integers(0, 2),
    attestations=st.booleans(),
)
def test_what_is_told_of_an_index_is_what_was_built(
    parts: list[tuple[str, bool, int, str]], nested: int, attestations: bool
) -> None:
    images = [
        build_image([{"a": content} for content in LAYERS[:layers]], platform=platform, docker=docker, salt=salt)
        for platform, docker, layers, salt in parts
    ]
    found = describe(build_index(images, nested=nested, attestations=attestations))
    assert len(found) == len(images) * (2 if attestations else 1)
    assert [each.is_attestation for each in found] == [position >= len(images) for position in range(len(found))]
    assert all(each.config is not None for each in found)
    for manifest, image, (platform, _, layers, salt) in zip(found, images, parts, strict=False):
        assert manifest.config is not None
        assert (str(manifest.descriptor.digest), str(manifest.platform)) == (image.digest, platform)
        assert manifest.config.labels == {"salt": salt}
        assert [str(each.descriptor.digest) for each in manifest.layers] == image.layer_digests
        assert [step.created_by for step in manifest.history] == [f"layer {number}" for number in range(layers)]
        contents = [blobs_of(image)[each.descriptor.digest] for each in manifest.layers]
        assert [each.descriptor.size_bytes for each in manifest.layers] == [len(each) for each in contents]
