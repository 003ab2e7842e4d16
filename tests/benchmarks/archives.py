"""Archives beside what the machine gives: ``cp``, ``openssl``, skopeo and Python's tarfile; and the memory they take.

Times of this project are those of the call, in a process that has imported the library; beside skopeo they are those
of whole processes. Where files may share what they have, that is measured on an XFS of its own.
"""

import io
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.originals import NAME, Original, is_installed, making_original
from tests.benchmarks.report import Row, render_mib, render_spread
from tests.benchmarks.scene import Place, Scene, python_command, python_environment
from tests.benchmarks.timing import (
    BenchmarkFailed,
    Contender,
    Sample,
    always,
    largest_mib,
    measure_in_turn,
    median_seconds,
)
from tests.benchmarks.transfers import spread
from tests.support.filled import loop_disk
from tests.support.peers import run_skopeo, skopeo_command, skopeo_environment
from tests.support.processes import plain_environment

# cp syncs nothing, so on a disk it stands beside what syncs nothing either.
_SAVE_BARS = {("tmpfs", "full"): 1.1, ("disk", "none"): 1.1, ("XFS", "none"): 0.1}
_LOAD_BARS = dict.fromkeys(_SAVE_BARS, 0.8)
_DOCKER_BAR = 0.4
_MEMBERS_BAR = 5.0
_MEMORY_BAR_MIB = 48.0
_MEMORY_RUNS = 2
_DURABILITIES = ("full", "none")
# With the windows that they take unasked: 32 KiB, 2 MiB and 8 MiB.
_COMPRESSORS = {"gzip": ["-c", "-1"], "zstd": ["-q", "-c", "-3"], "xz": ["-c", "-T2", "--lzma2=preset=0,dict=8MiB"]}
_SKOPEO_SECONDS = 600.0
# What the file system itself wants, and not less than there can be of it.
_LEAST_XFS_BYTES = 512 * 1024 * 1024


def measure_save(scene: Scene) -> Iterator[Row]:
    """Yield the rows of a save beside a copy of the same blobs by ``cp``, which shares nothing."""
    for place in _iter_places(scene):
        with _making(scene, place, "save") as image:
            contenders = {
                "full": _ours("save", image, durability="full"),
                "tool": _cp(image),
                "none": _ours("save", image, durability="none"),
            }
            samples = measure_in_turn(contenders, scene=scene, place=place)
        yield from _rows("save", "cp --reflink=never", image, place, samples, _SAVE_BARS)


def measure_load(scene: Scene) -> Iterator[Row]:
    """Yield the rows of a load beside a copy of the archive by ``cp``, and the digest of that by ``openssl``."""
    if not is_installed("openssl"):
        raise BenchmarkFailed("openssl is not installed, so there is nothing to compare a verified load with")
    for place in _iter_places(scene):
        with _making(scene, place, "load") as image:
            contenders = {
                "full": _ours("load", image, durability="full"),
                "tool": _cp_and_openssl(image),
                "none": _ours("load", image, durability="none"),
            }
            samples = measure_in_turn(contenders, scene=scene, place=place)
        yield from _rows("load", "cp, then openssl dgst -sha256", image, place, samples, _LOAD_BARS)


def measure_docker(scene: Scene) -> Iterator[Row]:
    """Yield the rows of loading a docker-archive beside skopeo, which is told to leave the layers as they are."""
    if not is_installed("skopeo"):
        raise BenchmarkFailed("skopeo is not installed, so there is no docker-archive to load")
    for place in scene.places:
        with _making(scene, place, "save") as image:
            archive = image.layout.parent / "docker.tar"
            ends = f"oci:{image.layout}:{NAME}", f"docker-archive:{archive}:example.org/app:{NAME}"
            run_skopeo("copy", "--quiet", *ends, timeout_seconds=_SKOPEO_SECONDS)
            contenders = {
                "ours": _ours("load", replace(image, archive=archive), durability="full"),
                "skopeo": _skopeo_from_docker(archive, image),
            }
            samples = measure_in_turn(contenders, scene=scene, place=place)
        yield Row(
            measure=f"load of a docker-archive, {image.text}",
            where=f"{place.kind}, full",
            ours=f"{spread(samples['ours'])}, {render_mib(largest_mib(samples['ours']))}",
            theirs=f"skopeo copy {spread(samples['skopeo'])}",
            result=median_seconds(samples["ours"]) / median_seconds(samples["skopeo"]),
            bar=_DOCKER_BAR,
        )


def measure_members(scene: Scene) -> Iterator[Row]:
    """Yield the row of reading many small members, data and all, beside Python's tarfile; it is a rate."""
    place, count = scene.places[0], scene.sizes.archived_members
    archive = place.folder / "members.tar"
    write_members(archive, count)
    try:
        contenders = {
            reader: Contender(
                command=always(python_command("archiving", "members", reader, archive, count)),
                environment=python_environment,
            )
            for reader in ("ours", "tarfile")
        }
        samples = measure_in_turn(contenders, scene=scene, place=place)
    finally:
        archive.unlink()
    yield Row(
        measure=f"a tar of {count:,} small members, all of it read: the rate",
        where=place.kind,
        ours=_told(samples["ours"]),
        theirs=f"tarfile {_told(samples['tarfile'])}",
        result=_median(samples["tarfile"]) / _median(samples["ours"]),
        bar=_MEMBERS_BAR,
        at_least=True,
    )


def measure_archive_memory(scene: Scene) -> Iterator[Row]:
    """Yield the rows that say what memory a large archive takes that is more than a file at a path."""
    place, sizes = scene.places[-1], scene.sizes
    with making_original(place.folder / "original", "load", [sizes.large_layer_bytes] * sizes.large_layers) as image:
        yield _memory_row(scene, place, image, "load from a pipe", _ours("load-piped", image))
    # Of random bytes, so that what is compressed is no smaller; and less of them, for they take long to compress.
    with making_original(place.folder / "original", "load", [sizes.layer_bytes] * 2) as image:
        for compressor, options in _COMPRESSORS.items():
            if not is_installed(compressor):
                continue
            compressed = image.archive.with_suffix(f".{compressor}")
            with compressed.open("wb") as file:
                subprocess.run([compressor, *options, image.archive], stdout=file, check=True)
            measured = f"load of what {compressor} has compressed, from a pipe"
            yield _memory_row(scene, place, image, measured, _ours("load-piped", replace(image, archive=compressed)))
            compressed.unlink()


def _memory_row(scene: Scene, place: Place, image: Original, measure: str, contender: Contender) -> Row:
    runs = min(scene.runs, _MEMORY_RUNS)
    samples = measure_in_turn({"ours": contender}, scene=scene, place=place, runs=runs, warm_up=False)["ours"]
    return Row(
        measure=f"{measure}, peak memory, {image.text}",
        where=f"{place.kind}, full",
        ours=f"{render_mib(largest_mib(samples))}, {_told(samples)}",
        result=largest_mib(samples),
        unit="MiB",
        bar=_MEMORY_BAR_MIB,
    )


# ---- where it is measured, and what


def _iter_places(scene: Scene) -> Iterator[Place]:
    """Yield each place, and after them an XFS, for as long as it is asked for the next one."""
    yield from scene.places
    with _opening_xfs(scene.places[0], scene.sizes.needed_bytes("XFS")) as place:
        yield place


@contextmanager
def _opening_xfs(beside: Place, size_bytes: int) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="xfs-", dir=beside.folder) as folder:
        try:
            with loop_disk(Path(folder) / "disk", "xfs", max(size_bytes, _LEAST_XFS_BYTES)) as mounted:
                yield Place(kind="XFS", folder=mounted, file_system="xfs")
        except (pytest.skip.Exception, pytest.fail.Exception) as error:
            raise BenchmarkFailed(f"there is no XFS to be had: {error}") from None


def _making(scene: Scene, place: Place, operation: str) -> AbstractContextManager[Original]:
    sizes = [scene.sizes.archived_layer_bytes] * scene.sizes.archived_layers
    return making_original(place.folder / "original", operation, sizes)


def _ours(operation: str, image: Original, *, durability: str = "full") -> Contender:
    saves = operation.startswith("save")

    def command(folder: Path) -> list[str]:
        ends = (image.layout, folder / "archive") if saves else (folder / "store", image.archive)
        return python_command("archiving", operation, *ends, durability)

    def check(folder: Path) -> None:
        if saves:
            image.check_archive(folder / "archive")
        else:
            image.check_layers(folder / "store")

    return Contender(command=command, environment=python_environment, check=check)


def _cp(image: Original) -> Contender:
    copy = ["cp", "--reflink=never", *image.blobs]
    return Contender(command=lambda folder: [*copy, str(folder)], environment=plain_environment)


def _cp_and_openssl(image: Original) -> Contender:
    script = 'cp --reflink=never "$1" copy && openssl dgst -sha256 copy'
    return Contender(command=always(["sh", "-c", script, "sh", str(image.archive)]), environment=plain_environment)


def _skopeo_from_docker(archive: Path, image: Original) -> Contender:
    def command(folder: Path) -> list[str]:
        ends = f"docker-archive:{archive}", f"oci:{folder}/layout:{NAME}"
        return skopeo_command(folder, "copy", "--quiet", "--dest-oci-accept-uncompressed-layers", *ends)

    return Contender(
        command=command, environment=skopeo_environment, check=lambda folder: image.check_layers(folder / "layout")
    )


def write_members(path: Path, count: int) -> None:
    """Write a tar of so many small files, called as the blobs of images are."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(count):
            member, content = tarfile.TarInfo(f"blobs/sha256/{number:064x}"), b"%d" % number
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


# ---- what is said of it


def _rows(
    operation: str,
    tool: str,
    image: Original,
    place: Place,
    samples: Mapping[str, list[Sample]],
    bars: Mapping[tuple[str, str], float],
) -> Iterator[Row]:
    for durability in _DURABILITIES:
        yield Row(
            measure=f"{operation}, {image.text}",
            where=f"{place.kind}, {durability}",
            ours=f"{_told(samples[durability])}, {render_mib(largest_mib(samples[durability]))}",
            theirs=f"{tool} {spread(samples['tool'])}",
            result=_median(samples[durability]) / median_seconds(samples["tool"]),
            bar=bars.get((place.kind, durability)),
        )


def _told(samples: list[Sample]) -> str:
    return render_spread([sample.told_seconds for sample in samples])


def _median(samples: list[Sample]) -> float:
    return statistics.median(sample.told_seconds for sample in samples)
