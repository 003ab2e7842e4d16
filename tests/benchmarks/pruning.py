"""Prune, against the removal of the same files and one read of each live manifest with nothing around them."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks.report import Row, render_mib, render_seconds
from tests.benchmarks.scene import Place, Scene, Sizes, python_command, python_environment
from tests.benchmarks.small_blobs import SmallBlobs, make_small_blobs
from tests.benchmarks.timing import Contender, Sample, always, largest_mib, measure_in_turn, median_seconds

_BAR = 3.0


def measure_prune(scene: Scene) -> Iterator[Row]:
    """Yield the rows of prune. What is compared are the calls; the process around them is told beside it."""
    sizes = scene.sizes
    blobs = make_small_blobs(
        images=sizes.prune_images,
        live_blobs=sizes.prune_live_blobs,
        dead_blobs=sizes.prune_dead_blobs,
        blob_bytes=sizes.blob_bytes,
    )
    for place in scene.places:
        # The live ones stay where they are; the dead ones are written anew before each run.
        root, listed = place.folder / "prune", place.folder / "prune-list"
        blobs.write_live(root)
        _write_list(listed, blobs)
        commands = {
            "prune": python_command("child", "prune", root, len(blobs.dead), "full"),
            "bare": python_command("bare", "unlink", listed, root),
        }
        yield from _rows(sizes, place, _measure(scene, place, commands, blobs, root))


def _measure(
    scene: Scene, place: Place, commands: Mapping[str, list[str]], blobs: SmallBlobs, root: Path
) -> dict[str, list[Sample]]:
    def prepare(_: Path) -> None:
        blobs.write_dead(root)

    contenders = {
        name: Contender(command=always(command), environment=python_environment, prepare=prepare)
        for name, command in commands.items()
    }
    return measure_in_turn(contenders, scene=scene, place=place)


def _rows(sizes: Sizes, place: Place, samples: Mapping[str, list[Sample]]) -> Iterator[Row]:
    prune, unlink = (statistics.median(each.told_seconds for each in samples[name]) for name in ("prune", "bare"))
    yield Row(
        measure=f"prune, {sizes.prune_live_blobs:,} live blobs in {sizes.prune_images:,} images, "
        f"{sizes.prune_dead_blobs:,} dead ones of {sizes.blob_bytes} bytes",
        where=f"{place.kind}, full",
        ours=render_seconds(prune),
        theirs=f"bare unlink and read {render_seconds(unlink)}",
        result=prune / unlink,
        bar=_BAR,
    )
    yield Row(
        measure="prune, the whole process",
        where=f"{place.kind}, full",
        ours=f"{render_seconds(median_seconds(samples['prune']))}, {render_mib(largest_mib(samples['prune']))}",
        theirs=f"{render_seconds(median_seconds(samples['bare']))}",
    )


def _write_list(file: Path, blobs: SmallBlobs) -> None:
    """Write what a bare removal has to do: ``-`` for each blob to remove, ``+`` for each manifest to read."""
    manifests = [image.digest.partition(":")[2] for image in blobs.images.values()]
    file.write_text("".join([*(f"-{name}\n" for name in blobs.dead), *(f"+{name}\n" for name in manifests)]))
