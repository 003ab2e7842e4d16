"""Laws of the values: what is written reads back the same, and reading is total."""

import contextlib
import pickle
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minibox_store.digest import Digest, Verifier
from minibox_store.errors import (
    ContentMismatch,
    ImageNotFound,
    InvalidDigest,
    InvalidPlatform,
    InvalidReference,
    StoreError,
)
from minibox_store.platforms import Platform, choose_platform
from minibox_store.policies import Policy
from minibox_store.reference import Reference, check_image_name, normalised
from minibox_store.registry.credential_keys import parse_registry
from minibox_store.sentences import without_user
from tests.support.strategies import digests, platforms, references

# Text that is nearly a reference: every character and word that its grammar cares about, in any order.
_WORDS = ["localhost", "docker.io", "index.docker.io", "library", "[::1]", "sha256:", "sha256:" + "a" * 64, "a" * 64]
_NEARLY_REFERENCES = st.lists(
    st.sampled_from([*"aZ09._-/:@[] \né", *_WORDS, "__", "--", "//", "..", "://"]), max_size=12
).map("".join)

# The regular expression of the distribution project, written once more from its grammar.
_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_DISTRIBUTION = re.compile(
    rf"(?P<name>{_DOMAIN}/{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}))?"
)


def spelled_by_distribution(text: str) -> str | None:
    """Return the canonical spelling as docker's own algorithm gives it, or None: split off the domain, then match."""
    if re.fullmatch(r"[a-f0-9]{64}", text):
        return None
    domain, slash, rest = text.partition("/")
    if not slash or not (domain == "localhost" or re.search(r"[.:]", domain) or domain.lower() != domain):
        domain, rest = "docker.io", text
    if domain == "index.docker.io":
        domain = "docker.io"
    if domain == "docker.io" and "/" not in rest:
        rest = "library/" + rest
    match = _DISTRIBUTION.fullmatch(f"{domain}/{rest}")
    if match is None or len(match["name"]) > 255:
        return None
    return match[0] if match["tag"] or match["digest"] else f"{match[0]}:latest"


@given(references())
def test_a_reference_is_read_back_from_its_canonical_spelling(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference


@given(references())
@example(Reference.parse("docker.io/library/library"))
@example(Reference.parse("docker.io/localhost/app"))
@example(Reference.parse("docker.io/quay.io/app"))
@example(Reference.parse("docker.io/" + "a" * 64))
def test_a_reference_is_read_back_from_its_familiar_spelling(reference: Reference) -> None:
    assert Reference.parse(reference.familiar()) == reference
    assert len(reference.familiar()) <= len(str(reference))


@given(references())
def test_every_spelling_of_a_reference_up_to_512_characters_is_a_name_for_the_store(reference: Reference) -> None:
    for spelling in (str(reference), reference.familiar()):
        if len(spelling) <= 512:
            assert check_image_name(spelling) == spelling


@given(_NEARLY_REFERENCES | st.text(max_size=300))
def test_parsing_a_reference_is_total_and_agrees_with_the_distribution_project(text: str) -> None:
    assert normalised(text) == spelled_by_distribution(text)


@given(_NEARLY_REFERENCES)
def test_normalising_a_reference_twice_is_normalising_it_once(text: str) -> None:
    once = normalised(text)
    assert once is None or normalised(once) == once


@given(_NEARLY_REFERENCES | st.text(max_size=600))
def test_a_name_for_the_store_never_leaves_a_folder_and_is_one_line(text: str) -> None:
    with contextlib.suppress(InvalidReference):
        name = check_image_name(text)
        assert name == text
        assert name.isascii()
        assert name.isprintable()
        assert not {"", ".", ".."} & set(name.split("/"))
        assert 1 <= len(name) <= 512


@given(st.text(max_size=600), st.sampled_from(["", "/app", "/team/app:1", f"/app@sha256:{'0' * 64}"]))
@example("pa/ss", "/app")
@example("pa#ss", "/app")
@example("pa@ss/?", "/app")
@example("pa/s@sha256:s", f"/app@sha256:{'0' * 64}")
@example("pa://s\n/s", "")
def test_no_sentence_shows_the_password_of_a_url_whatever_that_is(password: str, rest: str) -> None:
    url = f"https://alice:hunter2{password}hunter2@quay.io{rest}"
    assert without_user(url) == f"https://***@quay.io{rest}"
    sentences = [str(ImageNotFound(url))]
    for read in (Reference.parse, check_image_name, parse_registry, lambda text: Policy(allow_registries=[text])):
        with pytest.raises(StoreError) as caught:
            read(url)
        sentences.append(str(caught.value))
    assert not [sentence for sentence in sentences if "hunter2" in sentence]


@given(digests())
def test_a_url_with_a_digest_and_no_user_is_shown_as_it_is(digest: Digest) -> None:
    assert without_user(f"https://quay.io/app:1@{digest}") == f"https://quay.io/app:1@{digest}"


@given(digests())
def test_a_digest_is_read_back_from_its_spelling(digest: Digest) -> None:
    assert Digest.parse(str(digest)) == digest
    assert pickle.loads(pickle.dumps(digest)) == digest


_NEARLY_DIGESTS = digests().map(str).flatmap(lambda text: st.sampled_from([text, f"{text}\n", text[:-1], f" {text}"]))


@given(st.text(max_size=200) | _NEARLY_DIGESTS)
def test_parsing_a_digest_is_total_and_accepts_nothing_but_its_own_spelling(text: str) -> None:
    with contextlib.suppress(InvalidDigest):
        assert str(Digest.parse(text)) == text


@given(st.lists(st.binary(max_size=50)), st.sampled_from(["sha256", "sha512"]))
def test_a_verifier_passes_the_content_of_its_digest_in_whatever_pieces_it_comes(
    pieces: list[bytes], algorithm: str
) -> None:
    content = b"".join(pieces)
    verifier = Verifier(Digest.of(content, algorithm), len(content))
    for piece in pieces:
        verifier.update(piece)
    verifier.finish()
    assert verifier.seen_bytes == len(content)


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_a_verifier_refuses_every_other_content(expected: bytes, actual: bytes) -> None:
    assume(expected != actual)
    verifier = Verifier(Digest.of(expected), len(expected))
    with pytest.raises(ContentMismatch):
        _verify(verifier, actual)


def _verify(verifier: Verifier, content: bytes) -> None:
    verifier.update(content)
    verifier.finish()


@given(platforms())
def test_a_platform_is_read_back_from_its_spelling(platform: Platform) -> None:
    assert Platform.parse(str(platform)) == platform


@given(platforms())
def test_normalising_a_platform_twice_is_normalising_it_once(platform: Platform) -> None:
    once = platform.normalised()
    assert once.normalised() == once


@given(st.text(max_size=300) | st.text("aA0_.-/()+ \n", max_size=12))
def test_parsing_a_platform_is_total(text: str) -> None:
    with contextlib.suppress(InvalidPlatform):
        platform = Platform.parse(text)
        assert Platform.parse(str(platform)) == platform


@given(st.lists(st.none() | platforms(), max_size=6), platforms())
def test_a_chosen_platform_has_the_wanted_system_and_architecture(
    offered: list[Platform | None], wanted: Platform
) -> None:
    position = choose_platform(offered, wanted)
    if position is not None:
        chosen = offered[position]
        assert chosen is not None
        assert chosen.normalised().os == wanted.normalised().os
        assert chosen.normalised().architecture == wanted.normalised().architecture


@given(st.lists(st.none() | platforms(), max_size=6), platforms().filter(lambda wanted: "unknown" not in str(wanted)))
def test_what_is_wanted_is_chosen_wherever_it_is_on_offer(offered: list[Platform | None], wanted: Platform) -> None:
    position = choose_platform([*offered, wanted], wanted)
    assert position is not None
    chosen = [*offered, wanted][position]
    assert chosen is not None
    assert chosen.normalised().variant == wanted.normalised().variant


@given(st.lists(st.none() | platforms(), max_size=6), platforms())
def test_the_choice_does_not_depend_on_how_platforms_are_spelled(
    offered: list[Platform | None], wanted: Platform
) -> None:
    spelled = [None if platform is None else platform.normalised() for platform in offered]
    assert choose_platform(offered, wanted) == choose_platform(spelled, wanted.normalised())
