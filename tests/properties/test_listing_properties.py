"""Laws of what a listing keeps: it is read back as it was, and no bytes whatever make it fail, or say what is false."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store.codec import decode_summaries, encode_summaries
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidDocument
from minibox_store.media_types import INDEXES, MANIFESTS, is_index
from minibox_store.outlines import MARK_CHARACTERS, Outline, outline_of
from minibox_store.platforms import Platform
from minibox_store.reports.summaries import DocumentFile, FileState, ImageSummary
from tests.support.document_strategies import json_values, nearly_json, texts
from tests.support.strategies import digests, platforms

_DIGEST = Digest.of(b"one")
_ROOT = Descriptor(media_type=MANIFESTS[0], digest=_DIGEST, size_bytes=300)
_INDEX = Descriptor(media_type=INDEXES[0], digest=Digest.of(b"two"), size_bytes=200)


def states(size_bytes: int | None = None) -> st.SearchStrategy[FileState]:
    sizes = st.integers(0, 2**53 - 1) if size_bytes is None else st.just(size_bytes)
    return st.tuples(sizes, st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1))


def outlines() -> st.SearchStrategy[Outline]:
    hexes = digests().map(lambda digest: digest.hex)
    # 4096 characters take 341 beginnings.
    return st.builds(
        lambda each, times, subjects: outline_of(each * times, subjects),
        st.lists(hexes, max_size=4),
        st.sampled_from([1, 84, 86, 120]),
        st.lists(hexes, max_size=2),
    )


@st.composite
def summaries(draw: st.DrawFn) -> ImageSummary:
    """Complete summaries of manifests and of indexes."""
    media_type = draw(st.sampled_from([*INDEXES, *MANIFESTS]))
    of_index = is_index(media_type)
    files: list[DocumentFile] = [(draw(digests()), draw(states()))]
    if of_index:
        files += draw(st.lists(st.tuples(digests(), states()), max_size=3))
    return ImageSummary(
        media_type=media_type,
        size_bytes=draw(st.integers(0, 2**60)),
        platform=None if of_index else draw(st.none() | platforms()),
        platforms=tuple(draw(st.lists(platforms(), max_size=3))) if of_index else (),
        created=None if of_index else draw(st.none() | texts),
        layers=draw(st.integers(0, 600)),
        files=tuple(files),
        outline=draw(st.none() | outlines().map(Outline.as_text)),
    )


def root_of(summary: ImageSummary) -> Descriptor:
    digest, state = summary.files[0]
    assert state is not None
    return Descriptor(media_type=summary.media_type, digest=digest, size_bytes=state[0])


def sealed(body: bytes) -> bytes:
    """Return bytes that only who means harm can have written: wrong ones under a right checksum."""
    return b"minibox-store listing 3 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def is_sound(summary: ImageSummary) -> bool:
    """Whether a summary has the types that it says, so that whoever shows it cannot fail."""
    numbers = [summary.size_bytes, summary.layers, *(part for _, state in summary.files for part in state or ())]
    words = [each for each in (summary.platform, *summary.platforms) if each is not None]
    "".join([summary.created or "", *map(str, words)]).encode("utf-8")
    return (
        all(type(number) is int for number in numbers)
        and min(summary.size_bytes, summary.layers) >= 0
        and all(type(each) is Platform for each in words)
        and all(type(digest) is Digest and state is not None for digest, state in summary.files)
        and (summary.outline is None or type(summary.outline) is str)
    )


@given(kept=st.lists(summaries(), max_size=6, unique_by=lambda each: each.files[0][0]))
def test_what_is_kept_is_read_back(kept: list[ImageSummary]) -> None:
    table = decode_summaries(encode_summaries(kept))
    assert len(table) == len(kept)
    for summary in kept:
        assert table.find(root_of(summary)) == summary


@given(summary=summaries(), size=st.integers(0, 2**53 - 1), media_type=st.sampled_from([*INDEXES, *MANIFESTS]))
def test_what_is_kept_is_found_for_the_very_same_descriptor_alone(
    summary: ImageSummary, size: int, media_type: str
) -> None:
    root = root_of(summary)
    other = Descriptor(media_type=media_type, digest=root.digest, size_bytes=size)
    found = decode_summaries(encode_summaries([summary])).find(other)
    assert (found is not None) == (other == root)


@given(outline=outlines())
def test_an_outline_is_read_back_from_its_text_unless_it_is_too_long_to_be_kept(outline: Outline) -> None:
    text = outline.as_text()
    assert (text is None) == (outline.size_bytes + 1 > 4096)
    assert text is None or Outline.parse(text) == outline


@given(
    text=texts
    | st.text("0123456789abcdef ", max_size=40)
    | st.integers(4080, 4100).map(lambda count: "0" * count + " ")
)
def test_any_text_is_an_outline_of_whole_beginnings_or_none(text: str) -> None:
    found = Outline.parse(text)
    assert found is None or found.as_text() == text
    assert found is None or not any(len(each) % MARK_CHARACTERS for each in found)


@given(content=nearly_json() | nearly_json().map(sealed) | st.binary(max_size=200).map(sealed))
def test_any_bytes_are_a_table_or_are_refused(content: bytes) -> None:
    try:
        table = decode_summaries(content)
    except InvalidDocument:
        return
    assert table.find(_ROOT) is None or is_sound(table.find(_ROOT) or ImageSummary(media_type="", size_bytes=0))


@given(summary=summaries(), position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_bit_that_rots_goes_unnoticed(summary: ImageSummary, position: int, bit: int) -> None:
    content = bytearray(encode_summaries([summary]))
    content[position % len(content)] ^= 1 << bit
    with pytest.raises(InvalidDocument):
        decode_summaries(bytes(content))


def entries() -> st.SearchStrategy[Any]:
    """Entries that are right but for one place or two."""
    wrong = json_values | st.sampled_from([True, -1, 10**400, "\ud800", [], {}, 2**70])
    good: list[Any] = [0, 300, 5, 6, 700, 0, "2024-01-01T00:00:00Z", 2, "0123456789ab "]
    marks = st.sampled_from(["", " ", "ab", "\u00e9" * 12 + " ", "\ud800" * 12 + " ", "0" * 6000])
    below = [[str(_DIGEST), 1, 2, 3]]

    def spoil(entry: list[Any], place: int, value: Any, cut: int) -> list[Any]:
        spoilt = list(entry)
        spoilt[place % len(entry)] = value
        return spoilt[:cut]

    whole = st.sampled_from([good, [0, 300, 5, 6, 700, None, None, 2, None, [0, 1], below]])
    spoilt = st.builds(spoil, whole, st.integers(0, 10), wrong, st.integers(6, 12))
    return whole | spoilt | st.builds(spoil, whole, st.just(8), marks, st.integers(9, 12)) | json_values


@given(entry=entries(), shared=st.sampled_from([[MANIFESTS[0]], [INDEXES[0]], []]), as_index=st.booleans())
@settings(max_examples=300)
def test_an_entry_that_is_not_as_it_should_be_is_as_good_as_none(entry: Any, shared: list[str], as_index: bool) -> None:
    root = _INDEX if as_index else _ROOT
    value = {
        "media_types": shared,
        "platforms": [{"os": "linux", "architecture": "amd64"}, {"os": "linux", "architecture": "arm64"}],
        "entries": {root.digest.hex: entry},
    }
    try:
        table = decode_summaries(sealed(json.dumps(value).encode()))
    except InvalidDocument:
        return
    found = table.find(root)
    assert found is None or (is_sound(found) and found.files[0][0] == root.digest)
