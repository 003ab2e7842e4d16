"""One browser, one daemon and one slow registry for each module: all of them are slow to start."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import chromium, watched_page
from tests.support.daemon import Daemon, running_daemon
from tests.support.images import BuiltImage, build_image, random_layer
from tests.support.nginx import Nginx, nginx
from tests.support.peers import docker_registry, push_image
from tests.support.stores import put

MEBIBYTE = 1024 * 1024
BYTES_PER_SECOND = 512 * 1024

BASE = random_layer(MEBIBYTE, salt="base")
CONFIG = {"config": {"Env": ["PATH=/bin", "COLOUR=<b>green</b>"], "Cmd": ["/bin/hello"], "Labels": {"team": "billing"}}}
APP = build_image([BASE, random_layer(MEBIBYTE // 2, salt="app"), {"srv/app/data": b"x" * 3000}], salt="app")
WORKER = build_image([BASE, random_layer(MEBIBYTE // 4, salt="worker")], salt="worker", config=CONFIG)
# Its first layer takes some six seconds: who looks once a second sees it on its way, on a busy machine too.
SLOW = build_image(
    [random_layer(3 * MEBIBYTE, salt="slow"), random_layer(MEBIBYTE // 2, salt="app"), {"srv/app/data": b"x" * 3000}],
    salt="slow",
)
# It takes some sixteen seconds: whoever waits behind it is seen to wait, on a busy machine too.
LARGE = build_image([random_layer(8 * MEBIBYTE, salt="large")], salt="large")


@dataclass(frozen=True, kw_only=True)
class SlowRegistry:
    """A registry of four images, which gives each connection so much a second and no more."""

    proxy: Nginx

    def reference(self, name: str) -> str:
        """Return the reference of what is there, like ``app:1``, or of something that is not."""
        repository, _, tag = name.partition(":")
        return self.proxy.reference(repository, tag)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon over an empty store, which wants no token, and pulls one image at a time."""
    with running_daemon(tmp_path_factory.mktemp("daemon"), environment={"MINIBOX_MAX_PULLS": "1"}) as running:
        yield running


@pytest.fixture
def page(browser: Browser, daemon: Daemon) -> Iterator[Page]:
    """The page over a store of app:1 alone; it breaks no rule while the test runs."""
    fill_store(daemon, {"app:1": APP})
    with watched_page(browser) as (page, watch):
        page.goto(f"http://{daemon.host}/ui")
        expect(page.get_by_role("link", name="app:1", exact=True)).to_be_visible()
        yield page
        assert not watch.violations
        assert not watch.errors


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowRegistry]:
    """The slow registry."""
    folder = tmp_path_factory.mktemp("registry")
    with docker_registry(folder / "registry") as behind:
        for name, image in IMAGES.items():
            push_image(behind, name, "1", image)
        with nginx(folder / "nginx", registry_host=behind.host, bytes_per_second=BYTES_PER_SECOND) as proxy:
            yield SlowRegistry(proxy=proxy)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pictures of this run, where MINIBOX_SCREENSHOTS names none."""
    return tmp_path_factory.getbasetemp() / "screenshots"


IMAGES: dict[str, BuiltImage] = {"app": APP, "worker": WORKER, "slow": SLOW, "large": LARGE}


def fill_store(daemon: Daemon, images: Mapping[str, BuiltImage]) -> None:
    """Let the store hold these images and nothing else."""
    for name in images_of(daemon):
        daemon.post("/images/remove", image=name)
    daemon.post("/system/prune")
    for name, image in images.items():
        put(daemon.data_root, image, name)


def images_of(daemon: Daemon) -> dict[str, str]:
    """Return the digest of each name of the store."""
    return {each["name"]: each["digest"] for each in daemon.get("/images").json()}
