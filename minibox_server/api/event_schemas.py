"""The schema of what a program is told of an operation as it goes on: one object for each event.

``docs/progress.md`` says what each field means.
"""

from collections.abc import Mapping

from minibox_server.api.feeds import NDJSON, SERVER_SENT
from minibox_server.declarations import Answer
from minibox_server.schemas import COUNT_SCHEMA, DIGEST_SCHEMA, TEXT_SCHEMA, Schema, one_of, or_null, record

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def event(name: str, fields: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of one kind of event."""
    return record({"event": one_of(name), **fields}, optional)


_EVENTS = (
    event("waiting", {"ahead": COUNT_SCHEMA}),
    event("resolved", {"name": TEXT_SCHEMA, "digest": DIGEST_SCHEMA, "media_type": TEXT_SCHEMA}),
    event(
        "blob",
        {
            "digest": DIGEST_SCHEMA,
            "role": one_of("manifest", "config", "layer"),
            "position": COUNT_SCHEMA,
            "total": COUNT_SCHEMA,
            "phase": one_of("started", "moving", "present", "stored", "unpacking"),
            "done_bytes": COUNT_SCHEMA,
            "size_bytes": COUNT_SCHEMA,
            "resumed_bytes": COUNT_SCHEMA,
            "attempt": COUNT_SCHEMA,
        },
    ),
    event(
        "progress",
        {
            "phase": one_of("waiting", "moving", "unpacking", "registering", "marking", "removing"),
            "done_bytes": COUNT_SCHEMA,
            "total_bytes": or_null(COUNT_SCHEMA),
        },
        {"done_count": COUNT_SCHEMA, "total_count": COUNT_SCHEMA},
    ),
    event("message", {"text": TEXT_SCHEMA}),
    event("error", {"status": COUNT_SCHEMA, "title": TEXT_SCHEMA, "detail": TEXT_SCHEMA}),
)


def told_as_it_goes_on(result: Mapping[str, object]) -> tuple[Answer, ...]:
    """Return the answers of an operation that is told of by events.

    Args:
        result: the schema of its result, a record; the last event has the same fields.
    """
    properties, needed = result["properties"], result["required"]
    assert isinstance(properties, Mapping)
    assert isinstance(needed, list)
    last = {**result, "properties": {"event": one_of("result"), **properties}, "required": ["event", *needed]}
    schema = {"anyOf": [*_EVENTS, last]}
    what = "an event for each step, the last one a result or an error"
    return tuple(Answer(what=what, media_type=each, schema=schema, headers=_HEADERS) for each in (NDJSON, SERVER_SENT))
