"""Pull, save and load of one image of large layers, against skopeo: wall time, and peak memory.

skopeo is told to keep the digests. It would compress the layers on their way otherwise, which is another job.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from tests.benchmarks.originals import NAME, REPOSITORY, Original, is_installed, making_original
from tests.benchmarks.report import Row, render_mib, render_seconds, render_spread
from tests.benchmarks.scene import Place, Scene, python_command, python_environment
from tests.benchmarks.timing import (
    Contender,
    Sample,
    always,
    largest_mib,
    measure_in_turn,
    median_processor_seconds,
    median_seconds,
)
from tests.support.peers import skopeo_command, skopeo_environment
from tests.support.processes import plain_environment

OPERATIONS = ("pull", "save", "load")

_RATIO_BARS = {
    ("pull", "tmpfs", "full"): 0.6,
    ("pull", "disk", "full"): 0.6,
    ("save", "tmpfs", "full"): 0.12,
    ("save", "disk", "none"): 0.12,
    ("load", "tmpfs", "full"): 0.25,
    ("load", "disk", "full"): 0.25,
}
_MEMORY_BAR_MIB = 48.0
_MEMORY_RUNS = 3
_DURABILITIES = ("full", "none")


def measure_transfer(operation: str, scene: Scene) -> Iterator[Row]:
    """Yield the rows of one operation: against skopeo, its memory, and against what the machine gives at all."""
    sizes = [scene.sizes.layer_bytes] * scene.sizes.layers
    if operation != "pull":
        sizes = [scene.sizes.archived_layer_bytes] * scene.sizes.archived_layers
    for place in scene.places:
        with making_original(place.folder / "original", operation, sizes) as image:
            contenders = {"full": our_contender(operation, image, "full")}
            if is_installed("skopeo"):
                contenders["skopeo"] = skopeo_contender(operation, image)
            contenders["none"] = our_contender(operation, image, "none")
            contenders |= _bare_tools(operation, image)
            samples = measure_in_turn(contenders, scene=scene, place=place)
            yield from _rows(operation, image, place, samples)


def measure_memory(scene: Scene) -> Iterator[Row]:
    """Yield the rows that say whether larger layers take more memory."""
    # The file system is of no weight, and the last one has more room.
    sizes, place = scene.sizes, scene.places[-1]
    small_layers, large_layers = [sizes.layer_bytes] * sizes.layers, [sizes.large_layer_bytes] * sizes.large_layers
    for operation in OPERATIONS:
        with (
            making_original(place.folder / "original", operation, small_layers) as image,
            making_original(place.folder / "original-large", operation, large_layers) as large,
        ):
            contenders = {
                "small": our_contender(operation, image, "full"),
                "large": our_contender(operation, large, "full"),
            }
            runs = min(scene.runs, _MEMORY_RUNS)
            samples = measure_in_turn(contenders, scene=scene, place=place, runs=runs, warm_up=False)
            peak_mib = largest_mib(samples["large"])
            yield Row(
                measure=f"{operation}, peak memory, {large.text}",
                where=f"{place.kind}, full",
                ours=render_mib(peak_mib),
                theirs=f"{render_mib(largest_mib(samples['small']))} for {image.text}",
                result=peak_mib,
                unit="MiB",
                bar=_MEMORY_BAR_MIB,
            )


# ---- who is measured


def our_contender(operation: str, image: Original, durability: str = "full") -> Contender:
    """Return this project at one operation on an image."""

    def command(folder: Path) -> list[str]:
        store, archive = folder / "store", folder / "archive"
        arguments: dict[str, tuple[str | Path, ...]] = {
            "pull": (store, image.reference),
            "save": (image.layout, archive),
            "load": (store, image.archive),
            "push": (image.layout, image.reference),
        }
        return python_command("child", operation, *arguments[operation], durability)

    return Contender(command=command, environment=python_environment, check=_check(operation, image, "store"))


def skopeo_contender(operation: str, image: Original) -> Contender:
    """Return skopeo at the same."""

    def command(folder: Path) -> list[str]:
        ends = {
            "pull": (f"docker://{image.reference}", f"oci:{folder}/layout:{NAME}"),
            "save": (f"oci:{image.layout}:{NAME}", f"oci-archive:{folder}/archive:{NAME}"),
            "load": (f"oci-archive:{image.oci_archive}:{NAME}", f"oci:{folder}/layout:{NAME}"),
            "push": (f"oci:{image.layout}:{NAME}", f"docker://{image.reference}"),
        }
        plain_http = {"pull": ["--src-tls-verify=false"], "push": ["--dest-tls-verify=false"]}.get(operation, [])
        return skopeo_command(folder, "copy", "--quiet", "--preserve-digests", *plain_http, *ends[operation])

    return Contender(command=command, environment=skopeo_environment, check=_check(operation, image, "layout"))


def _check(operation: str, image: Original, layout: str) -> Callable[[Path], None]:
    if operation == "save":
        return lambda folder: image.check_archive(folder / "archive")
    return lambda folder: image.check_layout(folder / layout)


def _bare_tools(operation: str, image: Original) -> dict[str, Contender]:
    """Return what does a part of the work and no more, for the reader to know what the machine gives."""
    if operation == "pull":
        command = partial(python_command, "bare", "pull", image.registry_host, REPOSITORY)
        return {"bare urllib3, three threads, no sync": Contender(command=command, environment=python_environment)}
    tools = {"cp": Contender(command=lambda folder: ["cp", *image.blobs, str(folder)], environment=plain_environment)}
    if operation == "load" and is_installed("openssl"):
        digest = always(["openssl", "dgst", "-sha256", *image.blobs])
        tools["openssl dgst -sha256"] = Contender(command=digest, environment=plain_environment)
    return tools


# ---- what is said of it


def _rows(operation: str, image: Original, place: Place, samples: Mapping[str, list[Sample]]) -> Iterator[Row]:
    skopeo = samples.get("skopeo")
    for durability in _DURABILITIES:
        yield Row(
            measure=f"{operation}, {image.text}",
            where=f"{place.kind}, {durability}",
            ours=spread(samples[durability]),
            theirs=f"skopeo copy {spread(skopeo)}" if skopeo else "skopeo is not installed",
            result=median_seconds(samples[durability]) / median_seconds(skopeo) if skopeo else None,
            bar=_RATIO_BARS.get((operation, place.kind, durability)),
        )
    peak_mib = largest_mib([*samples["full"], *samples["none"]])
    yield Row(
        measure=f"{operation}, peak memory, {image.text}",
        where=place.kind,
        ours=render_mib(peak_mib),
        theirs=f"skopeo copy {render_mib(largest_mib(skopeo))}" if skopeo else "skopeo is not installed",
        result=peak_mib,
        unit="MiB",
        bar=_MEMORY_BAR_MIB,
    )
    for name, others in samples.items():
        if name not in ("skopeo", *_DURABILITIES):
            yield Row(
                measure=f"{operation}, for context",
                where=f"{place.kind}, full",
                ours=spread(samples["full"]),
                theirs=f"{name} {spread(others)}, {render_mib(largest_mib(others))}",
                result=median_seconds(samples["full"]) / median_seconds(others),
            )


def spread(samples: list[Sample]) -> str:
    """Return the times, and the processor's, as a cell tells them."""
    processor = render_seconds(median_processor_seconds(samples))
    return f"{render_spread([sample.seconds for sample in samples])}, CPU {processor}"
