"""Docker and containerd over folders and sockets of their own, which load and save archives of images.

podman stands in :mod:`tests.support.builders`.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.forks import not_possible
from tests.support.peers import PeerFailed, require_peer, run_peer
from tests.support.processes import ProcessFailed, plain_environment, running, wait_until
from tests.support.stores import require_root

_START_SECONDS = 30.0


class Docker:
    """A Docker that runs, with nothing in it at first, and no network for containers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, archive: Path) -> None:
        """Load an archive of its own form."""
        self.run("load", "--quiet", "--input", str(archive))

    def save(self, archive: Path, *names: str) -> Path:
        """Save images into an archive."""
        self.run("save", "--output", str(archive), *names)
        return archive

    def tag(self, name: str, further: str) -> None:
        """Give an image a further name."""
        self.run("tag", name, further)

    def configs(self) -> dict[str, str]:
        """Return the digest of the config of each image, by each of its names."""
        told = self.run("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}")
        return dict(line.split() for line in told.splitlines())

    def layers(self, name: str) -> list[str]:
        """Return the digests of the layers of an image, decompressed, as it has verified them."""
        found: list[str] = json.loads(self.run("image", "inspect", "--format", "{{json .RootFS.Layers}}", name))
        return found

    def run(self, *arguments: str) -> str:
        """Run a command of its client, and return the stdout.

        Raises:
            PeerFailed: with its stderr.
        """
        command = [require_peer("docker"), "--host", f"unix://{self._folder / 'socket'}", *arguments]
        return run_peer(command, plain_environment(self._folder))

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            self.run("version")
        except PeerFailed:
            return False
        return True


class Containerd:
    """A containerd that runs, with nothing in it at first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, archive: Path, *options: str) -> None:
        """Import an archive, every platform of it; nothing is unpacked."""
        self.run("images", "import", "--no-unpack", "--all-platforms", *options, str(archive))

    def save(self, archive: Path, *names: str, options: Sequence[str] = ("--all-platforms",)) -> Path:
        """Export images to an archive that is an OCI layout, and a docker-archive of one platform too."""
        self.run("images", "export", *options, str(archive), *names)
        return archive

    def push(self, reference: str, name: str, *options: str) -> None:
        """Push an image to a registry without TLS."""
        self.run("images", "push", "--plain-http", *options, reference, name)

    def pull(self, reference: str, *options: str) -> None:
        """Pull an image from a registry without TLS, and unpack it."""
        self.run("images", "pull", "--plain-http", "--snapshotter", "native", *options, reference)

    def remove(self, name: str) -> None:
        """Remove an image, and all content that no other one needs."""
        self.run("images", "remove", "--sync", name)

    def roots(self) -> dict[str, str]:
        """Return the digest that each name stands for."""
        lines = self.run("images", "list").splitlines()[1:]
        return {line.split()[0]: next(word for word in line.split() if word.startswith("sha256:")) for line in lines}

    def digests(self) -> set[str]:
        """Return the digests of all content that there is."""
        return set(self.run("content", "list", "--quiet").split())

    def run(self, *arguments: str) -> str:
        """Run ``ctr``, and return its stdout.

        Raises:
            PeerFailed: with its stderr.
        """
        command = [require_peer("ctr"), "--address", str(self._folder / "socket"), "--namespace", "test", *arguments]
        return run_peer(command, plain_environment(self._folder))

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            self.run("version")
        except PeerFailed:
            return False
        return True


@contextmanager
def running_docker() -> Iterator[Docker]:
    """Run Docker for the block. Where there is none that starts, or no root, the test is skipped, or fails."""
    with _opening_folder("dockerd", "docker") as (folder, program):
        (folder / "config.json").write_text(json.dumps({"deprecated-key-path": str(folder / "key.json")}))
        command = [program, "--config-file", str(folder / "config.json"), "--host", f"unix://{folder / 'socket'}"]
        for option, name in (("data-root", "data"), ("exec-root", "state"), ("pidfile", "pid")):
            command += [f"--{option}", str(folder / name)]
        # Nothing is run in containers, so that neither a bridge nor rules of the machine's network are needed.
        command += ["--storage-driver", "vfs", "--bridge=none", "--iptables=false", "--ip6tables=false"]
        command += ["--ip-forward=false", "--ip-masq=false"]
        docker = Docker(folder)
        with _running_until_ready(command, folder, docker):
            yield docker


@contextmanager
def running_containerd() -> Iterator[Containerd]:
    """Run containerd for the block. Where there is none that starts, or no root, the test is skipped, or fails."""
    with _opening_folder("containerd", "ctr") as (folder, program):
        (folder / "config.toml").write_text(
            "version = 2\n"
            # What reaches out of the folder, and what needs a network of containers.
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
            f"root = {json.dumps(str(folder / 'root'))}\n"
            f"state = {json.dumps(str(folder / 'state'))}\n"
            f"[grpc]\naddress = {json.dumps(str(folder / 'socket'))}\n"
        )
        containerd = Containerd(folder)
        with _running_until_ready([program, "--config", str(folder / "config.toml")], folder, containerd):
            yield containerd


@contextmanager
def _opening_folder(server: str, client: str) -> Iterator[tuple[Path, str]]:
    require_root()
    require_peer(client)
    program = require_peer(server)
    # The path of a socket has at most 107 bytes, fewer than those of the folders of pytest.
    with tempfile.TemporaryDirectory(prefix=f"{server}-") as folder:
        yield Path(folder), program


@contextmanager
def _running_until_ready(command: Sequence[str], folder: Path, engine: Docker | Containerd) -> Iterator[None]:
    log, environment = folder / "log", plain_environment(folder)
    with running(command, environment=environment, log=log, folder=folder, end_seconds=_START_SECONDS) as process:
        try:
            wait_until(engine.is_ready, process, log=log, timeout_seconds=_START_SECONDS)
        except ProcessFailed as error:  # a kernel or a sandbox that does not let it
            not_possible(f"{command[0]} does not start: {error}")
        yield
