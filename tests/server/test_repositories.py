"""Which repository and tag a name is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_server.distribution.repositories import build_catalogue, is_repository_name, offers_of
from minibox_store import Descriptor, Digest, Image

DIGEST = "sha256:" + "ab" * 32


def image(name: str) -> Image:
    descriptor = Descriptor(
        media_type="application/vnd.oci.image.manifest.v1+json", digest=Digest.of(name.encode()), size_bytes=1
    )
    return Image(name=name, descriptor=descriptor, size_bytes=1)


def tags_of(*names: str) -> dict[str, dict[str, str]]:
    """Return which name each tag of each repository stands for."""
    catalogue = build_catalogue([image(name) for name in names])
    return {name: {tag: each.name for tag, each in found.tags.items()} for name, found in catalogue.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("app:1", [("app", "1"), ("library/app", "1")]),
        ("app", [("app", "latest"), ("library/app", "latest")]),
        ("alpine:3", [("alpine", "3"), ("library/alpine", "3")]),
        ("library/alpine:3", [("alpine", "3"), ("library/alpine", "3")]),
        ("docker.io/library/alpine:3", [("alpine", "3"), ("library/alpine", "3")]),
        ("docker.io/alpine", [("alpine", "latest"), ("library/alpine", "latest")]),
        ("index.docker.io/org/app:2", [("org/app", "2")]),
        ("org/app:2", [("org/app", "2")]),
        ("quay.io/org/app:2", [("org/app", "2")]),
        ("quay.io/app", [("app", "latest")]),
        ("quay.io/library/app:1", [("library/app", "1")]),
        ("localhost/app:1", [("app", "1")]),
        ("localhost:5000/team/app:1", [("team/app", "1")]),
        ("[::1]:5000/app:1", [("app", "1")]),
        (f"app@{DIGEST}", [("app", None), ("library/app", None)]),
        (f"quay.io/org/app:2@{DIGEST}", [("org/app", "2")]),
        ("library/a/b:1", [("library/a/b", "1")]),
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
        members = build_catalogue([image(name) for name in order])[repository].images
        assert {each.name for each in members} == set(names)


def test_one_repository_has_the_tags_of_several_registries() -> None:
    assert tags_of("app:1", "quay.io/app:2", f"ghcr.io/app@{DIGEST}")["app"] == {"1": "app:1", "2": "quay.io/app:2"}


def test_no_images_are_no_repositories() -> None:
    assert build_catalogue([]) == {}


@pytest.mark.parametrize("name", ["app", "a/b/c", "a.b_c__d-e", "a" * 251, "0"])
def test_repositories_have_names_of_the_specification(name: str) -> None:
    assert is_repository_name(name)


@pytest.mark.parametrize("name", ["", "App", "a//b", "/a", "a/", "..", "a/../b", "a b", "a\n", "é", "a" * 256, "a:b"])
def test_anything_else_is_no_repository(name: str) -> None:
    assert not is_repository_name(name)


@given(st.lists(st.text(st.sampled_from("ab:/.@1"), max_size=12), max_size=6))
def test_whatever_the_names_each_tag_stands_for_one_of_its_own(names: list[str]) -> None:
    for repository, tags in tags_of(*names).items():
        assert is_repository_name(repository)
        for tag, name in tags.items():
            assert (repository, tag) in [(offer.repository, offer.tag) for offer in offers_of(name)]
