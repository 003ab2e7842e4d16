"""Where and how large: the folders that a run works in, the sizes of what it moves, and the line about the machine."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import plain_environment

PROJECT = Path(__file__).parents[2]
_MIB = 1024 * 1024
_SMALL_FILE_BYTES = 4096
_VERSION = re.compile(r"\b\d+\.\d\S*")
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is moved. The defaults are those that the bars speak of."""

    layers: int = 8
    layer_bytes: int = 64 * _MIB
    # Three, since so many move at once: more of them would take longer and no more memory.
    large_layers: int = 3
    large_layer_bytes: int = 512 * _MIB
    # Of what is moved between a store and an archive.
    archived_layers: int = 8
    archived_layer_bytes: int = 128 * _MIB
    archived_members: int = 100_000
    # Of the one layer that comes over slow lines.
    slow_layer_bytes: int = 256 * _MIB
    line_bytes_per_second: int = 20 * _MIB
    prune_images: int = 1000
    prune_live_blobs: int = 20_000
    prune_dead_blobs: int = 20_000
    blob_bytes: int = 500
    listed_images: int = 5000
    requests: int = 50
    import_runs: int = 41
    collected_images: int = 5000
    collected_live_blobs: int = 100_000
    collected_dead_blobs: int = 100_000
    opened_images: int = 10_000
    verified_bytes: int = 1024 * _MIB
    durable_layers: int = 4
    durable_layer_bytes: int = 4 * _MIB
    durable_names: int = 20
    growing_blobs: tuple[int, ...] = (1000, 10_000, 100_000)
    unpacked_files: int = 30_000
    unpacked_layers: int = 6
    unpacked_bytes: int = 300 * _MIB
    # To look through all of it takes longer than what small sizes are for.
    unpacked_usr: bool = True
    inside_layer_bytes: int = 512 * _MIB
    growing_entries: tuple[int, ...] = (1000, 10_000, 100_000)
    growing_chains: tuple[int, ...] = (10, 100, 1000)
    growing_depths: tuple[int, ...] = (100, 300, 1000)
    growing_whiteouts: tuple[int, ...] = (100, 1000, 10_000)
    served_images: int = 100
    served_seconds: int = 4
    served_blob_bytes: int = 64 * _MIB
    pushed_layers: int = 64
    pushed_layer_bytes: int = 8 * _MIB
    listeners: int = 500
    listened_layer_bytes: int = 32 * _MIB
    listened_bytes_per_second: int = 3 * _MIB
    # Of each of the four images that are pulled while others ask.
    busy_layers: int = 4
    busy_layer_bytes: int = 96 * _MIB
    # Of each measure that has to write a large tree before each of its runs.
    most_fresh_trees: int = 3

    def needed_bytes(self, kind: str) -> int:
        """Return how much room there must be in a place of this kind."""
        # An image lies there as two archives and a layout, and twice more in the making. The large one goes to a disk.
        larger = self.large_layers * self.large_layer_bytes if kind == "disk" else 0
        image = max(self.layers * self.layer_bytes, self.archived_layers * self.archived_layer_bytes, larger)
        small = _SMALL_FILE_BYTES * (self.collected_live_blobs + self.collected_dead_blobs)
        return max(6 * image, 2 * small, 2 * self.verified_bytes)


QUICK = Sizes(
    layer_bytes=_MIB,
    large_layer_bytes=8 * _MIB,
    archived_layer_bytes=_MIB,
    archived_members=1000,
    slow_layer_bytes=8 * _MIB,
    prune_images=50,
    prune_live_blobs=1000,
    prune_dead_blobs=1000,
    listed_images=200,
    requests=10,
    import_runs=5,
    collected_images=50,
    collected_live_blobs=1000,
    collected_dead_blobs=1000,
    opened_images=200,
    verified_bytes=16 * _MIB,
    durable_layer_bytes=_MIB // 4,
    durable_names=5,
    growing_blobs=(100, 400, 1600),
    unpacked_files=300,
    unpacked_layers=3,
    unpacked_bytes=3 * _MIB,
    unpacked_usr=False,
    inside_layer_bytes=4 * _MIB,
    growing_entries=(100, 200, 400),
    growing_chains=(1, 2, 4),
    growing_depths=(10, 20, 40),
    growing_whiteouts=(10, 20, 40),
    served_images=5,
    served_seconds=1,
    served_blob_bytes=_MIB,
    pushed_layers=3,
    pushed_layer_bytes=_MIB // 4,
    listeners=20,
    listened_layer_bytes=2 * _MIB,
    listened_bytes_per_second=2 * _MIB,
    busy_layers=2,
    busy_layer_bytes=2 * _MIB,
    most_fresh_trees=1,
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder of this run on one kind of file system: ``kind`` is ``tmpfs``, ``disk`` or ``XFS``.

    XFS is one of its own, in which files may share what they have; the file it lies in is on a tmpfs.
    """

    kind: str
    folder: Path
    file_system: str

    @property
    def is_disk(self) -> bool:
        """Whether what is written here ends on a disk."""
        return self.kind != "tmpfs"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What every measure is given.

    Attributes:
        places: At least one, in the order in which they are measured.
        sizes: How much is moved.
        runs: How many rounds count.
        patience_seconds: How long each run waits at most for others to leave the processors alone.
    """

    places: tuple[Place, ...]
    sizes: Sizes
    runs: int
    patience_seconds: float = 0.0


@contextmanager
def opening_places(where: str, sizes: Sizes) -> Iterator[tuple[tuple[Place, ...], tuple[str, ...]]]:
    """Give the places that ``where`` (``tmpfs``, ``disk`` or ``both``) means, and a sentence for each that is missing.

    They are removed, with all that is in them, when the block is left.
    """
    wanted = ("tmpfs", "disk") if where == "both" else (where,)
    with ExitStack() as stack:
        places, missing = [], []
        for kind in wanted:
            base = _base_folder(kind, sizes.needed_bytes(kind))
            if base is None:
                missing.append(f"{kind}: there is none with {sizes.needed_bytes(kind) // _MIB:,} MiB of room")
                continue
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="minibox-bench-", dir=base))
            places.append(Place(kind=kind, folder=Path(folder), file_system=_file_system(base)))
        yield tuple(places), tuple(missing)


def python_environment(home: Path) -> Mapping[str, str]:
    """Return the environment in which this project's own programs are measured."""
    return {**plain_environment(home), "PYTHONPATH": str(PROJECT)}


def python_command(module: str, *arguments: str | Path | int) -> list[str]:
    """Return the command line that runs a module of the benchmarks with this interpreter."""
    return [sys.executable, "-m", f"tests.benchmarks.{module}", *map(str, arguments)]


def describe_machine(places: tuple[Place, ...]) -> str:
    """Return one line on what the figures were measured with: no name of a host, and no path."""
    cores = len(os.sched_getaffinity(0))
    systems = " and ".join(f"{place.file_system} ({place.kind})" for place in places)
    parts = [
        f"{_processor()}, {cores} cores",
        f"{platform.system()} {platform.release()}",
        systems,
        f"Python {platform.python_version()}",
        _version("skopeo", "--version"),
        _version("umoci", "--version"),
        _version("docker-registry", "--version"),
        _version("openssl", "version"),
        f"load {os.getloadavg()[0]:.1f} at the start",
    ]
    return "; ".join(parts)


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _version(program: str, option: str) -> str:
    try:
        told = subprocess.run([program, option], capture_output=True, check=True, timeout=10).stdout.decode()
    except (OSError, subprocess.SubprocessError):
        return f"no {program}"
    found = _VERSION.search(told)
    return f"{program} {found[0] if found else told.strip()}"


def _base_folder(kind: str, needed_bytes: int) -> Path | None:
    candidates = ("/dev/shm", tempfile.gettempdir()) if kind == "tmpfs" else (tempfile.gettempdir(), "/var/tmp", ".")
    for candidate in map(Path, candidates):
        if not candidate.is_dir() or not os.access(candidate, os.W_OK):
            continue
        if shutil.disk_usage(candidate).free < needed_bytes:
            continue
        if (_file_system(candidate) in _MEMORY_FILE_SYSTEMS) == (kind == "tmpfs"):
            return candidate.resolve()
    return None


def _file_system(folder: Path) -> str:
    resolved = folder.resolve()
    best = (-1, "unknown")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            mount_point = Path(fields.split()[4])
            # A later mount on the same point hides an earlier one.
            if resolved.is_relative_to(mount_point) and len(mount_point.parts) >= best[0]:
                best = (len(mount_point.parts), rest.split()[0])
    return best[1]
