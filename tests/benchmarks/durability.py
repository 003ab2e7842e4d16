"""What full durability costs over none: the same changes to a store, each timed by itself. It is shown, and has no bar.

Pull, save and load of large layers have it in their own rows, where both stand beside each other.
"""

import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.benchmarks.originals import Original, making_original
from tests.benchmarks.report import Row, render_spread
from tests.benchmarks.scene import Scene, python_command, python_environment
from tests.benchmarks.timing import Contender, measure_in_turn

_FULL, _NONE = "full", "none"


def measure_durability(scene: Scene) -> Iterator[Row]:
    """Yield a row for each step; on the last place, which is the disk where there is one."""
    sizes, place = scene.sizes, scene.places[-1]
    layers = [sizes.durable_layer_bytes] * sizes.durable_layers
    with making_original(place.folder / "durable", "load", layers) as image:
        contenders = {
            durability: Contender(
                command=partial(_command, image, sizes.durable_names, durability), environment=python_environment
            )
            for durability in (_FULL, _NONE)
        }
        samples = measure_in_turn(contenders, scene=scene, place=place)
    full, none = ([sample.told_steps for sample in samples[durability]] for durability in (_FULL, _NONE))
    for step in full[0]:
        ours, theirs = [told[step] for told in full], [told[step] for told in none]
        moved = f", {image.size_bytes // 1024:,} KiB in {len(layers)} layers" if step in ("import", "load") else ""
        yield Row(
            measure=f"{step}{moved}: full durability over none",
            where=place.kind,
            ours=f"full {render_spread(ours)}",
            theirs=f"none {render_spread(theirs)}",
            result=statistics.median(ours) / statistics.median(theirs),
        )


def _command(image: Original, names: int, durability: str, folder: Path) -> list[str]:
    return python_command("steps", "change", folder, image.layout, image.archive, names, durability)
