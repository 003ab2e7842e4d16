"""What the page shows before it knows whose the bytes are, and where it does not come to know."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Request, expect

from tests.support.browser import focused, hold_next
from tests.support.daemon import Daemon
from tests.support.stores import put
from tests.ui.conftest import WORKER, fill_store

_WEIGHING = "**/system/df"
_NOT_KNOWN = "does not say whose the bytes are"


def reload_unweighed(page: Page) -> Callable[[], None]:
    """Load the page anew, and hold the answer that says whose the bytes are; return what lets it come."""
    address = page.url
    # What is held is not to be what the page had asked for before.
    page.goto("about:blank")

    def load() -> None:
        page.goto(address)

    return hold_next(page, _WEIGHING, load)


def told_of(page: Page, name: str) -> str | None:
    """What the list tells of whose an image's bytes are."""
    row = page.get_by_role("listitem").filter(has=page.get_by_role("link", name=name, exact=True))
    return row.locator("small").text_content()


def test_images_are_shown_before_it_is_known_whose_the_bytes_are(page: Page, daemon: Daemon) -> None:
    weighed: list[Request] = []
    release = reload_unweighed(page)
    expect(page.get_by_role("link", name="app:1", exact=True)).to_be_visible()
    assert told_of(page, "app:1") == ""
    page.on("request", lambda request: weighed.append(request) if request.url.endswith("/system/df") else None)
    put(daemon.data_root, WORKER, "worker:1", "worker:again")
    for name in ("worker:1", "worker:again"):
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    button = page.get_by_role("button", name="Remove worker:again", exact=True)
    button.click()
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    expect(button).to_have_count(0)
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("link", name="Space", exact=True).click()
    expect(page.get_by_text("Asking the daemon…")).to_be_visible()
    page.get_by_role("link", name="Images", exact=True).click()
    # One question at a time, and one more for all that has changed meanwhile.
    assert not weighed
    release()
    expect(page.get_by_text("1.0 MB shared")).to_have_count(2)


def test_what_is_about_to_be_pressed_stays_where_it_is_when_the_bytes_are_known(page: Page) -> None:
    release = reload_unweighed(page)
    button = page.get_by_role("button", name="Tag app:1", exact=True)
    button.focus()
    before = button.bounding_box()
    assert before is not None
    page.mouse.move(before["x"] + 5, before["y"] + 5)
    page.mouse.down()
    release()
    expect(page.get_by_text("shares nothing")).to_be_visible()
    assert button.bounding_box() == before
    expect(focused(page)).to_have_attribute("aria-label", "Tag app:1")
    page.mouse.up()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_the_buttons_of_one_image_stay_where_they_are_when_its_bytes_are_known(page: Page, daemon: Daemon) -> None:
    put(daemon.data_root, WORKER, "worker:1")
    release = reload_unweighed(page)
    page.get_by_role("link", name="app:1", exact=True).click()
    button = page.get_by_role("button", name="Tag", exact=True)
    handle = button.element_handle()
    before = button.bounding_box()
    release()
    expect(page.get_by_text("of it, with other images")).to_be_visible()
    assert handle.evaluate("(element) => element.isConnected")
    assert button.bounding_box() == before


def test_an_empty_store_is_said_to_be_empty_before_its_bytes_are_known(page: Page, daemon: Daemon) -> None:
    fill_store(daemon, {})
    release = reload_unweighed(page)
    expect(page.get_by_text("Nothing here yet")).to_be_visible()
    expect(page.locator(".found")).to_have_text("0 images")
    release()
    expect(page.locator(".found")).to_have_text("0 images, 0 B")
    expect(page.get_by_text("Nothing here yet")).to_be_visible()


def test_of_a_name_that_has_moved_no_bytes_are_told_of_that_were_another_image_s(page: Page, daemon: Daemon) -> None:
    expect(page.get_by_text("shares nothing")).to_be_visible()
    release = hold_next(page, _WEIGHING, lambda: put(daemon.data_root, WORKER, "app:1"))
    expect(page.locator(".image code")).to_have_text(WORKER.digest.removeprefix("sha256:")[:12])
    assert told_of(page, "app:1") == ""
    release()
    expect(page.get_by_text("shares nothing")).to_be_visible()


@pytest.mark.parametrize(("status", "words"), [(500, "the disk is on fire"), (401, "Unauthorized")])
def test_where_the_bytes_alone_are_not_told_of_the_list_stands_beside_a_sentence(
    page: Page, status: int, words: str
) -> None:
    page.route(_WEIGHING, lambda route: route.fulfill(status=status, body=f"{words}\n"))
    page.reload()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(re.compile(f"{_NOT_KNOWN}: {words}"))
    expect(page.get_by_role("link", name="app:1", exact=True)).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("link", name="app:1", exact=True).click()
    expect(page.get_by_text("not known")).to_be_visible()
    page.get_by_role("link", name="Space", exact=True).click()
    expect(alert).to_contain_text(_NOT_KNOWN)
    # Another one may be on its way: until it has been tried, none is answered.
    hold_next(page, _WEIGHING, page.get_by_role("button", name="Try again", exact=True).click)()
    expect(page.get_by_role("listbox")).to_be_visible()
    expect(alert).to_have_count(0)
    page.get_by_role("link", name="Images", exact=True).click()
    expect(page.get_by_text("shares nothing")).to_be_visible()
    expect(alert).to_have_count(0)


def test_bytes_that_nobody_could_be_asked_for_are_as_they_were(page: Page, daemon: Daemon) -> None:
    expect(page.get_by_text("shares nothing")).to_be_visible()
    page.route(_WEIGHING, lambda route: route.abort())
    put(daemon.data_root, WORKER, "worker:1")
    expect(page.get_by_role("alert")).to_contain_text(_NOT_KNOWN)
    expect(page.get_by_role("link", name="worker:1", exact=True)).to_be_visible()
    assert [told_of(page, name) for name in ("app:1", "worker:1")] == ["shares nothing", ""]


def test_a_sentence_that_was_heard_is_not_said_again_with_each_letter_that_is_typed(page: Page) -> None:
    page.route(_WEIGHING, lambda route: route.fulfill(status=500, body="no"))
    page.reload()
    alert = page.get_by_role("alert")
    alert.evaluate("(element) => { element.dataset.mark = 'it'; }")
    page.get_by_label("Find", exact=True).fill("app")
    expect(page.locator(".found")).to_have_text("1 of 1 image")
    expect(alert).to_have_attribute("data-mark", "it")
