"""The daemon while it pulls: what very many who are told of one pull cost, and how long those wait who only look."""

import asyncio
import http.client
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from tests.benchmarks.originals import NAME, REPOSITORY, making_original
from tests.benchmarks.report import Row, render_mib, render_seconds
from tests.benchmarks.scene import Scene
from tests.benchmarks.timing import BenchmarkFailed, remove, wait_until_quiet
from tests.support.daemon import Daemon, running_daemon
from tests.support.families import watching_memory
from tests.support.nginx import nginx

_MIB = 1024 * 1024
_MEMORY_BAR_MIB = 200.0
_LATENCY_BAR_MS = 50.0
_PULLS = 4
_PAUSE_SECONDS = 0.005
_PULL_SECONDS = 300.0
_KEPT_BYTES = 4096
_RESULT = re.compile(rb'"event": ?"result"')


def measure_listeners(scene: Scene) -> Iterator[Row]:
    """Yield the row of very many clients that are told of one pull, over a line so slow that all come in time."""
    place, count = scene.places[0], scene.sizes.listeners
    size_bytes, rate = scene.sizes.listened_layer_bytes, scene.sizes.listened_bytes_per_second
    with (
        _emptied(place.folder / "listeners") as folder,
        making_original(folder / "original", "pull", [size_bytes]) as image,
        nginx(folder / "nginx", registry_host=image.registry_host, bytes_per_second=rate) as front,
        running_daemon(folder / "daemon", data_root=folder / "data") as daemon,
    ):
        with watching_memory(daemon.process.pid) as idle:
            pass
        target = f"/images/pull?image={front.reference(REPOSITORY, NAME)}"
        with watching_memory(daemon.process.pid) as memory:
            told = asyncio.run(_listen_all(daemon, target, count))
        fetched = front.count("/blobs/")
    whole, peak = sum(told), memory.peak_bytes / _MIB
    if whole != count:
        raise BenchmarkFailed(f"{count - whole} of {count} clients were cut off before the result")
    yield Row(
        measure=f"{count} clients that are told of one pull: peak memory of all processes of the daemon",
        where=place.kind,
        ours=f"{render_mib(peak)}, {render_mib(idle.peak_bytes / _MIB)} before; none was cut; "
        f"{fetched} requests for blobs",
        result=peak,
        unit="MiB",
        bar=_MEMORY_BAR_MIB,
    )


def measure_latency(scene: Scene) -> Iterator[Row]:
    """Yield the row of GET /images while four images are pulled and unpacked."""
    place = scene.places[0]
    sizes = [scene.sizes.busy_layer_bytes] * scene.sizes.busy_layers
    with _emptied(place.folder / "latency") as folder, ExitStack() as stack:
        images = [
            stack.enter_context(making_original(folder / f"original-{each}", "pull", sizes)) for each in range(_PULLS)
        ]
        daemon = stack.enter_context(running_daemon(folder / "daemon", data_root=folder / "data"))
        wait_until_quiet(scene.patience_seconds)
        with ThreadPoolExecutor(_PULLS) as threads:
            pulls = [threads.submit(_pull, daemon, image.reference) for image in images]
            taken = []
            with closing(http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)) as connection:
                while not all(pull.done() for pull in pulls):
                    taken.append(_ask(connection))
                    time.sleep(_PAUSE_SECONDS)
            for pull in pulls:
                pull.result()
    taken.sort()
    slow = taken[min(len(taken) - 1, len(taken) * 99 // 100)]
    yield Row(
        measure=f"GET /images while {_PULLS} pulls of {images[0].text} run: the 99th percentile",
        where=place.kind,
        ours=f"{render_seconds(slow)}, median {render_seconds(taken[len(taken) // 2])}, slowest "
        f"{render_seconds(taken[-1])}, of {len(taken)}",
        result=slow * 1000,
        unit="ms",
        bar=_LATENCY_BAR_MS,
    )


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


async def _listen_all(daemon: Daemon, target: str, count: int) -> list[bool]:
    return list(await asyncio.gather(*(_listen(daemon, target) for _ in range(count))))


async def _listen(daemon: Daemon, target: str) -> bool:
    """Return whether one client was told the result."""
    async with asyncio.timeout(_PULL_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
        lines = [f"POST {target} HTTP/1.1", f"Host: {daemon.host}", "Accept: application/x-ndjson", "Connection: close"]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        last = b""
        try:
            while piece := await reader.read(65536):
                last = (last + piece)[-_KEPT_BYTES:]
        except ConnectionError:
            return False
        finally:
            writer.close()
        return _RESULT.search(last) is not None


def _pull(daemon: Daemon, reference: str) -> None:
    reply = daemon.request("POST", "/images/pull", {"image": reference}, timeout_seconds=_PULL_SECONDS)
    if not reply.text.endswith("[pull] Done\n"):
        raise BenchmarkFailed(f"a pull failed: {reply.text.splitlines()[-1:]}")


def _ask(connection: http.client.HTTPConnection) -> float:
    begin = time.perf_counter()
    connection.request("GET", "/images")
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise BenchmarkFailed(f"GET /images: status {response.status}")
    return time.perf_counter() - begin
