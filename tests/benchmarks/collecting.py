"""Prune, against umoci's collection of the same layout: whole processes, each on a fresh copy, both made to do all."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks.originals import is_installed
from tests.benchmarks.report import Row, render_mib, render_seconds, render_spread
from tests.benchmarks.scene import Scene, python_command, python_environment
from tests.benchmarks.small_blobs import make_small_blobs
from tests.benchmarks.timing import (
    Contender,
    Sample,
    largest_mib,
    measure_in_turn,
    median_processor_seconds,
    median_seconds,
)
from tests.support.processes import plain_environment

_BAR = 0.5


def measure_collect(scene: Scene) -> Iterator[Row]:
    """Yield the rows of prune against umoci; where the layout lies is chosen by the first place alone."""
    sizes, place = scene.sizes, scene.places[0]
    blobs = make_small_blobs(
        images=sizes.collected_images,
        live_blobs=sizes.collected_live_blobs,
        dead_blobs=sizes.collected_dead_blobs,
        blob_bytes=sizes.blob_bytes,
    )

    def prepare(folder: Path) -> None:
        blobs.write(folder / "layout")

    def check(folder: Path) -> None:
        blobs.check_collected(folder / "layout")

    def prune(folder: Path) -> list[str]:
        return python_command("child", "prune", folder / "layout", len(blobs.dead), "full")

    def umoci(folder: Path) -> list[str]:
        return ["umoci", "gc", "--layout", str(folder / "layout")]

    contenders = {"prune": Contender(command=prune, environment=python_environment, prepare=prepare, check=check)}
    if is_installed("umoci"):
        contenders["umoci"] = Contender(command=umoci, environment=plain_environment, prepare=prepare, check=check)
    runs = min(scene.runs, sizes.most_fresh_trees)
    # What a first run has to find out is nothing beside its seconds, and its tree takes longer to write than to sweep.
    samples = measure_in_turn(contenders, scene=scene, place=place, runs=runs, warm_up=False)
    measure = (
        f"prune, {sizes.collected_live_blobs:,} live blobs in {sizes.collected_images:,} images, "
        f"{sizes.collected_dead_blobs:,} dead ones, the whole process, {runs} runs each"
    )
    yield _row(measure, f"{place.kind}, full", samples)


def _row(measure: str, where: str, samples: Mapping[str, list[Sample]]) -> Row:
    prune, umoci = samples["prune"], samples.get("umoci")
    return Row(
        measure=measure,
        where=where,
        ours=_told(prune),
        theirs=f"umoci gc {_told(umoci)}" if umoci else "umoci is not installed",
        result=median_seconds(prune) / median_seconds(umoci) if umoci else None,
        bar=_BAR,
    )


def _told(samples: list[Sample]) -> str:
    processor = render_seconds(median_processor_seconds(samples))
    spread = render_spread([sample.seconds for sample in samples])
    return f"{spread}, CPU {processor}, {render_mib(largest_mib(samples))}"
