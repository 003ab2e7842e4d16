"""buildah and podman over storage of their own: containers whose files a test changes, and the images made of them.

With the storage driver ``overlay`` a layer is what a real overlay mount has kept of the changes, opaque directories
among them; with ``vfs`` it is the comparison of two trees.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.peers import require_peer, run_peer
from tests.support.processes import plain_environment
from tests.support.stores import require_root

_SECONDS = 60.0


class Builder:
    """Makes images in a folder.

    Attributes:
        folder: Where everything lies.
        driver: ``overlay`` or ``vfs``.
    """

    def __init__(self, folder: Path, driver: str) -> None:
        self.folder = folder
        self.driver = driver
        self._storage = folder / "storage"

    @contextmanager
    def container(self, base: str = "scratch") -> Iterator[tuple[str, Path]]:
        """Give a new container over an image, and the folder at which its files are mounted for the block."""
        name = self.run("buildah", "from", base)
        mounted = Path(self.run("buildah", "mount", name))
        try:
            yield name, mounted
        finally:
            self.run("buildah", "umount", name)

    def commit(self, container: str, image: str) -> None:
        """Make an image of a container: the layers below it, and one of what has been changed in it."""
        self.run("buildah", "commit", "--quiet", container, image)

    def save(self, image: str, form: str, path: Path) -> None:
        """Write an image by ``podman save``; ``form`` is ``docker-archive``, ``oci-archive`` or ``oci-dir``."""
        self.run("podman", "save", "--quiet", "--format", form, "--output", str(path), image)

    def save_several(self, images: Sequence[str], path: Path) -> None:
        """Write images as one docker-archive."""
        self.run("podman", "save", "--quiet", "--multi-image-archive", "--output", str(path), *images)

    def load(self, archive: Path) -> None:
        """Load the images of an archive by ``podman load``."""
        self.run("podman", "load", "--quiet", "--input", str(archive))

    def tag(self, image: str, further: str) -> None:
        """Give an image a further name."""
        self.run("podman", "tag", image, further)

    def pull(self, reference: str, *options: str, program: str = "podman") -> str:
        """Pull an image, by podman or buildah, and return the digest of its manifest."""
        self.run(program, "pull", "--quiet", *options, reference)
        return self.run("podman", "image", "inspect", "--format", "{{.Digest}}", reference)

    def push(self, image: str, reference: str, *options: str, program: str = "podman") -> str:
        """Push an image, by podman or buildah, and return the digest of the manifest that it has there."""
        told = self.folder / "pushed-digest"
        self.run(program, "push", "--quiet", "--digestfile", str(told), *options, image, f"docker://{reference}")
        return told.read_text().strip()

    def push_list(self, source: str, reference: str, *options: str) -> str:
        """Make a list of every platform of an index that a registry has, push it, and return its digest."""
        made, told = "localhost/made-list:1", self.folder / "pushed-digest"
        self.run("podman", "manifest", "create", made)
        self.run("podman", "manifest", "add", "--all", *options, made, f"docker://{source}")
        whole = ["--all", "--digestfile", str(told)]
        self.run("podman", "manifest", "push", *whole, *options, made, f"docker://{reference}")
        return told.read_text().strip()

    def remove(self, image: str) -> None:
        """Remove an image, and every name of it."""
        self.run("podman", "rmi", "--force", image)

    def configs(self) -> dict[str, str]:
        """Return the digest of the config of each image, by each of its names."""
        told = self.run("podman", "images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}")
        return dict(line.split() for line in told.splitlines())

    def layers(self, image: str) -> list[str]:
        """Return the digests of the layers of an image, decompressed, as it has verified them."""
        told = self.run("podman", "image", "inspect", "--format", "{{json .RootFS.Layers}}", image)
        found: list[str] = json.loads(told)
        return found

    def run(self, program: str, *arguments: str, timeout_seconds: float = _SECONDS) -> str:
        """Run buildah or podman over this storage, and return what it says."""
        options = ["--root", str(self._storage), "--runroot", str(self.folder / "run")]
        command = [require_peer(program), *options, "--storage-driver", self.driver, *arguments]
        return run_peer(command, builder_environment(self.folder), timeout_seconds).strip()


@contextmanager
def opening_builder(driver: str) -> Iterator[Builder]:
    """Give a builder with empty storage. Where there is no buildah, podman or root the test is skipped, or fails."""
    require_root()
    for program in ("buildah", "podman"):
        require_peer(program)
    # podman takes no run root whose path has more than 50 characters, as those of pytest have.
    with tempfile.TemporaryDirectory(prefix="builder-") as name:
        folder = Path(name)
        try:
            yield Builder(folder, driver)
        finally:
            # The storage is mounted at itself, also when nobody uses it.
            for mount in (folder / "storage" / driver, folder / "storage"):
                if mount.is_mount():
                    subprocess.run(["umount", "-l", mount], check=True, timeout=10)


def builder_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which neither the machine's registries nor its policy are read."""
    registries, policy = folder / "registries.conf", folder / ".config/containers/policy.json"
    policy.parent.mkdir(parents=True, exist_ok=True)
    registries.write_text("")
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    return {
        **plain_environment(folder),
        "CONTAINERS_REGISTRIES_CONF": str(registries),
        "XDG_RUNTIME_DIR": str(folder),
        "BUILDAH_ISOLATION": "chroot",
    }
