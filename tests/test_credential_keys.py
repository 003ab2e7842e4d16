"""Which key of a file of credentials is meant for a repository: by host, then by whole segments, never by a prefix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.errors import InvalidReference
from minibox_store.registry.credential_keys import hosts_of, matching_keys, parse_registry, place_of

SEGMENTS = st.lists(st.sampled_from(["a", "b", "ab", "v1", "team"]), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("quay.io", "quay.io"),
        ("Quay.IO", "quay.io"),
        ("quay.io/", "quay.io"),
        ("https://quay.io", "quay.io"),
        ("HTTP://quay.io/", "quay.io"),
        ("https://quay.io/v1/", "quay.io"),
        ("https://quay.io/v2", "quay.io"),
        ("quay.io/v1/", "quay.io"),
        ("quay.io/v2/", "quay.io"),
        ("quay.io/v2", "quay.io/v2"),
        ("localhost:5000", "localhost:5000"),
        ("https://localhost:5000/v1/", "localhost:5000"),
        ("quay.io/team/app", "quay.io/team/app"),
        ("quay.io/team/", "quay.io/team"),
        ("https://index.docker.io/v1/", "index.docker.io"),
        ("https://index.docker.io/v1/access-token", None),
        ("https://quay.io/team", None),
        ("https://alice@quay.io", None),
        ("quay.io@evil.example", None),
        ("/team", None),
        ("https://", None),
        ("", None),
    ],
)
def test_what_tools_have_written_means_a_host_or_a_path_below_it(key: str, place: str | None) -> None:
    assert place_of(key) == place


def matched(keys: list[str], registry: str, repository: str) -> list[str]:
    return list(matching_keys(keys, registry, repository))


def test_the_longest_path_goes_first_and_the_host_last() -> None:
    keys = ["quay.io", "quay.io/team/app", "quay.io/team", "quay.io/team/app/deep"]
    assert matched(keys, "quay.io", "team/app") == ["quay.io/team/app", "quay.io/team", "quay.io"]


@pytest.mark.parametrize(
    "key",
    [
        "quay.io/tea",
        "quay.io/team/ap",
        "quay.io/team/app/x",
        "quay.i",
        "quay.io.example.org",
        "uay.io",
        "quay.io:443",
        "quay.io:5000",
        "notquay.io",
        "https://quay.io.example.org/v1/",
        "evil.example/quay.io/team/app",
    ],
)
def test_s1_a_key_that_only_looks_like_the_registry_is_another_ones(key: str) -> None:
    assert matched([key], "quay.io", "team/app") == []


def test_a_port_belongs_to_the_host() -> None:
    keys = ["localhost", "localhost:5000", "localhost:50000"]
    assert matched(keys, "localhost:5000", "app") == ["localhost:5000"]
    assert matched(keys, "localhost", "app") == ["localhost"]


def test_docker_hub_is_found_by_each_of_its_names() -> None:
    for key in ("docker.io", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"):
        assert matched([key], "docker.io", "library/alpine") == [key]
    assert matched(["docker.io/library", "docker.io"], "docker.io", "library/alpine") == [
        "docker.io/library",
        "docker.io",
    ]
    assert matched(["docker.io"], "quay.io", "library/alpine") == []


def test_the_plain_spelling_goes_before_an_older_one_of_the_same_host() -> None:
    assert matched(["https://quay.io/v1/", "quay.io"], "quay.io", "a") == ["quay.io", "https://quay.io/v1/"]


@given(SEGMENTS, SEGMENTS)
def test_a_key_fits_when_its_segments_begin_the_path_and_only_then(key: list[str], path: list[str]) -> None:
    fits = path[: len(key)] == key
    assert matched(["/".join(["r.example", *key])], "r.example", "/".join(path)) == (
        ["/".join(["r.example", *key])] if fits else []
    )


@given(st.text(max_size=30), st.text(max_size=10))
def test_any_text_may_be_a_key(key: str, path: str) -> None:
    for found in matched([key], "r.example", path):
        assert (place_of(found) or "").split("/")[0] == "r.example"


@pytest.mark.parametrize(
    ("text", "registry"),
    [
        ("docker.io", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("QUAY.io", "quay.io"),
        ("http://localhost:5000/", "localhost:5000"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
    ],
)
def test_people_may_name_a_registry_by_its_host_or_its_url(text: str, registry: str) -> None:
    assert parse_registry(text) == registry


@pytest.mark.parametrize("text", ["", "quay", "quay.io/team", "https://u:p@quay.io", "a b.c", "quay.io:x", "-.io"])
def test_what_is_no_registry_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_registry(text)
    assert "u:p" not in repr(caught.value)


def test_the_hosts_of_any_other_registry_are_its_own() -> None:
    assert hosts_of("Quay.io") == ("quay.io",)
