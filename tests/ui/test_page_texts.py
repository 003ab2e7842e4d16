"""What images say of themselves, on the page: text as it is, and of very much the first."""

from playwright.sync_api import Page, expect

from tests.support.browser import NARROW, is_too_wide
from tests.support.daemon import Daemon
from tests.support.images import build_image
from tests.support.layouts import write_layout
from tests.support.stores import put
from tests.ui.conftest import APP, fill_store


def test_what_looks_like_html_is_shown_as_the_text_that_it_is(page: Page, daemon: Daemon) -> None:
    name = "a<img/src=x/onerror=alert(1)>:1"
    told = "<img src=x onerror=alert(1)>"
    config = {"config": {"Labels": {told: told}, "Env": [f"A={told}"]}, "author": told}
    hostile = build_image([{f"srv/{told.replace('/', '')}": b""}], config=config)
    fill_store(daemon, {})
    write_layout(daemon.data_root, {name: hostile})
    page.reload()
    expect(page.get_by_role("link", name=name)).to_be_visible()
    page.get_by_role("button", name=f"Remove {name}").click()
    expect(page.get_by_role("dialog")).to_contain_text(name)
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Space", exact=True).click()
    page.get_by_role("option").first.click()
    expect(page.locator(".details")).to_contain_text(name)
    page.get_by_role("link", name="Images", exact=True).click()
    page.get_by_role("link", name=name).click()
    expect(page.get_by_text(f"{told}={told}")).to_be_visible()
    page.get_by_role("button", name="Look into it").click()
    page.get_by_role("button", name="srv/", exact=True).click()
    expect(page.get_by_role("cell", name="<img src=x onerror=alert(1)>")).to_be_visible()
    assert page.locator("img").count() == 1


def test_what_turns_the_letters_behind_it_round_is_written_out(page: Page, daemon: Daemon) -> None:
    config = {"config": {"Labels": {"\u2066team": "billing"}}}
    write_layout(daemon.data_root, {"a\u202etxt:1": build_image([{"d\u202e/photo\u202egpj.exe": b""}], config=config)})
    page.reload()
    page.get_by_role("link", name="a\\u202etxt:1").click()
    expect(page.get_by_role("heading", name="a\\u202etxt:1")).to_be_focused()
    expect(page).to_have_title("a\\u202etxt:1 · minibox")
    expect(page.get_by_text("\\u2066team=billing")).to_be_visible()
    page.get_by_role("button", name="Look into it").click()
    page.get_by_role("button", name="d\\u202e/").click()
    expect(page.get_by_role("cell", name="photo\\u202egpj.exe")).to_be_visible()


def test_an_image_of_very_many_variables_is_shown_with_the_first_of_them(page: Page, daemon: Daemon) -> None:
    config = {"config": {"Env": [f"V{number}=" for number in range(65_000)]}}
    put(daemon.data_root, build_image([{"file": b""}], config=config), "many:1")
    page.get_by_role("link", name="many:1").click()
    expect(page.get_by_text("V999=")).to_be_visible()
    expect(page.get_by_text("and 64,000 more")).to_be_visible()


def test_sentences_with_digests_in_them_are_no_wider_than_the_screen(page: Page) -> None:
    problem = f"blob {APP.digest} not found"
    finding = {"kind": "missing", "path": "blobs/it", "problem": problem, "names": ["app:1"], "is_damage": True}
    plan = {"plan": [], "kept": [problem], "errors": []}
    page.route("**/system/df", lambda route: route.fulfill(status=500, body=problem))
    page.route("**/system/verify", lambda route: route.fulfill(json={"findings": [finding]}))
    page.route("**/system/prune*", lambda route: route.fulfill(json=plan))
    page.set_viewport_size(NARROW)
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text(problem)
    assert not is_too_wide(page)
    page.get_by_role("link", name="Space", exact=True).click()
    page.get_by_role("button", name="Verify every byte", exact=True).click()
    expect(page.locator(".findings")).to_contain_text(problem)
    assert not is_too_wide(page)
    page.get_by_role("button", name="Show the plan", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(problem)
    assert dialog.evaluate("(element) => element.scrollWidth <= element.clientWidth")
