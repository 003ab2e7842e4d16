"""GET /images of a daemon, and the call of the library behind it, with many images and nothing changing."""

import contextlib
import http.client
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.report import Row, render_mib, render_seconds
from tests.benchmarks.scene import Place, Scene, python_command, python_environment
from tests.benchmarks.timing import BenchmarkFailed, Contender, always, largest_mib, measure_in_turn, wait_until_quiet
from tests.support.daemon import running_daemon
from tests.support.images import build_image
from tests.support.layouts import write_layout

_BAR_MS = 20.0
_WARM_UP_REQUESTS = 3


def measure_images(scene: Scene) -> Iterator[Row]:
    """Yield the rows of listing; where the images lie is of no weight, so it is measured in one place."""
    place, count = scene.places[0], scene.sizes.listed_images
    root = place.folder / "images"
    # One layer less each: no listing opens a layer.
    write_layout(root, {f"team/app-{number}:1.{number}": build_image([], salt=str(number)) for number in range(count)})
    yield _library_row(scene, place, root)
    medians, slowest = [], 0.0
    for turn in range(scene.runs):
        wait_until_quiet(scene.patience_seconds)
        taken, body_bytes = _ask(place.folder / f"daemon-{turn}", root, count, scene.sizes.requests)
        medians.append(statistics.median(taken))
        slowest = max(slowest, *taken)
    median = statistics.median(medians)
    yield Row(
        measure=f"GET /images, {count:,} images, warm, one connection",
        where=place.kind,
        ours=f"{render_seconds(median)} (slowest of {scene.runs * scene.sizes.requests} {render_seconds(slowest)})",
        theirs=f"a body of {body_bytes:,} bytes",
        result=median * 1000,
        unit="ms",
        bar=_BAR_MS,
    )


def _library_row(scene: Scene, place: Place, root: Path) -> Row:
    command = python_command("child", "images", root, scene.sizes.requests, "full")
    contenders = {"images": Contender(command=always(command), environment=python_environment)}
    samples = measure_in_turn(contenders, scene=scene, place=place)["images"]
    warm = statistics.median(sample.told_seconds for sample in samples)
    first = statistics.median(float(sample.output.split()[1]) for sample in samples)
    listed = {int(sample.output.split()[2]) for sample in samples}
    if listed != {scene.sizes.listed_images}:
        raise BenchmarkFailed(f"Store.images() listed {listed} of {scene.sizes.listed_images} images")
    return Row(
        measure=f"Store.images(), {scene.sizes.listed_images:,} images, warm",
        where=place.kind,
        ours=f"{render_seconds(warm)}, {render_mib(largest_mib(samples))}",
        theirs=f"the first call {render_seconds(first)}",
        result=warm * 1000,
        unit="ms",
    )


def _ask(folder: Path, root: Path, count: int, requests: int) -> tuple[list[float], int]:
    """Return what each request took of a fresh daemon, and the size of an answer."""
    with running_daemon(folder, data_root=root) as daemon:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
        with contextlib.closing(connection):
            taken = []
            for _ in range(_WARM_UP_REQUESTS + requests):
                begin = time.perf_counter()
                connection.request("GET", "/images")
                body = connection.getresponse().read()
                taken.append(time.perf_counter() - begin)
            listed = json.loads(body)
    if len(listed) != count:
        raise BenchmarkFailed(f"GET /images listed {len(listed)} of {count} images")
    return taken[_WARM_UP_REQUESTS:], len(body)
