"""What the page keeps while the store changes under it, and what it does not do behind its user's back."""

import re

from playwright.sync_api import Page, Route, expect

from tests.support.browser import ROUND_TRIP, focused, hold_next
from tests.support.daemon import Daemon
from tests.support.stores import put
from tests.ui.conftest import WORKER

_CUT = "The connection ended before the answer was whole."
_HALF_A_LINE = '{"event": "message", "text": "one"}\n{"event": "resu'
_STREAM_HAS_BEGUN = """
async () => {
  while (!window.tellEvent) await new Promise((next) => setTimeout(next, 20));
}
"""
# So often that there is never a pause.
_TELL_EVENTS_FOR_EVER = "setInterval(() => window.tellEvent({ event: 'image' }), 20)"
_SHOW_VERY_MANY = """
async (count) => {
  const load = (name) => import(new URL(`ui/${name}.js`, document.baseURI).href);
  const { holdings } = await load("holdings");
  const image = (number) => ({ name: `${number}`, size_bytes: number, digest: "", layers: 1 });
  holdings.images = Array.from({ length: count }, (_, number) => image(number));
  const { imagesView } = await load("images");
  const { view, end } = imagesView();
  end();
  return view.at(-1).querySelectorAll(".image").length;
}
"""
# The answer to the address that ends so is cut off when it has begun.
_CUT_OFF = """
const fetchAll = window.fetch;
window.fetch = (address, options) => {
  if (!address.endsWith("/images")) return fetchAll(address, options);
  const body = new ReadableStream({ start: (controller) => controller.error(new TypeError("network error")) });
  return Promise.resolve(new Response(body, { headers: { "Content-Type": "application/json" } }));
};
"""


def open_space(page: Page) -> None:
    page.get_by_role("link", name="Space", exact=True).click()
    expect(page.get_by_role("listbox")).to_be_visible()


def hold_all(page: Page, address: str) -> list[Route]:
    """Hold what is asked for at an address until the test answers."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(address, hold)
    return held


# ---- the focus


def test_who_closes_a_dialog_is_where_they_were_though_the_list_was_drawn_anew(page: Page, daemon: Daemon) -> None:
    page.get_by_role("button", name="Tag app:1", exact=True).click()
    put(daemon.data_root, WORKER, "aaa:1")
    expect(page.locator(".image h2 a", has_text="aaa:1")).to_be_visible()
    page.keyboard.press("Escape")
    expect(focused(page)).to_have_attribute("aria-label", "Tag app:1")
    page.get_by_role("button", name="Tag aaa:1", exact=True).click()
    daemon.post("/images/remove", image="aaa:1")
    expect(page.locator(".image h2 a", has_text="aaa:1")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Images", exact=True)).to_be_focused()


def test_what_has_the_focus_is_not_scrolled_to_when_others_change_the_store(page: Page, daemon: Daemon) -> None:
    page.set_viewport_size({"width": 1280, "height": 200})
    page.get_by_role("button", name="Remove app:1", exact=True).focus()
    page.evaluate("window.scrollTo(0, 0)")
    put(daemon.data_root, WORKER, "aaa:1")
    expect(page.get_by_role("link", name="aaa:1")).to_have_count(1)
    expect(page.get_by_role("button", name="Remove app:1", exact=True)).to_be_focused()
    assert page.evaluate("window.scrollY") == 0


def test_who_goes_on_after_a_removal_is_not_taken_away_from_there(page: Page, daemon: Daemon) -> None:
    put(daemon.data_root, WORKER, "gone:1")
    page.get_by_role("button", name="Remove gone:1").click()
    release = hold_next(page, "**/images", page.get_by_role("dialog").get_by_role("button", name="Remove").click)
    find = page.get_by_label("Find")
    expect(page.get_by_role("dialog")).to_have_count(0)
    find.focus()
    release()
    expect(page.get_by_role("link", name="gone:1")).to_have_count(0)
    expect(find).to_be_focused()


def test_who_was_refused_in_a_dialog_is_still_on_its_button(page: Page) -> None:
    page.get_by_role("button", name="Tag app:1", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("New name").fill("not/a//name")
    dialog.get_by_role("button", name="Tag").click()
    expect(dialog.get_by_role("alert")).to_contain_text("not/a//name")
    expect(dialog.get_by_role("button", name="Tag")).to_be_focused()


# ---- one image


def test_who_looks_into_an_image_goes_on_though_others_come_to_share_its_bytes(page: Page, daemon: Daemon) -> None:
    page.get_by_role("link", name="app:1", exact=True).click()
    page.get_by_role("button", name="Look into it").click()
    directory = page.get_by_role("button", name="srv/", exact=True)
    expect(directory).to_be_visible()
    page.get_by_role("button", name="Tag", exact=True).focus()
    # It shares a layer with this one.
    others = page.get_by_text("of it, with other images")
    expect(others).to_have_count(0)
    put(daemon.data_root, WORKER, "worker:1")
    expect(others).to_be_visible()
    expect(directory).to_be_visible()
    expect(page.get_by_role("button", name="Tag", exact=True)).to_be_focused()


def test_who_has_gone_on_is_not_taken_to_the_files_that_come(page: Page) -> None:
    page.get_by_role("link", name="app:1", exact=True).click()
    release = hold_next(page, "**/images/files*", page.get_by_role("button", name="Look into it").click)
    page.get_by_role("button", name="Tag", exact=True).focus()
    release()
    expect(page.get_by_role("button", name="srv/", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Tag", exact=True)).to_be_focused()


def test_who_leaves_an_image_that_they_remove_stays_where_they_went(page: Page, daemon: Daemon) -> None:
    put(daemon.data_root, WORKER, "gone:1")
    page.get_by_role("link", name="gone:1").click()
    page.get_by_role("button", name="Remove").click()
    release = hold_next(page, "**/images", page.get_by_role("dialog").get_by_role("button", name="Remove").click)
    page.get_by_role("link", name="Space", exact=True).click()
    release()
    expect(page.get_by_role("heading", name="Space", exact=True)).to_be_visible()
    expect(page).to_have_title("Space · minibox")


def test_who_looks_into_an_image_goes_on_though_the_daemon_does_not_answer_for_a_while(
    page: Page, daemon: Daemon
) -> None:
    page.get_by_role("link", name="app:1", exact=True).click()
    page.get_by_role("button", name="Look into it").click()
    directory = page.get_by_role("button", name="srv/", exact=True)
    expect(directory).to_be_visible()
    page.route(re.compile("/(images|images/inspect.*)$"), lambda route: route.abort())
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/images")):
        put(daemon.data_root, WORKER, "unseen:1")
    page.evaluate(ROUND_TRIP)
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(directory).to_be_visible()
    page.unroute_all()


# ---- answers


def test_so_many_images_as_a_store_may_hold_are_shown(page: Page) -> None:
    assert page.evaluate(_SHOW_VERY_MANY, 300_000) == 200
