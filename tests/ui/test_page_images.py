"""The page's images, in Chromium: pulled with progress, looked into, tagged, saved, removed and loaded again."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.browser import CUT, NARROW, cut_off, focused, is_too_wide, keep_screenshot, watched_page
from tests.support.daemon import Daemon
from tests.support.images import BuiltImage, build_image, build_index, random_layer
from tests.support.layouts import write_layout_files
from tests.support.stores import put
from tests.ui.conftest import APP, MEBIBYTE, SLOW, WORKER, SlowRegistry, fill_store, images_of

# A browser that can keep a stream in a file asks its user for the file; the file that it is given here is a real one,
# of the page's own private file system, where no dialog stands in the way.
_GIVE_A_FILE = """
window.showSaveFilePicker = async ({ suggestedName }) => {
  const folder = await navigator.storage.getDirectory();
  return folder.getFileHandle(suggestedName, { create: true });
};
"""
# At once, or by its first byte.
_REFUSE_THE_FILE = [
    "window.showSaveFilePicker = async () => ({ createWritable: async () => { throw new Error('no room for it'); } });",
    """
    const write = () => { throw new DOMException("no room for it", "QuotaExceededError"); };
    window.showSaveFilePicker = async () => ({ createWritable: async () => new WritableStream({ write }) });
    """,
]
_NO_PICKER = "delete window.showSaveFilePicker;"


# What a user does who drops a file of theirs onto the page.
_DROP = """
(name) => {
  const dropped = new DataTransfer();
  dropped.items.add(new File([new Uint8Array(50000).fill(255)], name));
  const event = new DragEvent("drop", { dataTransfer: dropped, bubbles: true, cancelable: true });
  document.querySelector(".zone").dispatchEvent(event);
}
"""
# What takes until it is cancelled, by the page's own module.
_START_FIVE = """
async () => {
  const { start } = await import(new URL("ui/work.js", document.baseURI).href);
  for (const title of ["one", "two", "three", "four", "five"]) {
    start(title, (work) => new Promise((_, reject) => work.signal.addEventListener("abort", reject)));
  }
}
"""

OpenPage = Callable[[Mapping[str, BuiltImage]], Page]


@pytest.fixture
def open_page(browser: Browser, daemon: Daemon) -> Iterator[OpenPage]:
    """Open the page over a store of these images alone, without file pickers; it breaks no rule while the test runs."""
    with watched_page(browser, script=_NO_PICKER) as (page, watch):

        def open_over(images: Mapping[str, BuiltImage]) -> Page:
            fill_store(daemon, images)
            page.goto(f"http://{daemon.host}/ui")
            return page

        yield open_over
        assert watch.hosts == {daemon.host}
        assert not watch.violations
        assert not watch.errors


def pull(page: Page, reference: str) -> Locator:
    """Pull by the form, and return the card that tells of it."""
    page.get_by_label("Image", exact=True).fill(reference)
    page.get_by_role("button", name="Pull", exact=True).click()
    return work(page, f"Pull {reference}").first


def work(page: Page, title: str) -> Locator:
    return page.locator(".work").filter(has=page.get_by_role("heading", name=title, exact=True))


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("listitem").filter(has=page.get_by_role("link", name=name, exact=True))


def test_an_empty_store_says_what_to_do(open_page: OpenPage, screenshots: Path) -> None:
    page = open_page({})
    expect(page.get_by_text("Nothing here yet")).to_be_visible()
    keep_screenshot(page, screenshots, "images-empty")


def test_a_pull_shows_a_bar_for_each_blob_and_the_image_at_its_end(
    open_page: OpenPage, daemon: Daemon, registry: SlowRegistry, screenshots: Path
) -> None:
    page = open_page({})
    reference = registry.reference("slow:1")
    card = pull(page, reference)
    layer = card.get_by_role("progressbar", name="layer 1 of 3")
    # Somewhere between its beginning and its end.
    expect(layer).to_have_attribute("value", re.compile(r"^0\.[1-9]"))
    whole = card.get_by_role("progressbar", name=f"Pull {reference}")
    assert 0 < float(whole.get_attribute("value") or 0) < 1
    expect(card).to_contain_text(re.compile(r"of 3\.7 MB"))
    keep_screenshot(page, screenshots, "pull")
    expect(card).to_have_attribute("data-state", "done", timeout=30_000)
    expect(card).to_contain_text(f"It is here: {SLOW.digest.removeprefix('sha256:')[:12]}")
    expect(row(page, reference)).to_contain_text("linux/amd64")
    expect(row(page, reference)).to_contain_text("3 layers")
    assert images_of(daemon)[reference] == SLOW.digest
    # Who cannot see it was told, once at the beginning and once at the end.
    expect(page.get_by_role("status")).to_contain_text(f"Pull {reference}: done.")


def test_what_is_here_is_not_fetched_again_and_what_two_images_share_is_said(
    open_page: OpenPage, registry: SlowRegistry, screenshots: Path
) -> None:
    page = open_page({"app:1": APP})
    expect(row(page, "app:1")).to_contain_text("shares nothing")
    reference = registry.reference("worker:1")
    card = pull(page, reference)
    expect(card).to_have_attribute("data-state", "done")
    card.get_by_text("Blobs").click()
    expect(card.get_by_text(re.compile("1.0 MB, (was|is) here"))).to_be_visible()
    assert registry.proxy.count(f"GET /v2/worker/blobs/{WORKER.layer_digests[0]}") == 0
    assert registry.proxy.count(f"GET /v2/worker/blobs/{WORKER.layer_digests[1]}") >= 1
    for name in ("app:1", reference):
        expect(row(page, name)).to_contain_text("1.0 MB shared")
    keep_screenshot(page, screenshots, "images")


def test_a_pull_that_fails_says_why(open_page: OpenPage, registry: SlowRegistry, screenshots: Path) -> None:
    page = open_page({})
    card = pull(page, registry.reference("nothing:1"))
    expect(card).to_have_attribute("data-state", "failed")
    expect(card).to_contain_text("nothing")
    keep_screenshot(page, screenshots, "pull-failed")
    refused = pull(page, "no/such//name")
    expect(refused).to_have_attribute("data-state", "failed")
    page.get_by_role("button", name=f"Put away: Pull {registry.reference('nothing:1')}").click()
    expect(card).to_have_count(0)


def test_a_pull_that_is_cancelled_ends_in_the_daemon_too(
    open_page: OpenPage, daemon: Daemon, registry: SlowRegistry
) -> None:
    page = open_page({})
    card = pull(page, registry.reference("slow:1"))
    layer = card.get_by_role("progressbar", name=re.compile("layer 1 of 3"))
    expect(layer).to_have_attribute("value", re.compile(r"^0\.[1-9]"))
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_have_attribute("data-state", "cancelled")
    expect(card.get_by_role("button")).to_be_focused()
    assert registry.reference("slow:1") not in images_of(daemon)
    # What had come is used: the next try goes on where this one ended.
    again = pull(page, registry.reference("slow:1"))
    expect(again).to_contain_text("resumed")
    expect(again).to_have_attribute("data-state", "done", timeout=30_000)
    assert images_of(daemon)[registry.reference("slow:1")] == SLOW.digest


def test_an_image_that_is_saved_and_removed_is_loaded_as_it_was(
    open_page: OpenPage, daemon: Daemon, tmp_path: Path
) -> None:
    name = "registry.example.org/team/app:1"
    page = open_page({name: APP})
    row(page, name).get_by_role("button", name="Download").click()
    with page.expect_download() as download:
        page.get_by_role("dialog").get_by_role("button", name="Download").click()
    archive = tmp_path / download.value.suggested_filename
    download.value.save_as(archive)
    assert archive.stat().st_size > 1_500_000
    row(page, name).get_by_role("button", name="Remove").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    dialog.get_by_role("button", name="Remove").click()
    expect(row(page, name)).to_have_count(0)
    expect(page.get_by_role("heading", name="Images", exact=True)).to_be_focused()
    assert name not in images_of(daemon)
    page.get_by_label("Choose a file").set_input_files(archive)
    card = work(page, f"Load {archive.name}")
    expect(card).to_have_attribute("data-state", "done")
    expect(card).to_contain_text(name)
    expect(row(page, name)).to_be_visible()
    assert images_of(daemon)[name] == APP.digest


def test_a_download_that_is_refused_says_why_where_its_form_was_chosen(open_page: OpenPage) -> None:
    page = open_page({"both:1": build_index([build_image(), build_image(platform="linux/arm64")])})
    row(page, "both:1").get_by_role("button", name="Download").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Download").click()
    expect(dialog.get_by_role("alert")).to_contain_text("linux/arm64")
    dialog.get_by_label("Form").select_option("oci")
    with page.expect_download() as download:
        dialog.get_by_role("button", name="Download").click()
    assert download.value.failure() is None


def test_a_file_that_is_dropped_and_is_no_archive_is_refused_in_a_sentence(open_page: OpenPage, daemon: Daemon) -> None:
    page = open_page({"app:1": APP})
    before = images_of(daemon)
    page.evaluate(_DROP, "holiday.jpg")
    card = work(page, "Load holiday.jpg")
    expect(card).to_have_attribute("data-state", "failed")
    expect(card.locator(".line")).to_contain_text(re.compile("archive|tar"))
    assert images_of(daemon) == before


def test_a_file_that_the_user_chose_gets_the_whole_archive(browser: Browser, daemon: Daemon) -> None:
    name = "worker:1"
    fill_store(daemon, {name: WORKER})
    with watched_page(browser, script=_GIVE_A_FILE) as (page, watch):
        page.goto(f"http://{daemon.host}/ui")
        row(page, name).get_by_role("button", name="Download").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Form").select_option("oci")
        dialog.get_by_role("button", name="Download").click()
        card = work(page, f"Download {name}")
        expect(card).to_have_attribute("data-state", "done")
        size_bytes = page.evaluate(
            """async () => {
              const folder = await navigator.storage.getDirectory();
              for await (const handle of folder.values()) return (await handle.getFile()).size;
            }"""
        )
        wanted = daemon.get("/images/archive", image=name, format="oci")
        assert size_bytes == len(wanted.body) == int(wanted.headers["content-length"])
        assert not watch.violations


@pytest.mark.parametrize("script", _REFUSE_THE_FILE)
def test_a_download_whose_file_is_refused_is_not_fetched_on(browser: Browser, daemon: Daemon, script: str) -> None:
    fill_store(daemon, {"vast:1": build_image([random_layer(32 * MEBIBYTE, salt="vast")])})
    with watched_page(browser, script=script) as (page, watch):
        page.goto(f"http://{daemon.host}/ui")
        row(page, "vast:1").get_by_role("button", name="Download").click()
        with page.expect_event("requestfailed", lambda request: "/images/archive" in request.url):
            page.get_by_role("dialog").get_by_role("button", name="Download").click()
        expect(work(page, "Download vast:1").locator(".line")).to_have_text("no room for it")
        assert not watch.errors


def test_a_download_that_is_cut_off_is_said_to_be(browser: Browser, daemon: Daemon) -> None:
    fill_store(daemon, {"app:1": APP})
    with watched_page(browser, script=_GIVE_A_FILE + cut_off("/images/archive")) as (page, watch):
        page.goto(f"http://{daemon.host}/ui")
        row(page, "app:1").get_by_role("button", name="Download").click()
        page.get_by_role("dialog").get_by_role("button", name="Download").click()
        expect(work(page, "Download app:1").locator(".line")).to_have_text(CUT)
        assert not watch.errors


def test_a_tag_gives_a_further_name_and_a_bad_one_is_refused_where_it_was_typed(
    open_page: OpenPage, daemon: Daemon
) -> None:
    name = "worker:1"
    page = open_page({name: WORKER})
    button = row(page, name).get_by_role("button", name="Tag")
    button.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("New name").fill("not/a//name")
    dialog.get_by_role("button", name="Tag").click()
    expect(dialog.get_by_role("alert")).to_contain_text("not/a//name")
    dialog.get_by_label("New name").fill("billing:now")
    page.keyboard.press("Enter")
    expect(row(page, "billing:now")).to_be_visible()
    expect(focused(page)).to_have_attribute("aria-label", f"Tag {name}")
    assert images_of(daemon)["billing:now"] == WORKER.digest


def test_images_are_found_by_their_words_and_put_in_order(open_page: OpenPage, daemon: Daemon) -> None:
    page = open_page({"app:1": APP, "worker:1": WORKER})
    names = page.locator(".image h2 a")
    expect(names).to_have_text(["app:1", "worker:1"])
    # Nobody reloads the page: it is told of what others do to the store.
    put(daemon.data_root, build_image(platform="linux/arm64", salt="small"), "aaa:1")
    expect(names).to_have_text(["aaa:1", "app:1", "worker:1"])
    page.get_by_label("Find").fill("ARM64 aa")
    expect(names).to_have_text(["aaa:1"])
    expect(page.locator(".found")).to_have_text("1 of 3 images")
    expect(page.get_by_role("status")).to_have_text("1 of 3 images")
    page.get_by_label("Find").fill("no such words")
    expect(page.get_by_text("No image has these words.")).to_be_visible()
    page.get_by_label("Find").fill("")
    page.get_by_label("Order").select_option("Largest first")
    expect(names).to_have_text(["app:1", "worker:1", "aaa:1"])
    daemon.post("/images/remove", image="aaa:1")
    expect(names).to_have_text(["app:1", "worker:1"])


def test_an_image_is_looked_into_down_to_its_files(open_page: OpenPage, screenshots: Path) -> None:
    page = open_page({"app:1": APP, "worker:1": WORKER})
    page.get_by_role("link", name="worker:1").click()
    expect(page.get_by_role("heading", name="worker:1")).to_be_focused()
    expect(page.get_by_text(WORKER.digest).first).to_be_visible()
    # What comes from an image is text, whatever it looks like.
    expect(page.get_by_text("COLOUR=<b>green</b>")).to_be_visible()
    expect(page.get_by_text("team=billing")).to_be_visible()
    expect(page.locator(".steps li")).to_have_count(2)
    page.get_by_role("link", name="All images").click()
    page.get_by_role("link", name="app:1").click()
    page.get_by_role("button", name="Look into it").click()
    page.get_by_role("button", name="srv/", exact=True).click()
    page.get_by_role("button", name="app/", exact=True).click()
    expect(page.get_by_role("cell", name="data")).to_be_visible()
    expect(page.get_by_role("cell", name="layer 3")).to_be_visible()
    keep_screenshot(page, screenshots, "image")
    page.get_by_role("button", name="the root").click()
    expect(page.get_by_role("button", name="srv/", exact=True)).to_be_visible()


def test_the_way_to_a_directory_of_a_long_name_is_no_wider_than_the_screen(open_page: OpenPage) -> None:
    name = "w" * 200
    page = open_page({"long:1": build_image([{f"{name}/file": b""}])})
    page.set_viewport_size(NARROW)
    page.get_by_role("link", name="long:1").click()
    page.get_by_role("button", name="Look into it").click()
    page.get_by_role("button", name=f"{name}/").click()
    expect(page.get_by_role("cell", name="file", exact=True).first).to_be_visible()
    assert not is_too_wide(page)


def test_an_image_that_is_not_there_is_said_to_be_none(open_page: OpenPage) -> None:
    page = open_page({})
    page.goto(page.url.partition("#")[0] + "#/image/nothing%3A1")
    expect(page.get_by_role("alert")).to_contain_text("nothing:1")


def test_of_very_many_images_the_first_are_shown_and_more_where_they_are_wanted(
    open_page: OpenPage, daemon: Daemon
) -> None:
    page = open_page({"worker:1": WORKER})
    # One of them is called as the button is.
    names_of_all = ["more", *(f"most/{number:03}:1" for number in range(249))]
    write_layout_files(daemon.data_root, dict.fromkeys(names_of_all, WORKER.root))
    page.reload()
    names = page.locator(".image h2 a")
    expect(names).to_have_count(200)
    page.get_by_role("button", name="Show 50 more").focus()
    put(daemon.data_root, APP, "app:1")
    expect(page.get_by_role("button", name="Show 51 more")).to_be_focused()
    daemon.post("/images/remove", image="app:1")
    page.get_by_role("button", name="Show 50 more").click()
    expect(names).to_have_count(250)
    expect(focused(page)).to_have_text("most/199:1")
    page.get_by_label("Find").fill("most/248")
    expect(names).to_have_count(1)


def test_of_much_work_some_waits_in_the_page_and_may_be_cancelled_there(open_page: OpenPage) -> None:
    page = open_page({})
    page.evaluate(_START_FIVE)

    def expect_states(*states: str) -> None:
        for name, state in zip(("one", "two", "three", "four", "five"), states, strict=True):
            expect(work(page, name)).to_have_attribute("data-state", state)

    expect_states("running", "running", "running", "queued", "queued")
    expect(work(page, "four")).to_contain_text("Waits until other work of this page is done.")
    page.get_by_role("button", name="Cancel: four").click()
    expect(work(page, "four")).to_have_attribute("data-state", "cancelled")
    page.get_by_role("button", name="Cancel: one").click()
    expect_states("cancelled", "running", "running", "cancelled", "running")


def test_a_pull_that_others_are_ahead_of_says_so(open_page: OpenPage, registry: SlowRegistry) -> None:
    page = open_page({})
    first = pull(page, registry.reference("large:1"))
    expect(first.get_by_role("progressbar", name=re.compile("^layer"))).to_be_visible()
    second = pull(page, registry.reference("worker:1"))
    expect(second).to_contain_text("Waits its turn: 1 pull is ahead.", timeout=15_000)
    first.get_by_role("button", name="Cancel").click()
    expect(second).to_have_attribute("data-state", "done", timeout=15_000)
