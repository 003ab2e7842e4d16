"""Strict JSON into strict values: exact types, no key twice, nothing behind the document, bounded size.

The converter of this module is the only use of cattrs, whose own rules would turn ``"5"`` into 5 and ``None``
into ``'None'``. What a document's field is called in JSON stands in one table.

Spec: RFC 8259.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.cols import homogenous_tuple_structure_factory

from minibox_store.digest import Digest
from minibox_store.errors import InvalidDigest, InvalidDocument
from minibox_store.limits import MAX_SIZE_BYTES

_T = TypeVar("_T")
_MOST_LEVELS = 64
_MOST_KEY_CHARACTERS = 64  # no key that counts is longer, and each of its letters may be one that folds into several

_FIELDS = {
    "media_type": "mediaType",
    "size_bytes": "size",
    "artifact_type": "artifactType",
    "os_version": "os.version",
    "os_features": "os.features",
    "schema_version": "schemaVersion",
    "image_layout_version": "imageLayoutVersion",
    "user": "User",
    "exposed_ports": "ExposedPorts",
    "env": "Env",
    "entrypoint": "Entrypoint",
    "cmd": "Cmd",
    "volumes": "Volumes",
    "working_dir": "WorkingDir",
    "labels": "Labels",
    "stop_signal": "StopSignal",
    "config_member": "Config",
    "layer_members": "Layers",
    "repo_tags": "RepoTags",
}


def _exact_str(value: object, _: type) -> str:
    if type(value) is not str:
        raise TypeError(f"expected a string, got {kind_of(value)}")
    return value


def _exact_bool(value: object, _: type) -> bool:
    if type(value) is not bool:
        raise TypeError(f"expected a boolean, got {kind_of(value)}")
    return value


def _exact_size(value: object, _: type) -> int:
    if type(value) is not int:
        raise TypeError(f"expected an integer, got {kind_of(value)}")
    if not 0 <= value <= MAX_SIZE_BYTES:
        raise ValueError("the number is negative or above 2^53-1")
    return value


def _exact_digest(value: object, _: type) -> Digest:
    if type(value) is not str:
        raise TypeError(f"expected a string, got {kind_of(value)}")
    return Digest.parse(value)


def _exact_annotations(value: object, _: object) -> dict[str, str]:
    if type(value) is not dict:
        raise TypeError(f"expected an object, got {kind_of(value)}")
    for key, text in value.items():
        if type(text) is not str:
            raise TypeError(f"expected strings, got {kind_of(text)} for {key!r}")
    return value


def _exact_keys(value: object, _: object) -> frozenset[str]:
    """A set, as Go's encoder writes one: an object whose values say nothing."""
    if type(value) is not dict:
        raise TypeError(f"expected an object, got {kind_of(value)}")
    for key, item in value.items():
        if item is not None and type(item) is not dict:
            raise TypeError(f"expected objects, got {kind_of(item)} for {key!r}")
    return frozenset(value)


def _exact_tuple(converter: cattrs.Converter, kind: Any) -> Callable[[Any, Any], Any]:
    build = homogenous_tuple_structure_factory(kind, converter)

    def exact(value: object, cls: Any) -> Any:
        if value is None:  # Go's encoder writes an empty list as null
            return ()
        if type(value) is not list:
            raise TypeError(f"expected an array, got {kind_of(value)}")
        return build(value, cls)

    return exact


def _exact_object(converter: cattrs.Converter, cls: Any) -> Callable[[Any, Any], Any]:
    known = {
        _FIELDS.get(field.name, field.name): (
            field.name,
            converter.get_structure_hook(field.type),
            field.type,
            get_origin(field.type) is tuple,
        )
        for field in attrs.fields(cls)
    }
    folded = folded_keys(known)
    needed = [(field.name, _FIELDS.get(field.name, field.name)) for field in attrs.fields(cls) if _is_needed(field)]

    # Not what cattrs would write for a class: that asks for each field that there may be, and this for those there are.
    def exact(value: object, _: Any) -> Any:
        if type(value) is not dict:
            raise TypeError(f"expected an object, got {kind_of(value)}")
        found = {}
        for key, item in value.items():
            field = known.get(key)
            if field is None and (right := spelled_wrongly(key, folded)) is not None:
                raise ValueError(wrong_spelling(right))
            # null is how Go's encoder writes what is not there, and an empty list
            if field is not None and (item is not None or field[3]):
                found[field[0]] = field[1](item, field[2])
        for name, key in needed:
            if name not in found:
                raise KeyError(key)
        return cls(**found)

    return exact


def folded_keys(keys: Iterable[str]) -> Mapping[str, str]:
    """Return the keys that count, by what readers that do not tell letters apart take for each."""
    return {key.casefold(): key for key in keys}


def spelled_wrongly(key: str, folded: Mapping[str, str]) -> str | None:
    """Return which key that counts another one is in other letters, None where it is none, or that very one.

    Go's readers take such a key's value in place of the one that is read here: one document would be two.
    """
    right = folded.get(key.casefold()) if len(key) <= _MOST_KEY_CHARACTERS else None
    return None if right == key else right


def wrong_spelling(right: str) -> str:
    """Return what is wrong with a document that spells a key so."""
    return f"it spells {right} in other letters, and readers differ on which counts"


def _is_needed(field: "attrs.Attribute[Any]") -> bool:
    return field.default is attrs.NOTHING


def kind_of(value: object) -> str:
    """Return what JSON calls a value of this type."""
    names: dict[type, str] = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")


def _is_generic(origin: Any, kind: Any) -> bool:
    return get_origin(kind) is origin


def _strict_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    converter.register_structure_hook(str, _exact_str)
    converter.register_structure_hook(int, _exact_size)
    converter.register_structure_hook(bool, _exact_bool)
    converter.register_structure_hook(Digest, _exact_digest)
    converter.register_structure_hook_func(partial(_is_generic, Mapping), _exact_annotations)
    converter.register_structure_hook_func(partial(_is_generic, frozenset), _exact_keys)
    converter.register_structure_hook_factory(partial(_is_generic, tuple), partial(_exact_tuple, converter))
    converter.register_structure_hook_factory(attrs.has, partial(_exact_object, converter))
    return converter


_STRICT = _strict_converter()


def structure(value: object, cls: type[_T], document: str) -> _T:
    """Return ``value``, as JSON gave it, as a ``cls``; the error names the first faulty place in the ``document``."""
    try:
        return _STRICT.structure(value, cls)
    except Exception as error:  # noqa: BLE001  # cattrs passes on whatever a hook raises: this is its edge
        where, problem = _first_fault(value, cls, error)
        raise InvalidDocument(where, problem, document) from None


def _first_fault(value: object, kind: Any, error: Exception) -> tuple[str, str]:
    """Return where in ``value`` the first thing lies that is no ``kind``, and what is wrong with it.

    Only the way down to it is looked at again: cattrs' own detailed errors keep an exception for every fault, and a
    document of nothing but faults would cost hundreds of times its size.
    """
    if get_origin(kind) is UnionType:  # an optional field
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple and type(value) is list:
        parts = [(f"[{position}]", item, get_args(kind)[0]) for position, item in enumerate(value)]
    elif kind is not Digest and attrs.has(kind) and type(value) is dict:
        parts = []
        for field in attrs.fields(kind):
            key = _FIELDS.get(field.name, field.name)
            if value.get(key) is not None:
                parts.append((key, value[key], field.type))
            elif field.default is attrs.NOTHING and (key not in value or get_origin(field.type) is not tuple):
                return key, "a required field is missing"
    else:
        return "", _sentence(error)
    for place, item, part_kind in parts:
        found = _fault_in(item, part_kind)
        if found is not None:
            inner, problem = _first_fault(item, part_kind, found)
            return place + ("." if inner and not inner.startswith("[") else "") + inner, problem
    return "", _sentence(error)


def _fault_in(value: object, kind: Any) -> Exception | None:
    try:
        _STRICT.structure(value, kind)
    except Exception as error:  # noqa: BLE001  # the same edge
        return error
    return None


def _sentence(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return error.problem if isinstance(error, InvalidDigest) else str(error)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
# A text, whole, or what begins one more value. Whatever follows its quote is a text: nothing is looked at twice.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?|([,\[{])', re.DOTALL)
# Two halves of one character, or a half alone; any other escape is passed, so that the next begins where it does.
_ESCAPES = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F])|.)", re.DOTALL)


def load_object(
    content: bytes, document: str, limit_bytes: int, *, most_values: int | None = None
) -> dict[str, object]:
    """Return the JSON object that ``content`` is.

    Raises:
        InvalidDocument: when it is none, larger than ``limit_bytes``, or of more than ``most_values``.
    """
    value = _load(content, document, limit_bytes, most_values)
    if type(value) is not dict:
        raise InvalidDocument("", f"expected an object, got {kind_of(value)}", document)
    _check_depth(content, value, document)
    return value


def load_array(content: bytes, document: str, limit_bytes: int, *, most_values: int | None = None) -> list[object]:
    """Return the JSON array that ``content`` is.

    Raises:
        InvalidDocument: when it is none, larger than ``limit_bytes``, or of more than ``most_values``.
    """
    value = _load(content, document, limit_bytes, most_values)
    if type(value) is not list:
        raise InvalidDocument("", f"expected an array, got {kind_of(value)}", document)
    _check_depth(content, value, document)
    return value


def _load(content: bytes, document: str, limit_bytes: int, most_values: int | None) -> object:
    if len(content) > limit_bytes:
        raise InvalidDocument("", f"it is larger than {limit_bytes} bytes", document)
    if most_values is not None and _has_more_values(content, most_values):
        raise InvalidDocument("", f"it has more than {most_values} values (Limits.document_values)", document)
    try:
        value: object = _DECODER.decode(content.decode("utf-8"))
    except RecursionError:
        raise InvalidDocument("", "it is nested too deeply", document) from None
    except UnicodeError:
        raise InvalidDocument("", "it is not UTF-8", document) from None
    except ValueError as error:
        # Python's own words on a number of too many digits are advice to programmers.
        problem = "a number in it is too long" if "int_max_str_digits" in str(error) else str(error)
        raise InvalidDocument("", f"it is not JSON: {problem}", document) from None
    if b"\\u" in content and any(found[1] for found in _ESCAPES.finditer(content)):
        raise InvalidDocument("", "it is not UTF-8", document)
    return value


def _has_more_values(content: bytes, most: int) -> bool:
    """Whether a document has more values, told by its bytes: what they become takes many times as much."""
    if sum(map(content.count, (b",", b"[", b"{"))) <= most:
        return False
    # In a text, those count for nothing.
    found = (match for match in _TOKENS.finditer(content) if match[1])
    return next(itertools.islice(found, most, None), None) is not None


def _check_depth(content: bytes, value: object, document: str) -> None:
    # Where so few objects and arrays begin, none can lie so deep.
    if content.count(b"{") + content.count(b"[") > _MOST_LEVELS and _is_deeper_than(value, _MOST_LEVELS):
        raise InvalidDocument("", f"it is nested more than {_MOST_LEVELS} levels deep", document)


def _is_deeper_than(value: object, levels: int) -> bool:
    """Whether arrays and objects are nested deeper: a bound of our own, where Python's depends on who calls."""
    level = [value]
    for _ in range(levels):
        level = [
            item
            for node in level
            for item in (node.values() if type(node) is dict else node)  # type: ignore[attr-defined]  # dict or list
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return False
    return True


def dump(value: object) -> bytes:
    """Return compact JSON; equal values with keys in equal order give equal bytes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
