"""The daemon under load: requests, blobs and pushes, against a bare route and against docker-registry."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.originals import NAME, REPOSITORY, Original, is_installed, making_original
from tests.benchmarks.report import Row, render_seconds
from tests.benchmarks.scene import Scene, python_command, python_environment
from tests.benchmarks.timing import (
    BenchmarkFailed,
    Contender,
    measure_in_turn,
    median_seconds,
    remove,
    wait_until_quiet,
)
from tests.benchmarks.transfers import skopeo_contender, spread
from tests.benchmarks.wrk import Load, ask_with_wrk
from tests.support.daemon import DAEMON_COMMAND, Daemon, running_daemon
from tests.support.images import build_image
from tests.support.layouts import read_layout_names, write_layout, write_random_layout
from tests.support.peers import docker_registry, run_skopeo
from tests.support.processes import free_port, running, wait_until

_MIB = 1024 * 1024
_ROUTE_BAR = 0.5
_BLOB_BARS = {1: 0.5, 2: 0.9}
_PUSH_BAR = 1.1
_CONNECTIONS = 16
_CLIENTS = 8
_WARM_UP_SECONDS = 1

_Ask = Callable[[int], Load]


def measure_requests(scene: Scene) -> Iterator[Row]:
    """Yield the row of GET /images beside a bare route that returns the same bytes."""
    place, count, folder = scene.places[0], scene.sizes.served_images, scene.places[0].folder / "requests"
    names = {f"team/app-{number}:1.{number}": build_image([], salt=str(number)) for number in range(count)}
    with _folder(folder), ExitStack() as stack:
        write_layout(folder / "data", names)
        daemon = stack.enter_context(running_daemon(folder, data_root=folder / "data"))
        body = daemon.get("/images").body
        bare_port, bare_pid = stack.enter_context(_bare_route(folder, body))
        loads = _ask_in_turn(
            scene,
            {
                "ours": _asking(f"http://{daemon.host}/images", _CONNECTIONS, daemon.process.pid, folder),
                "bare": _asking(f"http://127.0.0.1:{bare_port}/images", _CONNECTIONS, bare_pid, folder),
            },
        )
    ours, bare = (_median(loads[name], "requests_per_second") for name in ("ours", "bare"))
    taken = {name: render_seconds(_median(loads[name], "processor_seconds_per_request")) for name in loads}
    yield Row(
        measure=f"GET /images, {count} images, {_CONNECTIONS} connections: requests per second",
        where=place.kind,
        ours=f"{ours:,.0f} a second, CPU {taken['ours']} each",
        theirs=f"a bare Starlette route, the same {len(body):,} bytes, {bare:,.0f} a second, CPU {taken['bare']} each",
        result=ours / bare,
        bar=_ROUTE_BAR,
        at_least=True,
    )


def measure_blobs(scene: Scene) -> Iterator[Row]:
    """Yield the rows of one blob that several clients fetch, by one process and by two, beside docker-registry."""
    if not (is_installed("docker-registry") and is_installed("skopeo")):
        raise BenchmarkFailed("docker-registry or skopeo is not installed, so there is nothing to compare with")
    place, folder = scene.places[0], scene.places[0].folder / "blobs"
    with _folder(folder), ExitStack() as stack:
        write_random_layout(folder / "data", [scene.sizes.served_blob_bytes], name=f"{REPOSITORY}:{NAME}")
        registry = stack.enter_context(docker_registry(folder / "registry"))
        source = f"oci:{folder}/data:{REPOSITORY}:{NAME}"
        run_skopeo("copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", source, _docker(registry.host))
        target = f"/v2/{REPOSITORY}/blobs/{_largest_blob(folder / 'data')}"
        asks = {"registry": _asking(f"http://{registry.host}{target}", _CLIENTS, registry.pid, folder)}
        for processes in _BLOB_BARS:
            command = (*DAEMON_COMMAND, f"--workers={processes}")
            home = folder / f"daemon-{processes}"
            daemon = stack.enter_context(running_daemon(home, data_root=folder / "data", command=command))
            asks[str(processes)] = _asking(f"http://{daemon.host}{target}", _CLIENTS, daemon.process.pid, folder)
        loads = _ask_in_turn(scene, asks)
    for processes, bar in _BLOB_BARS.items():
        ours, theirs = (_median(loads[name], "gib_per_second") for name in (str(processes), "registry"))
        yield Row(
            measure=f"a blob of {scene.sizes.served_blob_bytes // _MIB} MiB to {_CLIENTS} clients, "
            f"{processes} process{'es' if processes > 1 else ''}: throughput",
            where=place.kind,
            ours=_describe_blobs(loads[str(processes)]),
            theirs=f"docker-registry {_describe_blobs(loads['registry'])}",
            result=ours / theirs,
            bar=bar,
            at_least=True,
        )


def measure_pushes(scene: Scene) -> Iterator[Row]:
    """Yield the row of a push by skopeo to this daemon, beside the same push to docker-registry."""
    if not (is_installed("docker-registry") and is_installed("skopeo")):
        raise BenchmarkFailed("docker-registry or skopeo is not installed, so there is nothing to compare with")
    sizes = [scene.sizes.pushed_layer_bytes] * scene.sizes.pushed_layers
    for place in scene.places:
        with making_original(place.folder / "original", "save", sizes) as image, ExitStack() as stack:
            contenders = {
                "ours": _pushed_to(_starting_daemon, image, stack),
                "registry": _pushed_to(_starting_registry, image, stack),
            }
            samples = measure_in_turn(contenders, scene=scene, place=place)
        yield Row(
            measure=f"push by skopeo, {image.text}",
            where=f"{place.kind}, full",
            ours=spread(samples["ours"]),
            theirs=f"docker-registry {spread(samples['registry'])}",
            result=median_seconds(samples["ours"]) / median_seconds(samples["registry"]),
            bar=_PUSH_BAR,
        )


# ---- who is asked, and how


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    folder.mkdir()
    try:
        yield
    finally:
        remove(folder)


@contextmanager
def _bare_route(folder: Path, body: bytes) -> Iterator[tuple[int, int]]:
    (folder / "body").write_bytes(body)
    port, log = free_port(), folder / "bare.log"
    command = python_command("bare_server", port, folder / "body")
    with running(command, environment=python_environment(folder), log=log, folder=folder) as process:
        bare = Daemon(port=port, data_root=folder, token=None, process=process, log=log)
        wait_until(lambda: _answers(bare), process, log=log)
        yield port, process.pid


def _answers(server: Daemon) -> bool:
    try:
        return server.get("/ping").status == 200
    except OSError:
        return False


def _asking(url: str, connections: int, pid: int, folder: Path) -> _Ask:
    return lambda seconds: ask_with_wrk(url, connections=connections, seconds=seconds, server_pid=pid, folder=folder)


def _ask_in_turn(scene: Scene, asks: Mapping[str, _Ask]) -> dict[str, list[Load]]:
    """Ask each of several servers in turn, one after the other; a short first round does not count."""
    loads: dict[str, list[Load]] = {name: [] for name in asks}
    for turn in range(-1, scene.runs):
        for name, ask in asks.items():
            if turn < 0:
                ask(_WARM_UP_SECONDS)
                continue
            wait_until_quiet(scene.patience_seconds)
            loads[name].append(ask(scene.sizes.served_seconds))
    return loads


def _median(loads: Sequence[Load], name: str) -> float:
    return float(statistics.median(getattr(load, name) for load in loads))


def _describe_blobs(loads: Sequence[Load]) -> str:
    rate, processor = _median(loads, "gib_per_second"), _median(loads, "processor_seconds_per_gib")
    return f"{rate:.2f} GiB/s, CPU {processor:.2f} s per GiB"


def _largest_blob(layout: Path) -> str:
    path = max((layout / "blobs" / "sha256").iterdir(), key=lambda each: each.stat().st_size)
    return f"sha256:{path.name}"


def _docker(host: str) -> str:
    return f"docker://{host}/{REPOSITORY}:{NAME}"


# ---- who is pushed to


@contextmanager
def _starting_registry(folder: Path) -> Iterator[tuple[str, Callable[[Original], None]]]:
    with docker_registry(folder / "registry") as registry:
        storage = registry.storage / "docker/registry/v2"
        yield registry.host, lambda image: image.check_size(_size_of(storage.glob("blobs/*/*/*/data")))


@contextmanager
def _starting_daemon(folder: Path) -> Iterator[tuple[str, Callable[[Original], None]]]:
    def check(image: Original) -> None:
        image.check_layers(folder / "data")
        if read_layout_names(folder / "data")[f"{REPOSITORY}:{NAME}"]["digest"] != image.digest:
            raise BenchmarkFailed("the image has not its name, or another digest")

    with running_daemon(folder / "daemon", data_root=folder / "data") as daemon:
        yield daemon.host, check


def _size_of(files: Iterator[Path]) -> int:
    return sum(path.stat().st_size for path in files)


_Start = Callable[[Path], AbstractContextManager[tuple[str, Callable[[Original], None]]]]


def _pushed_to(start: _Start, image: Original, stack: ExitStack) -> Contender:
    """Return skopeo that pushes an image, each time to a server of its own, in which nothing is yet."""
    servers = stack.enter_context(ExitStack())
    running_now: list[tuple[str, Callable[[Original], None]]] = []

    def begin(folder: Path) -> None:
        servers.close()
        running_now[:] = [servers.enter_context(start(folder))]

    def command(folder: Path) -> Sequence[str]:
        return skopeo_contender("push", replace(image, registry_host=running_now[0][0])).command(folder)

    def check(_: Path) -> None:
        servers.close()
        running_now[0][1](image)

    environment = skopeo_contender("push", image).environment
    return Contender(command=command, environment=environment, prepare=begin, check=check)
