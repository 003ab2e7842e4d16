"""The page's images, in Chromium: pulled with progress, looked into, tagged, saved, removed and loaded again."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.browser import Watch, focused, keep_screenshot, watched_page
from tests.support.daemon import Daemon
from tests.support.images import build_image
from tests.support.layouts import write_layout_files
from tests.support.stores import put
from tests.ui.conftest import APP, WORKER, SlowRegistry

# A browser that can keep a stream in a file asks its user for the file; the file that it is given here is a real one,
# of the page's own private file system, where no dialog stands in the way.
_GIVE_A_FILE = """
window.showSaveFilePicker = async ({ suggestedName }) => {
  const folder = await navigator.storage.getDirectory();
  return folder.getFileHandle(suggestedName, { create: true });
};
"""
_NO_PICKER = "delete window.showSaveFilePicker;"


@pytest.fixture
def opened(browser: Browser, daemon: Daemon) -> Iterator[tuple[Page, Watch]]:
    """The page of the daemon, in a browser that knows no file pickers; it breaks no rule while the test runs."""
    with watched_page(browser, script=_NO_PICKER) as (page, watch):
        page.goto(f"http://{daemon.host}/ui")
        yield page, watch
        assert watch.hosts == {daemon.host}
        assert not watch.violations
        assert not watch.errors


def images_of(daemon: Daemon) -> dict[str, str]:
    return {each["name"]: each["digest"] for each in daemon.get("/images").json()}


def pull(page: Page, reference: str) -> Locator:
    """Pull by the form, and return the card that tells of it."""
    page.get_by_label("Image", exact=True).fill(reference)
    page.get_by_role("button", name="Pull", exact=True).click()
    return work(page, f"Pull {reference}").first


def work(page: Page, title: str) -> Locator:
    return page.locator(".work").filter(has=page.get_by_role("heading", name=title, exact=True))


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("listitem").filter(has=page.get_by_role("link", name=name, exact=True))


def test_an_empty_store_says_what_to_do(opened: tuple[Page, Watch], screenshots: Path) -> None:
    page, _ = opened
    expect(page.get_by_text("Nothing here yet")).to_be_visible()
    keep_screenshot(page, screenshots, "images-empty")


def test_a_pull_shows_a_bar_for_each_blob_and_the_image_at_its_end(
    opened: tuple[Page, Watch], daemon: Daemon, registry: SlowRegistry, screenshots: Path
) -> None:
    page, _ = opened
    reference = registry.reference("app:1")
    card = pull(page, reference)
    layer = card.get_by_role("progressbar", name="layer 1 of 3")
    # Somewhere between its beginning and its end.
    expect(layer).to_have_attribute("value", re.compile(r"^0\.[1-9]"))
    whole = card.get_by_role("progressbar", name=f"Pull {reference}")
    assert 0 < float(whole.get_attribute("value") or 0) < 1
    expect(card).to_contain_text(re.compile(r"of 1\.6 MB"))
    keep_screenshot(page, screenshots, "pull")
    expect(card).to_have_attribute("data-state", "done")
    expect(card).to_contain_text(f"It is here: {APP.digest.removeprefix('sha256:')[:12]}")
    expect(row(page, reference)).to_contain_text("linux/amd64")
    expect(row(page, reference)).to_contain_text("3 layers")
    assert images_of(daemon)[reference] == APP.digest
    # Who cannot see it was told, once at the beginning and once at the end.
    expect(page.get_by_role("status")).to_contain_text(f"Pull {reference}: done.")


def test_what_two_images_share_is_said(opened: tuple[Page, Watch], registry: SlowRegistry, screenshots: Path) -> None:
    page, _ = opened
    reference = registry.reference("worker:1")
    card = pull(page, reference)
    expect(card.get_by_text("was here")).to_be_visible()
    expect(card).to_have_attribute("data-state", "done")
    for name in ("app:1", "worker:1"):
        expect(row(page, registry.reference(name))).to_contain_text("1.0 MB shared")
    keep_screenshot(page, screenshots, "images")


def test_a_pull_that_fails_says_why(opened: tuple[Page, Watch], registry: SlowRegistry, screenshots: Path) -> None:
    page, _ = opened
    card = pull(page, registry.reference("nothing:1"))
    expect(card).to_have_attribute("data-state", "failed")
    expect(card).to_contain_text("nothing")
    keep_screenshot(page, screenshots, "pull-failed")
    refused = pull(page, "no/such//name")
    expect(refused).to_have_attribute("data-state", "failed")
    page.get_by_role("button", name=f"Put away: Pull {registry.reference('nothing:1')}").click()
    expect(card).to_have_count(0)


def test_a_pull_that_is_cancelled_ends_in_the_daemon_too(
    opened: tuple[Page, Watch], daemon: Daemon, registry: SlowRegistry
) -> None:
    page, _ = opened
    daemon.post("/images/remove", image=registry.reference("app:1"))
    daemon.post("/system/prune")
    card = pull(page, registry.reference("app:1"))
    layer = card.get_by_role("progressbar", name=re.compile("layer 2 of 3"))
    expect(layer).to_have_attribute("value", re.compile(r"^0\.[1-9]"))
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_have_attribute("data-state", "cancelled")
    expect(card.get_by_role("button")).to_be_focused()
    assert registry.reference("app:1") not in images_of(daemon)
    # What had come is used: the next try goes on where this one ended.
    again = pull(page, registry.reference("app:1"))
    expect(again).to_contain_text("resumed")
    expect(again).to_have_attribute("data-state", "done")
    assert images_of(daemon)[registry.reference("app:1")] == APP.digest


def test_an_image_that_is_saved_and_removed_is_loaded_as_it_was(
    opened: tuple[Page, Watch], daemon: Daemon, registry: SlowRegistry, tmp_path: Path
) -> None:
    page, _ = opened
    name = registry.reference("app:1")
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


def test_what_is_no_archive_is_refused_in_a_sentence(
    opened: tuple[Page, Watch], daemon: Daemon, tmp_path: Path
) -> None:
    page, _ = opened
    before = images_of(daemon)
    file = tmp_path / "holiday.jpg"
    file.write_bytes(b"\xff\xd8\xff" * 5000)
    page.get_by_label("Choose a file").set_input_files(file)
    card = work(page, "Load holiday.jpg")
    expect(card).to_have_attribute("data-state", "failed")
    expect(card.locator(".line")).to_contain_text(re.compile("archive|tar"))
    assert images_of(daemon) == before


def test_a_file_that_the_user_chose_gets_the_whole_archive(
    browser: Browser, daemon: Daemon, registry: SlowRegistry
) -> None:
    with watched_page(browser, script=_GIVE_A_FILE) as (page, watch):
        page.goto(f"http://{daemon.host}/ui")
        name = registry.reference("worker:1")
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


def test_a_tag_gives_a_further_name_and_a_bad_one_is_refused_where_it_was_typed(
    opened: tuple[Page, Watch], daemon: Daemon, registry: SlowRegistry
) -> None:
    page, _ = opened
    name = registry.reference("worker:1")
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
    daemon.post("/images/remove", image="billing:now")


def test_images_are_found_by_their_words_and_put_in_order(opened: tuple[Page, Watch], daemon: Daemon) -> None:
    page, _ = opened
    put(daemon.data_root, build_image(platform="linux/arm64", salt="small"), "zebra:1")
    names = page.locator(".image h2 a")
    # Nobody reloads the page: it is told of what others do to the store.
    expect(names).to_have_count(3)
    page.get_by_label("Find").fill("ARM64 zeb")
    expect(names).to_have_text(["zebra:1"])
    expect(page.get_by_text("1 of 3 images").first).to_be_visible()
    page.get_by_label("Find").fill("no such words")
    expect(page.get_by_text("No image has these words.")).to_be_visible()
    page.get_by_label("Find").fill("")
    page.get_by_label("Order").select_option("Largest first")
    expect(names).to_have_text([re.compile("app:1"), re.compile("worker:1"), "zebra:1"])
    daemon.post("/images/remove", image="zebra:1")
    expect(names).to_have_count(2)


def test_an_image_is_looked_into_down_to_its_files(
    opened: tuple[Page, Watch], registry: SlowRegistry, screenshots: Path
) -> None:
    page, _ = opened
    name = registry.reference("worker:1")
    page.get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", name=name)).to_be_focused()
    expect(page.get_by_text(WORKER.digest).first).to_be_visible()
    # What comes from an image is text, whatever it looks like.
    expect(page.get_by_text("COLOUR=<b>green</b>")).to_be_visible()
    expect(page.get_by_text("team=billing")).to_be_visible()
    expect(page.locator(".steps li")).to_have_count(2)
    page.get_by_role("link", name="All images").click()
    page.get_by_role("link", name=registry.reference("app:1")).click()
    page.get_by_role("button", name="Look into it").click()
    page.get_by_role("button", name="srv/", exact=True).click()
    page.get_by_role("button", name="app/", exact=True).click()
    expect(page.get_by_role("cell", name="data")).to_be_visible()
    expect(page.get_by_role("cell", name="layer 3")).to_be_visible()
    keep_screenshot(page, screenshots, "image")
    page.get_by_role("button", name="the root").click()
    expect(page.get_by_role("button", name="srv/", exact=True)).to_be_visible()


def test_an_image_that_is_not_there_is_said_to_be_none(opened: tuple[Page, Watch]) -> None:
    page, _ = opened
    page.goto(page.url.partition("#")[0] + "#/image/nothing%3A1")
    expect(page.get_by_role("alert")).to_contain_text("nothing:1")


def test_of_very_many_images_the_first_are_shown_and_more_where_they_are_wanted(
    opened: tuple[Page, Watch], daemon: Daemon
) -> None:
    page, _ = opened
    write_layout_files(daemon.data_root, {f"many/{number:03}:1": WORKER.root for number in range(250)})
    page.reload()
    names = page.locator(".image h2 a")
    expect(names).to_have_count(200)
    page.get_by_role("button", name="Show 50 more").click()
    expect(names).to_have_count(250)
    expect(focused(page)).to_have_text("many/200:1")
    page.get_by_label("Find").fill("many/249")
    expect(names).to_have_count(1)
