"""Mirrors as they are run: a pull-through registry of the distribution project, and the rules as skopeo reads them."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from minibox_store import Event, Mirror, MirrorFailed, RegistryClient, RegistryRule, Store, UsingMirror
from minibox_store.reference import Reference
from tests.support.daemon import running_daemon
from tests.support.images import build_image, build_index
from tests.support.layouts import read_layout_blobs
from tests.support.peers import (
    DockerRegistry,
    docker_registry,
    push_image,
    run_peer,
    skopeo_command,
    skopeo_environment,
)
from tests.support.waiting import wait_for

AMD64 = build_image(platform="linux/amd64")
INDEX = build_index([build_image(platform="linux/arm64"), AMD64])
GRAPH = {digest: AMD64.blobs[digest] for digest in (AMD64.digest, AMD64.config_digest, *AMD64.layer_digests)}


def rules_of(home: DockerRegistry, mirror: DockerRegistry) -> list[RegistryRule]:
    return [RegistryRule(prefix=home.host, mirrors=[Mirror(location=mirror.host)])]


def has_kept(mirror: DockerRegistry, digests: Iterable[str]) -> bool:
    """Whether a mirror has everything itself: it goes on keeping a blob when it has sent it."""
    repository = mirror.storage / "docker/registry/v2/repositories/team/app"
    places = ("_layers", "_manifests/revisions")
    return all(
        any((repository / place / digest.replace(":", "/") / "link").exists() for place in places) for digest in digests
    )


def test_a_pull_through_mirror_serves_what_it_fetched_after_the_registry_is_gone(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "home") as home:
        push_image(home, "team/app", "1", INDEX)
        reference = home.reference("team/app", "1")
        mirror_folder = tmp_path / "mirror"
        with docker_registry(mirror_folder, mirror_of=home.url) as mirror:
            events: list[Event] = []
            client = RegistryClient(registries=rules_of(home, mirror))
            image = Store(tmp_path / "one").pull(reference, client=client, on_event=events.append)
            assert (str(image.digest), image.name) == (AMD64.digest, reference)
            assert [each for each in events if isinstance(each, UsingMirror | MirrorFailed)] == [
                UsingMirror(host=mirror.host)
            ]
            assert read_layout_blobs(tmp_path / "one") == GRAPH
            # All that the registry itself was asked for came from the mirror.
            assert "minibox-store/" in mirror.read_log()
            assert "minibox-store/" not in home.read_log()
            wait_for(lambda: has_kept(mirror, GRAPH), "the mirror does not keep what it has fetched")
            os.kill(home.pid, 15)
            again = Store(tmp_path / "two").pull(reference, client=client)
            assert again.digest == image.digest
            assert read_layout_blobs(tmp_path / "two") == GRAPH


def test_a_pull_through_mirror_that_is_gone_is_passed_by(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "home") as home:
        push_image(home, "team/app", "1", INDEX)
        with docker_registry(tmp_path / "mirror", mirror_of=home.url) as mirror:
            rules = rules_of(home, mirror)
        events: list[Event] = []
        client = RegistryClient(registries=rules)
        Store(tmp_path / "store").pull(home.reference("team/app", "1"), client=client, on_event=events.append)
        assert read_layout_blobs(tmp_path / "store") == GRAPH
        (failed,) = [each for each in events if isinstance(each, MirrorFailed)]
        assert "Connection refused" in failed.problem


def test_the_daemon_pulls_from_the_mirrors_of_the_file_that_its_environment_names(tmp_path: Path) -> None:
    with (
        docker_registry(tmp_path / "home") as home,
        docker_registry(tmp_path / "mirror", mirror_of=home.url) as mirror,
    ):
        push_image(home, "team/app", "1", INDEX)
        file = tmp_path / "registries.toml"
        file.write_text(f'[[registry]]\nprefix = "{home.host}"\nmirrors = [{{ location = "{mirror.host}" }}]\n')
        with running_daemon(tmp_path / "daemon", environment={"MINIBOX_REGISTRIES": str(file)}) as daemon:
            reference = home.reference("team/app", "1")
            pulled = daemon.post("/images/pull", image=reference).text.splitlines()
            assert f"[pull] using mirror {mirror.host}..." in pulled
            assert pulled[-1] == "[pull] Done"
            # The file is read anew for each pull.
            file.write_text(f'[[registry]]\nprefix = "{home.host}"\nblocked = true\n')
            refused = daemon.post("/images/pull", image=reference).text.splitlines()
            assert refused[-1] == f"[error] pull failed: {reference} is blocked by the rule for {home.host}"
            file.unlink()
            unread = daemon.post("/images/pull", image=reference).text.splitlines()
            assert unread[-1].startswith(f"[error] pull failed: MINIBOX_REGISTRIES: cannot use path '{file}'")


CASES = [
    ("{home}", "{place}", "{home}/team/app", "team/app"),
    ("{home}/team", "{place}/moved", "{home}/team/app", "moved/app"),
    ("{home}/team/app", "{place}/another/name", "{home}/team/app", "another/name"),
    ("docker.io", "{place}", "alpine", "library/alpine"),
    ("docker.io/library", "{place}/hub", "alpine", "hub/alpine"),
    ("*.example.com", "{place}/x", "a.b.example.com/team/app", "x/team/app"),
]


@pytest.mark.parametrize("as_mirror", [True, False], ids=["mirror", "location"])
def test_a_rule_leads_to_where_skopeo_goes_by_the_same_one(tmp_path: Path, as_mirror: bool) -> None:
    with docker_registry(tmp_path / "place") as place, docker_registry(tmp_path / "home") as home:
        for number, (prefix, location, name, repository) in enumerate(CASES):
            image = build_image(salt=f"{number} {as_mirror}")
            push_image(place, repository, "1", image)
            hosts = {"home": home.host, "place": place.host}
            said = prefix.format(**hosts), location.format(**hosts), f"{name.format(**hosts)}:1"
            assert inspected_by_skopeo(tmp_path, said, as_mirror) == image.blobs[image.digest].decode()
            assert resolved(said, as_mirror) == image.digest


def resolved(said: tuple[str, str, str], as_mirror: bool) -> str:
    prefix, location, name = said
    rule = RegistryRule(prefix=prefix, location=location)
    if as_mirror:
        rule = RegistryRule(prefix=prefix, mirrors=[Mirror(location=location)])
    with RegistryClient(registries=[rule]).open_repository(Reference.parse(name)) as repository:
        return str(repository.resolve("1").digest)


def inspected_by_skopeo(folder: Path, said: tuple[str, str, str], as_mirror: bool) -> str:
    prefix, location, name = said
    where = f'location = "{location}"\ninsecure = true\n'
    if as_mirror:
        where = ("" if prefix.startswith("*") else f'location = "{prefix}"\n') + f"[[registry.mirror]]\n{where}"
    home = folder / "skopeo"
    home.mkdir(exist_ok=True)
    registries = home / "mirrors.conf"
    registries.write_text(f'[[registry]]\nprefix = "{prefix}"\n{where}')
    command = skopeo_command(home, "--registries-conf", registries, "inspect", "--raw", f"docker://{name}")
    return run_peer(command, skopeo_environment(home))
