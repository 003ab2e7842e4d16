"""GET /images of a daemon, and the call of the library behind it, with many images and nothing changing.

Cold is the first call of a fresh process, on a store that another process has listed before.
"""

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
_COLD_BAR_MS = 400.0
_WARM_BAR_MS = 15.0
_WARM_UP_REQUESTS = 3


def measure_images(scene: Scene) -> Iterator[Row]:
    """Yield the rows of listing; where the images lie is of no weight, so it is measured in one place."""
    place, count = scene.places[0], scene.sizes.listed_images
    root = _write_images(place.folder / "images", count)
    warm, cold, memory_mib = _listed(scene, place, root, count)
    yield Row(
        measure=f"Store.images(), {count:,} images, warm",
        where=place.kind,
        ours=f"{render_seconds(warm)}, {render_mib(memory_mib)}",
        theirs=f"the first call {render_seconds(cold)}",
        result=warm * 1000,
        unit="ms",
    )
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


def measure_listing(scene: Scene) -> Iterator[Row]:
    """Yield the rows of opening and listing a large store by the library, cold and warm."""
    place, count = scene.places[0], scene.sizes.opened_images
    root = _write_images(place.folder / "listing", count)
    warm, cold, memory_mib = _listed(scene, place, root, count)
    for name, seconds, bar in (("cold", cold, _COLD_BAR_MS), ("warm", warm, _WARM_BAR_MS)):
        yield Row(
            measure=f"opening and listing {count:,} images, {name}",
            where=place.kind,
            ours=f"{render_seconds(seconds)}, {render_mib(memory_mib)}",
            result=seconds * 1000,
            unit="ms",
            bar=bar,
        )


def _write_images(root: Path, count: int) -> Path:
    # One layer less each: no listing opens a layer.
    write_layout(root, {f"team/app-{number}:1.{number}": build_image([], salt=str(number)) for number in range(count)})
    return root


def _listed(scene: Scene, place: Place, root: Path, count: int) -> tuple[float, float, float]:
    """Return the seconds of a warm and of the first call, each in fresh processes, and the most memory that took."""
    command = python_command("child", "images", root, scene.sizes.requests, "full")
    contenders = {"images": Contender(command=always(command), environment=python_environment)}
    samples = measure_in_turn(contenders, scene=scene, place=place)["images"]
    listed = {int(sample.output.split()[2]) for sample in samples}
    if listed != {count}:
        raise BenchmarkFailed(f"Store.images() listed {listed} of {count} images")
    warm = statistics.median(sample.told_seconds for sample in samples)
    cold = statistics.median(float(sample.output.split()[1]) for sample in samples)
    return warm, cold, largest_mib(samples)


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
