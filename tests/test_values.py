"""How values show themselves: as attrs would have them do, whatever their fields ask for."""

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given

from minibox_store import Credentials, Digest, Platform
from minibox_store.codec import TokenAnswer
from minibox_store.events import BlobAdvanced
from minibox_store.registry.failures import Refusal
from minibox_store.registry.transport import Request
from minibox_store.values import Value


@attrs.frozen(repr=False)
class Shown(Value):
    """By the one way of all values."""

    name: str
    masked: object = attrs.field(repr=lambda _: "***")
    left_out: object = attrs.field(repr=False)
    _private: object = None


@attrs.frozen(repr=False)
class ShownMore(Shown):
    further: object = 0


@attrs.frozen
class ByAttrs:
    """The same fields, by the way that attrs writes for each class."""

    name: str
    masked: object = attrs.field(repr=lambda _: "***")
    left_out: object = attrs.field(repr=False)
    _private: object = None


@attrs.frozen
class ByAttrsMore(ByAttrs):
    further: object = 0


FIELDS = st.one_of(st.none(), st.integers(), st.text(), st.tuples(st.text()), st.dictionaries(st.text(), st.integers()))


@given(st.tuples(st.text(), FIELDS, FIELDS, FIELDS), FIELDS)
def test_a_value_shows_itself_as_attrs_would_have_it(
    fields: tuple[str, object, object, object], further: object
) -> None:
    assert repr(Shown(*fields)) == repr(ByAttrs(*fields)).replace("ByAttrs(", "Shown(", 1)
    by_attrs = repr(ByAttrsMore(*fields, further)).replace("ByAttrsMore(", "ShownMore(", 1)
    assert repr(ShownMore(*fields, further)) == by_attrs


def test_a_class_made_in_a_function_shows_its_name_alone() -> None:
    @attrs.frozen(repr=False)
    class Inner(Value):
        number: int

    assert repr(Inner(1)) == "Inner(number=1)"


def test_what_is_secret_is_not_shown() -> None:
    secret = Credentials(username="ci", password="hidden", identity_token="hidden-too")
    assert "hidden" not in repr(secret)
    assert "hidden" not in repr((secret,))


@pytest.mark.parametrize(
    "value",
    [
        TokenAnswer(token="hidden", expires_in_seconds=60),
        Request(target="/v2/", method="POST", body=b"password=hidden", secrets=("hidden",)),
        Refusal(method="GET", url="https://registry.example/v2/", status=401, body=b"hidden", secrets=("hidden",)),
    ],
)
def test_s28_what_passes_a_secret_on_does_not_show_it(value: object) -> None:
    assert "hidden" not in repr(value)


DIGEST = Digest.of(b"layer")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Platform(os="linux", architecture="amd64"), "Platform(os='linux', architecture='amd64', variant="),
        (
            BlobAdvanced(digest=DIGEST, done_bytes=1, size_bytes=2),
            f"BlobAdvanced(digest={DIGEST!r}, done_bytes=1, size_bytes=2)",
        ),
    ],
)
def test_the_values_of_the_library_tell_their_fields(value: object, shown: str) -> None:
    assert repr(value).startswith(shown)
