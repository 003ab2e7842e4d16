"""The file of registries: TOML, read strictly, so that a setting with a slip in its name does not pass for one.

Errors name the file and the place in it. ``docs/registries.md`` shows what may stand there.

Spec: TOML 1.0.
"""

import tomllib
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar, cast

from minibox_store.errors import InvalidArgument, InvalidDocument
from minibox_store.limits import MEBIBYTE
from minibox_store.registry_rules import AskedFor, Mirror, RegistryRule, RegistryRules, WhoseCredentials

REGISTRIES_FILE_BYTES = MEBIBYTE

_T = TypeVar("_T")

_WHOLE = ("registry", "allowed", "private_addresses")
_REGISTRY = ("prefix", "location", "mirrors", "insecure", "blocked", "realms")
_MIRROR = ("location", "insecure", "credentials", "pull")
_NAMES: Mapping[type, str] = {str: "a string", bool: "true or false", list: "an array", dict: "a table"}
# What the same thing, or the nearest, is called in the files of others.
_CALLED_HERE = {
    "mirror": "mirrors",
    "mirror-by-digest-only": 'pull = "digest-only" at each mirror',
    "pull-from-mirror": "pull",
    "registries": "registry",
}


def decode_registries_file(content: bytes, document: str) -> RegistryRules:
    r"""Return the rules that a file has; ``document`` is its path, for errors. An empty one has none.

    Raises:
        InvalidDocument: when it is no TOML, larger than 1 MiB, or has a setting that there is not, or of a wrong kind.

    >>> decode_registries_file(b'[[registry]]\nprefix = "quay.io"\nblocked = true', "registries.toml").rules[0].prefix
    'quay.io'
    """
    if len(content) > REGISTRIES_FILE_BYTES:
        raise InvalidDocument("", f"it is larger than {REGISTRIES_FILE_BYTES} bytes", document)
    try:
        value = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidDocument("", "it is not UTF-8", document) from None
    except (ValueError, RecursionError) as error:
        problem = f"it is not TOML: {error}" if isinstance(error, tomllib.TOMLDecodeError) else "it is not TOML"
        raise InvalidDocument("", problem, document) from None
    whole = _Table(value, "", document, _WHOLE)
    rules = tuple(_rule(table) for table in whole.tables("registry", _REGISTRY))
    allowed = whole.texts("allowed") if whole.has("allowed") else None
    private = whole.flag("private_addresses") if whole.has("private_addresses") else None
    # What is wrong with a prefix that is there twice is said of all tables, what is wrong with another setting of it.
    _checked(lambda: RegistryRules(rules), "registry", document)
    return _checked(lambda: RegistryRules(rules, allowed, private), "", document)


class _Table:
    """The settings of one table of the file, none but those that there are."""

    def __init__(self, value: object, where: str, document: str, known: Collection[str]) -> None:
        self.where = where
        self.document = document
        self._values: dict[str, object] = self._of_kind(value, dict, where)
        for name in self._values:
            if name not in known:
                hint = f", here it is {_CALLED_HERE[name]}" if name in _CALLED_HERE else ""
                raise InvalidDocument(self.place(name), f"there is no such setting{hint}", document)

    def place(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def has(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str) -> str:
        return self._of_kind(self._values.get(name, default), str, self.place(name))

    def flag(self, name: str) -> bool:
        return self._of_kind(self._values.get(name, False), bool, self.place(name))

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._of_kind(item, str, place) for place, item in self._numbered(name))

    def tables(self, name: str, known: Collection[str]) -> "list[_Table]":
        return [_Table(item, place, self.document, known) for place, item in self._numbered(name)]

    def _numbered(self, name: str) -> list[tuple[str, object]]:
        place = self.place(name)
        items: list[object] = self._of_kind(self._values.get(name, []), list, place)
        return [(f"{place}[{number}]", item) for number, item in enumerate(items)]

    def _of_kind(self, value: object, kind: type[_T], where: str) -> _T:
        if type(value) is not kind:
            raise InvalidDocument(where, f"expected {_NAMES[kind]}, got {_kind_of(value)}", self.document)
        return value


def _rule(table: _Table) -> RegistryRule:
    mirrors = tuple(_mirror(each) for each in table.tables("mirrors", _MIRROR))
    return _checked(
        lambda: RegistryRule(
            prefix=table.text("prefix", ""),
            location=table.text("location", "") if table.has("location") else None,
            mirrors=mirrors,
            insecure=table.flag("insecure"),
            blocked=table.flag("blocked"),
            realms=table.texts("realms"),
        ),
        table.where,
        table.document,
    )


def _mirror(table: _Table) -> Mirror:
    if not table.has("location"):
        raise InvalidDocument(table.place("location"), "it is missing", table.document)
    return _checked(
        lambda: Mirror(
            location=table.text("location", ""),
            insecure=table.flag("insecure"),
            credentials=cast(WhoseCredentials, table.text("credentials", "own")),
            pull=cast(AskedFor, table.text("pull", "all")),
        ),
        table.where,
        table.document,
    )


def _checked(make: Callable[[], _T], where: str, document: str) -> _T:
    """Return what a table says; whether it may say so is the values' own concern."""
    try:
        return make()
    except InvalidArgument as error:
        place = f"{where}.{error.name}" if where else error.name
        raise InvalidDocument(place, f"{error.value!r}: {error.problem}", document) from None


def _kind_of(value: object) -> str:
    return _NAMES.get(type(value), "a number, a date or a time")
