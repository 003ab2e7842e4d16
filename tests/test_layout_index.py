"""The rules of index.json: what a name in it is, and that nothing else changes when one comes or goes."""

from collections.abc import Mapping

import attrs
import pytest

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, LayoutEntry, LayoutIndex
from minibox_store.errors import ImageNotFound
from minibox_store.layout_index import (
    DIGEST_ANNOTATION,
    NAME_ANNOTATION,
    PLATFORM_ANNOTATION,
    REFERENCE_ANNOTATION,
    REFERRER_ANNOTATION,
    Provenance,
    find_name,
    is_referrer,
    lost_entries,
    name_of,
    names_of,
    provenance_of,
    with_entry,
    with_name,
    with_referrer,
    without_name,
    without_referrers,
)
from minibox_store.media_types import OCI_INDEX, OCI_MANIFEST
from minibox_store.platforms import LINUX_AMD64


def descriptor(content: str, name: str | None = None, **annotations: str) -> Descriptor:
    noted = {**annotations, **({} if name is None else {NAME_ANNOTATION: name})}
    return Descriptor(
        media_type=OCI_MANIFEST, digest=Digest.of(content.encode()), size_bytes=len(content), annotations=noted
    )


def entry(content: str, name: str | None = None, raw: Mapping[str, object] | None = None) -> LayoutEntry:
    return LayoutEntry(descriptor=descriptor(content, name), raw=raw or {"what": content})


def index(*entries: LayoutEntry) -> LayoutIndex:
    return LayoutIndex(entries=entries, raw={"schemaVersion": 2, "x": [1]})


INDEX = index(entry("one", "one:1"), entry("nameless"), entry("two", "team/two:1"), entry("three", "three"))


def contents(found: LayoutIndex) -> list[tuple[str | None, str]]:
    return [(name_of(each.descriptor), str(each.descriptor.digest)[7:13]) for each in found.entries]


def short(content: str) -> str:
    return Digest.of(content.encode()).hex[:6]


# ---- names


def test_the_names_of_an_index_come_in_order_each_with_its_descriptor() -> None:
    assert list(names_of(INDEX)) == [
        ("one:1", descriptor("one", "one:1")),
        ("team/two:1", descriptor("two", "team/two:1")),
        ("three", descriptor("three", "three")),
    ]
    assert list(names_of(LayoutIndex())) == []


def test_where_a_foreign_tool_wrote_a_name_twice_the_first_counts() -> None:
    twice = index(entry("first", "a:1"), entry("second", "a:1"))
    assert [(name, found.digest) for name, found in names_of(twice)] == [("a:1", Digest.of(b"first"))]
    assert find_name(twice, "a:1")[1].digest == Digest.of(b"first")


@pytest.mark.parametrize("name", ["one:1", "team/two:1", "three"])
def test_a_name_is_found_as_it_stands(name: str) -> None:
    assert find_name(INDEX, name)[0] == name


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("alpine", "alpine:latest"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("docker.io/library/alpine:3", "alpine:3"),
        ("index.docker.io/library/alpine:3", "library/alpine:3"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
    ],
)
def test_where_no_name_is_equal_a_single_one_that_spells_the_same_reference_is_meant(stored: str, asked: str) -> None:
    found, what = find_name(index(entry("other", "other:1"), entry("meant", stored)), asked)
    assert (found, what.digest) == (stored, Digest.of(b"meant"))


def test_of_two_names_that_spell_the_same_reference_neither_is_meant_by_a_third_spelling() -> None:
    both = index(entry("short", "alpine:3"), entry("long", "library/alpine:3"))
    with pytest.raises(ImageNotFound, match=r"image 'docker\.io/library/alpine:3' not found"):
        find_name(both, "docker.io/library/alpine:3")
    assert find_name(both, "alpine:3")[1].digest == Digest.of(b"short")
    assert find_name(both, "library/alpine:3")[1].digest == Digest.of(b"long")


@pytest.mark.parametrize(
    "name", ["missing", "one", "one:2", "ONE:1", "one:1 ", "", "\0", "two:1", "localhost:5000/one:1"]
)
def test_a_name_that_nothing_means_is_not_found(name: str) -> None:
    with pytest.raises(ImageNotFound) as caught:
        find_name(INDEX, name)
    assert caught.value.name == name


def test_first_colon_reference_parsing_a_port_is_no_tag() -> None:
    ported = index(entry("other", "localhost:1"), entry("meant", "localhost:5000/app"))
    assert find_name(ported, "localhost:5000/app:latest")[0] == "localhost:5000/app"


def test_a_name_that_is_no_reference_is_found_by_itself_alone() -> None:
    odd = index(entry("odd", "Some Tool's Name"), entry("other", "app:1"))
    assert find_name(odd, "Some Tool's Name")[0] == "Some Tool's Name"
    with pytest.raises(ImageNotFound):
        find_name(odd, "some tool's name")


# ---- a name comes


def test_a_new_name_comes_behind_all_that_is_there() -> None:
    named = with_name(INDEX, "new:1", descriptor("new"))
    assert named.entries[:-1] == INDEX.entries
    assert [each.raw for each in named.entries[:-1]] == [each.raw for each in INDEX.entries]
    assert named.entries[-1] == LayoutEntry(descriptor=descriptor("new", "new:1"))
    assert named.entries[-1].raw is None
    assert named.raw == INDEX.raw


def test_a_name_that_moves_keeps_its_place_and_takes_nothing_of_the_old_entry_along() -> None:
    named = with_name(INDEX, "team/two:1", descriptor("new", platform="x"))
    assert contents(named) == [
        ("one:1", short("one")),
        (None, short("nameless")),
        ("team/two:1", short("new")),
        ("three", short("three")),
    ]
    assert named.entries[2].raw is None


def test_a_name_that_stands_for_the_same_image_already_keeps_what_others_wrote_into_its_entry() -> None:
    assert with_name(INDEX, "one:1", descriptor("one")) == INDEX
    assert [each.raw for each in with_name(INDEX, "one:1", descriptor("one")).entries] == [
        each.raw for each in INDEX.entries
    ]


def test_an_entry_with_a_wrong_media_type_is_put_right() -> None:
    wrong = Descriptor(
        media_type=OCI_INDEX, digest=Digest.of(b"one"), size_bytes=3, annotations={NAME_ANNOTATION: "one:1"}
    )
    named = with_name(index(LayoutEntry(descriptor=wrong, raw={"x": 1})), "one:1", descriptor("one"))
    assert named.entries == (LayoutEntry(descriptor=descriptor("one", "one:1")),)
    assert named.entries[0].raw is None


def test_a_name_that_a_foreign_tool_wrote_twice_stands_once_afterwards() -> None:
    twice = index(entry("first", "a:1"), entry("other", "b:1"), entry("second", "a:1"))
    assert contents(with_name(twice, "a:1", descriptor("new"))) == [("a:1", short("new")), ("b:1", short("other"))]


def test_an_image_may_have_several_names_and_one_without_a_name() -> None:
    several = with_name(with_name(INDEX, "also:1", descriptor("one")), "too:1", descriptor("nameless"))
    assert contents(several) == [*contents(INDEX), ("also:1", short("one")), ("too:1", short("nameless"))]


def test_what_else_a_descriptor_says_is_kept_and_the_name_it_had_elsewhere_is_not() -> None:
    elsewhere = Descriptor(
        media_type=OCI_MANIFEST,
        digest=Digest.of(b"x"),
        size_bytes=1,
        platform=LINUX_AMD64,
        annotations={NAME_ANNOTATION: "evil:1", "io.containerd.image.name": "docker.io/library/evil:1", "a": "b"},
        artifact_type="application/x",
    )
    new = with_name(LayoutIndex(), "app:1", elsewhere).entries[0].descriptor
    assert new.annotations == {NAME_ANNOTATION: "app:1", "a": "b"}
    assert (new.platform, new.artifact_type) == (LINUX_AMD64, "application/x")


def test_S6_an_image_from_outside_cannot_pass_for_a_referrer_that_this_project_wrote() -> None:
    # Such an entry lives only as long as its subject: a registry that could write it would have its image pruned.
    forged = descriptor("x", **{REFERRER_ANNOTATION: "true"})
    new = with_name(LayoutIndex(), "app:1", forged).entries[0].descriptor
    assert REFERRER_ANNOTATION not in new.annotations


# ---- what is kept for what it refers to


def test_a_referrer_is_kept_without_a_name_and_by_nothing_that_is_said_of_it() -> None:
    said = {NAME_ANNOTATION: "evil:1", DIGEST_ANNOTATION: "sha256:x", "a": "b"}
    found = attrs.evolve(descriptor("x"), annotations=said, platform=LINUX_AMD64, artifact_type="application/x")
    new = with_referrer(INDEX, found)
    assert new.entries[:-1] == INDEX.entries
    kept = new.entries[-1].descriptor
    assert is_referrer(kept)
    assert kept == attrs.evolve(descriptor("x", **{REFERRER_ANNOTATION: "true"}), artifact_type="application/x")
    assert with_referrer(new, found) is new


def test_referrers_come_and_go_beside_entries_for_the_same_thing() -> None:
    both = with_referrer(INDEX, descriptor("one"))
    assert contents(both) == [*contents(INDEX), (None, short("one"))]
    assert without_referrers(both, {descriptor("one").digest, descriptor("two").digest}) == INDEX
    assert without_referrers(both, set()) == both


@pytest.mark.parametrize("said", [{}, {REFERRER_ANNOTATION: "false"}, {REFERRER_ANNOTATION: ""}])
def test_only_what_says_so_is_kept_as_a_referrer(said: dict[str, str]) -> None:
    assert not is_referrer(descriptor("x", **said))
    assert not is_referrer(descriptor("x", "app:1", **{REFERRER_ANNOTATION: "true"}))


def test_a_referrer_that_went_is_not_lost() -> None:
    assert lost_entries(with_referrer(INDEX, descriptor("x")), INDEX) == ()


# ---- what an image was pulled as

PULLED = Provenance(
    reference="docker.io/library/one:1", digest=Digest.of(b"an index", "sha512"), platform="linux/arm64"
)


@pytest.mark.parametrize("provenance", [PULLED, attrs.evolve(PULLED, platform=None)])
def test_an_entry_says_what_it_was_pulled_as(provenance: Provenance) -> None:
    new = with_name(INDEX, "new:1", descriptor("new"), provenance).entries[-1].descriptor
    assert provenance_of(new) == provenance
    assert provenance_of(with_name(INDEX, "new:1", descriptor("new")).entries[-1].descriptor) is None


@pytest.mark.parametrize("missing", [REFERENCE_ANNOTATION, DIGEST_ANNOTATION])
def test_an_entry_that_does_not_say_all_of_it_says_nothing(missing: str) -> None:
    said = {key: text for key, text in PULLED.annotations.items() if key != missing}
    assert provenance_of(descriptor("x", **said)) is None
    assert provenance_of(descriptor("x", **{**PULLED.annotations, DIGEST_ANNOTATION: "latest"})) is None


def test_an_entry_that_stays_is_changed_in_what_it_was_pulled_as_and_in_nothing_else() -> None:
    raw = {"digest": "as it stood", "x-theirs": [1], "annotations": {"org.example": "x", NAME_ANNOTATION: "one:1"}}
    theirs = index(LayoutEntry(descriptor=descriptor("one", "one:1", **{"org.example": "x"}), raw=raw))
    named = with_name(theirs, "one:1", descriptor("one"), PULLED).entries[0]
    noted = {"org.example": "x", NAME_ANNOTATION: "one:1", **PULLED.annotations}
    assert (named.descriptor.annotations, named.raw) == (noted, {**raw, "annotations": noted})
    whole = with_name(index(named), "one:1", descriptor("one"), attrs.evolve(PULLED, platform=None)).entries[0]
    assert PLATFORM_ANNOTATION not in whole.descriptor.annotations
    assert with_name(index(named), "one:1", descriptor("one"), PULLED).entries == (named,)
    assert with_name(index(named), "one:1", descriptor("one"), PULLED).entries[0].raw is named.raw


def test_an_entry_that_stays_keeps_what_it_was_pulled_as_where_nobody_says_otherwise() -> None:
    named = with_name(INDEX, "one:1", descriptor("one"), PULLED)
    assert with_name(named, "one:1", descriptor("one")) == named
    moved = with_name(named, "one:1", descriptor("new")).entries[0].descriptor
    assert provenance_of(moved) is None


def test_S6_an_image_from_outside_does_not_say_what_it_was_pulled_as() -> None:
    # A registry that could would have its image kept, whatever the tag stands for by then.
    forged = descriptor("x", **PULLED.annotations, **{"dev.minibox.store.anything": "x"})
    new = with_name(LayoutIndex(), "app:1", forged).entries[0].descriptor
    assert new.annotations == {NAME_ANNOTATION: "app:1"}


def test_an_image_that_was_pulled_again_as_something_else_is_not_lost() -> None:
    before = with_name(INDEX, "one:1", descriptor("one"), PULLED)
    after = with_name(before, "one:1", descriptor("one"), attrs.evolve(PULLED, platform=None))
    assert before != after
    assert lost_entries(before, after) == lost_entries(INDEX, after) == lost_entries(after, INDEX) == ()


# ---- a name goes


def test_a_name_that_goes_takes_nothing_else_along() -> None:
    gone = without_name(INDEX, "team/two:1")
    assert gone.entries == (*INDEX.entries[:2], INDEX.entries[3])
    assert gone.raw == INDEX.raw


def test_a_name_that_a_foreign_tool_wrote_twice_goes_altogether() -> None:
    twice = index(entry("first", "a:1"), entry("other"), entry("second", "a:1"))
    assert contents(without_name(twice, "a:1")) == [(None, short("other"))]


@pytest.mark.parametrize("name", ["one", "docker.io/library/one:1", "missing", ""])
def test_only_the_very_name_goes(name: str) -> None:
    with pytest.raises(ImageNotFound) as caught:
        without_name(INDEX, name)
    assert caught.value.name == name


def test_a_name_that_comes_and_goes_leaves_the_index_as_it_was() -> None:
    assert without_name(with_name(INDEX, "new:1", descriptor("new")), "new:1") == INDEX


# What a change took away, and giving it back


def test_what_was_removed_or_replaced_is_lost_in_its_order_and_what_stayed_or_came_is_not() -> None:
    after = with_name(without_name(INDEX, "one:1"), "three", descriptor("other"))
    after = without_name(with_name(after, "new:1", descriptor("new")), "new:1")
    assert lost_entries(INDEX, after) == (entry("one", "one:1"), entry("three", "three"))
    assert lost_entries(INDEX, with_name(INDEX, "new:1", descriptor("new"))) == ()
    assert lost_entries(INDEX, index()) == INDEX.entries


def test_of_two_entries_with_one_name_only_the_first_can_be_lost() -> None:
    twice = index(entry("one", "one:1"), entry("two", "one:1"))
    assert lost_entries(twice, index(entry("one", "one:1"))) == ()
    assert lost_entries(twice, index(entry("two", "one:1"))) == (entry("one", "one:1"),)
    assert lost_entries(index(entry("one", "one:1")), index(entry("two", "one:1"), entry("one", "one:1"))) == (
        entry("one", "one:1"),
    )


def test_an_entry_that_is_given_back_stands_as_it_stood_in_the_place_of_its_name() -> None:
    given = entry("two", "team/two:1", raw={"what": "two", "unknown": 1})
    found = with_entry(INDEX, given)
    assert found == INDEX
    assert found.entries[2].raw == {"what": "two", "unknown": 1}
    assert found.raw == INDEX.raw
    assert with_entry(without_name(INDEX, "one:1"), INDEX.entries[0]).entries == (*INDEX.entries[1:], INDEX.entries[0])


def test_an_entry_without_a_name_takes_no_others_place_and_is_there_once() -> None:
    assert with_entry(INDEX, entry("more")).entries == (*INDEX.entries, entry("more"))
    assert with_entry(INDEX, entry("nameless")) == INDEX


def test_an_entry_that_says_another_size_of_the_same_digest_is_replaced() -> None:
    wrong = attrs.evolve(descriptor("one", "one:1"), size_bytes=7)
    found = with_name(index(LayoutEntry(descriptor=wrong, raw={"what": "wrong"})), "one:1", descriptor("one"))
    assert [each.descriptor.size_bytes for each in found.entries] == [3]
