"""The parameters of a request: the query string, decoded once, and the only rules about what may be missing.

A parameter that an endpoint asks for stands in the query at most once, is not empty unless it says so, and is UTF-8.
Where an endpoint says so, nothing else stands there: what is misspelt would be passed over, and all be done without it.
"""

from collections.abc import Collection
from urllib.parse import parse_qsl

from minibox_server.responses import RequestError

_FIELDS = 100
_SHOWN_CHARACTERS = 100


class Parameters:
    """The decoded query of one request; it is not trusted.

    Raises:
        RequestError: from each method, 400 and naming the parameter.
    """

    def __init__(self, query: bytes) -> None:
        try:
            # What is not UTF-8 becomes lone surrogates, and is refused with the name of its parameter.
            pairs = parse_qsl(
                query.decode(errors="surrogateescape"),
                keep_blank_values=True,
                errors="surrogateescape",
                max_num_fields=_FIELDS,
            )
        except ValueError:
            raise RequestError(400, f"the query has more than {_FIELDS} parameters") from None
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def has(self, name: str) -> bool:
        """Whether the parameter stands there, were it empty."""
        return name in self._values

    def check_known(self, names: Collection[str]) -> None:
        """Refuse a parameter that is none of these."""
        for name in self._values:
            if name not in names:
                known = ", ".join(names) or "none"
                raise RequestError(400, f"parameter {name[:_SHOWN_CHARACTERS]} is unknown; known here: {known}")

    def all(self, name: str) -> list[str]:
        """Return the values of a parameter that may stand there several times."""
        values = self._values.get(name, [])
        for value in values:
            if not value:
                raise RequestError(400, f"parameter {name} is empty")
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise RequestError(400, f"parameter {name} is not UTF-8")
        return values

    def optional(self, name: str, *, may_be_empty: bool = False) -> str | None:
        """Return the value, or None where the parameter is missing, or is empty and may be."""
        if len(self._values.get(name, [])) > 1:
            raise RequestError(400, f"parameter {name} is repeated")
        if may_be_empty and self._values.get(name) == [""]:
            return None
        return next(iter(self.all(name)), None)

    def required(self, name: str, *, missing: str | None = None) -> str:
        """Return the value; where it is missing or empty, ``missing`` is the sentence of the error."""
        if not any(self._values.get(name, [])):
            raise RequestError(400, missing or f"missing {name}")
        value = self.optional(name)
        assert value is not None
        return value
