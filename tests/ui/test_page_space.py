"""The page's picture of the store, in Chromium: whose the bytes are, what a prune would take, and takes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from minibox_store import _locks as locks
from tests.support.browser import Watch, focused, keep_screenshot, watched_page
from tests.support.daemon import Daemon
from tests.support.images import build_image, random_layer
from tests.support.stores import put, put_dead, rot
from tests.ui.conftest import APP, MEBIBYTE, WORKER

DEAD = build_image([random_layer(MEBIBYTE // 2, salt="dead")], salt="dead")

# For many random lists of sizes: what is wrong with the rectangles that are made of them.
_TRY_SQUARIFY = """
async () => {
  const { squarify } = await import(new URL("ui/treemap.js", document.baseURI).href);
  let seed = 7;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const wrong = [];
  for (let round = 0; round < 300; round += 1) {
    const box = { x: 5, y: 9, width: 50 + 900 * random(), height: 50 + 900 * random() };
    const length = 1 + Math.floor(40 * random());
    const items = Array.from({ length }, () => ({ size: Math.floor(10 ** (9 * random())) }));
    const sum = items.reduce((total, item) => total + item.size, 0);
    const cells = squarify([...items, { size: 0 }], box);
    const slack = 1e-6 * box.width * box.height;
    if (cells.length !== items.length) wrong.push("an item is missing, or one of no size is there");
    for (const [at, cell] of cells.entries()) {
      const area = cell.width * cell.height;
      if (Math.abs(area - (cell.item.size / sum) * box.width * box.height) > slack) wrong.push(`area ${area}`);
      const inside = cell.x > box.x - 1e-6 && cell.y > box.y - 1e-6
        && cell.x + cell.width < box.x + box.width + 1e-6 && cell.y + cell.height < box.y + box.height + 1e-6;
      if (!inside) wrong.push("outside of the box");
      for (const other of cells.slice(at + 1)) {
        const width = Math.min(cell.x + cell.width, other.x + other.width) - Math.max(cell.x, other.x);
        const height = Math.min(cell.y + cell.height, other.y + other.height) - Math.max(cell.y, other.y);
        if (width > 1e-6 && height > 1e-6) wrong.push("two overlap");
      }
    }
  }
  return [...new Set(wrong)];
}
"""
_EQUAL_SQUARES = """
async () => {
  const { squarify } = await import(new URL("ui/treemap.js", document.baseURI).href);
  const cells = squarify(Array.from({ length: 64 }, () => ({ size: 5 })), { x: 0, y: 0, width: 800, height: 800 });
  return Math.max(...cells.map((cell) => Math.max(cell.width / cell.height, cell.height / cell.width)));
}
"""


@pytest.fixture(scope="module", autouse=True)
def store(daemon: Daemon) -> None:
    """Two images that share a layer, and one that nobody needs."""
    put(daemon.data_root, APP, "app:1")
    put(daemon.data_root, WORKER, "worker:1", "worker:again")
    put_dead(daemon.data_root, DEAD)


@pytest.fixture
def opened(browser: Browser, daemon: Daemon) -> Iterator[tuple[Page, Watch]]:
    """The view of the space; it breaks no rule while the test runs."""
    with watched_page(browser) as (page, watch):
        page.goto(f"http://{daemon.host}/ui#/space")
        yield page, watch
        assert watch.hosts == {daemon.host}
        assert not watch.violations
        assert not watch.errors


def test_the_rectangles_are_as_large_as_the_sizes_and_fill_the_box_without_overlap(opened: tuple[Page, Watch]) -> None:
    page, _ = opened
    assert page.evaluate(_TRY_SQUARIFY) == []
    assert page.evaluate(_EQUAL_SQUARES) < 1.5


def test_a_layer_that_images_share_is_seen_once(opened: tuple[Page, Watch], screenshots: Path) -> None:
    page, _ = opened
    shared = page.get_by_role("option", name=re.compile(r"layer .*, 1\.0 MB, shared by 3 images"))
    expect(shared).to_have_count(1)
    shared.click()
    details = page.locator(".details")
    expect(details).to_contain_text(APP.layer_digests[0])
    expect(details).to_contain_text("app:1, worker:1, worker:again")
    keep_screenshot(page, screenshots, "space")


def test_of_very_many_blobs_no_number_is_said_to_be_of_all_that_is_of_the_largest(opened: tuple[Page, Watch]) -> None:
    page, _ = opened
    shared = page.locator(".numbers p").filter(has_text="needed by more than one image")
    expect(shared).to_be_visible()
    expect(shared).not_to_contain_text("at least")
    page.route("**/system/df", lambda route: route.fulfill(response=route.fetch(url=f"{route.request.url}?blobs=1")))
    page.reload()
    expect(shared).to_contain_text("at least")
    page.unroute_all()


def test_the_picture_is_walked_with_the_arrow_keys_and_has_one_place_in_the_order_of_tabs(
    opened: tuple[Page, Watch],
) -> None:
    page, _ = opened
    cells = page.get_by_role("option")
    expect(cells.first).to_be_visible()
    assert page.locator(".cell[tabindex='0']").count() == 1
    cells.first.focus()
    page.keyboard.press("ArrowRight")
    expect(cells.nth(1)).to_be_focused()
    expect(cells.nth(1)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("End")
    expect(cells.last).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(cells.last).to_be_focused()
    page.keyboard.press("Home")
    expect(cells.first).to_be_focused()
    assert page.locator(".cell[tabindex='0']").count() == 1


def test_the_picture_fits_itself_to_the_width_that_it_has_and_keeps_the_focus(opened: tuple[Page, Watch]) -> None:
    page, _ = opened
    picture = page.get_by_role("listbox")
    page.get_by_role("option").first.focus()
    for width in (700, 400, 1000):
        page.set_viewport_size({"width": width, "height": 800})
        wanted = page.locator(".picture").evaluate("(element) => String(element.clientWidth)")
        expect(picture).to_have_attribute("width", wanted)
        expect(page.locator(".cell[aria-selected=true]")).to_be_focused()


def test_a_prune_shows_its_plan_first_and_removes_that(
    opened: tuple[Page, Watch], daemon: Daemon, screenshots: Path
) -> None:
    page, _ = opened
    blob = daemon.data_root / "blobs" / "sha256" / DEAD.layer_digests[0].removeprefix("sha256:")
    page.get_by_role("button", name="Show the plan").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("row").filter(has_text="524 kB")).to_have_count(1)
    expect(dialog.get_by_role("row").filter(has_text=DEAD.layer_digests[0][7:19])).to_have_count(1)
    keep_screenshot(page, screenshots, "prune")
    # Who only looked has changed nothing, and stands where they stood.
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="Show the plan")).to_be_focused()
    assert blob.exists()
    # As long as somebody else has the lock, nothing goes.
    with locks.holding_lock(str(daemon.data_root / "ingest" / "store.lock"), doing="testing", timeout_seconds=10):
        page.get_by_role("button", name="Show the plan").click()
        dialog.get_by_role("button", name="Prune").click()
        card = page.locator(".work")
        expect(card).to_contain_text(re.compile(r"Removing · 0 of 3 things · 0 B of 5\d\d kB"))
        expect(card.get_by_role("progressbar", name="Prune")).to_have_attribute("value", "0")
        keep_screenshot(page, screenshots, "pruning")
        card.get_by_role("button", name="Cancel: Prune").click()
        expect(card).to_contain_text("the next prune removes the rest")
    card.get_by_role("button", name="Put away: Prune").click()
    page.get_by_role("button", name="Show the plan").click()
    dialog.get_by_role("button", name="Prune").click()
    expect(card).to_have_attribute("data-state", "done")
    expect(card).to_contain_text(re.compile(r"5\d\d kB freed, 3 blobs removed"))
    assert not blob.exists()
    expect(page.locator(".numbers")).to_contain_text(re.compile(r"0 Bneeded by none"))
    page.get_by_role("button", name="Show the plan").click()
    expect(dialog).to_contain_text("Nothing: every blob is needed.")


def test_a_verify_finds_what_is_wrong_and_names_the_images(opened: tuple[Page, Watch], daemon: Daemon) -> None:
    page, _ = opened
    button = page.get_by_role("button", name="Verify every byte")
    button.click()
    card = page.locator(".work")
    expect(card).to_contain_text("Every byte is what it should be.")
    rot(daemon.data_root / "blobs" / "sha256" / APP.layer_digests[1].removeprefix("sha256:"))
    button.click()
    findings = page.locator(".findings li")
    expect(findings).to_have_count(1)
    expect(findings).to_contain_text("wrong digest")
    expect(findings).to_contain_text("app:1")


def test_a_store_that_cannot_be_read_is_said_to_be_so_and_asked_again(
    opened: tuple[Page, Watch], daemon: Daemon
) -> None:
    page, _ = opened
    expect(page.get_by_role("listbox")).to_be_visible()
    index = daemon.data_root / "index.json"
    content = index.read_bytes()
    index.write_bytes(b"{")
    try:
        page.goto(page.url.partition("#")[0])
        notice = page.get_by_role("alert")
        expect(notice).to_contain_text("index.json")
    finally:
        index.write_bytes(content)
    notice.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("link", name="app:1")).to_be_visible()
    expect(focused(page)).not_to_have_count(0)
