"""Real Chromium, headless, on pages of 127.0.0.1: what a page asks for and breaks is kept, and so is how it looks."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# It has no types of its own.
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import (
    APIResponse,
    Browser,
    BrowserContext,
    Locator,
    Page,
    Request,
    Route,
    ViewportSize,
    expect,
    sync_playwright,
)

from tests.support.peers import require_peer

# Who waits so long on a busy machine waits in vain.
PATIENCE_SECONDS = 30.0
WIDE = ViewportSize(width=1280, height=800)
NARROW = ViewportSize(width=360, height=740)

# Told by the page to the test, in words; what the page itself could do to hide it comes later than this.
_WATCH_POLICY = """
document.addEventListener("securitypolicyviolation",
  (event) => tellOfViolation(`${event.violatedDirective}: ${event.blockedURI}`));
"""
# The server of a test sends no certificate, and no page of it needs more than this machine.
_ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]

# What is asked for now, and answered, shows that the page has had its time with what came before.
ROUND_TRIP = "fetch('ping').then((answer) => answer.text())"
# The page's stream of events has what a test puts into it, and nothing else.
TELL_EVENTS = """
const fetchOthers = window.fetch;
window.fetch = (address, options) => {
  if (!address.endsWith("/events")) return fetchOthers(address, options);
  const lines = new TransformStream();
  const writer = lines.writable.getWriter();
  window.tellEvent = (event) => { writer.write(new TextEncoder().encode(`${JSON.stringify(event)}\\n`)); };
  return Promise.resolve(new Response(lines.readable, { headers: { "Content-Type": "application/x-ndjson" } }));
};
"""
_STREAM_HAS_BEGUN = """
async () => {
  while (!window.tellEvent) await new Promise((next) => setTimeout(next, 20));
}
"""
# What the page says of an answer that is cut off.
CUT = "The connection ended before the answer was whole."
_CUT_OFF = """
const fetchAll = window.fetch;
window.fetch = (address, options) => {
  if (new URL(address).pathname !== "PATH") return fetchAll(address, options);
  const body = new ReadableStream({ start: (controller) => controller.error(new TypeError("network error")) });
  return Promise.resolve(new Response(body, { headers: { "Content-Type": "application/json" } }));
};
"""


@dataclass(kw_only=True)
class Watch:
    """What the pages of one context did.

    Attributes:
        requests: Each address that was asked for, ``data:`` and ``blob:`` left out.
        violations: What the Content-Security-Policy refused.
        errors: What no script caught, and what the console calls an error, but for answers that are none of success.
    """

    requests: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def hosts(self) -> set[str]:
        """Whom the pages asked."""
        return {urlsplit(url).netloc for url in self.requests}

    def take_request(self, request: Request) -> None:
        """Take note of a request."""
        if urlsplit(request.url).scheme not in ("data", "blob"):
            self.requests.append(request.url)

    def take_violation(self, words: str) -> None:
        """Take note of what the policy refused."""
        self.violations.append(words)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium; without it the test is skipped, or fails where MINIBOX_REQUIRE_PEERS is 1."""
    program = require_peer("chromium")
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def watched_page(browser: Browser, *, script: str = "", **options: Any) -> Iterator[tuple[Page, Watch]]:
    """Give an empty page in a context of its own, and what it will have done.

    Args:
        browser: In which it is.
        script: Runs in each page before its own scripts.
        options: Of the context, as Playwright calls them: ``viewport``, ``color_scheme`` …
    """
    watch = Watch()
    context: BrowserContext = browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **options})
    try:
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        context.on("request", watch.take_request)
        context.expose_function("tellOfViolation", watch.take_violation)
        context.add_init_script(_WATCH_POLICY + script)
        page = context.new_page()
        page.on("pageerror", lambda error: watch.errors.append(str(error)))
        page.on("console", lambda message: _take_message(watch, message.type, message.text))
        yield page, watch
    finally:
        context.close()


def cut_off(path: str) -> str:
    """Return the script by which each answer of a path is cut off when it has begun."""
    return _CUT_OFF.replace("PATH", path)


def tell_events(page: Page) -> None:
    """Let the page hear of nothing but what the test tells it."""
    page.add_init_script(TELL_EVENTS)
    page.reload()
    page.evaluate(_STREAM_HAS_BEGUN)


def hold_all(page: Page, address: str) -> list[Route]:
    """Hold what is asked for at an address until the test answers."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(address, hold)
    return held


def hold_next(page: Page, address: str, act: Callable[[], None]) -> Callable[[], None]:
    """Do what asks for an address, and hold the answer back; return what gives it to the page.

    Others that are asked for meanwhile pass.
    """
    held: list[tuple[Route, APIResponse]] = []
    is_first = iter((True,))

    def hold(route: Route) -> None:
        # Another one may come while this one is fetched.
        if next(is_first, False):
            held.append((route, route.fetch()))
        else:
            route.continue_()

    def release() -> None:
        route, answer = held[0]
        with page.expect_event("requestfinished", lambda request: request == route.request):
            route.fulfill(response=answer)
        page.evaluate(ROUND_TRIP)

    page.route(address, hold)
    act()
    while not held:
        page.wait_for_timeout(20)
    return release


def serious_findings(page: Page) -> list[str]:
    """Return what axe-core calls serious or critical in a page as it is, a line each."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:120] for node in each['nodes'][:3]]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def is_too_wide(page: Page) -> bool:
    """Whether a page has to be scrolled sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def focused(page: Page) -> Locator:
    """Return what has the focus."""
    return page.locator(":focus")


def keep_screenshot(page: Page, folder: Path, name: str) -> None:
    """Keep how a page looks, all of it; where MINIBOX_SCREENSHOTS names a folder, there, else in ``folder``."""
    place = Path(os.environ.get("MINIBOX_SCREENSHOTS") or folder)
    place.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=place / f"{name}.png", full_page=True)


def _take_message(watch: Watch, kind: str, text: str) -> None:
    # An answer of 401 or 404 is told as an error too; what the page makes of it is for the test to see.
    if kind == "error" and not text.startswith("Failed to load resource"):
        watch.errors.append(text)
