"""The rules about parameters, and about ranges of bytes."""

import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_server.declarations import DIGEST, SWITCH, NoQuery, counted, decode_query, parameter
from minibox_server.distribution.ranges import ByteRange, RangeNotSatisfiable, parse_range
from minibox_server.parameters import Parameters
from minibox_server.responses import RequestError
from minibox_store import InvalidDigest


@attrs.frozen(kw_only=True)
class Switched:
    x: bool = parameter(SWITCH, "on or off", default=False)


@attrs.frozen(kw_only=True)
class Counted:
    n: int = parameter(counted(most=1000), "how many", default=1000, code="X")


def sentence(query: bytes, name: str) -> str:
    with pytest.raises(RequestError) as caught:
        Parameters(query).required(name)
    assert caught.value.status == 400
    return caught.value.sentence


def test_a_parameter_is_decoded_as_the_client_encodes_it() -> None:
    assert Parameters(b"image=a%2Fb%3A1&path=/x+y%2Bz").required("image") == "a/b:1"
    assert Parameters(b"image=a%2Fb%3A1&path=/x+y%2Bz").required("path") == "/x y+z"
    assert Parameters(b"image=%C3%A9").required("image") == "é"


@pytest.mark.parametrize("query", [b"", b"imag=a", b"image", b"image=", b"image=&image=", b"IMAGE=a", b"&;image=a"])
def test_a_parameter_that_is_missing_or_empty_is_named(query: bytes) -> None:
    assert sentence(query, "image") == "missing image"


@pytest.mark.parametrize("query", [b"image=a&image=b", b"image=a&image=a", b"image=a&image=", b"image=&image=a"])
def test_a_parameter_that_is_repeated_is_named(query: bytes) -> None:
    assert sentence(query, "image") == "parameter image is repeated"


@pytest.mark.parametrize("query", [b"image=%ff", b"image=a%C3", b"image=%ed%a0%80", b"image=\xe9"])
def test_a_parameter_that_is_not_utf8_is_named(query: bytes) -> None:
    assert sentence(query, "image") in ("parameter image is not UTF-8",)


def test_what_nobody_asks_for_is_ignored() -> None:
    assert Parameters(b"image=a&x=1&x=2&y=%ff&z").required("image") == "a"


@pytest.mark.parametrize(
    ("query", "name"),
    [(b"X=1", "X"), (b"x=1&y", "y"), (b"x=1&x%20=1", "x "), (b"=1", ""), (b"%ff=1", "\udcff"), (b"y" * 999, "y" * 100)],
)
def test_a_parameter_that_is_not_declared_is_refused_and_those_that_are_declared_are_named(
    query: bytes, name: str
) -> None:
    with pytest.raises(RequestError) as caught:
        decode_query(Switched, query)
    assert (caught.value.status, caught.value.sentence) == (400, f"parameter {name} is unknown; known here: x")
    with pytest.raises(RequestError, match="known here: none"):
        decode_query(NoQuery, query)
    assert decode_query(Switched, query, may_have_others=True).x is (b"x=1" in query)


def test_a_query_of_very_many_parameters_is_refused() -> None:
    with pytest.raises(RequestError, match="more than 100"):
        Parameters(b"&".join(b"a=1" for _ in range(101)))


def test_an_optional_parameter_is_none_or_of_its_form() -> None:
    assert Parameters(b"").optional("platform") is None
    for query in (b"platform=", b"platform=a&platform=b"):
        with pytest.raises(RequestError, match="platform"):
            Parameters(query).optional("platform")


@pytest.mark.parametrize(
    ("query", "expected"), [(b"", False), (b"x=1", True), (b"x=true", True), (b"x=0", False), (b"x=false", False)]
)
def test_a_switch_is_on_or_off(query: bytes, expected: bool) -> None:
    assert decode_query(Switched, query).x is expected


@pytest.mark.parametrize("query", [b"x=", b"x=yes", b"x=2", b"x=1&x=1", b"x"])
def test_anything_else_is_no_switch(query: bytes) -> None:
    with pytest.raises(RequestError, match="x"):
        decode_query(Switched, query)


@pytest.mark.parametrize(
    ("query", "expected"),
    [(b"", 1000), (b"n=0", 0), (b"n=7", 7), (b"n=007", 7), (b"n=1001", 1000), (b"n=" + b"9" * 5000, 1000)],
)
def test_s25_a_count_is_capped(query: bytes, expected: int) -> None:
    assert decode_query(Counted, query).n == expected


@pytest.mark.parametrize("query", [b"n=", b"n=-1", b"n=1.5", b"n=x", b"n=1&n=2", b"n=%D9%A1", b"n=+1"])
def test_anything_else_is_no_count(query: bytes) -> None:
    with pytest.raises(RequestError, match="n"):
        decode_query(Counted, query)


@pytest.mark.parametrize("text", ["0", "000", "0" * 10, "0" * 5000])
def test_a_count_below_its_least_is_refused_however_it_is_written(text: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        counted(least=1, most=5).read(text)
    assert counted(least=1, most=5).read(f"{text}1") == 1


@pytest.mark.parametrize(
    "text", ["sha256:" + "0" * 64, "sha512:" + "f" * 128, "sha256:" + "0" * 63, "sha512:" + "0" * 64]
)
def test_a_digest_is_described_as_it_is_read(text: str) -> None:
    is_described = re.search(str(DIGEST.schema["pattern"]), text) is not None
    try:
        DIGEST.read(text)
    except InvalidDigest:
        assert not is_described
    else:
        assert is_described


@given(st.binary(max_size=200))
def test_any_query_is_decoded_or_refused(query: bytes) -> None:
    statuses = []
    try:
        assert Parameters(query).required("a").encode()
    except RequestError as error:
        statuses.append(error.status)
    assert statuses in ([], [400])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", ByteRange(0, 0)),
        ("bytes=2-5", ByteRange(2, 5)),
        ("bytes=2-", ByteRange(2, 9)),
        ("bytes=2-99", ByteRange(2, 9)),
        ("bytes=-3", ByteRange(7, 9)),
        ("bytes=-99", ByteRange(0, 9)),
        (" bytes=0- ", ByteRange(0, 9)),
    ],
)
def test_a_range_is_cut_to_what_exists(header: str, expected: ByteRange) -> None:
    assert parse_range([header], 10) == expected


@pytest.mark.parametrize(
    "headers",
    [
        *([], ["bytes=0-1", "bytes=0-1"], ["bytes=0-1,3-4"], ["bytes=5-2"], ["bytes=-"], ["bytes="], ["0-1"], [""]),
        *(["items=0-1"], ["bytes=a-b"], ["bytes=0-1;x"], ["bytes=+0-1"], ["bytes=0x0-1"], ["bytes=\u0660-1"]),
        *(["bytes=" + "9" * 5000 + "-"], ["bytes=0-" + "1" * 5000], ["Bytes=0-1"]),
    ],
)
def test_s22_what_is_no_single_range_is_ignored(headers: list[str]) -> None:
    assert parse_range(headers, 10) is None


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-11", "bytes=999999-", "bytes=-0"])
def test_a_range_beyond_the_end_cannot_be_had(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range([header], 10)


def test_of_nothing_no_range_can_be_had() -> None:
    for header in ("bytes=0-", "bytes=-5", "bytes=0-0"):
        with pytest.raises(RangeNotSatisfiable):
            parse_range([header], 0)


@given(st.text(max_size=60), st.integers(0, 2**53))
def test_any_range_lies_inside_or_is_refused(header: str, size_bytes: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            found = parse_range([text], size_bytes)
        except RangeNotSatisfiable:
            continue
        assert found is None or 0 <= found.first <= found.last < size_bytes
