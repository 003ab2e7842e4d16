"""Digests: what is one, what is not, and bytes that are checked as they pass."""

import hashlib

import pytest

from minibox_store.digest import Digest, Verifier
from minibox_store.errors import ContentMismatch, InvalidDigest

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize("text", [f"sha256:{HEX}", f"sha512:{HEX}{HEX}"])
def test_a_digest_is_parsed_into_its_algorithm_and_value_and_back(text: str) -> None:
    digest = Digest.parse(text)
    assert (digest.algorithm, digest.hex) == tuple(text.split(":"))
    assert str(digest) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        HEX,
        f":{HEX}",
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX}\n",
        f"sha256: {HEX[1:]}",
        f"\nsha256:{HEX}",
        f"sha256:{HEX.upper()}",
        f"SHA256:{HEX}",
        f"sha256:{HEX[:-1]}g",
        f"sha256:{HEX[:-1]}\x00",
        f"sha256:{HEX}\x00",
        f"sha256\x00:{HEX}",
        f"sha256:{HEX[:-1]}\N{ARABIC-INDIC DIGIT ONE}",
        f"sha256:{HEX[:-1]}\N{FULLWIDTH LATIN SMALL LETTER A}",
        "sha256:../../x",
        "sha256:" + "../" * 21 + "x",
        f"sha256:{HEX[:-3]}/..",
        f"../sha256:{HEX}",
        f"sha256:{HEX}{HEX}",
        f"sha512:{HEX}",
        f"sha256:sha256:{HEX}",
        f"sha256:{HEX}:",
        f"md5:{HEX[:32]}",
        f"sha1:{HEX[:40]}",
        f"sha384:{HEX}{HEX[:32]}",
        f"sha256+b64:{HEX}",
        f"blake3:{HEX}",
        "sha256:" + "a" * 1_000_000,
    ],
)
def test_S4_text_that_is_no_digest_never_becomes_one(text: str) -> None:
    """S4: what is no digest is refused where it is read, so that no path and no URL is ever made of it."""
    with pytest.raises(InvalidDigest):
        Digest.parse(text)


@pytest.mark.parametrize(("algorithm", "value"), [("sha256", "../x"), ("..", HEX), ("sha256", HEX.upper()), ("", "")])
def test_S4_a_digest_cannot_be_built_past_the_parser(algorithm: str, value: str) -> None:
    """S4: the constructor refuses what the parser refuses."""
    with pytest.raises(InvalidDigest):
        Digest(algorithm, value)


def test_the_digest_of_content_is_the_hash_of_its_bytes() -> None:
    assert Digest.of(b"layer").hex == hashlib.sha256(b"layer").hexdigest()
    assert Digest.of(memoryview(b"layer"), "sha512").hex == hashlib.sha512(b"layer").hexdigest()


def test_digests_are_equal_by_value_and_have_an_order() -> None:
    first, second = Digest("sha256", "0" * 64), Digest("sha256", "1" * 64)
    assert {first, Digest.parse(str(first))} == {first}
    assert sorted([second, first]) == [first, second]


def test_a_verifier_passes_bytes_that_are_the_content_and_counts_them() -> None:
    verifier = Verifier(Digest.of(b"one two"), 7)
    for piece in (b"one", b"", bytearray(b" "), memoryview(b"two")):
        verifier.update(piece)
    assert verifier.finish() == Digest.of(b"one two")
    assert verifier.seen_bytes == 7


def test_a_verifier_without_a_digest_checks_the_number_of_bytes_and_tells_their_sha256() -> None:
    verifier = Verifier(None, 3)
    verifier.update(b"one")
    assert verifier.finish() == Digest.of(b"one")
    short = Verifier(None, 3)
    with pytest.raises(ContentMismatch, match="expected 3 bytes, got 0 bytes"):
        short.finish()


def test_a_verifier_refuses_the_first_byte_too_many() -> None:
    verifier = Verifier(Digest.of(b"one"), 3)
    verifier.update(b"one")
    with pytest.raises(ContentMismatch, match="expected 3 bytes, got more"):
        verifier.update(b"!")


def test_a_verifier_refuses_content_that_ends_early() -> None:
    verifier = Verifier(Digest.of(b"one"), 3)
    verifier.update(b"on")
    with pytest.raises(ContentMismatch, match="expected 3 bytes, got 2 bytes"):
        verifier.finish()


def test_a_verifier_refuses_other_content_of_the_same_size_and_says_what_it_was() -> None:
    verifier = Verifier(Digest.of(b"one"), 3)
    verifier.update(b"two")
    with pytest.raises(ContentMismatch) as caught:
        verifier.finish()
    assert caught.value.expected == str(Digest.of(b"one"))
    assert caught.value.actual == str(Digest.of(b"two"))
