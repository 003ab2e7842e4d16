"""Laws of the codec: decoding is total, and what is written reads back the same."""

import json
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minibox_store.codec import (
    ArchiveMetadata,
    TokenAnswer,
    decode_archive_metadata,
    decode_config,
    decode_docker_images,
    decode_document,
    decode_image_config,
    decode_layout_index,
    decode_layout_marker,
    decode_registry_errors,
    decode_repositories,
    decode_token_answer,
    describe_document,
    encode_archive_metadata,
    encode_document,
    encode_layout_index,
)
from minibox_store.digest import Digest
from minibox_store.documents import (
    ConfigSummary,
    Descriptor,
    Document,
    ImageConfig,
    Index,
    LayoutIndex,
    LayoutMarker,
    Manifest,
)
from minibox_store.errors import InvalidDocument
from minibox_store.layout_index import NAME_ANNOTATION, names_of, with_name, without_name
from minibox_store.limits import MAX_SIZE_BYTES
from minibox_store.media_types import INDEXES, MANIFESTS
from tests.support.document_strategies import (
    descriptors,
    documents,
    image_configs,
    json_values,
    nearly_configs,
    nearly_documents,
    nearly_json,
    texts,
)
from tests.support.strategies import digests

TYPES = [*INDEXES, *MANIFESTS]
DECODERS: dict[str, tuple[Callable[[bytes], object], type | tuple[type, ...]]] = {
    **{kind: (partial(decode_document, media_type=kind), (Index, Manifest)) for kind in TYPES},
    "descriptor": (describe_document, Descriptor),
    "config": (decode_config, ConfigSummary),
    "image config": (decode_image_config, ImageConfig),
    "index.json": (decode_layout_index, LayoutIndex),
    "oci-layout": (decode_layout_marker, LayoutMarker),
    "meta.json": (decode_archive_metadata, ArchiveMetadata),
    "manifest.json": (decode_docker_images, tuple),
    "repositories": (decode_repositories, dict),
    "token": (decode_token_answer, TokenAnswer),
}


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def outcome(decode: Callable[[bytes], object], content: bytes) -> object:
    """Return what was decoded, or the refusal; any other error passes, and fails the test."""
    try:
        return decode(content)
    except InvalidDocument as error:
        return error


@pytest.mark.parametrize("name", DECODERS)
@given(content=nearly_json())
@settings(max_examples=60)
def test_decoding_any_bytes_gives_a_document_or_says_why_not_in_one_line(name: str, content: bytes) -> None:
    decode, kinds = DECODERS[name]
    found = outcome(decode, content)
    if isinstance(found, InvalidDocument):
        assert str(found).isprintable()
        assert len(str(found)) < 1000
    else:
        assert isinstance(found, kinds)


@given(content=nearly_json() | st.binary(max_size=300))
def test_reading_an_error_answer_never_fails(content: bytes) -> None:
    codes, message = decode_registry_errors(content)
    assert len(codes) <= 8
    assert all(isinstance(code, str) and len(code) <= 64 for code in codes)
    assert len(message) <= 300


@given(value=nearly_configs() | image_configs())
def test_both_readers_of_a_config_say_the_same_of_what_they_share(value: dict[str, Any]) -> None:
    # And a fault in what only describes is met by the one alone that describes.
    whole = outcome(decode_image_config, encoded(value))
    summary = outcome(decode_config, encoded(value))
    if isinstance(whole, ImageConfig):
        assert isinstance(summary, ConfigSummary)
        assert (summary.created, summary.diff_ids, summary.labels) == (whole.created, whole.diff_ids, whole.labels)
        told, shared = whole.platform, summary.platform
        assert (told is None) == (shared is None)
        if told is not None and shared is not None:
            assert attrs.evolve(told, os_version=None, os_features=()) == shared
    elif isinstance(summary, ConfigSummary):
        assert isinstance(whole, InvalidDocument)
        assert whole.where.startswith(("config", "history", "author", "os.version", "os.features"))


@given(value=image_configs())
def test_a_config_is_decoded_to_what_its_json_says(value: dict[str, Any]) -> None:
    found = decode_image_config(encoded(value))
    execution = value.get("config") or {}
    assert (found.author, found.created) == (value.get("author"), value.get("created"))
    assert found.user == execution.get("User")
    assert found.working_dir == execution.get("WorkingDir")
    assert found.stop_signal == execution.get("StopSignal")
    assert list(found.env) == (execution.get("Env") or [])
    assert list(found.entrypoint) == (execution.get("Entrypoint") or [])
    assert list(found.cmd) == (execution.get("Cmd") or [])
    assert set(found.exposed_ports) == set(execution.get("ExposedPorts") or {})
    assert set(found.volumes) == set(execution.get("Volumes") or {})
    assert found.labels == (execution.get("Labels") or {})
    said = [attrs.asdict(step, filter=lambda field, text: field.name != "layer") for step in found.history]
    keys = ("created", "created_by", "author", "comment")
    assert said == [
        {**{key: step.get(key) for key in keys}, "empty_layer": step.get("empty_layer") or False}
        for step in value.get("history") or []
    ]


@given(document=documents())
def test_a_document_is_read_back_from_its_bytes(document: Document) -> None:
    content = encode_document(document)
    assert decode_document(content, document.media_type) == document
    assert encode_document(decode_document(content, document.media_type)) == content
    assert describe_document(content).media_type == document.media_type


@given(document=documents(), announced=st.sampled_from(TYPES))
def test_a_document_is_read_as_nothing_but_what_it_is(document: Document, announced: str) -> None:
    if announced == document.media_type:
        assert decode_document(encode_document(document), announced) == document
    else:
        with pytest.raises(InvalidDocument, match="but was announced as"):
            decode_document(encode_document(document), announced)


@given(document=documents(), data=st.data())
def test_what_is_decoded_says_what_the_json_says(document: Document, data: st.DataObject) -> None:
    value = json.loads(encode_document(document))
    places = [
        each
        for key in ("config", "subject", "layers", "manifests")
        for each in (value[key] if isinstance(value.get(key), list) else [value.get(key)])
        if each
    ]
    for place in places:
        place["size"] = data.draw(st.integers(0, MAX_SIZE_BYTES) | st.sampled_from([True, "5", 5.0, -1, None, 2**53]))
    wrong = [place["size"] for place in places if type(place["size"]) is not int or not 0 <= place["size"] < 2**53]
    if wrong:
        with pytest.raises(InvalidDocument) as caught:
            decode_document(encoded(value), document.media_type)
        assert caught.value.where.endswith("size")
        return
    read = decode_document(encoded(value), document.media_type)
    found = [read.subject] if read.subject else []
    found += read.manifests if isinstance(read, Index) else [read.config, *read.layers]
    assert sorted(each.size_bytes for each in found) == sorted(place["size"] for place in places)


@given(value=nearly_documents())
def test_whatever_a_reader_takes_the_others_take_for_the_same(value: dict[str, Any]) -> None:
    # Collection, pull and load read by the same rules: what one of them knows as an index is no manifest to another.
    content = encoded(value)
    taken = []
    for kind in TYPES:
        try:
            taken.append(decode_document(content, kind).media_type)
        except InvalidDocument:
            continue
    assert len(taken) <= 1
    if taken:
        assert describe_document(content).media_type == taken[0]


def entries() -> st.SearchStrategy[dict[str, Any]]:
    unknown = st.dictionaries(texts.map(lambda key: f"x-{key}"), json_values, max_size=3)
    names = st.none() | st.sampled_from(["a:1", "b:1", "c"])

    def entry(described: Descriptor, extra: dict[str, Any], name: str | None) -> dict[str, Any]:
        annotations = {**described.annotations, **({NAME_ANNOTATION: name} if name else {})}
        known = {
            "mediaType": described.media_type,
            "digest": str(described.digest),
            "size": described.size_bytes,
            "annotations": annotations,
        }
        return {**extra, **known}

    return st.builds(entry, descriptors(), unknown, names)


def indexes() -> st.SearchStrategy[dict[str, Any]]:
    unknown = st.dictionaries(texts.map(lambda key: f"x-{key}"), json_values, max_size=3)
    return st.builds(
        lambda extra, listed: {"schemaVersion": 2, **extra, "manifests": listed},
        unknown,
        st.lists(entries(), max_size=4),
    )


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same, types, order of keys and the sign of zero included."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    return type(one) is type(other) and bool(one == other)


@given(value=indexes())
@example(value={"schemaVersion": 2, "x-a": -0.0, "manifests": []})
def test_an_index_json_is_written_as_it_was_read(value: dict[str, Any]) -> None:
    index = decode_layout_index(encoded(value))
    assert same(json.loads(encode_layout_index(index)), value)
    assert decode_layout_index(encode_layout_index(index)) == index


@given(value=indexes(), new=descriptors(), name=st.sampled_from(["a:1", "b:1", "new:1"]))
def test_naming_and_unnaming_keep_every_other_entry_and_field(
    value: dict[str, Any], new: Descriptor, name: str
) -> None:
    def others(written: bytes) -> list[Any]:
        kept = json.loads(written)["manifests"]
        return [entry for entry in kept if entry.get("annotations", {}).get(NAME_ANNOTATION) != name]

    named = with_name(decode_layout_index(encoded(value)), name, new)
    assert same(others(encode_layout_index(named)), others(encoded(value)))
    assert [found.digest for each, found in names_of(named) if each == name] == [new.digest]
    read = decode_layout_index(encode_layout_index(named))
    assert read == named
    gone = encode_layout_index(without_name(read, name))
    assert same(json.loads(gone), {**value, "manifests": others(encoded(value))})


@given(image=texts, digest=digests())
def test_the_metadata_of_an_archive_is_read_back(image: str, digest: Digest) -> None:
    metadata = ArchiveMetadata(image=image, manifest_digest=digest)
    assert decode_archive_metadata(encode_archive_metadata(metadata)) == metadata
