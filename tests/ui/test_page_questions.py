"""What becomes of a question whose dialog is closed when its answer was sent already."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import ROUND_TRIP, hold_all, hold_next, tell_events
from tests.support.daemon import Daemon
from tests.ui.conftest import APP, images_of

_BUSY = "the store is busy: pruning"


def hold_and_close(page: Page, address: str, button: str) -> Callable[[], None]:
    """Send what is asked for, and close the dialog before its answer; return what lets the answer come."""
    dialog = page.get_by_role("dialog")
    release = hold_next(page, address, dialog.get_by_role("button", name=button, exact=True).click)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    return release


def open_tag(page: Page, name: str) -> None:
    """Open the dialog that asks for a further name, and type one."""
    page.get_by_role("button", name="Tag app:1", exact=True).click()
    page.get_by_label("New name", exact=True).fill(name)


def test_a_removal_whose_dialog_is_closed_is_seen_in_the_list(page: Page, daemon: Daemon) -> None:
    tell_events(page)
    page.get_by_role("button", name="Remove app:1", exact=True).click()
    release = hold_and_close(page, "**/images/remove*", "Remove")
    release()
    expect(page.get_by_role("link", name="app:1", exact=True)).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("app:1 is removed.")
    assert images_of(daemon) == {}


def test_a_removal_whose_dialog_is_closed_leads_from_its_image_to_the_list(page: Page) -> None:
    page.get_by_role("link", name="app:1", exact=True).click()
    page.get_by_role("button", name="Remove", exact=True).click()
    release = hold_and_close(page, "**/images/remove*", "Remove")
    expect(page.get_by_role("heading", name="app:1", exact=True)).to_be_visible()
    release()
    expect(page.get_by_role("heading", name="Images", exact=True)).to_be_focused()


def test_a_tag_whose_dialog_is_closed_is_seen_in_the_list(page: Page, daemon: Daemon) -> None:
    tell_events(page)
    open_tag(page, "late:1")
    release = hold_and_close(page, "**/images/tag*", "Tag")
    release()
    expect(page.get_by_role("link", name="late:1", exact=True)).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("app:1 is late:1 too.")
    assert images_of(daemon) == {"app:1": APP.digest, "late:1": APP.digest}


@pytest.mark.parametrize(("way", "sent"), [("Remove", "remove"), ("Tag", "tag")])
def test_what_is_refused_when_its_dialog_is_closed_is_told_of_in_every_view(page: Page, way: str, sent: str) -> None:
    held = hold_all(page, f"**/images/{sent}*")
    page.get_by_role("button", name=f"{way} app:1", exact=True).click()
    dialog = page.get_by_role("dialog")
    with page.expect_request(re.compile(f"/images/{sent}")):
        dialog.get_by_role("button", name=way, exact=True).click()
    dialog.get_by_role("button", name="Cancel", exact=True).click()
    expect(dialog).to_have_count(0)
    page.get_by_role("link", name="Space", exact=True).click()
    held[0].fulfill(status=503, body=f"{_BUSY}\n")
    card = page.locator(".work")
    expect(card).to_have_attribute("data-state", "failed")
    expect(card.get_by_role("heading", name=f"{way} app:1", exact=True)).to_be_visible()
    expect(card.locator(".line")).to_have_text(_BUSY)
    expect(page.get_by_role("status")).to_have_text(f"{way} app:1: failed. {_BUSY}")
    card.get_by_role("button", name=f"Put away: {way} app:1", exact=True).click()
    expect(card).to_have_count(0)


def test_what_was_refused_in_a_dialog_is_not_told_of_again_when_it_is_closed(page: Page) -> None:
    open_tag(page, "not/a//name")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Tag", exact=True).click()
    expect(dialog.get_by_role("alert")).to_contain_text("not/a//name")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.evaluate(ROUND_TRIP)
    expect(page.locator(".work")).to_have_count(0)


def test_a_download_whose_dialog_is_closed_does_not_begin(page: Page) -> None:
    page.evaluate("delete window.showSaveFilePicker")
    page.get_by_role("button", name="Download app:1", exact=True).click()
    release = hold_and_close(page, "**/images/archive*", "Download")
    release()
    expect(page.get_by_role("status")).to_have_text("")
    expect(page.locator(".work")).to_have_count(0)
