"""``WWW-Authenticate`` is read by the grammar of RFC 9110, with the liberties that registries in use take."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.registry.challenges import Challenge, parse_challenges

TOKEN_SERVER = {"realm": "https://auth.example/token", "service": "registry.example", "scope": "repository:a/b:pull"}


def test_a_bearer_challenge_gives_its_parameters() -> None:
    header = 'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull"'
    assert parse_challenges([header]) == (Challenge(scheme="bearer", parameters=TOKEN_SERVER),)


@pytest.mark.parametrize(
    "header",
    [
        'bearer realm="https://auth.example/token" , service="registry.example" ,scope="repository:a/b:pull"',
        'BEARER REALM = "https://auth.example/token", Service="registry.example", SCOPE="repository:a/b:pull"',
        'Bearer\trealm="https://auth.example/token",,service=registry.example,, scope="repository:a/b:pull" ,',
        # Quay once sent the scope without quotes, which no token may have.
        'Bearer realm="https://auth.example/token",service="registry.example",scope=repository:a/b:pull',
        "Bearer realm=https://auth.example/token,service=registry.example,scope=repository:a/b:pull",
        r'Bearer realm="https:\/\/auth.example/token",service="registry\.example",scope="repository:a/b:pull"',
        ', Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull"',
    ],
)
def test_spellings_of_one_challenge_give_the_same(header: str) -> None:
    assert parse_challenges([header]) == (Challenge(scheme="bearer", parameters=TOKEN_SERVER),)


def test_several_challenges_in_one_header_are_told_apart_by_their_schemes() -> None:
    header = 'Negotiate, Basic realm="a, b", charset="UTF-8", Bearer realm="c",service="d", Digest'
    assert parse_challenges([header]) == (
        Challenge(scheme="negotiate"),
        Challenge(scheme="basic", parameters={"realm": "a, b", "charset": "UTF-8"}),
        Challenge(scheme="bearer", parameters={"realm": "c", "service": "d"}),
        Challenge(scheme="digest"),
    )


def test_several_headers_give_their_challenges_in_order() -> None:
    found = parse_challenges(['BASIC realm="a"', 'Bearer realm="b"'])
    assert [challenge.scheme for challenge in found] == ["basic", "bearer"]


def test_a_token68_is_no_parameter() -> None:
    assert parse_challenges(["Negotiate YWJj/+==, Basic realm=x"]) == (
        Challenge(scheme="negotiate", token68="YWJj/+=="),
        Challenge(scheme="basic", parameters={"realm": "x"}),
    )


def test_what_stands_behind_a_token68_is_none_of_its_parameters() -> None:
    assert parse_challenges(["Negotiate YWJj, realm=x"])[0] == Challenge(scheme="negotiate", token68="YWJj")


def test_a_parameter_whose_quotation_never_ends_has_no_value() -> None:
    assert parse_challenges(['Bearer service=a,realm="b']) == (Challenge(scheme="bearer", parameters={"service": "a"}),)


def test_a_service_with_spaces_is_kept_whole() -> None:
    found = parse_challenges(['Bearer realm="https://a/",service="SUSE Linux Docker Registry"'])
    assert found[0].parameters["service"] == "SUSE Linux Docker Registry"


def test_a_scope_with_commas_is_kept_whole() -> None:
    found = parse_challenges(['Bearer realm="https://a/",scope="repository:a:pull,push",service=b'])
    assert found[0].parameters == {"realm": "https://a/", "scope": "repository:a:pull,push", "service": "b"}


def test_escapes_in_quotes_are_taken_back() -> None:
    assert parse_challenges([r'Basic realm="a \"b\" \\ \c"'])[0].parameters["realm"] == r'a "b" \ c'


def test_of_a_parameter_that_comes_twice_the_first_counts() -> None:
    assert parse_challenges(['Bearer realm="a",realm="b"'])[0].parameters == {"realm": "a"}


@pytest.mark.parametrize(
    ("header", "schemes"),
    [
        ("", []),
        (" ,, ", []),
        ('Bearer realm="unfinished, Basic realm=x', ["bearer"]),
        ('="x", Basic realm="y"', ["basic"]),
        ('Bearer realm="a"junk, Basic', ["bearer", "basic"]),
        ("Bearer {}, Basic", ["bearer", "basic"]),
        ("Bearer realm=a b, Basic", ["bearer", "basic"]),
    ],
)
def test_what_fits_nothing_is_passed_over(header: str, schemes: list[str]) -> None:
    assert [challenge.scheme for challenge in parse_challenges([header])] == schemes


@given(st.lists(st.text() | st.text('Bearer realm="x\\",= \t:/'), max_size=3))
def test_any_text_is_read_without_an_error(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.parameters)


_NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1)


_PARAMETERS = st.dictionaries(_NAMES, st.text(st.characters(max_codepoint=255)), min_size=1)


@given(st.lists(st.tuples(_NAMES, _PARAMETERS), max_size=32))
def test_what_is_written_by_the_grammar_is_read_back(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
        for scheme, parameters in challenges
    )
    assert [(found.scheme, found.parameters) for found in parse_challenges([header])] == challenges


def test_many_headers_of_nothing_but_challenges_are_not_kept() -> None:
    found = parse_challenges(["a," * 30_000, "b," * 30_000])
    assert [each.scheme for each in found] == ["a"] * 32


@pytest.mark.parametrize(
    "piece",
    ['"', "\\", "a=", "a ", "a,", 'a="', 'a="\\"', "=", " ", "\t", "a" * 50 + " ", "a=b,", "/", '"\\"a'],
)
def test_a_hostile_header_takes_time_linear_in_its_length(piece: str) -> None:
    header = "Bearer " + piece * (200_000 // len(piece))
    started = time.process_time()
    parse_challenges([header])
    assert time.process_time() - started < 2.0
