"""The parameters of a request: the query string, decoded once, and the only rules about what may be missing.

A parameter that an endpoint asks for stands in the query at most once, is not empty, and is UTF-8. Whatever else
stands there is ignored.
"""

from urllib.parse import parse_qsl

from minibox_server.responses import RequestError

_FIELDS = 100
_SWITCH = {"1": True, "true": True, "0": False, "false": False}


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

    def optional(self, name: str) -> str | None:
        """Return the value, or None where the parameter is missing."""
        values = self._values.get(name, [])
        if not values:
            return None
        if len(values) > 1:
            raise RequestError(400, f"parameter {name} is repeated")
        if not values[0]:
            raise RequestError(400, f"parameter {name} is empty")
        if any("\ud800" <= character <= "\udfff" for character in values[0]):
            raise RequestError(400, f"parameter {name} is not UTF-8")
        return values[0]

    def required(self, name: str, *, missing: str | None = None) -> str:
        """Return the value; where it is missing or empty, ``missing`` is the sentence of the error."""
        if not any(self._values.get(name, [])):
            raise RequestError(400, missing or f"missing {name}")
        value = self.optional(name)
        assert value is not None
        return value

    def switch(self, name: str) -> bool:
        """Return whether the parameter is ``1`` (or ``true``); missing means no."""
        value = self.optional(name)
        if value is None:
            return False
        if value not in _SWITCH:
            raise RequestError(400, f"parameter {name} must be 1 or 0")
        return _SWITCH[value]

    def count(self, name: str, *, most: int, code: str) -> int:
        """Return a number of at least 0, and ``most`` where it is more or missing; ``code`` names a wrong one."""
        value = self.optional(name)
        if value is None:
            return most
        if not (value.isascii() and value.isdigit()):
            raise RequestError(400, f"parameter {name} must be a whole number of at least 0", code=code)
        # So many digits are more than any limit, and Python refuses to read thousands of them.
        return most if len(value.lstrip("0")) > 9 else min(int(value), most)
