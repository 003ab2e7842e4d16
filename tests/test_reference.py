"""References: the grammar, Docker Hub's defaults, both spellings, and what a refusal says."""

import time

import pytest

from minibox_store.digest import Digest
from minibox_store.errors import InvalidReference
from minibox_store.reference import Reference, check_image_name, normalised

SHA256 = "sha256:" + "f" * 64
SHA512 = "sha512:" + "0a" * 64


def test_a_bare_name_is_an_official_image_of_docker_hub_with_the_tag_latest() -> None:
    reference = Reference.parse("alpine")
    assert reference == Reference(domain="docker.io", repository="library/alpine", tag="latest", digest=None)
    assert str(reference) == "docker.io/library/alpine:latest"
    assert reference.familiar() == "alpine:latest"


@pytest.mark.parametrize(
    ("text", "domain", "repository", "tag"),
    [
        ("localhost:5000/app", "localhost:5000", "app", "latest"),
        ("localhost:5000/app:1.0", "localhost:5000", "app", "1.0"),
        ("host:5000/a/b:1.0", "host:5000", "a/b", "1.0"),
        ("host:5000/a/b", "host:5000", "a/b", "latest"),
        ("[::1]:5000/app:2", "[::1]:5000", "app", "2"),
        ("[::1]/app", "[::1]", "app", "latest"),
    ],
)
def test_first_colon_reference_parsing_takes_no_port_for_a_tag(
    text: str, domain: str, repository: str, tag: str
) -> None:
    assert Reference.parse(text) == Reference(domain=domain, repository=repository, tag=tag)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("test_com", "docker.io/library/test_com:latest"),
        ("test.com:tag", "docker.io/library/test.com:tag"),
        ("test.com:5000", "docker.io/library/test.com:5000"),
        ("localhost", "docker.io/library/localhost:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhos/app", "docker.io/localhos/app:latest"),
        ("test.com/repo:tag", "test.com/repo:tag"),
        ("test:5000/repo:tag", "test:5000/repo:tag"),
        ("lowercase:Uppercase", "docker.io/library/lowercase:Uppercase"),
        ("Docker/docker", "Docker/docker:latest"),
        ("sub-dom1.foo.com/bar/baz/quux:some-long-tag", "sub-dom1.foo.com/bar/baz/quux:some-long-tag"),
        ("b.gcr.io/test.example.com/my-app:test.example.com", "b.gcr.io/test.example.com/my-app:test.example.com"),
        ("xn--n3h.com/myimage:xn--n3h.com", "xn--n3h.com/myimage:xn--n3h.com"),
        ("foo_bar.com:8080", "docker.io/library/foo_bar.com:8080"),
        ("foo/foo_bar.com:8080", "docker.io/foo/foo_bar.com:8080"),
        ("192.168.1.1", "docker.io/library/192.168.1.1:latest"),
        ("192.168.1.1/repo", "192.168.1.1/repo:latest"),
        ("192.168.1.1:5000/repo:5050", "192.168.1.1:5000/repo:5050"),
        ("[2001:db8:1:2:3:4:5:6]/repo:tag", "[2001:db8:1:2:3:4:5:6]/repo:tag"),
        ("[2001:db8::]:5000/repo", "[2001:db8::]:5000/repo:latest"),
        ("docker---rules/dock__er", "docker.io/docker---rules/dock__er:latest"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
        ("docker.io/library/foo/bar", "docker.io/library/foo/bar:latest"),
        ("index.docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
        ("index.docker.io/team/ubuntu:1", "docker.io/team/ubuntu:1"),
        ("docker.io/" + "1a" * 32, "docker.io/library/" + "1a" * 32 + ":latest"),
        ("1a" * 32 + ":1", "docker.io/library/" + "1a" * 32 + ":1"),
        ("g" + "a" * 63, "docker.io/library/g" + "a" * 63 + ":latest"),
    ],
)
def test_the_canonical_spelling_is_the_one_of_the_distribution_project(text: str, canonical: str) -> None:
    assert str(Reference.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "tag", "digest"),
    [
        ("alpine", "latest", None),
        ("alpine:3.20", "3.20", None),
        (f"alpine@{SHA256}", None, SHA256),
        (f"alpine:3.20@{SHA256}", "3.20", SHA256),
        (f"xn--7o8h.com/myimage:tag@{SHA512}", "tag", SHA512),
        (f"[2001:db8::1]:5000/repo@{SHA256}", None, SHA256),
        ("alpine:_" + "a" * 127, "_" + "a" * 127, None),
    ],
)
def test_the_tag_is_latest_only_where_neither_tag_nor_digest_is_given(
    text: str, tag: str | None, digest: str | None
) -> None:
    reference = Reference.parse(text)
    assert reference.tag == tag
    assert reference.digest == (None if digest is None else Digest.parse(digest))


@pytest.mark.parametrize(
    ("text", "familiar"),
    [
        ("docker.io/library/ubuntu:1", "ubuntu:1"),
        ("docker.io/fooo/bar:1", "fooo/bar:1"),
        ("docker.io/library/foo/bar:1", "library/foo/bar:1"),
        ("quay.io/library/foo:1", "quay.io/library/foo:1"),
        ("Foo/bar:1", "Foo/bar:1"),
        (f"docker.io/library/busybox:latest@{SHA256}", f"busybox:latest@{SHA256}"),
        ("docker.io/library/foo.bar:1", "foo.bar:1"),
        ("docker.io/quay.io/bar:1", "docker.io/quay.io/bar:1"),
        ("docker.io/localhost/bar:1", "docker.io/localhost/bar:1"),
    ],
)
def test_the_familiar_spelling_leaves_out_what_docker_hub_adds(text: str, familiar: str) -> None:
    assert Reference.parse(text).familiar() == familiar


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the repository is empty"),
        (":justtag", "the repository is empty"),
        (f"@{SHA256}", "the repository is empty"),
        ("docker/", "empty part"),
        ("host:5000/", "the repository is empty"),
        ("docker///docker", "empty part"),
        ("docker.io/docker///docker", "empty part"),
        ("alpine:", "the tag is empty"),
        ("alpine:" + "a" * 129, "at most 128"),
        ("alpine:-1", "begin with no period or hyphen"),
        ("alpine:1\n", "at most 128 letters"),
        ("alpine@", "digest is invalid"),
        ("repo@sha256:" + "f" * 34, "64 lower-case hexadecimal digits"),
        ("repo@sha256:" + "F" * 64, "64 lower-case hexadecimal digits"),
        ("repo@invaliddigest:" + "f" * 64, "not sha256 or sha512"),
        (f"repo@{SHA256}@{SHA256}", "digest is invalid"),
        (f"repo@{SHA256}:tag", "digest is invalid"),
        ("Uppercase:tag", "must be lower case"),
        ("docker/Docker", "must be lower case"),
        ("test:5000/Uppercase/lowercase:tag", "must be lower case"),
        ("aa/asdf$$^/aa", "'asdf$$^'"),
        ("-docker", "'-docker'"),
        ("docker-/docker", "'docker-'"),
        ("____/____", "'____'"),
        ("_docker/_docker", "'_docker'"),
        ("dock..er/docker", "'dock..er' is no domain"),
        ("a/dock..er", "'dock..er'"),
        ("a/dock_.er", "'dock_.er'"),
        ("a/dock-.er", "'dock-.er'"),
        ("a/dock___er", "'dock___er'"),
        ("-docker.io/docker/docker", "'-docker.io' is no domain"),
        ("[fc00::1]", "'[fc00:'"),
        ("[fc00::1]:5000", "'[fc00::1]'"),
        ("fc00::1:5000/debian", "is no domain"),
        ("[fe80::1%eth0]:5000/debian", "is no domain"),
        ("[fe80::1%@invalidzone]:5000/repo", "digest is invalid"),
        ("[2001:db8:3:4::192.0.2.33]:5000/debian", "is no domain"),
        ("host:port/app", "'host:port' is no domain"),
        ("https://github.com/docker/docker", "leave out the scheme"),
        ("1a" * 32, "64 hexadecimal digits"),
        ("älpine", "lower-case letters"),
        ("al pine", "lower-case letters"),
        ("alpine\n", "lower-case letters"),
        ("alpine\x00", "lower-case letters"),
        ("app/\N{ARABIC-INDIC DIGIT ONE}", "lower-case letters"),
    ],
)
def test_what_breaks_the_grammar_is_refused_with_the_text_and_the_reason(text: str, problem: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert caught.value.text == text
    assert problem in caught.value.problem
    assert normalised(text) is None


def test_a_name_may_have_255_characters_with_its_domain_and_not_one_more() -> None:
    longest = "docker.io/" + "a/" * 122 + "a"
    assert len(longest) == 255
    assert Reference.parse(f"{longest}:tag").repository == longest.removeprefix("docker.io/")
    with pytest.raises(InvalidReference, match="longer than 255 characters"):
        Reference.parse(f"{longest}a:tag")


def test_the_longest_name_with_the_longest_tag_and_digest_is_a_reference() -> None:
    text = "docker.io/" + "a/" * 122 + "a:" + "t" * 128 + "@" + SHA512
    assert str(Reference.parse(text)) == text


@pytest.mark.parametrize("unit", ["a", "a-", "-", "a/", "a.", "a_", "__", ".", ":", "@", "[:", "/", "A", "0:"])
def test_hostile_texts_are_refused_in_linear_time_and_not_repeated_at_length(unit: str) -> None:
    started = time.process_time()
    for length in (1000, 1_000_000):
        with pytest.raises(InvalidReference) as caught:
            Reference.parse((unit * length)[:length] + "!")
        assert len(str(caught.value)) < 3000
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("domain", "repository", "tag"),
    [
        ("foo", "bar", "1"),
        ("index.docker.io", "library/alpine", "1"),
        ("docker.io", "alpine", "1"),
        ("quay.io", "Upper", "1"),
        ("quay.io", "../../etc", "1"),
        ("quay.io", "a:b", "1"),
        ("quay.io/a", "b", "1"),
        ("", "b", "1"),
        ("quay.io", "", "1"),
        ("quay.io", "a", ""),
        ("quay.io", "a", "1/2"),
        ("quay.io", "a", None),
    ],
)
def test_a_reference_that_is_not_canonical_cannot_be_built(domain: str, repository: str, tag: str | None) -> None:
    with pytest.raises(InvalidReference):
        Reference(domain=domain, repository=repository, tag=tag)


def test_two_spellings_of_one_image_normalise_to_the_same_text() -> None:
    spellings = [
        "alpine",
        "alpine:latest",
        "library/alpine",
        "docker.io/alpine",
        "index.docker.io/library/alpine:latest",
    ]
    assert {normalised(spelling) for spelling in spellings} == {"docker.io/library/alpine:latest"}
    assert normalised("quay.io/alpine") != normalised("alpine")


@pytest.mark.parametrize(
    "name", ["a", "alpine:3.18", "quay.io/org/app:2", "[::1]:5000/app", "9", "A~!@#", "a" * 512, "a/..b"]
)
def test_a_name_for_the_store_is_returned_as_it_is(name: str) -> None:
    assert check_image_name(name) == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "empty"),
        ("a" * 513, "longer than 512"),
        ("a b", "visible ASCII"),
        ("a\n", "visible ASCII"),
        ("a\x00", "visible ASCII"),
        ("a\x7f", "visible ASCII"),
        ("älpine", "visible ASCII"),
        ("/etc/passwd", "begin with"),
        ("-a", "begin with"),
        (".", "begin with"),
        ("_a", "begin with"),
        ("a//b", "segment ''"),
        ("a/", "segment ''"),
        ("a/./b", "segment '.'"),
        ("a/../b", "segment '..'"),
        ("a/..", "segment '..'"),
    ],
)
def test_a_name_that_no_image_may_have_in_a_store_is_refused_with_the_reason(name: str, problem: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        check_image_name(name)
    assert problem in caught.value.problem
