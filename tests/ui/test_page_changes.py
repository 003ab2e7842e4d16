"""What the page keeps while the store changes under it, and what it does not do behind its user's back."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.browser import CUT, ROUND_TRIP, cut_off, focused, hold_all, hold_next, tell_events
from tests.support.daemon import Daemon
from tests.support.images import build_image, random_layer
from tests.support.stores import put, put_dead
from tests.ui.conftest import MEBIBYTE, WORKER

_HALF_A_LINE = '{"event": "message", "text": "one"}\n{"event": "resu'
_TELL_CHANGE = "window.tellEvent({ event: 'image' })"
# So often that there is never a pause.
_TELL_CHANGES_FOR_EVER = f"setInterval(() => {_TELL_CHANGE}, 20)"
# How often a name is looked at until each of so many images has been asked for its bytes.
_COUNT_LOOKS = """
async (count) => {
  const { holdings, usageOf } = await import(new URL("ui/holdings.js", document.baseURI).href);
  let looks = 0;
  const digest = "sha256:it";
  const image = (number) => ({ own_bytes: number, digest, get name() { looks += 1; return `many/${number}:1`; } });
  holdings.usage = { images: Array.from({ length: count }, (_, number) => image(number)) };
  for (let number = 0; number < count; number += 1) {
    if (usageOf({ name: `many/${number}:1`, digest }).own_bytes !== number) return -1;
  }
  return usageOf({ name: "none:1", digest }) === null ? looks : -1;
}
"""
_SHOW_VERY_MANY = """
async (count) => {
  const load = (name) => import(new URL(`ui/${name}.js`, document.baseURI).href);
  const [{ holdings }, { imagesView }] = await Promise.all([load("holdings"), load("images")]);
  // From here to the end nothing else runs: an answer of the daemon would be what is held.
  const image = (number) => ({ name: `${number}`, size_bytes: number, digest: "", layers: 1 });
  holdings.images = Array.from({ length: count }, (_, number) => image(number));
  const { view, end } = imagesView();
  end();
  return view.at(-1).querySelectorAll(".image").length;
}
"""


def open_space(page: Page) -> None:
    page.get_by_role("link", name="Space", exact=True).click()
    expect(page.get_by_role("listbox")).to_be_visible()


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
    page.get_by_role("button", name="Remove", exact=True).click()
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


def test_who_is_refused_a_directory_is_on_the_way_back(page: Page) -> None:
    page.get_by_role("link", name="app:1", exact=True).click()
    page.route("**/images/files*", lambda route: route.abort())
    page.get_by_role("button", name="Look into it").click()
    expect(page.get_by_role("button", name="Back to the root")).to_be_focused()


# ---- the space


def test_what_is_told_of_a_blob_that_is_gone_is_gone_too(page: Page, daemon: Daemon) -> None:
    put_dead(daemon.data_root, build_image([random_layer(MEBIBYTE, salt="dead")]))
    open_space(page)
    page.get_by_role("option", name=re.compile("needed by no image")).first.click()
    expect(page.locator(".details")).to_contain_text("a prune removes it")
    page.get_by_role("button", name="Show the plan").focus()
    daemon.post("/system/prune")
    expect(page.get_by_role("option", name=re.compile("needed by no image"))).to_have_count(0)
    expect(page.locator(".details")).to_be_empty()


def test_the_table_of_blobs_stays_open_when_others_change_the_store(page: Page, daemon: Daemon) -> None:
    open_space(page)
    page.locator("summary").click()
    table = page.get_by_role("table")
    expect(table).to_be_visible()
    put_dead(daemon.data_root, build_image(salt="another"))
    put(daemon.data_root, WORKER, "another:1")
    expect(table).to_contain_text(WORKER.layer_digests[1][7:19])
    expect(table).to_be_visible()
    expect(page.locator("summary")).to_be_focused()


def test_no_prune_is_done_whose_plan_is_not_shown(page: Page) -> None:
    open_space(page)
    page.get_by_role("button", name="Show the plan").click()
    dialog = page.get_by_role("dialog")
    release = hold_next(page, "**/system/prune*", dialog.get_by_role("checkbox").check)
    dialog.get_by_role("button", name="Prune").click()
    expect(dialog.get_by_role("alert")).to_contain_text("plan")
    release()
    with page.expect_request("**/system/prune?build_cache=1"):
        dialog.get_by_role("button", name="Prune").click()


def test_a_plan_that_comes_when_its_view_is_left_opens_no_dialog(page: Page) -> None:
    open_space(page)
    release = hold_next(page, "**/system/prune*", page.get_by_role("button", name="Show the plan").click)
    page.get_by_role("link", name="Images", exact=True).click()
    release()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_what_a_verify_finds_is_there_for_who_comes_back(page: Page) -> None:
    finding = {"kind": "wrong digest", "path": "blobs/it", "problem": "", "names": ["app:1"], "is_damage": True}
    held = hold_all(page, "**/system/verify")
    open_space(page)
    with page.expect_request("**/system/verify"):
        page.get_by_role("button", name="Verify every byte").click()
    page.get_by_role("link", name="Images", exact=True).click()
    held[0].fulfill(json={"findings": [finding]})
    expect(page.locator(".work")).to_contain_text("1 finding")
    open_space(page)
    expect(page.locator(".findings li")).to_contain_text("blobs/it")
    # As long as they are looked for again, nobody knows whether they still are so.
    page.get_by_role("button", name="Verify every byte").click()
    expect(page.locator(".findings li")).to_have_count(0)


def test_of_very_many_findings_the_first_are_shown(page: Page) -> None:
    names = [f"app:{number}" for number in range(50)]
    finding = {"kind": "missing", "path": "blobs/it", "problem": "", "names": names, "is_damage": True}
    page.route("**/system/verify", lambda route: route.fulfill(json={"findings": [finding] * 1250}))
    open_space(page)
    page.get_by_role("button", name="Verify every byte").click()
    findings = page.locator(".findings li")
    expect(findings).to_have_count(201)
    expect(findings.first).to_contain_text("(app:0, app:1,")
    expect(findings.first).to_contain_text("app:19, 30 images more)")
    expect(findings.last).to_have_text("and 1,050 more")


def test_a_verify_that_is_cancelled_promises_nothing_to_the_next(page: Page) -> None:
    hold_all(page, "**/system/verify")
    open_space(page)
    page.get_by_role("button", name="Verify every byte").click()
    page.get_by_role("button", name="Cancel: Verify the store").click()
    expect(page.locator(".work .line")).to_have_text("Cancelled.")


def test_bytes_that_are_not_known_any_more_are_not_told_of(page: Page, daemon: Daemon) -> None:
    open_space(page)
    expect(page.locator(".numbers")).to_contain_text("in all blobs")
    page.route("**/system/df", lambda route: route.fulfill(status=500, body="no"))
    put(daemon.data_root, WORKER, "unknown:1")
    expect(page.get_by_role("alert")).to_contain_text("does not say")
    expect(page.locator(".numbers")).to_be_empty()


def test_a_daemon_that_does_not_answer_is_told_of_beside_the_bytes(page: Page, daemon: Daemon) -> None:
    open_space(page)
    page.route("**/images", lambda route: route.abort())
    put(daemon.data_root, WORKER, "unseen:1")
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    expect(page.get_by_role("listbox")).to_be_visible()
    # Another one may be on its way: until it has been tried, none is answered.
    hold_next(page, "**/images", page.get_by_role("button", name="Try again", exact=True).click)()
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_role("heading", name="Space", exact=True)).to_be_focused()


# ---- answers


def test_changes_without_a_pause_are_seen_while_they_go_on(page: Page, daemon: Daemon) -> None:
    tell_events(page)
    page.evaluate(_TELL_CHANGES_FOR_EVER)
    put(daemon.data_root, WORKER, "amidst:1")
    expect(page.get_by_role("link", name="amidst:1")).to_be_visible()


def test_what_has_changed_while_the_list_was_on_its_way_is_seen(page: Page, daemon: Daemon) -> None:
    tell_events(page)
    release = hold_next(page, "**/images", lambda: page.evaluate(_TELL_CHANGE))
    put(daemon.data_root, WORKER, "meanwhile:1")
    page.evaluate(_TELL_CHANGE)
    release()
    expect(page.get_by_role("link", name="meanwhile:1")).to_be_visible()


def test_an_older_list_does_not_take_the_place_of_a_newer_one(page: Page) -> None:
    tell_events(page)
    release = hold_next(page, "**/images", lambda: page.evaluate(_TELL_CHANGE))
    page.get_by_role("button", name="Remove app:1", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.get_by_role("link", name="app:1")).to_have_count(0)
    release()
    assert page.get_by_role("link", name="app:1").count() == 0


@pytest.mark.parametrize("is_late", [False, True])
def test_who_gives_the_token_sees_the_list_though_a_change_was_told_of_meanwhile(page: Page, is_late: bool) -> None:
    refused: list[Route] = []
    dialog = page.get_by_role("dialog")

    def refuse(route: Route) -> None:
        if route.request.header_value("authorization"):
            route.continue_()
        elif is_late and dialog.count():
            refused.append(route)
        else:
            route.fulfill(status=401, body="Unauthorized\n")

    tell_events(page)
    page.route(re.compile("/(images|system/df)$"), refuse)
    page.evaluate(_TELL_CHANGE)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Unauthorized")
    page.get_by_role("button", name="Try again").click()
    expect(dialog).to_be_visible()
    with page.expect_event("request" if is_late else "requestfinished", lambda each: each.url.endswith("/images")):
        page.evaluate(_TELL_CHANGE)
    page.evaluate(ROUND_TRIP)
    page.get_by_label("Token", exact=True).fill("a-token")
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    for route in refused:
        route.fulfill(status=401, body="Unauthorized\n")
    expect(alert).to_have_count(0)


@pytest.mark.parametrize("way", ["pull", "load"])
def test_an_answer_that_ends_amidst_a_line_is_said_to_be_cut_off(page: Page, tmp_path: Path, way: str) -> None:
    page.route(f"**/images/{way}*", lambda route: route.fulfill(content_type="application/x-ndjson", body=_HALF_A_LINE))
    if way == "pull":
        page.get_by_label("Image", exact=True).fill("cut:1")
        page.get_by_role("button", name="Pull", exact=True).click()
    else:
        (tmp_path / "cut.tar").write_bytes(b"x")
        page.get_by_label("Choose a file").set_input_files(tmp_path / "cut.tar")
    expect(page.locator(".work .line")).to_have_text(CUT)


def test_a_list_that_is_cut_off_is_said_to_be(page: Page) -> None:
    page.add_init_script(cut_off("/images"))
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text(CUT)


def test_so_many_images_as_a_store_may_hold_are_shown(page: Page) -> None:
    assert page.evaluate(_SHOW_VERY_MANY, 300_000) == 200


def test_the_bytes_of_very_many_images_are_found_without_looking_at_all_for_each(page: Page) -> None:
    assert 0 < page.evaluate(_COUNT_LOOKS, 2000) <= 4000
