"""Hypothesis strategies for documents: as values of the library, as JSON, and as bytes that are nearly a document."""

import json
import string
from typing import Any

from hypothesis import strategies as st

from minibox_store.documents import Descriptor, Document, Index, Manifest
from minibox_store.media_types import INDEXES, MANIFESTS
from tests.support.strategies import digests, platforms

# JSON's own text: no lone surrogates, which no UTF-8 can hold.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_SIZES = st.sampled_from([0, 1, 2**31, 2**53 - 1]) | st.integers(min_value=0, max_value=2**53 - 1)
_ANNOTATIONS = st.dictionaries(texts, texts, max_size=3)
_MEDIA_TYPES = st.sampled_from([*INDEXES, *MANIFESTS, "application/vnd.oci.image.layer.v1.tar"]) | texts

# Every JSON value, and what Python's reader takes for one besides.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def descriptors() -> st.SearchStrategy[Descriptor]:
    """Descriptors with everything that one may say."""
    return st.builds(
        Descriptor,
        media_type=_MEDIA_TYPES,
        digest=digests(),
        size_bytes=_SIZES,
        platform=st.none() | platforms(),
        annotations=_ANNOTATIONS,
        artifact_type=st.none() | texts,
        urls=st.lists(texts, max_size=2).map(tuple),
    )


def documents() -> st.SearchStrategy[Document]:
    """Manifests and indexes."""
    common: dict[str, Any] = {
        "subject": st.none() | descriptors(),
        "artifact_type": st.none() | texts,
        "annotations": _ANNOTATIONS,
    }
    several = st.lists(descriptors(), max_size=3).map(tuple)
    manifests = st.builds(
        Manifest, media_type=st.sampled_from(MANIFESTS), config=descriptors(), layers=several, **common
    )
    return manifests | st.builds(Index, media_type=st.sampled_from(INDEXES), manifests=several, **common)


_CONFIG_TEXTS = ("created", "author", "os", "architecture", "variant", "os.version")
_EXECUTION_TEXTS = ("User", "WorkingDir", "StopSignal")
_EXECUTION_LISTS = ("Env", "Entrypoint", "Cmd")
_EXECUTION_SETS = ("ExposedPorts", "Volumes")
_STEP_TEXTS = ("created", "created_by", "author", "comment")


def _optional(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the fields, of which any may be null."""
    return st.fixed_dictionaries({}, optional={key: st.none() | values for key, values in fields.items()})


def histories() -> st.SearchStrategy[list[dict[str, Any]]]:
    """The steps of a config's history, as JSON."""
    return st.lists(_optional({**dict.fromkeys(_STEP_TEXTS, texts), "empty_layer": st.booleans()}), max_size=5)


def image_configs() -> st.SearchStrategy[dict[str, Any]]:
    """Configs of images that keep to the specification, as JSON."""
    execution = {
        **dict.fromkeys(_EXECUTION_TEXTS, texts),
        **dict.fromkeys(_EXECUTION_LISTS, st.lists(texts, max_size=3)),
        **dict.fromkeys(_EXECUTION_SETS, st.dictionaries(texts, st.just({}) | st.none(), max_size=3)),
        "Labels": _ANNOTATIONS,
    }
    return _optional(
        {
            **dict.fromkeys(_CONFIG_TEXTS, texts),
            "os.features": st.lists(texts, max_size=2),
            "config": _optional(execution),
            "rootfs": _optional({"type": st.just("layers"), "diff_ids": st.lists(digests().map(str), max_size=3)}),
            "history": histories(),
        }
    )


@st.composite
def nearly_configs(draw: st.DrawFn) -> dict[str, Any]:
    """Configs of which one part, at any depth, is something else."""
    return _with_another_part(draw, draw(image_configs()))


def _with_another_part(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object after one part of it, at any depth, was replaced in its place."""
    inner: Any = value
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            return value
        key = draw(st.sampled_from(keys))
        if not isinstance(inner[key], dict | list) or not inner[key] or draw(st.booleans()):
            inner[key] = draw(json_values)
            return value
        inner = inner[key]


def plain_documents() -> st.SearchStrategy[dict[str, Any]]:
    """Manifests and indexes as JSON, whose descriptors say what they must, and few any more."""
    needed = {"mediaType": _MEDIA_TYPES, "digest": digests().map(str), "size": _SIZES}
    plain = st.fixed_dictionaries(needed)
    more = {"annotations": _ANNOTATIONS, "data": texts, "platform": st.just({"os": "linux", "architecture": "arm"})}
    several = st.lists(plain, max_size=4) | st.lists(plain | st.fixed_dictionaries(needed, optional=more), max_size=4)
    optional = {"subject": plain, "annotations": _ANNOTATIONS, "artifactType": texts}
    version = {"schemaVersion": st.just(2)}
    manifests = {**version, "mediaType": st.sampled_from(MANIFESTS), "config": plain, "layers": several}
    indexes = {**version, "mediaType": st.sampled_from(INDEXES), "manifests": several}
    return st.fixed_dictionaries(manifests, optional=optional) | st.fixed_dictionaries(indexes, optional=optional)


@st.composite
def nearly_plain_documents(draw: st.DrawFn) -> dict[str, Any]:
    """Plain documents of which one part, at any depth, is something else, or is not there."""
    return _with_another_part(draw, draw(plain_documents()))


_KEYS = (
    *("schemaVersion", "mediaType", "manifests", "config", "layers", "subject", "annotations", "artifactType"),
    *("digest", "size", "platform", "os", "architecture", "variant", "os.version", "os.features", "urls", "data"),
    *("fsLayers", "history", "signatures", "rootfs", "diff_ids", "created", "imageLayoutVersion"),
    *("Env", "Cmd", "Labels", "ExposedPorts", "User", "created_by", "author", "comment", "empty_layer"),
    *("image", "manifest_digest", "token", "access_token", "expires_in", "errors", "code", "message"),
)
_TELLING: st.SearchStrategy[Any] = st.sampled_from(
    [*INDEXES, *MANIFESTS, 1, 2, 2.0, True, "2", -1, 2**53, 10**400, [], {}, None]
)


def nearly_documents() -> st.SearchStrategy[Any]:
    """JSON objects of the words that documents are made of, in any order and place."""
    digest_texts = digests().map(str)
    values = st.recursive(
        _TELLING | digest_texts | digest_texts.map(lambda text: text.upper()) | json_values,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS) | texts, inner, max_size=6),
        max_leaves=20,
    )
    return st.dictionaries(st.sampled_from(_KEYS), values, max_size=6)


def nearly_json() -> st.SearchStrategy[bytes]:
    """Bytes that are JSON, nearly JSON, or nothing of the kind."""
    encoded = nearly_documents().map(lambda value: json.dumps(value, ensure_ascii=False).encode())
    tokens = st.lists(
        st.sampled_from(
            [*'{}[],:" \n\t\0', *string.hexdigits, "NaN", "1e999", "-0", "\\ud800", '"a":', "true", "\ufeff"]
        ),
        max_size=30,
    ).map(lambda parts: "".join(parts).encode())
    return encoded | _damaged(encoded) | tokens | st.binary(max_size=100)


def _damaged(contents: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    def damage(content: bytes, position: int, insert: bytes, skip: int) -> bytes:
        at = position % (len(content) + 1)
        return content[:at] + insert + content[at + skip :]

    return st.builds(damage, contents, st.integers(0, 10_000), st.binary(max_size=3), st.integers(0, 5))
