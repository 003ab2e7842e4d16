"""Opening a store of many images and listing them, in a process that has imported the library and does nothing else.

Cold is the first listing of a process, in a store that an earlier process has listed; warm are the later ones of the
same process. What the earlier process had to do, in a store that nobody had listed before, is shown.
"""

import os
import statistics
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.report import Row, render_mib, render_seconds, render_spread
from tests.benchmarks.scene import Scene, python_command, python_environment
from tests.benchmarks.timing import BenchmarkFailed, Contender, Sample, largest_mib, measure_in_turn
from tests.support.images import OCI_LAYER, BuiltImage, build_image_over, digest_of
from tests.support.layouts import write_layout

_COLD_BAR_MS = 400.0
_WARM_BAR_MS = 15.0
_LAYERS = 5


def measure_opening(scene: Scene) -> Iterator[Row]:
    """Yield the rows of opening and listing; where the images lie is of no weight, so it is measured in one place."""
    place, count = scene.places[0], scene.sizes.opened_images
    images = {f"team/app-{number}:1.{number}": _image(number) for number in range(count)}
    listed = place.folder / "opened"
    write_layout(listed, images)
    own = set(os.listdir(listed))

    def prepare(folder: Path) -> None:
        write_layout(folder / "fresh", images)

    def list_fresh(folder: Path) -> list[str]:
        return python_command("child", "images", folder / "fresh", 1, "full")

    def list_again(_: Path) -> list[str]:
        return python_command("child", "images", listed, scene.sizes.requests, "full")

    contenders = {
        "fresh": Contender(command=list_fresh, environment=python_environment, prepare=prepare),
        "again": Contender(command=list_again, environment=python_environment),
    }
    # The round that does not count is the earlier process.
    samples = measure_in_turn(contenders, scene=scene, place=place)
    _check(samples["fresh"] + samples["again"], count)
    kept = sorted(set(os.listdir(listed)) - own)
    yield from _rows(place.kind, count, samples["fresh"], samples["again"], kept)


def _image(number: int) -> BuiltImage:
    # Its layers are not there: no listing opens a layer.
    digests = [digest_of(f"layer {number} {layer}".encode()) for layer in range(_LAYERS)]
    layers = [{"mediaType": OCI_LAYER, "digest": digest, "size": 1000} for digest in digests]
    return build_image_over(layers, digests, salt=str(number))


def _rows(where: str, count: int, fresh: list[Sample], again: list[Sample], kept: list[str]) -> Iterator[Row]:
    cold = [_first_seconds(sample) for sample in again]
    warm = [sample.told_seconds for sample in again]
    first = render_spread([_first_seconds(sample) for sample in fresh])
    yield Row(
        measure=f"open and list {count:,} images, cold",
        where=where,
        ours=f"{render_spread(cold)}, {render_mib(largest_mib(again))}",
        theirs=f"before anybody has listed it {first}; it leaves {', '.join(kept) or 'nothing'}",
        result=statistics.median(cold) * 1000,
        unit="ms",
        bar=_COLD_BAR_MS,
    )
    yield Row(
        measure=f"list {count:,} images, warm",
        where=where,
        ours=render_spread(warm),
        theirs=f"the slowest call {render_seconds(max(float(sample.output.split()[3]) for sample in again))}",
        result=statistics.median(warm) * 1000,
        unit="ms",
        bar=_WARM_BAR_MS,
    )


def _first_seconds(sample: Sample) -> float:
    return float(sample.output.split()[1])


def _check(samples: list[Sample], count: int) -> None:
    listed = {int(sample.output.split()[2]) for sample in samples}
    if listed != {count}:
        raise BenchmarkFailed(f"Store.images() listed {listed} of {count} images")
