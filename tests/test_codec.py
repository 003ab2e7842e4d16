"""Bytes to documents: exact types, the place of what is wrong, and nothing that two readers take for two things."""

import json
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from minibox_store import codec
from minibox_store.codec import (
    ArchiveMetadata,
    DockerImage,
    decode_archive_metadata,
    decode_config,
    decode_docker_images,
    decode_document,
    decode_image_config,
    decode_labels,
    decode_layout_index,
    decode_layout_marker,
    decode_registry_errors,
    decode_repositories,
    decode_token_answer,
    describe_document,
    encode_archive_metadata,
    encode_document,
    encode_layout_index,
    encode_layout_marker,
)
from minibox_store.digest import Digest
from minibox_store.documents import ConfigSummary, Descriptor, HistoryEntry, ImageConfig, Index, LayoutMarker, Manifest
from minibox_store.errors import InvalidDocument
from minibox_store.layout_index import with_name
from minibox_store.limits import Limits
from minibox_store.media_types import DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, OCI_INDEX, OCI_MANIFEST
from minibox_store.platforms import Platform
from tests.support.images import build_image, build_index, digest_of

Json = Any
HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
LEAF: Json = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": DIGEST, "size": 7}
FULL: Json = {
    **LEAF,
    "platform": {
        "os": "windows",
        "architecture": "arm",
        "variant": "v7",
        "os.version": "10.0",
        "os.features": ["win32k"],
    },
    "annotations": {"key": "value"},
    "artifactType": "application/x",
    "urls": ["https://example.com/x"],
    "data": "eA==",
}
MANIFEST: Json = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "artifactType": "application/y",
    "config": FULL,
    "layers": [LEAF, FULL],
    "subject": FULL,
    "annotations": {"key": "value"},
}
INDEX: Json = {
    "schemaVersion": 2,
    "mediaType": OCI_INDEX,
    "artifactType": "application/y",
    "manifests": [LEAF, FULL],
    "subject": FULL,
    "annotations": {"key": "value"},
}
CONFIG: Json = {
    "os": "linux",
    "architecture": "arm",
    "variant": "v7",
    "created": "2024-01-01T00:00:00Z",
    "rootfs": {"type": "layers", "diff_ids": [DIGEST, DIGEST]},
    "config": {"Env": None, "Labels": {"stage": "test", "": ""}},
}
WHOLE_CONFIG: Json = {
    **CONFIG,
    "os.version": "10.0",
    "os.features": ["win32k"],
    "author": "A. Maker",
    "config": {
        "User": "1000:1000",
        "ExposedPorts": {"80/tcp": {}, "53/udp": None},
        "Env": ["PATH=/bin", "EMPTY="],
        "Entrypoint": ["/bin/hello", ""],
        "Cmd": ["--world"],
        "Volumes": {"/var/data": {}},
        "WorkingDir": "/srv",
        "Labels": {"stage": "test", "": ""},
        "StopSignal": "SIGKILL",
        "Healthcheck": {"Test": ["NONE"]},
        "OnBuild": None,
    },
    "history": [
        {"created": "2024-01-01T00:00:00Z", "created_by": "ADD /", "author": "A", "comment": "C"},
        {"created_by": "ENV EMPTY=", "empty_layer": True},
        {},
    ],
}
METADATA: Json = {"image": "app:1", "manifest_digest": DIGEST}
MARKER: Json = {"imageLayoutVersion": "1.0.0"}

DECODERS: dict[str, tuple[Json, Callable[[bytes], object]]] = {
    "manifest": (MANIFEST, lambda content: decode_document(content, OCI_MANIFEST)),
    "index": (INDEX, lambda content: decode_document(content, OCI_INDEX)),
    "config": (CONFIG, decode_config),
    "labels": (WHOLE_CONFIG, lambda content: decode_labels(content, "labels")),
    "image config": (WHOLE_CONFIG, lambda content: decode_image_config(content, "image config")),
    "index.json": (INDEX, decode_layout_index),
    "oci-layout": (MARKER, decode_layout_marker),
    "meta.json": (METADATA, decode_archive_metadata),
}
MISSING = object()


def encoded(value: Json) -> bytes:
    return json.dumps(value).encode()


def at(document: Json, place: str, value: Json) -> Json:
    """Return a copy of a document in which ``place``, as in ``layers[0].size``, has another value, or is missing."""
    changed = json.loads(json.dumps(document))  # no part of which is shared
    steps: list[Any] = []
    for key, position in re.findall(r"((?:os\.)?[a-zA-Z_]+)|\[(\d+)\]", place):
        steps.append(key or int(position))
    inner = changed
    for step in steps[:-1]:
        inner = inner[step]
    if value is MISSING:
        del inner[steps[-1]]
    else:
        inner[steps[-1]] = value
    return changed


def refusal(kind: str, document: Json) -> InvalidDocument:
    with pytest.raises(InvalidDocument) as caught:
        DECODERS[kind][1](encoded(document))
    assert str(caught.value).startswith(f"invalid {kind if kind != 'index' else 'manifest'}")
    assert len(str(caught.value)) < 400
    return caught.value


# ---- what is right


def test_a_manifest_is_decoded_with_all_that_it_says() -> None:
    document = decode_document(encoded(MANIFEST), OCI_MANIFEST)
    digest = Digest("sha256", HEX)
    full = Descriptor(
        media_type=LEAF["mediaType"],
        digest=digest,
        size_bytes=7,
        platform=Platform(os="windows", architecture="arm", variant="v7", os_version="10.0", os_features=("win32k",)),
        annotations={"key": "value"},
        artifact_type="application/x",
        urls=("https://example.com/x",),
    )
    assert document == Manifest(
        media_type=OCI_MANIFEST,
        config=full,
        layers=(Descriptor(media_type=LEAF["mediaType"], digest=digest, size_bytes=7), full),
        subject=full,
        artifact_type="application/y",
        annotations={"key": "value"},
    )


def test_an_index_is_decoded_with_its_entries_in_order() -> None:
    document = decode_document(encoded(INDEX), OCI_INDEX)
    assert isinstance(document, Index)
    assert [entry.platform is None for entry in document.manifests] == [True, False]
    assert decode_document(encoded({**INDEX, "mediaType": DOCKER_MANIFEST_LIST}), DOCKER_MANIFEST_LIST) == Index(
        media_type=DOCKER_MANIFEST_LIST,
        manifests=document.manifests,
        subject=document.subject,
        artifact_type=document.artifact_type,
        annotations=document.annotations,
    )


def test_a_config_is_decoded_to_platform_age_layers_and_labels() -> None:
    digest = Digest("sha256", HEX)
    assert decode_config(encoded(CONFIG)) == ConfigSummary(
        platform=Platform(os="linux", architecture="arm", variant="v7"),
        created="2024-01-01T00:00:00Z",
        diff_ids=(digest, digest),
        labels={"stage": "test", "": ""},
    )


@pytest.mark.parametrize("text", ["{}", '{"os":"linux"}', '{"os":"","architecture":""}', '{"rootfs":null,"os":null}'])
def test_a_config_may_say_nothing(text: str) -> None:
    assert decode_config(text.encode()) == ConfigSummary(platform=None, created=None, diff_ids=())


def test_a_whole_config_is_decoded_with_all_that_it_says() -> None:
    digest = Digest("sha256", HEX)
    assert decode_image_config(encoded(WHOLE_CONFIG)) == ImageConfig(
        platform=Platform(os="linux", architecture="arm", variant="v7", os_version="10.0", os_features=("win32k",)),
        created="2024-01-01T00:00:00Z",
        diff_ids=(digest, digest),
        labels={"stage": "test", "": ""},
        author="A. Maker",
        user="1000:1000",
        exposed_ports=("53/udp", "80/tcp"),
        env=("PATH=/bin", "EMPTY="),
        entrypoint=("/bin/hello", ""),
        cmd=("--world",),
        volumes=("/var/data",),
        working_dir="/srv",
        stop_signal="SIGKILL",
        history=(
            HistoryEntry(created="2024-01-01T00:00:00Z", created_by="ADD /", author="A", comment="C"),
            HistoryEntry(created_by="ENV EMPTY=", empty_layer=True),
            HistoryEntry(),
        ),
    )


def test_a_whole_config_may_say_nothing_and_say_so_in_the_way_of_go() -> None:
    nothing = ImageConfig(platform=None, created=None, diff_ids=())
    nulls: Json = dict.fromkeys(WHOLE_CONFIG)
    execution = dict.fromkeys(WHOLE_CONFIG["config"])
    values: list[Json] = [{}, nulls, {**nulls, "config": execution, "history": []}]
    for value in values:
        assert decode_image_config(encoded(value)) == nothing
    step = dict.fromkeys(("created", "created_by", "author", "comment", "empty_layer", "layer"))
    assert decode_image_config(encoded({"history": [step]})).history == (HistoryEntry(),)


def test_a_step_of_a_history_names_no_layer_whatever_stands_there() -> None:
    found = decode_image_config(encoded({"history": [{"layer": LEAF}, {"layer": 5}]}))
    assert found.history == (HistoryEntry(), HistoryEntry())


def test_S7_a_history_has_up_to_4096_steps() -> None:
    assert len(decode_image_config(encoded({"history": [{}] * 4096})).history) == 4096
    with pytest.raises(InvalidDocument, match="at history: there are more than 4096 steps"):
        decode_image_config(encoded({"history": [{}] * 4097}))
    assert decode_config(encoded({"history": [{}] * 4097})) == decode_config(b"{}")


@pytest.mark.parametrize("image", [build_image(salt="x"), build_image(docker=True, salt="x")])
def test_a_config_of_the_builders_decodes_to_what_it_was_built_of(image: Any) -> None:
    found = decode_image_config(image.blobs[image.config_digest])
    assert found.labels == {"salt": "x"}
    assert (found.env, found.cmd, found.entrypoint) == (("PATH=/bin",), ("/bin/hello",), ())
    assert [step.created_by for step in found.history] == ["layer 0", "layer 1"]


@pytest.mark.parametrize(
    ("execution", "labels"),
    [
        (None, {}),
        ("text", {}),
        ([{"Labels": {"a": "b"}}], {}),
        ({}, {}),
        ({"Labels": None}, {}),
        ({"Labels": ["a=b"]}, {}),
        ({"Labels": "a=b"}, {}),
        ({"labels": {"a": "b"}}, {}),
        ({"Labels": {"a": "b", "c": None, "d": 1, "e": {}, "f": ""}}, {"a": "b", "f": ""}),
    ],
)
def test_no_image_is_refused_for_its_labels(execution: Json, labels: dict[str, str]) -> None:
    found = decode_config(encoded({**CONFIG, "config": execution}))
    assert found.labels == labels
    assert found.platform == decode_config(encoded(CONFIG)).platform


@pytest.mark.parametrize("image", [build_image(), build_image(docker=True), build_image(algorithm="sha512")])
def test_documents_of_the_builders_decode_to_what_they_were_built_of(image: Any) -> None:
    document = decode_document(image.blobs[image.digest], image.media_type)
    assert isinstance(document, Manifest)
    assert [str(layer.digest) for layer in document.layers] == image.layer_digests
    assert str(document.config.digest) == image.config_digest
    assert decode_config(image.blobs[image.config_digest]).platform == Platform(os="linux", architecture="amd64")


@pytest.mark.parametrize("key", ["manifests", "subject", "annotations", "artifactType"])
def test_null_is_how_go_writes_what_is_not_there(key: str) -> None:
    document = decode_document(encoded({**INDEX, key: None}), OCI_INDEX)
    without = decode_document(encoded({**INDEX, key: []} if key == "manifests" else at(INDEX, key, MISSING)), OCI_INDEX)
    assert document == without


def test_a_null_list_of_layers_is_an_empty_one_and_so_is_every_other() -> None:
    document = decode_document(encoded(at(at(MANIFEST, "layers", None), "config.urls", None)), OCI_MANIFEST)
    assert isinstance(document, Manifest)
    assert document.layers == ()
    assert document.config.urls == ()
    assert decode_config(encoded(at(CONFIG, "rootfs.diff_ids", None))).diff_ids == ()
    assert decode_layout_index(encoded({**INDEX, "manifests": None})).entries == ()


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**53 - 1])
def test_S26_a_size_is_any_integer_up_to_2_to_the_53rd_less_one(size: int) -> None:
    document = decode_document(encoded(at(MANIFEST, "layers[0].size", size)), OCI_MANIFEST)
    assert isinstance(document, Manifest)
    assert document.layers[0].size_bytes == size


def test_fields_that_nobody_knows_are_passed_over() -> None:
    wide = at(MANIFEST, "layers[0].unknown", {"size": "x", "digest": 5})
    assert decode_document(encoded({**wide, "more": [1.5, None]}), OCI_MANIFEST) == decode_document(
        encoded(MANIFEST), OCI_MANIFEST
    )


# ---- exact types, each with its place

STRINGS = [5, 0, 1.5, True, [], {}, ["a"]]
OPTIONAL_STRINGS = STRINGS
REQUIRED = [None, MISSING]
OBJECTS = [5, "x", True, [], [{}]]
LISTS = [5, "ab", True, {}, {"0": 1}]
SIZES = ["5", 5.0, 1e300, True, False, -1, 2**53, 10**4000, [], {}, ""]
DIGESTS = [
    *STRINGS,
    "",
    HEX,
    f"sha256:{HEX[:-1]}",
    f"sha256:{HEX}0",
    f"sha256:{HEX.upper()}",
    f"SHA256:{HEX}",
    f"md5:{HEX[:32]}",
    f"sha384:{HEX}{HEX[:32]}",
    f"sha512:{HEX}",
    "sha256:../../../../etc/passwd",
    f"sha256:../{HEX[3:]}",
    f"sha256:{HEX}\n",
    f" sha256:{HEX}",
    f"sha256:{HEX[:-1]}\0",
    f"sha256:{HEX[:-1]}٣",
    f"sha256:{HEX[:-1]}\uff11",
    f"sha256:sha256:{HEX}",
    f"sha256-{HEX}",
]
DESCRIPTORS = ["config", "layers[0]", "layers[1]", "subject"]
WRONG: list[tuple[str, str, list[Any]]] = [
    *[("manifest", f"{place}.mediaType", [*STRINGS, *REQUIRED]) for place in DESCRIPTORS],
    *[("manifest", f"{place}.size", [*SIZES, *REQUIRED]) for place in DESCRIPTORS],
    *[("manifest", f"{place}.digest", [*DIGESTS, *REQUIRED]) for place in DESCRIPTORS],
    ("manifest", "config.platform", OBJECTS),
    ("manifest", "config.platform.os", [*STRINGS, *REQUIRED]),
    ("manifest", "config.platform.architecture", [*STRINGS, *REQUIRED]),
    ("manifest", "config.platform.variant", STRINGS),
    ("manifest", "config.platform.os.version", STRINGS),
    ("manifest", "config.platform.os.features", LISTS),
    ("manifest", "config.platform.os.features[0]", [*STRINGS, None]),
    ("manifest", "layers[1].annotations", [*OBJECTS, {"a": 1}, {"a": None}, {"a": ["b"]}]),
    ("manifest", "layers[1].artifactType", STRINGS),
    ("manifest", "layers[1].urls", LISTS),
    ("manifest", "layers[1].urls[0]", [*STRINGS, None]),
    ("manifest", "config", [*OBJECTS, *REQUIRED]),
    ("manifest", "layers", [*LISTS, MISSING]),
    ("manifest", "layers[0]", [*OBJECTS, None]),
    ("manifest", "subject", OBJECTS),
    ("manifest", "annotations", [*OBJECTS, {"a": 1}]),
    ("manifest", "artifactType", STRINGS),
    ("manifest", "mediaType", [*STRINGS, "", "application/json", "text/html"]),
    ("manifest", "schemaVersion", [*REQUIRED, "2", 2.0, True, 3, -2, [], {}, 2**70]),
    ("index", "manifests", LISTS),
    ("index", "manifests[0]", [*OBJECTS, None]),
    ("index", "manifests[0].mediaType", [*STRINGS, *REQUIRED]),
    ("index", "manifests[0].size", [*SIZES, *REQUIRED]),
    ("index", "manifests[1].digest", [*DIGESTS, *REQUIRED]),
    ("index", "manifests[1].platform.os", [*STRINGS, *REQUIRED]),
    ("index", "subject.digest", DIGESTS),
    ("index", "schemaVersion", [*REQUIRED, "2", 2.0, True, 1.0]),
    ("index.json", "manifests", [*LISTS, MISSING]),
    ("index.json", "manifests[0]", [*OBJECTS, None]),
    ("index.json", "manifests[0].size", [*SIZES, *REQUIRED]),
    ("index.json", "manifests[1].digest", [*DIGESTS, *REQUIRED]),
    ("index.json", "manifests[1].annotations", [*OBJECTS, {"a": 1}]),
    ("index.json", "schemaVersion", [*REQUIRED, 1, "2", 2.0, True]),
    ("index.json", "mediaType", [5, [], {}, "", OCI_MANIFEST, "application/json"]),
    ("config", "os", STRINGS),
    ("config", "architecture", STRINGS),
    ("config", "variant", STRINGS),
    ("config", "created", STRINGS),
    ("config", "rootfs", OBJECTS),
    ("config", "rootfs.diff_ids", LISTS),
    ("config", "rootfs.diff_ids[1]", [*DIGESTS, None]),
    ("labels", "config", OBJECTS),
    ("labels", "config.Labels", [*OBJECTS, {"a": 1}, {"a": None}, {"a": ["b"]}]),
    *[("image config", place, STRINGS) for place in ("os", "architecture", "variant", "os.version", "author")],
    *[("image config", f"config.{name}", STRINGS) for name in ("User", "WorkingDir", "StopSignal")],
    *[("image config", f"config.{name}", LISTS) for name in ("Env", "Entrypoint", "Cmd")],
    *[("image config", f"config.{name}[0]", [*STRINGS, None]) for name in ("Env", "Entrypoint", "Cmd")],
    *[("image config", f"config.{name}", [*OBJECTS, {"a": 1}, {"a": []}]) for name in ("ExposedPorts", "Volumes")],
    *[("image config", f"history[1].{name}", STRINGS) for name in ("created", "created_by", "author", "comment")],
    ("image config", "os.features", LISTS),
    ("image config", "rootfs.diff_ids[1]", [*DIGESTS, None]),
    ("image config", "config", OBJECTS),
    ("image config", "config.Labels", [*OBJECTS, {"a": 1}, {"a": None}, {"a": ["b"]}]),
    ("image config", "history", LISTS),
    ("image config", "history[0]", [*OBJECTS, None]),
    ("image config", "history[1].empty_layer", [0, 1, "true", "", [], {}]),
    ("oci-layout", "imageLayoutVersion", [*STRINGS, *REQUIRED, "", "2.0.0", "0.9", "10.0.0"]),
    ("meta.json", "image", [*STRINGS, *REQUIRED]),
    ("meta.json", "manifest_digest", [*STRINGS, *REQUIRED, "", "../x", HEX.upper(), HEX[1:], f"md5:{HEX}"]),
]


@pytest.mark.parametrize(("kind", "place", "values"), WRONG, ids=[f"{kind} {place}" for kind, place, _ in WRONG])
def test_S4_S26_a_value_of_another_type_is_refused_and_its_place_is_named(
    kind: str, place: str, values: list[Any]
) -> None:
    document = DECODERS[kind][0]
    assert DECODERS[kind][1](encoded(document)) is not None
    for value in values:
        assert refusal(kind, at(document, place, value)).where == place, value


@pytest.mark.parametrize(
    ("kind", "place", "value", "sentence"),
    [
        ("manifest", "layers[0].size", "5", "at layers[0].size: expected an integer, got a string"),
        ("manifest", "layers[0].size", True, "at layers[0].size: expected an integer, got a boolean"),
        ("manifest", "layers[0].size", -1, "at layers[0].size: the number is negative or above 2^53-1"),
        ("manifest", "layers[1].size", MISSING, "at layers[1].size: a required field is missing"),
        ("manifest", "layers", "abc", "at layers: expected an array, got a string"),
        ("manifest", "config", [], "at config: expected an object, got an array"),
        ("manifest", "config.mediaType", 5, "at config.mediaType: expected a string, got a number"),
        ("manifest", "config.digest", "x", "at config.digest: it has no colon"),
        ("index.json", "manifests[0].digest", None, "at manifests[0].digest: a required field is missing"),
        ("manifest", "layers[0]", None, "at layers[0]: expected an object, got null"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(kind: str, place: str, value: Json, sentence: str) -> None:
    error = refusal(kind, at(DECODERS[kind][0], place, value))
    assert str(error) == f"invalid {kind} {sentence}"


def test_the_first_of_several_faults_is_named() -> None:
    document = at(at(MANIFEST, "layers[1].size", "x"), "layers[0].digest", "y")
    assert refusal("manifest", document).where == "layers[0].digest"


# ---- one document, one meaning


@pytest.mark.parametrize(
    "both",
    [
        {**MANIFEST, "manifests": []},
        {**MANIFEST, "manifests": None},
        {**INDEX, "config": LEAF},
        {**INDEX, "layers": []},
        {**INDEX, "config": None, "layers": None},
    ],
)
@pytest.mark.parametrize("media_type", [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, None])
def test_S5_what_is_both_index_and_manifest_is_refused_by_every_reader(both: Json, media_type: str | None) -> None:
    content = encoded(at(both, "mediaType", MISSING) if media_type is None else {**both, "mediaType": media_type})
    for announced in (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST):
        with pytest.raises(InvalidDocument, match="both an index and a manifest"):
            decode_document(content, announced)
    with pytest.raises(InvalidDocument, match="both an index and a manifest"):
        describe_document(content)
    with pytest.raises(InvalidDocument):
        decode_layout_index(content)


@pytest.mark.parametrize("said", [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, None])
@pytest.mark.parametrize(
    "announced", [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, "text/plain", ""]
)
@pytest.mark.parametrize("document", [MANIFEST, INDEX], ids=["manifest", "index"])
def test_S5_the_type_in_a_document_the_announced_one_and_its_fields_must_agree(
    document: Json, announced: str, said: str | None
) -> None:
    content = encoded({**document, "mediaType": said} if said else at(document, "mediaType", MISSING))
    own = (OCI_INDEX, DOCKER_MANIFEST_LIST) if document is INDEX else (OCI_MANIFEST, DOCKER_MANIFEST)
    # A document without a type is an OCI one: Docker's always have theirs.
    if announced == (said or own[0]) and announced in own:
        assert decode_document(content, announced).media_type == announced
    else:
        with pytest.raises(InvalidDocument) as caught:
            decode_document(content, announced)
        assert caught.value.where in ("mediaType", "config", "manifests")


@pytest.mark.parametrize("kind", DECODERS)
def test_S5_a_key_that_stands_twice_in_one_object_is_refused_wherever_it_is(kind: str) -> None:
    document, decode = DECODERS[kind]
    text = json.dumps(document)
    for twice in ('{"a": 1, "a": 1}', '{"x": [{"b": {"a": 1, "c": 2, "a": 1}}]}'):
        with pytest.raises(InvalidDocument, match="a key stands twice in one object"):
            decode(f'{text[:-1]}, "unknown": {twice}}}'.encode())
    key, value = next(iter(document.items()))
    with pytest.raises(InvalidDocument, match="a key stands twice in one object"):
        decode(f'{{"{key}": {json.dumps(value)}, {text[1:]}'.encode())


@pytest.mark.parametrize("key", ["Layers", "LAYERS", "layer\u017f", "Config", "mediatype", "Subject"])
def test_S5_a_manifest_that_spells_a_key_in_other_letters_is_refused_since_readers_take_it_for_that(key: str) -> None:
    content = json.dumps({**MANIFEST, key: []}).encode()
    for read in (lambda: decode_document(content, OCI_MANIFEST), lambda: codec.decode_links(content, OCI_MANIFEST)):
        with pytest.raises(InvalidDocument, match="in other letters"):
            read()


@pytest.mark.parametrize("key", ["SchemaVersion", "Manifests", "Config", "layer\u017f", "FSLayers", "History"])
def test_S5_so_is_a_document_that_has_a_key_of_another_kind_of_document_in_other_letters(key: str) -> None:
    for document in (MANIFEST, INDEX):
        with pytest.raises(InvalidDocument, match="in other letters"):
            decode_document(json.dumps({**document, key: []}).encode(), document["mediaType"])


@pytest.mark.parametrize("key", ["Digest", "SIZE", "MediaType", "Annotations"])
def test_S5_so_is_a_descriptor_wherever_it_stands(key: str) -> None:
    for document in ({**MANIFEST, "layers": [LEAF, {**LEAF, key: 1}]}, {**INDEX, "manifests": [{**LEAF, key: 1}]}):
        with pytest.raises(InvalidDocument, match="in other letters"):
            decode_document(json.dumps(document).encode(), document["mediaType"])


def test_the_keys_of_annotations_may_be_spelled_as_anybody_likes() -> None:
    annotations = {"layers": "a", "Layers": "b", "size": "c", "Size": "d"}
    document = decode_document(json.dumps({**MANIFEST, "annotations": annotations}).encode(), OCI_MANIFEST)
    assert document.annotations == annotations


def test_S5_a_key_written_with_an_escape_is_the_same_key() -> None:
    text = json.dumps(MANIFEST)
    with pytest.raises(InvalidDocument, match="a key stands twice"):
        decode_document(f'{text[:-1]}, "l\\u0061yers": []}}'.encode(), OCI_MANIFEST)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("rest", [b"{}", b"x", b"\0", b",", b"]", b'"', b"\xff", b" {}", b"\n1"])
def test_S5_nothing_may_follow_a_document(kind: str, rest: bytes) -> None:
    document, decode = DECODERS[kind]
    assert decode(encoded(document) + b" \n") == decode(encoded(document))
    with pytest.raises(InvalidDocument, match=r"it is not (JSON|UTF-8)"):
        decode(encoded(document) + rest)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it is not JSON"),
    "spaces": (b"   ", "it is not JSON"),
    "an array": (b"[]", "expected an object, got an array"),
    "a string": (b'"x"', "expected an object, got a string"),
    "a number": (b"5", "expected an object, got a number"),
    "null": (b"null", "expected an object, got null"),
    "true": (b"true", "expected an object, got a boolean"),
    "cut off": (b'{"a": [1, 2', "it is not JSON"),
    "single quotes": (b"{'a': 1}", "it is not JSON"),
    "a comment": (b'{"a": 1} // x', "it is not JSON"),
    "NaN": (b'{"a": NaN}', "NaN is no JSON number"),
    "Infinity": (b'{"a": Infinity}', "Infinity is no JSON number"),
    "-Infinity": (b'{"a": [-Infinity]}', "-Infinity is no JSON number"),
    "1e999": (b'{"a": 1e999}', "a number is too large"),
    "-1e999": (b'{"a": -1e999}', "a number is too large"),
    "an integer of 5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "it is not JSON"),
    "an octal number": (b'{"a": 0123}', "it is not JSON"),
    "a lone high surrogate": (b'{"a": "\\ud800"}', "it is not UTF-8"),
    "a lone low surrogate": (b'{"a": "\\udc00x"}', "it is not UTF-8"),
    "a low surrogate behind a pair": (b'{"a": "\\uD83D\\uDE00\\ude00"}', "it is not UTF-8"),
    "a high surrogate before a pair": (b'{"a": "\\ud83d\\ud83d\\ude00"}', "it is not UTF-8"),
    "a high surrogate before a letter": (b'{"a": "\\ud83d\\u0041"}', "it is not UTF-8"),
    "a lone surrogate behind a backslash": (b'{"a": "\\\\\\udbff"}', "it is not UTF-8"),
    "a lone surrogate as a key": (b'{"\\udfff": 1}', "it is not UTF-8"),
    "an encoded surrogate": (b'{"a": "\xed\xa0\x80"}', "it is not UTF-8"),
    "Latin-1": (b'{"a": "\xe9"}', "it is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "it is not UTF-8"),
    "an overlong slash": (b'{"a": "\xc0\xaf"}', "it is not UTF-8"),
    "a byte order mark": (b'\xef\xbb\xbf{"a": 1}', "it is not JSON"),
    "a raw control character": (b'{"a": "\x01"}', "it is not JSON"),
    "a NUL": (b'{"a": 1}\0', "it is not JSON"),
    "arrays nested 20,000 deep": (b'{"a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "it is nested "),
    "objects nested 8,000 deep": (b'{"a": ' * 8_000 + b"1" + b"}" * 8_000, "it is nested "),
    "open arrays": (b"[" * 60_000, "it is nested "),
}


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_S5_what_only_some_readers_take_for_json_is_refused(kind: str, name: str) -> None:
    content, problem = HOSTILE[name]
    with pytest.raises(InvalidDocument) as caught:
        DECODERS[kind][1](content)
    assert problem in caught.value.problem
    assert str(caught.value).count("invalid ") == 1
    assert caught.value.where == ""
    assert len(str(caught.value)) < 400


def test_an_escaped_pair_of_surrogates_is_one_character() -> None:
    text = json.dumps(at(MANIFEST, "annotations.key", "\U0001f600"))
    assert "\\ud83d\\ude00" in text
    assert decode_document(text.encode(), OCI_MANIFEST).annotations == {"key": "\U0001f600"}


def test_what_only_looks_like_an_escaped_surrogate_is_text() -> None:
    content = encoded(at(MANIFEST, "annotations.key", "\\ud83d\u00e9"))
    assert b"\\\\ud83d\\u00e9" in content
    assert decode_document(content, OCI_MANIFEST).annotations == {"key": "\\ud83d\u00e9"}


def test_how_deep_a_document_may_be_nested_does_not_depend_on_who_asks() -> None:
    # Else one is taken by a pull, and ends every collection that comes from deeper in the program.
    def is_taken(content: bytes, frames: int) -> bool:
        if frames:
            return is_taken(content, frames - 1)
        try:
            encode_layout_index(decode_layout_index(content))
        except InvalidDocument:
            return False
        return True

    for nesting in range(20, 1000, 20):
        content = json.dumps(INDEX)[:-1].encode() + b', "x": ' + b"[" * nesting + b"]" * nesting + b"}"
        assert is_taken(content, 0) == is_taken(content, 200), nesting


# ---- schema 1


@pytest.mark.parametrize(
    "announced", [OCI_MANIFEST, DOCKER_MANIFEST, "application/vnd.docker.distribution.manifest.v1+json"]
)
def test_schema_1_is_refused_by_name(announced: str) -> None:
    schema_1 = {"schemaVersion": 1, "name": "app", "tag": "1", "fsLayers": [{"blobSum": DIGEST}], "history": []}
    for decode in (lambda content: decode_document(content, announced), describe_document):
        with pytest.raises(InvalidDocument, match="Docker schema 1 manifests are not supported") as caught:
            decode(encoded(schema_1))
        assert caught.value.where == "schemaVersion"


@pytest.mark.parametrize("field", ["fsLayers", "history", "signatures"])
def test_a_manifest_with_fields_of_schema_1_is_refused(field: str) -> None:
    with pytest.raises(InvalidDocument, match="it carries fields of Docker schema 1"):
        decode_document(encoded({**MANIFEST, field: []}), OCI_MANIFEST)


# ---- bounds


@pytest.mark.parametrize("kind", ["manifest", "index", "config", "image config"])
def test_S7_a_document_of_4_mib_is_read_and_one_byte_more_is_refused(kind: str) -> None:
    document, decode = DECODERS[kind]
    content = encoded(document)
    assert decode(content.ljust(4 << 20)) == decode(content)
    with pytest.raises(InvalidDocument, match="it is larger than 4194304 bytes"):
        decode(content.ljust((4 << 20) + 1))


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind != "oci-layout"])
def test_S7_a_document_of_65536_values_is_read_and_one_more_is_refused(kind: str) -> None:
    document, decode = DECODERS[kind]
    text = '",[{' * 70_000  # in which all that begins a value counts for nothing
    room = 65_536 - begun_values({**document, "x": [0], "y": text}) + 1
    within, above = (encoded({**document, "x": [0] * count, "y": text}) for count in (room, room + 1))
    decode(within)
    if kind == "index.json":  # a store's own has no bound on its entries
        decode(above)
        return
    with pytest.raises(InvalidDocument, match="it has more than 65536 values"):
        decode(above)


def begun_values(value: Json) -> int:
    """Return how many commas, and beginnings of lists and objects, a value has outside of its texts."""
    if not isinstance(value, dict | list):
        return 0
    items = value.values() if isinstance(value, dict) else value
    return max(len(value), 1) + sum(map(begun_values, items))


def test_the_table_of_a_docker_archive_is_decoded_in_its_order() -> None:
    said = {"Config": "c.json", "RepoTags": ["a:1", "b:1"], "Layers": ["x", "y", "x"], "LayerSources": {"x": 5}}
    first = DockerImage(config_member="c.json", layer_members=("x", "y", "x"), repo_tags=("a:1", "b:1"))
    second = DockerImage(config_member="d", layer_members=())
    content = encoded([said, {"Config": "d", "RepoTags": None, "Layers": None, "Parent": ""}])
    assert decode_docker_images(content) == (first, second)
    with pytest.raises(InvalidDocument, match="it is larger than 10 bytes"):
        decode_docker_images(content, limits=Limits(document_bytes=10))
    with pytest.raises(InvalidDocument, match="it has more than 15 values"):
        decode_docker_images(content, limits=Limits(document_values=15))
    for changed, where in (
        ({"Config": None}, "Config"),
        ({"Layers": {}}, "Layers"),
        ({"RepoTags": [None]}, "RepoTags[0]"),
    ):
        with pytest.raises(InvalidDocument) as caught:
            decode_docker_images(encoded([said, {**said, **changed}]))
        assert caught.value.where == f"[1].{where}"


def test_the_names_of_repositories_are_put_together() -> None:
    content = encoded({"a": {"1": HEX, "2": HEX}, "localhost:5000/b": {"latest": "x"}, "c": {}})
    assert decode_repositories(content) == {"a:1": HEX, "a:2": HEX, "localhost:5000/b:latest": "x"}
    with pytest.raises(InvalidDocument, match="it is larger than 10 bytes"):
        decode_repositories(content, limits=Limits(document_bytes=10))
    with pytest.raises(InvalidDocument, match="it has more than 6 values"):
        decode_repositories(content, limits=Limits(document_values=6))
    with pytest.raises(InvalidDocument) as caught:
        decode_repositories(encoded({"x" * 1000: 5}))
    assert len(str(caught.value)) < 200


def test_a_bound_may_be_raised_and_lowered() -> None:
    wide, narrow = Limits(document_bytes=16 << 20, history=10_000), Limits(document_bytes=100, history=5)
    manifest, config = encoded(MANIFEST), encoded({"history": [{}] * 6})
    assert decode_document(manifest.ljust(5 << 20), OCI_MANIFEST, limits=wide) == decode_document(
        manifest, OCI_MANIFEST
    )
    assert describe_document(manifest.ljust(5 << 20), limits=wide).size_bytes == 5 << 20
    assert decode_config(config.ljust(5 << 20), limits=wide) == decode_config(config)
    assert len(decode_image_config(encoded({"history": [{}] * 5000}), limits=wide).history) == 5000
    for decode in (decode_config, decode_image_config, describe_document):
        with pytest.raises(InvalidDocument, match="it is larger than 100 bytes"):
            decode(manifest.ljust(101), limits=narrow)
    with pytest.raises(InvalidDocument, match="there are more than 5 steps"):
        decode_image_config(config, limits=narrow)
    assert decode_layout_index(encoded({**INDEX, "manifests": []}), limit_bytes=1000).entries == ()
    with pytest.raises(InvalidDocument, match="it is larger than 10 bytes"):
        decode_layout_index(encoded(INDEX), limit_bytes=10)
    with pytest.raises(InvalidDocument, match="it is larger than 10 bytes"):
        decode_archive_metadata(b" " * 11, limits=Limits(archive_metadata_bytes=10))
    with pytest.raises(InvalidDocument, match="it is larger than 10 bytes"):
        decode_token_answer(b" " * 11, limits=Limits(token_bytes=10))
    errors = encoded({"errors": [{"code": "DENIED"}], "more": "x" * (64 << 10)})
    assert decode_registry_errors(errors) == ((), "")
    assert decode_registry_errors(errors, limits=Limits(error_bytes=1 << 20))[0] == ("DENIED",)


@pytest.mark.parametrize("kind", ["meta.json", "oci-layout"])
def test_S7_the_small_files_have_smaller_bounds(kind: str) -> None:
    document, decode = DECODERS[kind]
    with pytest.raises(InvalidDocument, match="it is larger than"):
        decode(encoded(document).ljust((1 << 20) + 1))


@pytest.mark.parametrize("item", [b"0", b"{}", b'{"digest":1}'])
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("index", "manifests"),
        ("manifest", "layers"),
        ("config", "diff_ids"),
        ("image config", "diff_ids"),
        ("image config", "history"),
    ],
)
def test_S7_a_document_of_nothing_but_faults_costs_no_more_than_its_length(kind: str, key: str, item: bytes) -> None:
    items = b"[" + b",".join([item] * 5_000) + b"]"
    if key == "diff_ids":
        content = b'{"rootfs":{"diff_ids":' + items + b"}}"
    else:
        content = encoded({**DECODERS[kind][0], key: "HERE"}).replace(b'"HERE"', items)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDocument):
            DECODERS[kind][1](content)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100 * len(content)


@pytest.mark.parametrize(
    "content",
    [
        encoded({**MANIFEST, "mediaType": "x" * 100_000}),
        encoded(at(MANIFEST, "layers[0].digest", "x" * 100_000)),
        encoded(at(MANIFEST, "layers[0].digest", f"sha256:{'x' * 100_000}")),
        encoded(at(MANIFEST, "layers[1].annotations", {"k" * 100_000: 1})),
        encoded({**MANIFEST, "layers": [{**LEAF, "size": "9" * 100_000}]}),
    ],
)
def test_an_error_quotes_only_the_beginning_of_what_is_wrong(content: bytes) -> None:
    with pytest.raises(InvalidDocument) as caught:
        decode_document(content, OCI_MANIFEST)
    assert len(str(caught.value)) < 1000


def test_the_version_of_a_layout_is_quoted_only_so_far() -> None:
    with pytest.raises(InvalidDocument) as caught:
        decode_layout_marker(encoded({"imageLayoutVersion": "x" * 60_000}))
    assert len(str(caught.value)) < 1000


# ---- describing


@pytest.mark.parametrize("image", [build_image(), build_image(docker=True), build_index([build_image()])])
def test_a_document_that_came_without_a_descriptor_describes_itself(image: Any) -> None:
    content = image.blobs[image.digest]
    assert describe_document(content) == Descriptor(
        media_type=image.media_type, digest=Digest.parse(image.digest), size_bytes=len(content)
    )


def test_a_document_without_a_type_is_described_by_its_fields() -> None:
    assert describe_document(encoded(at(MANIFEST, "mediaType", MISSING))).media_type == OCI_MANIFEST
    assert describe_document(encoded(at(INDEX, "mediaType", MISSING))).media_type == OCI_INDEX


# ---- encoding


def test_a_document_is_encoded_compactly_in_the_order_of_the_specification() -> None:
    document = Manifest(
        media_type=OCI_MANIFEST,
        config=Descriptor(media_type="a", digest=Digest("sha256", HEX), size_bytes=1),
        layers=(),
        annotations={"b": "2", "a": "é"},
    )
    assert (
        encode_document(document)
        == (
            f'{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"a","digest":"{DIGEST}","size":1}},'
            '"layers":[],"annotations":{"a":"é","b":"2"}}'
        ).encode()
    )


def test_equal_documents_are_encoded_to_equal_bytes() -> None:
    def document(annotations: dict[str, str]) -> Manifest:
        leaf = Descriptor(media_type="a", digest=Digest("sha256", HEX), size_bytes=1, annotations=annotations)
        return Manifest(media_type=OCI_MANIFEST, config=leaf, layers=(leaf,), annotations=annotations)

    one, other = document({"a": "1", "b": "2"}), document({"b": "2", "a": "1"})
    assert one == other
    assert encode_document(one) == encode_document(other)


# ---- index.json


UNKNOWN: Json = {
    "schemaVersion": 2,
    "x-tool": {"deep": [1, 2.5, None, True, "é", {"": []}], "big": 2**80},
    "manifests": [
        {**LEAF, "data": "eA==", "x": None, "annotations": {"org.opencontainers.image.ref.name": "a:1", "z": "1"}},
        {"size": 7, "unknown": {"mediaType": 5}, "digest": DIGEST, "mediaType": "application/anything"},
        {**FULL, "platform": {**FULL["platform"], "x": [1]}},
    ],
    "annotations": {"k": "v"},
    "subject": "whatever",
}


def test_unknown_fields_and_entries_of_an_index_survive_as_they_stood() -> None:
    index = decode_layout_index(encoded(UNKNOWN))
    assert json.loads(encode_layout_index(index)) == UNKNOWN
    assert [entry.descriptor.size_bytes for entry in index.entries] == [7, 7, 7]


def test_unknown_fields_and_other_entries_survive_a_change_of_a_name() -> None:
    new = Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(b"x"), size_bytes=1)
    changed = json.loads(encode_layout_index(with_name(decode_layout_index(encoded(UNKNOWN)), "b:1", new)))
    *kept, added = changed.pop("manifests")
    assert kept == UNKNOWN["manifests"]
    assert changed == {key: value for key, value in UNKNOWN.items() if key != "manifests"}
    assert added == {
        "mediaType": OCI_MANIFEST,
        "digest": digest_of(b"x"),
        "size": 1,
        "annotations": {"org.opencontainers.image.ref.name": "b:1"},
    }


def test_the_order_of_keys_of_what_was_kept_stays() -> None:
    content = json.dumps(UNKNOWN["manifests"][1])
    written = encode_layout_index(decode_layout_index(encoded(UNKNOWN)))
    assert json.dumps(json.loads(content), separators=(",", ":")).encode() in written


def test_an_empty_index_is_written_and_read() -> None:
    content = encode_layout_index(decode_layout_index(b'{"schemaVersion":2,"manifests":[]}'))
    assert json.loads(content) == {"schemaVersion": 2, "manifests": []}


def test_the_layout_marker_is_the_one_of_the_specification() -> None:
    assert json.loads(encode_layout_marker()) == {"imageLayoutVersion": "1.0.0"}
    assert decode_layout_marker(b'{"imageLayoutVersion": "1.1.7", "x": 1}') == LayoutMarker(
        image_layout_version="1.1.7"
    )


# ---- archives, tokens, errors


def test_the_metadata_of_an_archive_may_have_a_bare_digest() -> None:
    wanted = ArchiveMetadata(image="app:1", manifest_digest=Digest("sha256", HEX))
    assert decode_archive_metadata(encoded({"image": "app:1", "manifest_digest": HEX})) == wanted
    assert decode_archive_metadata(encode_archive_metadata(wanted)) == wanted
    assert encode_archive_metadata(wanted) == f'{{"image":"app:1","manifest_digest":"{DIGEST}"}}'.encode()


@pytest.mark.parametrize(
    ("answer", "token", "seconds"),
    [
        ({"token": "a.b"}, "a.b", 60),
        ({"access_token": "x"}, "x", 60),
        ({"token": "", "access_token": "x"}, "x", 60),
        ({"token": "t", "access_token": "x", "expires_in": 300}, "t", 300),
        ({"token": "t", "expires_in": 1.5}, "t", 1.5),
        ({"token": "t", "expires_in": 0}, "t", 60),
        ({"token": "t", "expires_in": -5}, "t", 60),
        ({"token": "t", "expires_in": "300"}, "t", 60),
        ({"token": "t", "expires_in": True}, "t", 60),
        ({"token": "t", "expires_in": 10**400}, "t", 60),
        ({"token": "t", "expires_in": None}, "t", 60),
    ],
)
def test_a_token_answer_is_read_whatever_its_server_calls_the_token(answer: Json, token: str, seconds: float) -> None:
    found = decode_token_answer(encoded(answer))
    assert (found.token, found.expires_in_seconds) == (token, seconds)


@pytest.mark.parametrize("token", [None, "", 5, True, [], {}, "a\nb", "a\r\nX: y", "é", "a\0", "\x7f"])
def test_a_token_that_cannot_stand_in_a_header_is_refused(token: Json) -> None:
    with pytest.raises(InvalidDocument) as caught:
        decode_token_answer(encoded({"token": token}))
    assert caught.value.where == "token"
    assert "a\nb" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "codes", "message"),
    [
        (encoded({"errors": [{"code": "DENIED", "message": "no"}]}), ("DENIED",), "no"),
        (encoded({"errors": [{"code": "A"}, {"code": "B", "message": "x"}]}), ("A", "B"), "x"),
        (encoded({"errors": [5, None, {"code": 7, "message": []}]}), (), ""),
        (encoded({"message": "toomanyrequests: enough", "code": "A"}), (), "toomanyrequests: enough"),
        (encoded({"errors": [{"code": "A"}], "message": "x"}), ("A",), "x"),
        (encoded({"message": 5}), (), ""),
        (encoded({"errors": {"code": "A"}}), (), ""),
        (encoded({}), (), ""),
        (b"<html>", (), ""),
        (b"", (), ""),
        (b"[" * 50_000, (), ""),
        (b"\xff", (), ""),
        (encoded({"errors": [{"code": "C" * 100, "message": "m" * 1000}] * 20}), ("C" * 64,) * 8, "m" * 300),
        (encoded({"errors": [{"code": "A", "message": "x" * 70_000}]}), (), ""),
    ],
)
def test_an_error_answer_is_read_as_far_as_it_is_one(content: bytes, codes: tuple[str, ...], message: str) -> None:
    assert decode_registry_errors(content) == (codes, message)


def test_the_codec_offers_what_its_package_names() -> None:
    assert all(callable(getattr(codec, name)) for name in codec.__all__)
