"""Laws of links: what a collection sees of a document is what everybody else sees of it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store.codec import decode_document, decode_links
from minibox_store.documents import Identity, Links, Manifest, children, identity
from minibox_store.errors import InvalidDocument
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.media_types import INDEXES, MANIFESTS, OCI_MANIFEST, is_document
from tests.support.document_strategies import nearly_documents, nearly_plain_documents, plain_documents
from tests.support.images import OCI_LAYER, digest_of
from tests.support.strategies import digests

TYPES = [*INDEXES, *MANIFESTS]
PLAIN: dict[str, Any] = {"mediaType": OCI_LAYER, "digest": digest_of(b"layer"), "size": 5}
HEX = digest_of(b"layer").partition(":")[2]


def told(read: Callable[[], Links]) -> tuple[list[Identity], list[Any], int] | tuple[str, ...]:
    """Return the leaves in any order, the documents in theirs and the count of layers; or in which words it refuses."""
    try:
        links = read()
    except InvalidDocument as error:
        return error.where, error.problem, error.document
    return (
        sorted(links.leaves),
        [(each.digest, each.size_bytes, each.media_type) for each in links.documents],
        links.layers,
    )


def slowly(content: bytes, media_type: str, limits: Limits) -> Links:
    """Return the same from the document's value."""
    document = decode_document(content, media_type, "it", limits=limits)
    below = [node.descriptor for node in children(document)]
    return Links(
        leaves=[identity(each) for each in below if not is_document(each.media_type)],
        documents=[each for each in below if is_document(each.media_type)],
        layers=len(document.layers) if isinstance(document, Manifest) else 0,
    )


def check_agreement(content: bytes, media_type: str, limits: Limits = DEFAULT_LIMITS) -> None:
    fast = told(lambda: decode_links(content, media_type, "it", limits=limits))
    assert fast == told(lambda: slowly(content, media_type, limits))


@settings(max_examples=400)
@given(value=plain_documents() | nearly_plain_documents())
def test_the_links_of_a_document_are_its_children_or_both_refuse_it_in_the_same_words(value: dict[str, Any]) -> None:
    content = json.dumps(value).encode()
    own = value.get("mediaType")
    for media_type in [own] if own in TYPES else TYPES:
        check_agreement(content, media_type)


@given(value=nearly_documents(), media_type=st.sampled_from(TYPES))
def test_words_of_documents_in_any_order_have_no_other_links(value: dict[str, Any], media_type: str) -> None:
    check_agreement(json.dumps(value).encode(), media_type)


@given(value=plain_documents(), media_type=st.sampled_from(TYPES), limit_bytes=st.integers(0, 600))
def test_links_are_refused_where_the_type_or_the_size_is_another(
    value: dict[str, Any], media_type: str, limit_bytes: int
) -> None:
    check_agreement(json.dumps(value).encode(), media_type, Limits(document_bytes=limit_bytes))


ODD: dict[str, Any] = {
    "plain": PLAIN,
    "no object": "text",
    "an array": [PLAIN["mediaType"], PLAIN["digest"], PLAIN["size"]],
    "null": None,
    "a digest that is a number": {**PLAIN, "digest": 5},
    "a digest in capitals": {**PLAIN, "digest": f"sha256:{HEX.upper()}"},
    "a digest with a blank": {**PLAIN, "digest": f"sha256:{HEX[:-2]} a"},
    "a digest of wide digits": {**PLAIN, "digest": f"sha256:{HEX[:-1]}\uff11"},
    "a short digest": {**PLAIN, "digest": "sha256:abcd"},
    "a digest without a name": {**PLAIN, "digest": HEX},
    "a digest of another length": {**PLAIN, "digest": f"sha512:{HEX}"},
    "a digest of another name": {**PLAIN, "digest": f"md5:{HEX}"},
    "a size in text": {**PLAIN, "size": "5"},
    "a size that is true": {**PLAIN, "size": True},
    "a size with a point": {**PLAIN, "size": 5.0},
    "a negative size": {**PLAIN, "size": -1},
    "the largest size": {**PLAIN, "size": 2**53 - 1},
    "a size above that": {**PLAIN, "size": 2**53},
    "a type that is null": {**PLAIN, "mediaType": None},
    "a document's type": {**PLAIN, "mediaType": MANIFESTS[0]},
    "one field too few": {"mediaType": OCI_LAYER, "size": 5},
    "another third field": {"mediaType": OCI_LAYER, "size": 5, "sum": PLAIN["digest"]},
    "a field that is unknown": {**PLAIN, "other": 1},
    "annotations that are none": {**PLAIN, "annotations": {"key": 5}},
    "annotations": {**PLAIN, "annotations": {"key": "5"}},
}


@pytest.mark.parametrize("media_type", TYPES)
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_descriptor_among_plain_ones_is_taken_as_everybody_takes_it(odd: str, media_type: str) -> None:
    field = "manifests" if media_type in INDEXES else "layers"
    value: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type, field: [PLAIN, ODD[odd], PLAIN]}
    if field == "layers":
        value["config"] = PLAIN
    check_agreement(json.dumps(value).encode(), media_type)


WRONG: dict[str, Any] = {"annotations": {"key": 5}, "subject": {}, "artifactType": 5, "fsLayers": [], "config": 5}


@pytest.mark.parametrize("media_type", TYPES)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_document_that_is_wrong_elsewhere_has_no_links(wrong: str, media_type: str) -> None:
    field = "manifests" if media_type in INDEXES else "layers"
    value: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type, field: [PLAIN]}
    if field == "layers":
        value["config"] = PLAIN
    content = json.dumps({**value, wrong: WRONG[wrong]}).encode()
    check_agreement(content, media_type)
    with pytest.raises(InvalidDocument):
        decode_links(content, media_type)


@given(
    texts=st.lists(
        digests().map(str) | digests().map(lambda each: str(each).upper()) | st.text(max_size=140), max_size=3
    )
)
def test_layers_have_links_just_where_each_of_their_digests_is_one(texts: list[str]) -> None:
    layers = [{**PLAIN, "digest": text} for text in texts]
    value = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": PLAIN, "layers": layers}
    check_agreement(json.dumps(value).encode(), OCI_MANIFEST)
