"""What the page makes of answers that come late, and of addresses and changes that it was not told of."""

from itertools import count

import pytest
from playwright.sync_api import Page, Request, Route, expect

from tests.support.browser import ROUND_TRIP, TELL_EVENTS, hold_next
from tests.support.daemon import Daemon
from tests.support.images import build_image, build_index
from tests.support.stores import open_store, put, put_dead
from tests.ui.conftest import APP, WORKER

_HIDE = """
(isHidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => isHidden });
  document.dispatchEvent(new Event("visibilitychange"));
}
"""
# Each sentence that somebody who cannot see the page is told.
_HEAR = """
() => {
  window.heard = [];
  const told = document.getElementById("told");
  new MutationObserver(() => window.heard.push(told.textContent)).observe(told, { childList: true });
}
"""
# How many are ahead, after each of these events.
_TAKE = """
async (events) => {
  const { Progress } = await import(new URL("ui/progress.js", document.baseURI).href);
  const progress = new Progress();
  return events.map((event) => { progress.take(event); return progress.ahead; });
}
"""


def test_an_older_answer_about_an_image_does_not_take_the_place_of_a_newer_one(page: Page, daemon: Daemon) -> None:
    release = hold_next(page, "**/images/inspect*", page.get_by_role("link", name="app:1", exact=True).click)
    put(daemon.data_root, WORKER, "app:1")
    expect(page.get_by_text(WORKER.digest).first).to_be_visible()
    release()
    expect(page.get_by_text(APP.digest)).to_have_count(0)
    expect(page.get_by_text(WORKER.digest).first).to_be_visible()


def test_an_older_plan_does_not_take_the_place_of_a_newer_one(page: Page, daemon: Daemon) -> None:
    page.get_by_role("link", name="Space", exact=True).click()
    page.get_by_role("button", name="Show the plan").click()
    dialog = page.get_by_role("dialog")
    nothing = "Nothing: every blob is needed."
    expect(dialog).to_contain_text(nothing)
    release = hold_next(page, "**/system/prune*", dialog.get_by_role("checkbox").check)
    put_dead(daemon.data_root, build_image(salt="dead"))
    dialog.get_by_role("checkbox").uncheck()
    expect(dialog).not_to_contain_text(nothing)
    release()
    expect(dialog).not_to_contain_text(nothing)


def test_files_that_are_not_looked_at_any_more_are_not_told_of(page: Page, daemon: Daemon) -> None:
    many = [build_image([{f"{number}": b"" for number in range(count)}], salt=str(count)) for count in (2, 3)]
    put(daemon.data_root, build_index(many), "both:1")
    page.get_by_role("link", name="both:1").click()
    look = page.get_by_role("button", name="Look into it")
    page.evaluate(_HEAR)
    release = hold_next(page, "**/images/files*", look.click)
    page.get_by_label("Platform").select_option(index=1)
    release()
    look.click()
    expect(page.get_by_role("cell", name="0", exact=True).first).to_be_visible()
    assert len(page.evaluate("window.heard")) == 1


@pytest.mark.parametrize("view", ["constructor", "constructor/x", "nothing", "toString", "__proto__", "Images"])
def test_a_view_that_there_is_not_is_the_one_of_the_images(page: Page, view: str) -> None:
    page.goto(page.url.partition("#")[0] + f"#/{view}")
    expect(page.get_by_role("heading", name="Images", exact=True)).to_be_focused()
    expect(page).to_have_title("Images · minibox")
    expect(page.get_by_role("navigation").get_by_role("link", name="Images")).to_have_attribute("aria-current", "page")


def test_what_has_changed_while_nobody_looked_is_seen_by_who_looks_again(page: Page, daemon: Daemon) -> None:
    with page.expect_response("**/images"):
        page.evaluate(_HIDE, True)
    put(daemon.data_root, WORKER, "unseen:1")
    page.evaluate(_HIDE, False)
    expect(page.get_by_role("link", name="unseen:1")).to_be_visible()
    daemon.post("/images/remove", image="unseen:1")
    expect(page.get_by_role("link", name="unseen:1")).to_have_count(0)


def test_what_is_the_same_stays_where_it_is(page: Page) -> None:
    page.evaluate("document.querySelector('.image').dataset.mark = 'it'")
    for is_hidden in (True, False):
        with page.expect_response("**/images"):
            page.evaluate(_HIDE, is_hidden)
    page.evaluate(ROUND_TRIP)
    expect(page.locator(".image[data-mark]")).to_have_count(1)


def test_what_was_missed_is_asked_for_anew(page: Page, daemon: Daemon) -> None:
    page.add_init_script(TELL_EVENTS)
    lists = count(1)
    # The second one is asked for when the stream has begun.
    with page.expect_response(lambda answer: answer.url.endswith("/images") and next(lists) == 2):
        page.reload()
    put(daemon.data_root, WORKER, "missed:1")
    page.evaluate("window.tellEvent({ event: 'missed' })")
    expect(page.get_by_role("link", name="missed:1")).to_be_visible()


def test_what_has_changed_between_the_list_and_the_beginning_of_the_stream_is_seen(page: Page, daemon: Daemon) -> None:
    def begin(route: Route) -> None:
        put(daemon.data_root, WORKER, "between:1")
        route.continue_()

    page.route("**/events", begin)
    page.reload()
    expect(page.get_by_role("link", name="between:1")).to_be_visible()


def test_what_is_gone_when_the_list_comes_is_not_shown_for_good(page: Page, daemon: Daemon) -> None:
    lists: list[Request] = []

    def answer(route: Route) -> None:
        lists.append(route.request)
        if len(lists) != 2:
            route.continue_()
            return
        put(daemon.data_root, WORKER, "gone:1")
        response = route.fetch()
        open_store(daemon.data_root).remove("gone:1")
        assert '"gone:1"' in response.text()
        route.fulfill(response=response)

    page.route("**/images", answer)
    with page.expect_event("requestfinished", lambda request: request in lists[1:2]):
        page.reload()
    page.evaluate(ROUND_TRIP)
    expect(page.get_by_role("link", name="gone:1")).to_have_count(0)


def test_who_waits_is_said_to_wait_until_its_bytes_move(page: Page) -> None:
    waiting, moving = ({"event": "progress", "phase": each, "done_bytes": 0} for each in ("waiting", "moving"))
    assert page.evaluate(_TAKE, [waiting, {"event": "waiting", "ahead": 1}, waiting, moving]) == [None, 1, 1, None]
