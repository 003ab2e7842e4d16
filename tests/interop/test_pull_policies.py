"""A real registry, and a real tool that writes into the store: what a pull that need not bring anything asks."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minibox_store import Credentials, Image, Platform
from minibox_store.face.arguments import PullPolicy
from tests.support.images import BuiltImage, build_image, build_index
from tests.support.layouts import write_layout
from tests.support.peers import DockerRegistry, docker_registry, push_image, run_skopeo
from tests.support.registries import open_repository, quick_client
from tests.support.stores import open_store

ALICE = ("alice", "pass-word-1")
IMAGES = {
    "oci": build_image(salt="oci"),
    "docker": build_image(docker=True),
    "index": build_index([build_image(platform="linux/arm64"), build_image()], attestations=True),
}
_ASKED = re.compile(r'"(GET|HEAD) /v2/team/app/(\S+) HTTP')


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    folder = tmp_path_factory.mktemp("registry")
    with docker_registry(folder, users=dict([ALICE])) as running:
        for tag, image in IMAGES.items():
            push_image(running, "team/app", tag, image, credentials=ALICE)
        yield running


def credentials(registry: DockerRegistry) -> dict[str, Credentials]:
    return {registry.host: Credentials(username=ALICE[0], password=ALICE[1])}


def asked(registry: DockerRegistry, during: Callable[[], object]) -> list[tuple[str, str]]:
    """Return what the registry says that it was asked for meanwhile."""
    before = len(registry.read_log())
    during()
    return _ASKED.findall(registry.read_log()[before:])


@pytest.mark.parametrize(("tag", "image"), IMAGES.items())
def test_a_head_says_what_a_get_would(tag: str, image: BuiltImage, registry: DockerRegistry) -> None:
    with open_repository(registry.reference("team/app", tag), credentials=credentials(registry)) as repository:
        for name in (tag, image.digest):
            assert repository.head(name) == repository.resolve(name)
        assert repository.head("missing") is None


@pytest.mark.parametrize("tag", IMAGES)
@pytest.mark.parametrize("platform", [Platform.parse("linux/amd64"), None], ids=["chosen", "whole"])
def test_an_unchanged_pull_takes_at_most_two_requests_though_a_password_is_asked_for(
    tag: str, platform: Platform | None, registry: DockerRegistry, tmp_path: Path
) -> None:
    reference = registry.reference("team/app", tag)

    def pull(policy: PullPolicy = "always") -> Image:
        client = quick_client(credentials=credentials(registry))
        return open_store(tmp_path).pull(reference, client=client, platform=platform, policy=policy)

    pulled = pull()
    found: list[Image] = []
    again = asked(registry, lambda: found.append(pull(policy="if-newer")))
    assert found == [pulled]
    assert again
    assert set(again) == {("HEAD", f"manifests/{tag}")}
    assert len(again) <= 2
    assert asked(registry, lambda: pull(policy="if-missing")) == []


def test_what_an_image_was_pulled_as_stays_when_skopeo_writes_into_the_store(
    registry: DockerRegistry, tmp_path: Path
) -> None:
    store, client = open_store(tmp_path / "store"), quick_client(credentials=credentials(registry))
    reference = registry.reference("team/app", "index")
    store.pull(reference, client=client)
    write_layout(tmp_path / "theirs", {"theirs:1": build_image(salt="theirs")})
    run_skopeo("copy", f"oci:{tmp_path / 'theirs'}:theirs:1", f"oci:{tmp_path / 'store'}:theirs:1")
    assert {image.name for image in store.images()} == {reference, "theirs:1"}
    again = asked(registry, lambda: store.pull(reference, client=client, policy="if-newer"))
    assert set(again) == {("HEAD", "manifests/index")}
