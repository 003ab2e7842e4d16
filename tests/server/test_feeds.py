"""What listeners are told: the newest of each thing, bounded, however slowly one reads; and in which form."""

import asyncio
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from minibox_server.api import operations
from minibox_server.api.feeds import NDJSON, SERVER_SENT, Feed, Lines, accepted_form
from minibox_store import Cancellation, EventListener, ManifestChosen
from tests.server.test_operations import CHOSEN, Script, application, run
from tests.support.asgi import asking

_MOST_KEPT = 4096


def decoded(body: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in body.split(b"\n")[:-1]]


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), max_size=40))
def test_a_listener_knows_the_newest_of_each_thing_whenever_it_looks(steps: list[tuple[int, bool, bool]]) -> None:
    feed, newest, known, seen = Feed(), dict[int, int](), dict[int, int](), 0
    for number, (key, lasts, looks) in enumerate(steps):
        feed.put((key, lasts), {"event": "x", "key": key + 10 * lasts, "number": number}, lasts=lasts)
        newest[key + 10 * lasts] = number
        if looks:
            news = decoded(feed.since(seen, NDJSON))
            seen = feed.version
            assert len({each["key"] for each in news}) == len(news)
            assert [each["number"] for each in news] == sorted(each["number"] for each in news)  # type: ignore[type-var]  # the values of JSON are objects
            known.update({each["key"]: each["number"] for each in news})  # type: ignore[misc]  # the values of JSON are objects
            assert known == newest
    assert decoded(feed.since(feed.version, NDJSON)) == []
    assert {each["key"]: each["number"] for each in decoded(feed.since(0, NDJSON))} == newest


def test_a_feed_keeps_so_much_and_never_forgets_what_lasts() -> None:
    feed = Feed()
    feed.put("resolved", {"event": "resolved"}, lasts=True)
    for number in range(3 * _MOST_KEPT):
        feed.put(number, {"event": "blob", "number": number})
    kept = decoded(feed.since(0, NDJSON))
    assert len(kept) == _MOST_KEPT + 1
    assert kept[0] == {"event": "resolved"}
    assert kept[-1]["number"] == 3 * _MOST_KEPT - 1
    feed.drop("resolved")
    assert feed.since(0, SERVER_SENT).count(b"\n\n") == feed.since(0, SERVER_SENT).count(b"event: blob\n") == _MOST_KEPT


def test_of_very_many_lines_the_newest_are_kept() -> None:
    lines = Lines()
    lines.add(str(number) for number in range(25_000))
    assert lines.count == 25_000
    assert lines.since(24_998) == ["24998", "24999"]
    assert lines.since(0) == [str(number) for number in range(15_000, 25_000)]
    assert lines.since(25_000) == []


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("application/x-ndjson", NDJSON),
        ("Text/Event-Stream; charset=utf-8", SERVER_SENT),
        ("text/event-stream;q=0.5, application/x-ndjson", NDJSON),
        ("application/json, application/x-ndjson;q=0.9", None),
        ("application/x-ndjson, application/json", NDJSON),
        ("text/plain, text/event-stream", None),
        ("text/html, text/event-stream", SERVER_SENT),
        ("application/x-ndjson;q=0", None),
        ("application/x-ndjson;q=x", None),
        ("application/x-ndjson;q=nan", None),
        ("*/*", None),
        ("", None),
    ],
)
def test_a_stream_comes_in_the_form_that_the_client_prefers(accept: str, form: str | None) -> None:
    assert accepted_form(Headers({"accept": accept})) == form


@pytest.mark.parametrize(("accept", "comments"), [(SERVER_SENT, True), (NDJSON, False)])
def test_in_silence_server_sent_events_have_comments(
    monkeypatch: pytest.MonkeyPatch, accept: str, comments: bool
) -> None:
    monkeypatch.setattr(operations, "SILENCE_SECONDS", 0.05)

    async def test() -> None:
        script = Script()
        async with asking(application(script), "POST", "/", accept=accept) as exchange:
            await script.tell(CHOSEN)
            await exchange.until("resolved")
            if comments:
                await exchange.until("\n: nothing new\n\n: nothing new\n\n")
            else:
                await asyncio.sleep(0.4)
            script.end()
            await exchange.end()
        assert (b": nothing new" in exchange.body) == comments
        assert exchange.events()[-1]["event"] == "result"

    run(test)


def test_who_reads_nothing_neither_delays_others_nor_makes_the_operation_wait() -> None:
    def call(on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        for number in range(20_000):
            on_event(ManifestChosen(name=f"app:{number % 10}", descriptor=CHOSEN.descriptor))
        return {"name": "app:1"}

    async def test() -> None:
        app = application(call, key="same")
        async with (
            asking(app, "POST", "/", accept=NDJSON, reads=False) as deaf,
            asking(app, "POST", "/", accept=NDJSON) as exchange,
        ):
            await exchange.end()
            assert exchange.events()[-1] == {"event": "result", "name": "app:1"}
            assert deaf.pieces == []
        assert len({each["name"] for each in exchange.events()[:-1]}) == 10

    run(test)
