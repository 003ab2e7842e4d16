"""Cost against size: each operation on stores of more and more blobs, and the exponent by which its time grows.

An exponent of 1 is linear; less means that something is paid once, whatever the size. Of a store it is shown, and has
no bar.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tests.benchmarks.report import Row, render_seconds
from tests.benchmarks.scene import Place, Scene, python_command, python_environment
from tests.benchmarks.small_blobs import DOCUMENTS, SmallBlobs, make_small_blobs
from tests.benchmarks.timing import Contender, measure_in_turn

_LAYERS = 18
# Half of the blobs are dead, and so half of them are in images.
_BLOBS_OF_AN_IMAGE = 2 * (_LAYERS + DOCUMENTS)
_PER_BLOB = "time per blob of the store by its size (half of them live)"

LINEAR = 1.1


def measure_growth(scene: Scene) -> Iterator[Row]:
    """Yield a row for each operation; where the store lies is of no weight, so it is measured in one place."""
    place = scene.places[0]
    taken = {blobs: _measure(scene, place, blobs) for blobs in scene.sizes.growing_blobs}
    for operation in next(iter(taken.values())):
        seconds = {blobs: statistics.median(steps[operation]) for blobs, steps in taken.items()}
        yield growth_row(operation, f"{place.kind}, none", seconds)


def exponent(seconds: Mapping[int, float]) -> float:
    """Return the exponent of the power of the size that comes nearest to the times: the slope of their logarithms."""
    sizes = [math.log(size) for size in seconds]
    times = [math.log(each) for each in seconds.values()]
    return statistics.linear_regression(sizes, times).slope


def _measure(scene: Scene, place: Place, count: int) -> Mapping[str, Sequence[float]]:
    """Return what each operation took in each run."""
    images = max(1, count // _BLOBS_OF_AN_IMAGE)
    live = images * (_LAYERS + DOCUMENTS)
    blobs = make_small_blobs(images=images, live_blobs=live, dead_blobs=count - live, blob_bytes=scene.sizes.blob_bytes)
    contender = Contender(
        command=partial(_command, images, len(blobs.dead)),
        environment=python_environment,
        prepare=partial(_prepare, blobs),
    )
    runs = min(scene.runs, scene.sizes.most_fresh_trees)
    samples = measure_in_turn({"grow": contender}, scene=scene, place=place, runs=runs, warm_up=False)["grow"]
    steps = [sample.told_steps for sample in samples]
    return {operation: [each[operation] for each in steps] for operation in steps[0]}


def _prepare(blobs: SmallBlobs, folder: Path) -> None:
    blobs.write(folder / "layout")


def _command(images: int, dead_blobs: int, folder: Path) -> list[str]:
    return python_command("steps", "grow", folder / "layout", images, dead_blobs, "none")


def growth_row(
    operation: str, where: str, seconds: Mapping[int, float], *, per: str = _PER_BLOB, bar: float | None = None
) -> Row:
    """Return the row of one operation, from its seconds by the size of what it works on, which ``per`` tells.

    The exponent over all sizes says how it grows. That of the last step is told beside it, where a time paid once
    weighs least and a noisy run most.
    """
    *_, before, last = seconds
    fitted = exponent(seconds)
    step = exponent({size: seconds[size] for size in (before, last)})
    grows = "linear or less" if fitted <= LINEAR else "**more than linear**"
    each = "; ".join(f"{size:,}: {render_seconds(taken / size)}" for size, taken in seconds.items())
    return Row(
        measure=f"{operation}, {per}",
        where=where,
        ours=each,
        theirs=f"{grows}; from {before:,} to {last:,} the exponent is {step:.2f}",
        result=fitted,
        bar=bar,
    )
