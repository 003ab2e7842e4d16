"""The grammar of members' names: total on any text, and what it lets through leads nowhere but into a dict."""

import re
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.archive.member_names import (
    CONTROLS,
    MemberRole,
    check_directory,
    parse_link,
    parse_member_name,
)
from minibox_store.archive.member_table import MemberTable
from minibox_store.digest import Digest
from minibox_store.errors import InvalidArchive
from minibox_store.tar import Member, MemberKind

HEX = "0123456789abcdef" * 4
HEX512 = HEX * 2
ROLES = {
    MemberRole.CONTROL: sorted(CONTROLS),
    MemberRole.BLOB: [f"blobs/sha256/{HEX}", f"blobs/sha512/{HEX512}"],
    MemberRole.CONFIG: [f"{HEX}.json", f"sha256:{HEX}"],
    MemberRole.LAYER: [f"{HEX}/layer.tar", f"{HEX}.tar", f"{HEX}.tar.gz"],
    MemberRole.PASSED_OVER: [
        *(f"{HEX}/VERSION", f"{HEX}/json", f"blobs/sha256/{HEX}.index.json", f"blobs/sha512/{HEX512}.index.json"),
    ],
}
KNOWN = [(role, name) for role, names in ROLES.items() for name in names]
# Every name that there may be, and no other.
GRAMMAR = re.compile(
    r"(\./)?(meta\.json|oci-layout|index\.json|manifest\.json|repositories"
    r"|blobs/sha256/[0-9a-f]{64}|blobs/sha512/[0-9a-f]{128}"
    r"|[0-9a-f]{64}(\.json|/layer\.tar|\.tar|\.tar\.gz|/VERSION|/json)|sha256:[0-9a-f]{64}"
    r"|blobs/(sha256|sha512)/[0-9a-f]+\.index\.json)"
)


@pytest.mark.parametrize(("role", "name"), KNOWN)
@pytest.mark.parametrize("prefix", ["", "./"])
def test_each_name_that_there_may_be_has_its_role(prefix: str, role: MemberRole, name: str) -> None:
    found = parse_member_name(prefix + name)
    assert (found.role, found.key) == (role, name)
    assert (found.digest is None) == (role in (MemberRole.CONTROL, MemberRole.PASSED_OVER))


Given = TypeVar("Given")
Found = TypeVar("Found")


def outcome_of(parse: Callable[[Given], Found], given: Given) -> Found | InvalidArchive:
    """Return what a parser finds, or its refusal; any other error passes, and fails the test."""
    try:
        return parse(given)
    except InvalidArchive as error:
        return error


texts = st.one_of(
    st.text(max_size=80),
    st.builds(
        lambda name, position, change: name[:position] + change + name[position + 1 :],
        st.sampled_from([name for _, name in KNOWN]),
        st.integers(0, 150),
        st.sampled_from(["", "/", ".", "..", "A", "g", "\0", "\n", "/../", "./", "0", "٣", "\udc80", "\\"]),
    ),
    st.from_regex(GRAMMAR, fullmatch=True),
)


@given(text=texts)
def test_reading_a_name_is_total_and_exact(text: str) -> None:
    found = outcome_of(parse_member_name, text)
    if isinstance(found, InvalidArchive):
        assert GRAMMAR.fullmatch(text) is None
        assert str(found).isprintable()
        assert len(str(found)) < 1000
        return
    assert GRAMMAR.fullmatch(text) is not None
    assert found.key == text.removeprefix("./")
    assert not found.key.startswith(("/", "."))
    assert ".." not in found.key.split("/")


LAYER_LINK = re.compile(
    r"(\./)?[0-9a-f]{64}(/layer\.tar|\.tar) -> "
    r"([0-9a-f]{64}(/layer\.tar|\.tar)|blobs/sha256/[0-9a-f]{64}|blobs/sha512/[0-9a-f]{128})"
)


@given(name=texts, target=st.one_of(texts, texts.map("../".__add__)), kind=st.sampled_from(["SYMLINK", "HARDLINK"]))
def test_reading_a_link_is_total_and_leads_to_a_layer_or_blob_alone(name: str, target: str, kind: str) -> None:
    member = Member(name=name, kind=MemberKind[kind], link_target=target)
    outcome = outcome_of(parse_link, member)
    if isinstance(outcome, InvalidArchive):
        assert str(outcome).isprintable()
        return
    key, found = outcome
    assert LAYER_LINK.fullmatch(f"{key} -> {found}") is not None
    assert target.removeprefix("../").removeprefix("./") == found


@pytest.mark.parametrize("name", ["", ".", "./", "blobs", "blobs/sha256", HEX, "x/y/z", "...", "a/..b"])
def test_a_directory_may_have_any_name_that_stays_inside(name: str) -> None:
    check_directory(name)


@pytest.mark.parametrize("name", ["..", "/", "/x", "../x", "x/..", "x/../y", "./.."])
def test_S15_a_directory_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(InvalidArchive, match="its name leads out of the archive"):
        check_directory(name)


# ---- the table of them


def test_a_layer_is_what_was_kept_of_it_and_a_blob_what_its_name_says() -> None:
    table = MemberTable()
    kept, blob = Digest.of(b"kept"), Digest("sha256", HEX)
    table.add(parse_member_name(f"{HEX}.tar"), 4)
    table.add(parse_member_name(f"blobs/sha256/{HEX}"), 7)
    assert table.find(f"{HEX}.tar") is None
    table.note_kept(f"{HEX}.tar", kept, 4)
    assert table.find(f"./{HEX}.tar") == kept
    assert table.find(f"blobs/sha256/{HEX}") == table.find(f"{HEX}.json") == blob
    assert table.sizes == {kept: 4, blob: 7}
    assert table.find(f"{HEX}/layer.tar") is None


@pytest.mark.parametrize("key", ["meta.json", f"{HEX}/json", "../x", ""])
def test_what_is_no_part_of_an_image_is_not_found_but_refused(key: str) -> None:
    with pytest.raises(InvalidArchive):
        MemberTable().find(key)


@given(targets=st.lists(st.integers(0, 12), min_size=1, max_size=12))
def test_links_end_or_are_refused_whatever_they_are(targets: list[int]) -> None:
    table = MemberTable()
    layer = parse_member_name(f"{12:064x}.tar")
    table.add(layer, 1)
    table.note_kept(layer.key, Digest.of(b"x"), 1)
    for number, target in enumerate(targets):
        table.add_link(f"{number:064x}.tar", f"{target:064x}.tar")

    def steps(number: int) -> int:
        count = 0
        while number < len(targets) and count <= 8:
            number, count = targets[number], count + 1
        return count

    longest = max(steps(number) for number in range(len(targets)))
    if longest > 8:
        with pytest.raises(InvalidArchive, match="it leads over more than 8 links"):
            table.check_links()
    else:
        table.check_links()
