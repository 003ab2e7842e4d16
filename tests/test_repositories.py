"""Which repository and tag a name is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store import Descriptor, Digest
from minibox_store.documents import LayoutEntry, LayoutIndex
from minibox_store.errors import InvalidReference
from minibox_store.layout_index import NAME_ANNOTATION, REFERRER_ANNOTATION, REPOSITORY_ANNOTATION, name_of
from minibox_store.repositories import (
    check_repository_name,
    find_repository,
    is_repository_name,
    offers_of,
    repository_names,
    with_pushed,
    without_entries,
)

DIGEST = "sha256:" + "ab" * 32
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def entry(content: str, **annotations: str) -> LayoutEntry:
    digest = Digest.of(content.encode())
    return LayoutEntry(descriptor=Descriptor(media_type=MANIFEST, digest=digest, size_bytes=1, annotations=annotations))


def index_of(*names: str) -> LayoutIndex:
    return LayoutIndex(entries=tuple(entry(name, **{NAME_ANNOTATION: name}) for name in names))


def tags_of(*names: str) -> dict[str, dict[str, str]]:
    """Return which name each tag of each repository stands for."""
    index = index_of(*names)
    found = {name: find_repository(index, name) for name in repository_names(index)}
    return {name: {tag: str(name_of(claims[0])) for tag, claims in each.tags.items()} for name, each in found.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("app:1", [("app", "1"), ("library/app", "1")]),
        ("app", [("app", "latest"), ("library/app", "latest")]),
        ("alpine:3", [("alpine", "3"), ("library/alpine", "3")]),
        ("library/alpine:3", [("alpine", "3"), ("library/alpine", "3")]),
        ("docker.io/library/alpine:3", [("alpine", "3"), ("library/alpine", "3"), ("docker.io/library/alpine", "3")]),
        ("docker.io/alpine", [("alpine", "latest"), ("library/alpine", "latest"), ("docker.io/alpine", "latest")]),
        ("index.docker.io/org/app:2", [("org/app", "2"), ("index.docker.io/org/app", "2")]),
        ("org/app:2", [("org/app", "2")]),
        ("quay.io/org/app:2", [("org/app", "2"), ("quay.io/org/app", "2")]),
        ("quay.io/app", [("app", "latest"), ("quay.io/app", "latest")]),
        ("quay.io/library/app:1", [("library/app", "1"), ("quay.io/library/app", "1")]),
        ("localhost/app:1", [("app", "1"), ("localhost/app", "1")]),
        ("localhost:5000/team/app:1", [("team/app", "1")]),
        ("[::1]:5000/app:1", [("app", "1")]),
        (f"app@{DIGEST}", [("app", None), ("library/app", None)]),
        (f"quay.io/org/app:2@{DIGEST}", [("org/app", "2"), ("quay.io/org/app", "2")]),
        ("library/a/b:1", [("library/a/b", "1")]),
        ("a_b.c/app:1", [("a_b.c/app", "1")]),
        ("a_b.c/app", [("a_b.c/app", "latest")]),
        ("b" * 251 + ":1", [("b" * 251, "1")]),
        ("Upper:1", []),
        ("a//b", []),
        ("no reference", []),
        ("", []),
    ],
)
def test_a_name_is_offered_as(name: str, expected: list[tuple[str, str | None]]) -> None:
    assert [(offer.repository, offer.tag) for offer in offers_of(name)] == expected


@pytest.mark.parametrize(
    ("names", "repository", "tag", "winner"),
    [
        (["quay.io/org/app:2", "org/app:2"], "org/app", "2", "org/app:2"),
        (["docker.io/org/app:2", "org/app:2"], "org/app", "2", "org/app:2"),
        (["app", "app:latest"], "app", "latest", "app:latest"),
        (["a.io/app", "app"], "app", "latest", "app"),
        (["a.io/app", "docker.io/app"], "app", "latest", "docker.io/app"),
        (["b.io/app:1", "a.io/app:1"], "app", "1", "a.io/app:1"),
        (["alpine:3", "library/alpine:3"], "alpine", "3", "alpine:3"),
        (["alpine:3", "library/alpine:3"], "library/alpine", "3", "library/alpine:3"),
        (["quay.io/library/alpine:3", "alpine:3"], "library/alpine", "3", "alpine:3"),
    ],
)
def test_where_names_collide_the_nearest_wins(names: list[str], repository: str, tag: str, winner: str) -> None:
    for order in (names, names[::-1]):
        assert tags_of(*order)[repository][tag] == winner
        members = find_repository(index_of(*order), repository).roots
        assert {name_of(each) for each in members} == set(names)


DOMAINS = [
    "",
    "quay.io/",
    "docker.io/",
    "index.docker.io/",
    "localhost/",
    "localhost:5000/",
    "[::1]:5000/",
    "a_b.c/",
    "/",
]
PATHS = ["app", "library/app", "org/app", "quay.io/app", "App", "a//app", "b" * 64, "b" * 250 + "/app", ""]
ENDS = ["", ":1", ":2", ":latest", ":5000", ":-", ":a/app", ":", ":1:2", f"@{DIGEST}", f":1@{DIGEST}", ":" + "t" * 129]
NAMES = st.builds("".join, st.tuples(*map(st.sampled_from, (DOMAINS, PATHS, ENDS))))


@given(names=st.lists(NAMES, max_size=12, unique=True))
def test_of_many_names_each_is_offered_as_it_is_alone(names: list[str]) -> None:
    index = index_of(*names)
    for repository in {offer.repository for name in names for offer in offers_of(name)}:
        alone = [find_repository(index_of(name), repository) for name in names]
        expected: dict[str, list[tuple[int, str]]] = {}
        for name in names:
            for offer in offers_of(name):
                if offer.repository == repository and offer.tag is not None:
                    expected.setdefault(offer.tag, []).append((offer.claim, name))
        found = find_repository(index, repository)
        assert {root for each in alone for root in each.roots} == set(found.roots)
        assert {tag: [str(name_of(claim)) for claim in claims] for tag, claims in found.tags.items()} == {
            tag: [name for _, name in sorted(claims)] for tag, claims in expected.items()
        }


def test_one_repository_has_the_tags_of_several_registries() -> None:
    found = tags_of("app:1", "quay.io/app:2", f"ghcr.io/app@{DIGEST}")
    assert found["app"] == {"1": "app:1", "2": "quay.io/app:2"}
    assert found["quay.io/app"] == {"2": "quay.io/app:2"}


def test_no_images_are_no_repositories() -> None:
    assert repository_names(LayoutIndex()) == ()
    assert find_repository(LayoutIndex(), "app").roots == ()


@pytest.mark.parametrize("name", ["app", "a/b/c", "a.b_c__d-e", "a" * 251, "0"])
def test_repositories_have_names_of_the_specification(name: str) -> None:
    assert is_repository_name(name)


@pytest.mark.parametrize("name", ["", "App", "a//b", "/a", "a/", "..", "a/../b", "a b", "a\n", "é", "a" * 256, "a:b"])
def test_anything_else_is_no_repository(name: str) -> None:
    assert not is_repository_name(name)
    with pytest.raises(InvalidReference) as caught:
        check_repository_name(name)
    assert caught.value.text == name
    assert "a.a" not in str(caught.value)


def test_a_tag_that_is_none_is_named_with_its_repository_and_no_registry() -> None:
    with pytest.raises(InvalidReference, match="invalid image reference 'team/app:-bad': the tag '-bad' must be"):
        check_repository_name("team/app", "-bad")
    assert check_repository_name("team/app", "1") == "team/app"


@given(st.lists(st.text(st.sampled_from("ab:/.@1"), max_size=12), max_size=6))
def test_whatever_the_names_each_tag_stands_for_one_of_its_own(names: list[str]) -> None:
    for repository, tags in tags_of(*names).items():
        assert is_repository_name(repository)
        for tag, name in tags.items():
            assert (repository, tag) in [(offer.repository, offer.tag) for offer in offers_of(name)]


PUSHED = Descriptor(media_type=MANIFEST, digest=Digest.of(b"pushed"), size_bytes=7)
EARLIER = entry("app:1").descriptor


def test_what_is_pushed_by_digest_has_an_entry_without_a_name_once() -> None:
    index = index_of("app:1")
    for _ in range(2):
        index = with_pushed(
            index, repository="app", descriptor=PUSHED, tag=None, is_kept_by_subject=False, reached={PUSHED.digest}
        )
    [_, pushed] = index.entries
    assert pushed.descriptor.annotations == {REPOSITORY_ANNOTATION: "app"}
    assert [root.digest for root in find_repository(index, "app").roots] == [EARLIER.digest, PUSHED.digest]
    assert find_repository(index, "library/app").roots == (index.entries[0].descriptor,)
    assert repository_names(index) == ("app", "library/app")


def test_what_has_a_name_in_the_repository_gets_no_entry_without_one() -> None:
    index = index_of("app:1")
    again = with_pushed(
        index, repository="app", descriptor=EARLIER, tag=None, is_kept_by_subject=False, reached={EARLIER.digest}
    )
    assert again == index


def test_a_name_takes_away_the_entries_without_one_that_it_reaches_but_no_referrer_and_none_of_others() -> None:
    child, own = {REPOSITORY_ANNOTATION: "app"}, {REPOSITORY_ANNOTATION: "app", REFERRER_ANNOTATION: "true"}
    entries = (
        entry("child", **child),
        entry("child", **{REPOSITORY_ANNOTATION: "other"}),
        entry("child"),
        entry("signature", **own),
        entry("apart", **child),
    )
    index = with_pushed(
        LayoutIndex(entries=entries),
        repository="app",
        descriptor=PUSHED,
        tag="1",
        is_kept_by_subject=False,
        reached={PUSHED.digest, entries[0].descriptor.digest, entries[3].descriptor.digest},
    )
    assert index.entries[:-1] == entries[1:]
    assert name_of(index.entries[-1].descriptor) == "app:1"


def test_what_a_tag_stood_for_stays_without_a_name_unless_another_entry_stands_for_it() -> None:
    def push(index: LayoutIndex) -> list[tuple[str | None, Digest]]:
        pushed = with_pushed(
            index,
            repository="app",
            descriptor=PUSHED,
            tag="1",
            is_kept_by_subject=False,
            reached={PUSHED.digest},
            earlier=EARLIER,
        )
        return [(name_of(each.descriptor), each.descriptor.digest) for each in pushed.entries]

    assert push(index_of("app:1")) == [("app:1", PUSHED.digest), (None, EARLIER.digest)]
    twice = LayoutIndex(entries=(*index_of("app:1").entries, entry("app:1", **{NAME_ANNOTATION: "app:2"})))
    assert push(twice) == [("app:1", PUSHED.digest), ("app:2", EARLIER.digest)]


def test_only_entries_of_the_repository_are_taken_away() -> None:
    own = entry("pushed", **{REPOSITORY_ANNOTATION: "app"})
    other = entry("pushed", **{REPOSITORY_ANNOTATION: "other"})
    index = LayoutIndex(entries=(*index_of("app:1", "app:2").entries, own, other))
    left = without_entries(index, [EARLIER, own.descriptor, other.descriptor, index.entries[0].descriptor], "app")
    assert left.entries == (index.entries[1], other)
