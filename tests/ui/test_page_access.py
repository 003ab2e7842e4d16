"""Who can use the page: with a token or without, by keyboard alone, by ear, in the dark, on a narrow screen."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect
from playwright.sync_api import Error as PlaywrightError

from tests.support.browser import (
    NARROW,
    WIDE,
    Watch,
    focused,
    hold_all,
    is_too_wide,
    keep_screenshot,
    serious_findings,
    watched_page,
)
from tests.support.daemon import Daemon, running_daemon
from tests.support.images import build_image
from tests.support.stores import put, put_dead
from tests.ui.conftest import APP, WORKER

TOKEN = "a-token-of-this-test-0123456789"
LONG = "registry.example.org/data-science/notebooks/with-a-rather-long-name-of-many-words:cuda-12.4-python-3.12"
_MOST_TABS = 60

# A chooser of files is too small to be seen: the words that stand for it show the outline.
_HAS_OUTLINE = """
() => {
  const element = document.activeElement.id === "archive" ? document.activeElement.nextSibling : document.activeElement;
  return element === document.body || getComputedStyle(element).outlineStyle !== "none";
}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that wants a token, over some images and bytes that none of them needs."""
    folder = tmp_path_factory.mktemp("daemon")
    put(folder / "data", APP, "app:1")
    put(folder / "data", WORKER, LONG)
    put_dead(folder / "data", build_image(salt="dead"))
    with running_daemon(folder, token=TOKEN) as running:
        yield running


def open_page(page: Page, daemon: Daemon, view: str = "/images") -> None:
    """Open a view, and give the token that is asked for."""
    page.goto(f"http://{daemon.host}/ui#{view}")
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)


def give_token_when_asked_again(page: Page) -> None:
    """See that it is said what is missing, want to be asked again, and see the images."""
    expect(page.get_by_role("alert")).to_contain_text("wants a token")
    page.get_by_role("button", name="Try again").click()
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_role("link", name="app:1")).to_be_visible()


def is_clean(watch: Watch, daemon: Daemon) -> bool:
    return watch.hosts == {daemon.host} and not watch.violations and not watch.errors


# ---- the token


def test_the_token_is_asked_for_once_and_kept_nowhere(browser: Browser, daemon: Daemon, screenshots: Path) -> None:
    with watched_page(browser) as (page, watch):
        page.goto(f"http://{daemon.host}/ui#/space")
        dialog = page.get_by_role("dialog")
        # Several requests were refused, and one question is asked.
        expect(dialog).to_have_count(1)
        expect(dialog.get_by_label("Token", exact=True)).to_be_focused()
        keep_screenshot(page, screenshots, "token")
        dialog.get_by_label("Token", exact=True).fill("not-the-token")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("not the right one")
        dialog.get_by_label("Token", exact=True).fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("listbox")).to_be_visible()
        for view in ("Images", "Space", "Images"):
            page.get_by_role("link", name=view, exact=True).click()
        expect(page.get_by_role("link", name="app:1")).to_be_visible()
        expect(dialog).to_have_count(0)
        assert not [url for url in watch.requests if TOKEN in url]
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        assert page.evaluate("indexedDB.databases()") == []
        assert TOKEN not in page.content()
        page.reload()
        expect(dialog).to_have_count(1)
        assert is_clean(watch, daemon)
    assert TOKEN not in daemon.read_log()


def test_who_has_no_token_is_told_so_and_asked_again_when_they_want(browser: Browser, daemon: Daemon) -> None:
    with watched_page(browser) as (page, watch):
        page.goto(f"http://{daemon.host}/ui")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        give_token_when_asked_again(page)
        assert is_clean(watch, daemon)


@pytest.mark.parametrize("late", ["system/info", "images"])
def test_who_said_no_is_not_asked_again_by_an_answer_that_came_late(
    browser: Browser, daemon: Daemon, late: str
) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    with watched_page(browser) as (page, watch):
        page.route(f"**/{late}", hold, times=1)
        page.goto(f"http://{daemon.host}/ui#/space")
        expect(page.get_by_role("dialog")).to_be_visible()
        for _ in range(500):
            if held:
                break
            page.wait_for_timeout(20)
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        # It was sent before they said it.
        (route,) = held
        with page.expect_request_finished(lambda request: request.url.endswith(late)):
            route.continue_()
        page.get_by_role("link", name="Images", exact=True).click()
        give_token_when_asked_again(page)
        assert is_clean(watch, daemon)


def test_an_archive_is_downloaded_with_the_token_in_its_header(
    browser: Browser, daemon: Daemon, tmp_path: Path
) -> None:
    with watched_page(browser, script="delete window.showSaveFilePicker;") as (page, watch):
        open_page(page, daemon)
        page.get_by_role("button", name="Download app:1").click()
        with page.expect_download() as download:
            page.get_by_role("dialog").get_by_role("button", name="Download").click()
        download.value.save_as(tmp_path / "app.tar")
        assert (tmp_path / "app.tar").stat().st_size > APP.size_bytes
        expect(page.locator(".work")).to_have_attribute("data-state", "done")
        assert is_clean(watch, daemon)


def test_a_load_that_is_cancelled_before_its_first_byte_sends_none(
    browser: Browser, daemon: Daemon, tmp_path: Path
) -> None:
    (tmp_path / "app.tar").write_bytes(b"x" * 1000)
    with watched_page(browser) as (page, watch):
        open_page(page, daemon)
        held = hold_all(page, "**/ping")
        with page.expect_request("**/ping"):
            page.get_by_label("Choose a file").set_input_files(tmp_path / "app.tar")
        page.get_by_role("button", name="Cancel: Load app.tar").click()
        for route in held:
            with contextlib.suppress(PlaywrightError):  # nobody waits for it any more
                route.continue_()
        expect(page.locator(".work")).to_have_attribute("data-state", "cancelled")
        assert not [each for each in watch.requests if "/images/load" in each]


# ---- the keyboard


def press_until(page: Page, key: str, is_there: Callable[[], bool]) -> None:
    for _ in range(_MOST_TABS):
        page.keyboard.press(key)
        if is_there():
            return
    raise AssertionError(f"{_MOST_TABS} times {key} did not lead there")


def name_of_focus(page: Page) -> str:
    return str(
        page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || ''")
    ).strip()


def test_everything_can_be_done_with_the_keyboard_alone(browser: Browser, daemon: Daemon) -> None:
    with watched_page(browser) as (page, watch):
        open_page(page, daemon)
        expect(page.get_by_role("link", name="app:1")).to_be_visible()
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("Tab")
        assert name_of_focus(page) == "Skip to the content"
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        press_until(page, "Tab", lambda: name_of_focus(page) == "Remove app:1")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
        # The focus stays inside the question, and comes back to where it was.
        for _ in range(4):
            page.keyboard.press("Tab")
            assert page.evaluate(
                "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
            )
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        assert name_of_focus(page) == "Remove app:1"
        press_until(page, "Shift+Tab", lambda: name_of_focus(page) == "app:1")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="app:1")).to_be_focused()
        press_until(page, "Shift+Tab", lambda: name_of_focus(page) == "Space")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Space")).to_be_focused()
        press_until(page, "Tab", lambda: name_of_focus(page) == "Show the plan")
        page.keyboard.press("Space")
        expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
        page.keyboard.press("Enter")
        expect(focused(page)).to_have_text("Show the plan")
        assert is_clean(watch, daemon)


def test_what_has_the_focus_is_seen_to_have_it(browser: Browser, daemon: Daemon) -> None:
    with watched_page(browser) as (page, _):
        open_page(page, daemon)
        expect(page.get_by_role("link", name="app:1")).to_be_visible()
        unseen = []
        for _ in range(20):
            page.keyboard.press("Tab")
            if not page.evaluate(_HAS_OUTLINE):
                unseen.append(name_of_focus(page))
        assert not unseen


# ---- eyes and ears


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_no_view_has_what_axe_calls_serious_or_has_to_be_scrolled_sideways(
    browser: Browser, daemon: Daemon, screenshots: Path, scheme: str, size: ViewportSize
) -> None:
    with watched_page(browser, color_scheme=scheme, viewport=size) as (page, watch):
        open_page(page, daemon)

        def look_at(view: str) -> None:
            assert not serious_findings(page), view
            assert not is_too_wide(page), view
            keep_screenshot(page, screenshots, f"{view}-{scheme}-{size['width']}")

        expect(page.get_by_role("link", name="app:1")).to_be_visible()
        page.get_by_label("Image", exact=True).fill("registry.example.org/no/such//name/that/could/be/one:1")
        page.get_by_role("button", name="Pull").click()
        expect(page.locator(".work")).to_have_attribute("data-state", "failed")
        look_at("images")
        page.get_by_role("button", name=f"Remove {LONG}").click()
        look_at("remove")
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Space", exact=True).click()
        page.get_by_role("option").first.click()
        page.locator("summary", has_text="All ").click()
        look_at("space")
        page.get_by_role("button", name="Show the plan").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        look_at("prune")
        page.keyboard.press("Escape")
        page.goto(page.url.partition("#")[0] + "#/image/" + LONG.replace("/", "%2F"))
        page.get_by_role("button", name="Look into it").click()
        expect(page.get_by_role("table")).to_be_visible()
        look_at("image")
        assert is_clean(watch, daemon)


def test_the_dark_is_dark_and_the_light_is_light(browser: Browser, daemon: Daemon) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        with watched_page(browser, color_scheme=scheme) as (page, _):
            page.goto(f"http://{daemon.host}/ui")
            expect(page.get_by_role("dialog")).to_be_visible()
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
            shades[scheme] = sum(colour) / 3
    assert shades["dark"] < 60 < 200 < shades["light"]


def test_nothing_moves_for_who_wants_stillness(browser: Browser, daemon: Daemon) -> None:
    animated = (
        "getComputedStyle(document.querySelector('main').appendChild(document.createElement('progress'))).animationName"
    )
    for wish, name in (("reduce", "none"), ("no-preference", "seek")):
        with watched_page(browser, reduced_motion=wish) as (page, _):
            page.goto(f"http://{daemon.host}/ui")
            assert page.evaluate(animated) == name
