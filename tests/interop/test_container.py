"""The Containerfile: it is built as it stands, and what is built serves, keeps its volume, tells its health and ends.

The image that it builds on is a stand-in, with this machine's Python and a few programs, and pip has wheels of what is
installed here: nothing is fetched.
"""

import json
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.clients import TOKEN
from tests.support.booted import ASKING
from tests.support.builders import Builder, opening_builder
from tests.support.container_bases import write_base
from tests.support.forks import not_possible
from tests.support.images import build_image
from tests.support.layouts import write_layout
from tests.support.peers import PeerFailed, require_peer, run_peer, skopeo_command, skopeo_environment
from tests.support.processes import plain_environment
from tests.support.stores import open_store
from tests.support.trials import DEEP
from tests.support.wheels import write_wheels

PROJECT = Path(__file__).parents[2]
CONTAINERFILE = PROJECT / "examples" / "daemon" / "Containerfile"
BASE = "docker.io/library/python:3.13-slim"
IMAGE = "localhost/minibox-server:latest"
BUILD_SECONDS = 200.0

pytestmark = [
    pytest.mark.skipif(not DEEP, reason="it builds for a minute: only where MINIBOX_DEEP is 1"),
    pytest.mark.timeout(280),
]


class Container:
    """A container of the image, with a network of its own.

    Args:
        builder: whose storage has the image.
        runtime: the program that podman starts it by.
    """

    def __init__(self, builder: Builder, runtime: str) -> None:
        self._builder = builder
        self._options = ["--runtime", runtime, "--cgroup-manager", "cgroupfs"]

    def podman(self, *arguments: str) -> str:
        """Run podman, and return what it says."""
        return self._builder.run("podman", *self._options, *arguments)

    def start(self, *options: str) -> None:
        """Start one in the background."""
        # Podman asks for more than a sandbox may grant, and for a timer of systemd to look after the health.
        limits = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096", "--no-healthcheck"]
        places = ["--network", "none", "--log-driver", "k8s-file", *limits]
        self.podman("run", "--detach", "--name", "served", *places, *options, IMAGE)

    def read(self, key: str) -> Any:
        """Return what podman knows of it."""
        return json.loads(self.podman("inspect", "--format", f"{{{{json .{key}}}}}", "served"))

    def command(self, *command: str) -> list[str]:
        """Return a command line that runs a program of this machine in its network."""
        return [require_peer("nsenter"), "--target", str(self.read("State.Pid")), "--net", *command]

    def ask(self, method: str, target: str, **headers: str) -> tuple[int, str]:
        """Return status and body of what is asked at its port 8080."""
        command = self.command("python3", "-c", ASKING, method, target, json.dumps(headers))
        status, _, body = run_peer(command, plain_environment(self._builder.folder)).partition(" ")
        return int(status), body

    def wait_until_ready(self) -> None:
        """Return once it answers."""
        deadline = time.monotonic() + 30
        while True:
            try:
                if self.ask("GET", "/readyz", Authorization=f"Bearer {TOKEN}")[0] == 200:
                    return
            except PeerFailed:
                pass  # nobody listens yet
            assert time.monotonic() < deadline, self.podman("logs", "served")
            time.sleep(0.1)


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    """Build the image once."""
    with opening_builder("overlay") as builder:
        with builder.container() as (container, root):
            write_base(root)
            builder.commit(container, BASE)
        build(builder)
        yield builder


def build(builder: Builder) -> None:
    """Build as the documentation says, without a network."""
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    extras = declared["project"]["optional-dependencies"]
    needed = [*declared["build-system"]["requires"], *declared["project"]["dependencies"]]
    needed += [each for name in ("zstd", "files", "fuse", "server") for each in extras[name]]
    wheels, settings = builder.folder / "wheels", builder.folder / "pip.conf"
    write_wheels(wheels, *(each for each in needed if not each.startswith("minibox-store")))
    settings.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    given = ["--volume", f"{wheels}:/wheels:ro", "--volume", f"{settings}:/etc/pip.conf:ro", "--pull-never"]
    named = ["--format", "docker", "--file", str(CONTAINERFILE), "--tag", IMAGE]
    builder.run("buildah", "build", *given, *named, str(PROJECT), timeout_seconds=BUILD_SECONDS)


@contextmanager
def container_of(builder: Builder) -> Iterator[Container]:
    """Give a container with a token and a volume, by the first runtime that works here."""
    for runtime in ("crun", "runc"):
        container = Container(builder, runtime)
        try:
            container.start("--env", f"MINIBOX_API_TOKEN={TOKEN}", "--volume", "kept:/var/lib/minibox")
        except PeerFailed as error:
            refused = str(error)
            container.podman("rm", "--force", "--ignore", "served")
            continue
        try:
            yield container
        finally:
            container.podman("rm", "--force", "--time", "2", "served")
        return
    not_possible(f"no runtime starts a container here: {refused}")


def test_what_is_built_serves_and_keeps_what_is_pushed_in_its_volume(tmp_path: Path, builder: Builder) -> None:
    write_layout(tmp_path / "layout", {"app:1": build_image()})
    owner = {"Authorization": f"Bearer {TOKEN}"}
    with container_of(builder) as container:
        container.wait_until_ready()
        assert container.ask("GET", "/images")[0] == 401
        assert container.ask("GET", "/images", **owner) == (200, "[]")
        pushed = ["docker://127.0.0.1:8080/team/app:1", "--dest-tls-verify=false", "--dest-creds", f"any:{TOKEN}"]
        command = skopeo_command(tmp_path, "copy", "--quiet", f"oci:{tmp_path}/layout:app:1", *pushed)
        run_peer(container.command(*command), skopeo_environment(tmp_path))
        saved = "/images/save?image=team/app:1&path=/var/lib/minibox-archives/app.tar"
        assert container.ask("POST", saved, **owner)[0] == 200
        checked = json.loads(builder.run("podman", "image", "inspect", "--format", "{{json .HealthCheck.Test}}", IMAGE))
        assert checked[0] == "CMD"
        container.podman("exec", "served", *checked[1:])
        begun = time.monotonic()
        container.podman("stop", "--time", "20", "served")
        assert time.monotonic() - begun < 12
        assert container.read("State.ExitCode") == 0
    with container_of(builder) as container:
        container.wait_until_ready()
        status, body = container.ask("GET", "/images", **owner)
        assert (status, [each["name"] for each in json.loads(body)]) == (200, ["team/app:1"])


def test_s20_without_a_token_it_does_not_start(builder: Builder) -> None:
    with container_of(builder) as container:
        container.podman("rm", "--force", "--time", "2", "served")
        container.start()
        assert container.podman("wait", "served") == "2"
        assert "set MINIBOX_API_TOKEN" in run_peer(
            ["sh", "-c", 'cat "$1"', "read", container.read("HostConfig.LogConfig.Path")],
            plain_environment(builder.folder),
        )


def test_our_own_store_unpacks_what_is_built(tmp_path: Path, builder: Builder) -> None:
    builder.save(IMAGE, "oci-archive", tmp_path / "server.tar")
    store = open_store(tmp_path / "store")
    loaded = store.load(tmp_path / "server.tar")
    store.unpack(loaded[0].name, tmp_path / "tree")
    version = run_peer(
        [require_peer("chroot"), str(tmp_path / "tree"), "/opt/minibox/bin/minibox-server", "--version"],
        plain_environment(Path("/")),
    )
    assert version.startswith("minibox-server ")
