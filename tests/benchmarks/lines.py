"""Registries over a network: a slow line, one that breaks, an upload, and a pull that has nothing to bring.

Every server is on loopback. What a real line adds is put between: a rate for each connection by nginx, cuts by a relay.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from minibox_store import Store
from tests.benchmarks.originals import NAME, REPOSITORY, Original, is_installed, making_original
from tests.benchmarks.report import Row
from tests.benchmarks.scene import Place, Scene, python_command, python_environment
from tests.benchmarks.timing import BenchmarkFailed, Contender, Sample, largest_mib, measure_in_turn, median_seconds
from tests.benchmarks.transfers import our_contender, skopeo_contender, spread
from tests.support.cutting_proxy import CuttingProxy
from tests.support.nginx import Nginx, nginx
from tests.support.peers import DockerRegistry, docker_registry

_MIB = 1024 * 1024
_SLOW_LINE_BAR = 0.4
_CUT_BAR = 1.05
_PUSH_BAR = 0.6
_REQUESTS_BAR = 2.0
# A slow line is as slow each time.
_SLOW_RUNS = 3
_CUTS = 10
_LOG_SECONDS = 0.3


def measure_slow_line(scene: Scene) -> Iterator[Row]:
    """Yield the row of a pull over lines that each carry so much and no more; the file system is of no weight."""
    place, rate = scene.places[0], scene.sizes.line_bytes_per_second
    with (
        making_original(place.folder / "original", "pull", [scene.sizes.slow_layer_bytes]) as image,
        nginx(place.folder / "nginx", registry_host=image.registry_host, bytes_per_second=rate) as front,
    ):
        slow = replace(image, registry_host=front.host)
        contenders = {"ours": our_contender("pull", slow), "skopeo": skopeo_contender("pull", slow)}
        runs = min(scene.runs, _SLOW_RUNS)
        samples = measure_in_turn(contenders, scene=scene, place=place, runs=runs, warm_up=False)
    measure = f"pull, {image.text}, {rate // _MIB} MiB/s for each connection"
    yield _beside_skopeo(measure, place, samples, _SLOW_LINE_BAR)


def measure_push(scene: Scene) -> Iterator[Row]:
    """Yield the rows of a push to a registry that has nothing yet, and that has its data on the same file system."""
    if not is_installed("docker-registry"):
        raise BenchmarkFailed("docker-registry is not installed, so there is nothing to push to")
    sizes = [scene.sizes.layer_bytes] * scene.sizes.layers
    for place in scene.places:
        with ExitStack() as stack:
            image = stack.enter_context(making_original(place.folder / "original", "save", sizes))
            contenders = {"ours": _pushed_by(our_contender, image, stack)}
            if is_installed("skopeo"):
                contenders["skopeo"] = _pushed_by(skopeo_contender, image, stack)
            samples = measure_in_turn(contenders, scene=scene, place=place)
        yield _beside_skopeo(f"push, {image.text}", place, samples, _PUSH_BAR)


def measure_cut(scene: Scene) -> Iterator[Row]:
    """Yield the row that says how much comes over a line that is cut again and again; time is of no weight here."""
    sizes, place = [scene.sizes.layer_bytes] * scene.sizes.layers, scene.places[0]
    with ExitStack() as stack:
        image = stack.enter_context(making_original(place.folder / "original", "pull", sizes))
        line = _CutLine(image, stack)
        contender = Contender(
            command=lambda folder: python_command("child", "pull", folder / "store", line.reference, "full"),
            environment=python_environment,
            prepare=line.begin,
            check=line.check,
        )
        runs = min(scene.runs, _SLOW_RUNS)
        measure_in_turn({"ours": contender}, scene=scene, place=place, runs=runs, warm_up=False)
    most = max(line.carried_bytes)
    yield Row(
        measure=f"pull, {image.text}, cut {_CUTS} times: bytes on the wire",
        where=place.kind,
        ours=f"{most / _MIB:,.2f} MiB, the most of {len(line.carried_bytes)}",
        theirs=f"the layers are {image.size_bytes / _MIB:,.0f} MiB",
        result=most / image.size_bytes,
        bar=_CUT_BAR,
    )


def measure_unchanged(scene: Scene) -> Iterator[Row]:
    """Yield the row that says what a pull asks when nothing has changed since the last one."""
    sizes, place = [scene.sizes.layer_bytes] * scene.sizes.layers, scene.places[0]
    with (
        making_original(place.folder / "original", "pull", sizes) as image,
        nginx(place.folder / "nginx", registry_host=image.registry_host) as front,
    ):
        reference = front.reference(REPOSITORY, NAME)
        counted = _CountedRequests(image, front)
        contender = Contender(
            command=lambda folder: python_command("child", "refresh", folder / "store", reference, "full"),
            environment=python_environment,
            prepare=counted.begin,
            check=counted.check,
        )
        samples = measure_in_turn({"ours": contender}, scene=scene, place=place)
    yield Row(
        measure=f"pull of what is there, `if-newer`, {image.text}: requests",
        where=place.kind,
        ours=f"{max(counted.counts)}, {spread(samples['ours'])}",
        result=float(max(counted.counts)),
        unit="requests",
        bar=_REQUESTS_BAR,
    )


# ---- what a run needs


class _CutLine:
    """A line of its own for each run, which is cut each time that so much of the image has come."""

    def __init__(self, image: Original, stack: ExitStack) -> None:
        self.carried_bytes: list[int] = []
        self._image = image
        self._open = stack.enter_context(ExitStack())
        self._line: CuttingProxy | None = None

    @property
    def reference(self) -> str:
        """Where the image is to be had over the line of this run."""
        assert self._line is not None
        return replace(self._image, registry_host=self._line.host).reference

    def begin(self, _: Path) -> None:
        """Open a new line."""
        port = int(self._image.registry_host.rpartition(":")[2])
        each_bytes = self._image.size_bytes // (_CUTS + 1)
        self._open.close()
        self._line = self._open.enter_context(CuttingProxy(port, cuts=[each_bytes] * _CUTS))

    def check(self, folder: Path) -> None:
        """Note what the line has carried; raise BenchmarkFailed unless it was cut so often, and the image is there."""
        assert self._line is not None
        self._open.close()
        self._image.check_layout(folder / "store")
        if self._line.cuts_made != _CUTS:
            raise BenchmarkFailed(f"the line was cut {self._line.cuts_made} times, and not {_CUTS}")
        self.carried_bytes.append(self._line.sent_bytes)


class _CountedRequests:
    """Counts what is asked behind a first pull."""

    def __init__(self, image: Original, front: Nginx) -> None:
        self.counts: list[int] = []
        self._image = image
        self._front = front
        self._before = 0

    def begin(self, folder: Path) -> None:
        """Bring the image into a store by a pull that does not count."""
        Store(folder / "store").pull(self._front.reference(REPOSITORY, NAME), name=NAME)
        self._before = self._requests()

    def check(self, folder: Path) -> None:
        """Note how much was asked; raise BenchmarkFailed unless the image is there."""
        self._image.check_layout(folder / "store")
        self.counts.append(self._requests() - self._before)

    def _requests(self) -> int:
        # A line is written once its answer is out, so that the client may be ahead of it.
        time.sleep(_LOG_SECONDS)
        return self._front.count("HTTP/")


def _pushed_by(contender: Callable[[str, Original], Contender], image: Original, stack: ExitStack) -> Contender:
    """Return who pushes an image, each time to a registry of its own, so that nobody finds what another has sent."""
    registries = stack.enter_context(ExitStack())
    running: list[DockerRegistry] = []

    def begin(folder: Path) -> None:
        registries.close()
        running[:] = [registries.enter_context(docker_registry(folder / "registry"))]

    def command(folder: Path) -> Sequence[str]:
        return contender("push", replace(image, registry_host=running[0].host)).command(folder)

    def check(_: Path) -> None:
        registries.close()
        check_pushed(running[0].storage / "docker/registry/v2", image)

    environment = contender("push", image).environment
    return Contender(command=command, environment=environment, prepare=begin, check=check)


def check_pushed(storage: Path, image: Original) -> None:
    """Raise BenchmarkFailed unless the image is what a registry keeps under its name, and whole."""
    link = storage / f"repositories/{REPOSITORY}/_manifests/tags/{NAME}/current/link"
    if not link.exists() or link.read_text() != image.digest:
        raise BenchmarkFailed(f"the registry does not keep {image.digest} under its name")
    image.check_size(sum(path.stat().st_size for path in storage.glob("blobs/*/*/*/data")))


# ---- what is said of it


def _beside_skopeo(measure: str, place: Place, samples: Mapping[str, list[Sample]], bar: float) -> Row:
    skopeo = samples.get("skopeo")
    return Row(
        measure=measure,
        where=f"{place.kind}, full",
        ours=f"{spread(samples['ours'])}, {largest_mib(samples['ours']):.1f} MiB",
        theirs=f"skopeo copy {spread(skopeo)}" if skopeo else "skopeo is not installed",
        result=median_seconds(samples["ours"]) / median_seconds(skopeo) if skopeo else None,
        bar=bar,
    )
