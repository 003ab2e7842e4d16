"""Holds answers to the description of the interface: an answer that it does not allow fails the test.

The description leaves records open, since they may get further keys; here they are closed, so that whoever adds a key
declares it.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it brings no types

# What a server says of any message, and nobody declares.
_OF_EVERY_MESSAGE = {"connection", "content-length", "content-type", "date", "transfer-encoding"}
_METHODS = ("get", "head", "post", "put", "patch", "delete")


@functools.cache
def description_of(document: str) -> "Description":
    """Return the description that a document holds, the same for the same one."""
    return Description(json.loads(document))


class Description:
    """A description of an interface, as GET /openapi.json has it.

    Attributes:
        seen: how often each declared answer was seen, as ``(method, path, status, media type)``.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.seen: Counter[tuple[str, str, int, str | None]] = Counter()
        self._validators: dict[int, Any] = {}
        self._paths = [(re.compile(_pattern(path)), path) for path in document["paths"]]

    def declared(self) -> set[tuple[str, str, int, str | None]]:
        """Return each answer that is declared and is no refusal."""
        return {
            (method, path, int(status), media_type)
            for path, operations in self.document["paths"].items()
            for method, operation in operations.items()
            if method in _METHODS
            for status, answer in operation["responses"].items()
            if "$ref" not in answer
            for media_type in answer.get("content", {None: None})
        }

    def operation_of(self, method: str, path: str) -> tuple[str, Mapping[str, Any] | None] | None:
        """Return the declared path that a request's path is, and the operation; None where there is no such path."""
        # As in the application, the first path that fits counts, with whatever methods it has.
        for pattern, declared in self._paths:
            if pattern.fullmatch(path):
                return declared, self.document["paths"][declared].get(method.lower())
        return None

    def check(self, method: str, path: str, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """Hold one answer to what is declared.

        Raises:
            AssertionError: when it is not allowed; it says what is wrong.
        """
        found = self.operation_of(method, path)
        name = f"{method} {path} {status}"
        if found is None or found[1] is None:
            # Also the guard refuses what there is not.
            missing = 404 if found is None else 405
            assert status in (missing, 400, 401, 403, 413, 414, 431, 500, 503), f"{name} is not declared"
            answer = self._refusal(status, path)
            declared_path = path
        else:
            declared_path, operation = found
            assert operation is not None
            answers = operation["responses"]
            assert str(status) in answers, f"{name}: of {declared_path} only {', '.join(answers)} are declared"
            answer = self._resolved(answers[str(status)])
        given = [(key.lower(), value) for key, value in headers]
        self._check_headers(name, answer, {key for key, _ in given})
        media_type = self._check_content(name, answer, dict(given).get("content-type"), body, method)
        self.seen[method.lower(), declared_path, status, media_type] += 1

    def _refusal(self, status: int, path: str) -> Mapping[str, Any]:
        prefix = "DistributionRefused" if path == "/v2" or path.startswith("/v2/") else "Refused"
        answer: Mapping[str, Any] = self.document["components"]["responses"][f"{prefix}{status}"]
        return answer

    def _resolved(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if "$ref" not in value:
            return value
        found: Any = self.document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        assert isinstance(found, dict)
        return found

    def _check_headers(self, name: str, answer: Mapping[str, Any], given: set[str]) -> None:
        declared = {key.lower(): value for key, value in answer.get("headers", {}).items()}
        missing = {key for key, value in declared.items() if value["required"]} - given
        assert not missing, f"{name} lacks {missing}"
        more = given - set(declared) - _OF_EVERY_MESSAGE
        assert not more, f"{name} has {more}, which is not declared"

    def _check_content(
        self, name: str, answer: Mapping[str, Any], given: str | None, body: bytes, method: str
    ) -> str | None:
        content = answer.get("content")
        if method == "HEAD":
            assert not body, f"{name} has a body"
            return None
        if content is None:
            assert not body, f"{name} has a body, and none is declared"
            return None
        assert given is not None, f"{name} says no type"
        media_type = given.partition(";")[0].strip()
        assert media_type in content, f"{name} is {media_type}, where {', '.join(content)} is declared"
        declared = content[media_type]
        if media_type == "application/json" or media_type.endswith("+json"):
            self._check_json(name, declared["schema"], body)
        elif media_type == "application/x-ndjson":
            for line in body.splitlines():
                self._check_json(name, declared["x-item-schema"], line)
        elif media_type == "text/event-stream":
            for line in body.splitlines():
                if line.startswith(b"data: "):
                    self._check_json(name, declared["x-item-schema"], line.removeprefix(b"data: "))
        return str(media_type)

    def _check_json(self, name: str, schema: Mapping[str, Any], body: bytes) -> None:
        errors = list(self._validator(schema).iter_errors(json.loads(body)))
        assert not errors, f"{name}: {errors[0].message} at {errors[0].json_path}"

    def _validator(self, schema: Mapping[str, Any]) -> Any:
        # The schemas are parts of the document, which lives as long as this does.
        if id(schema) not in self._validators:
            whole = {**_closed(schema), "components": _closed(self.document["components"])}
            self._validators[id(schema)] = jsonschema.Draft202012Validator(whole)
        return self._validators[id(schema)]


def _closed(schema: Any) -> Any:
    """Return a schema whose records have no further keys."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


def _pattern(path: str) -> str:
    """Return the expression of a declared path; the name of a repository, and what ends a path, may have slashes."""
    parts = re.split(r"(\{\w+\})", path)
    return "".join(
        (".*" if part in ("{name}", "{rest}") else "[^/]+") if part.startswith("{") else re.escape(part)
        for part in parts
    )
