"""docs/progress.md: each example in it is an event as the schemas have them, and each event has an example."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it comes without types

from minibox_server.api.changes import CHANGES_SCHEMA
from minibox_server.api.event_schemas import told_as_it_goes_on
from minibox_server.schemas import IMAGE_SCHEMA

DOCUMENT = (Path(__file__).parents[2] / "docs" / "progress.md").read_text()


def schemas() -> dict[str, Any]:
    """Return the schema of each event, by its kind."""
    answer, *_ = told_as_it_goes_on(IMAGE_SCHEMA)
    assert answer.schema is not None
    found: dict[str, Any] = {}
    for schema in (*answer.schema["anyOf"], *CHANGES_SCHEMA["anyOf"]):  # type: ignore[misc]  # the values of JSON are objects
        (kind,) = schema["properties"]["event"]["enum"]
        found.setdefault(kind, schema)
    return found


def examples() -> list[dict[str, Any]]:
    return [json.loads(line) for line in DOCUMENT.split("\n") if line.startswith('    {"event"')]


def test_each_example_has_the_fields_that_its_schema_has_and_no_others() -> None:
    known = schemas()
    for example in examples():
        schema = known[example["event"]]
        Draft202012Validator(schema).validate(example)
        assert set(example) <= set(schema["properties"]), example["event"]
        assert set(example) >= set(schema["required"]), example["event"]


def test_each_event_has_an_example() -> None:
    assert {example["event"] for example in examples()} == set(schemas())


def test_each_field_of_a_blob_and_of_the_whole_is_explained() -> None:
    for kind in ("blob", "progress"):
        for field in set(schemas()[kind]["properties"]) - {"event"}:
            assert f"`{field}`" in DOCUMENT
        for phase in schemas()[kind]["properties"]["phase"]["enum"]:
            assert f"`{phase}`" in DOCUMENT


def test_what_a_schema_does_not_allow_is_found() -> None:
    example = next(each for each in examples() if each["event"] == "blob")
    validator = Draft202012Validator(schemas()["blob"])
    for wrong in ({**example, "phase": "elsewhere"}, {**example, "done_bytes": -1}, {"event": "blob"}):
        assert not validator.is_valid(wrong)
