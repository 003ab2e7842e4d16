"""The image that is moved, in every form in which a program reads it."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from minibox_store import Store
from tests.benchmarks.timing import BenchmarkFailed
from tests.support.layouts import read_layout_names, write_random_layout
from tests.support.peers import docker_registry, run_skopeo

REPOSITORY = "app"
NAME = "latest"

_MIB = 1024 * 1024
_COPY_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Original:
    """One image, and where the operation that it was made for finds it.

    Attributes:
        layout: For save.
        archive: For load: of this project's form.
        oci_archive: For load: of skopeo's form, where there is a skopeo.
        registry_host: For pull: a registry on loopback.
        digest: Of its manifest.
        layer_sizes_bytes: Of each layer.
    """

    layout: Path
    archive: Path
    oci_archive: Path
    registry_host: str
    digest: str
    layer_sizes_bytes: tuple[int, ...]

    @property
    def text(self) -> str:
        """How the tables call it."""
        return f"{len(self.layer_sizes_bytes)} x {self.layer_sizes_bytes[0] // _MIB} MiB"

    @property
    def size_bytes(self) -> int:
        """The size of its layers."""
        return sum(self.layer_sizes_bytes)

    @property
    def reference(self) -> str:
        """Its reference in the registry."""
        return f"{self.registry_host}/{REPOSITORY}:{NAME}"

    @property
    def blobs(self) -> list[str]:
        """The paths of all its blobs."""
        return sorted(map(str, (self.layout / "blobs" / "sha256").iterdir()))

    def check_layout(self, layout: Path) -> None:
        """Raise BenchmarkFailed unless the image has arrived there whole, under the digest that it had."""
        found = read_layout_names(layout)[NAME]["digest"]
        if found != self.digest:
            raise BenchmarkFailed(f"the image {self.digest} arrived as {found}")
        self.check_layers(layout)

    def check_layers(self, layout: Path) -> None:
        """Raise BenchmarkFailed unless there is as much as the image has, whatever its manifest is now."""
        self.check_size(sum(path.stat().st_size for path in (layout / "blobs" / "sha256").iterdir()))

    def check_archive(self, archive: Path) -> None:
        """Raise BenchmarkFailed unless the archive is there, and large enough to hold the image."""
        self.check_size(archive.stat().st_size)

    def check_size(self, found_bytes: int) -> None:
        """Raise BenchmarkFailed unless this is as much as the layers are, and not much more."""
        if not self.size_bytes < found_bytes < self.size_bytes + _MIB:
            raise BenchmarkFailed(f"{found_bytes} bytes arrived, where the layers alone are {self.size_bytes}")


def is_installed(program: str) -> bool:
    """Whether there is such a program."""
    return shutil.which(program) is not None


@contextmanager
def making_original(folder: Path, operation: str, layer_sizes_bytes: Sequence[int]) -> Iterator[Original]:
    """Make an image of random layers for ``pull``, ``save`` or ``load``.

    It lies in ``folder``, which is made for it, and gone when the block is left.

    Raises:
        BenchmarkFailed: when a program is missing without which there is nothing to read the image from.
    """
    if operation == "pull" and not (is_installed("skopeo") and is_installed("docker-registry")):
        raise BenchmarkFailed("skopeo or docker-registry is not installed, so there is nothing to pull from")
    with ExitStack() as stack:
        folder.mkdir()
        stack.callback(shutil.rmtree, folder)
        layout, archive, oci_archive = folder / "layout", folder / "minibox.tar", folder / "oci.tar"
        root = write_random_layout(layout, layer_sizes_bytes, name=NAME, salt=folder.name)
        host = ""
        if operation == "load":
            Store(layout, durability="none").save(NAME, archive)
            if is_installed("skopeo"):
                _copy(f"oci:{layout}:{NAME}", f"oci-archive:{oci_archive}:{NAME}")
        elif operation == "pull":
            host = stack.enter_context(docker_registry(folder / "registry")).host
            _copy("--dest-tls-verify=false", f"oci:{layout}:{NAME}", f"docker://{host}/{REPOSITORY}:{NAME}")
            shutil.rmtree(layout)
        yield Original(
            layout=layout,
            archive=archive,
            oci_archive=oci_archive,
            registry_host=host,
            digest=str(root["digest"]),
            layer_sizes_bytes=tuple(layer_sizes_bytes),
        )


def _copy(*arguments: str) -> None:
    run_skopeo("copy", "--quiet", "--preserve-digests", *arguments, timeout_seconds=_COPY_SECONDS)
