"""How things are measured: fresh processes in fresh folders, side by side, and the median of several rounds."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.scene import Place, Scene

_LAUNCHER = Path(__file__).with_name("launcher.py")
_LIMIT_SECONDS = 900.0
_QUIET_SECONDS = 0.5
_QUIET_SHARE = 0.05


class BenchmarkFailed(Exception):
    """A program that was to be measured failed, or did not do what it is measured for."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one run took, and what it printed.

    Attributes:
        seconds: From the start to the end of the process.
        processor_seconds: Of all its threads, and of the kernel for them; not of a server that it talks to. It says
            something even where others keep the machine busy.
        peak_mib: The most memory that it had at once.
        output: All of its stdout.
    """

    seconds: float
    processor_seconds: float
    peak_mib: float
    output: str

    @property
    def told_seconds(self) -> float:
        """The seconds that the program itself has printed, as its first word: of the call alone, without its start."""
        return float(self.output.split()[0])

    @property
    def told_steps(self) -> dict[str, float]:
        """The seconds of each step that the program itself has printed, by the step's name."""
        lines = (line.partition("\t") for line in self.output.splitlines())
        return {name: float(seconds) for seconds, _, name in lines}


def always(command: Sequence[str]) -> Callable[[Path], Sequence[str]]:
    """Return what gives this command line whatever the folder."""
    return lambda _: command


def do_nothing(folder: Path) -> None:
    """Leave ``folder`` as it is."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One of the things compared.

    Attributes:
        command: Given a fresh folder, the command line.
        environment: Given the same folder, the whole environment.
        prepare: What comes before each run and is not measured.
        check: Raises BenchmarkFailed unless the run has left in the folder what it should.
    """

    command: Callable[[Path], Sequence[str]]
    environment: Callable[[Path], Mapping[str, str]]
    prepare: Callable[[Path], None] = field(default=do_nothing)
    check: Callable[[Path], None] = field(default=do_nothing)


def measure(command: Sequence[str], *, environment: Mapping[str, str], folder: Path) -> Sample:
    """Run a program in a fresh process, and return what it took.

    Raises:
        BenchmarkFailed: when it fails, or takes longer than anything here should.
    """
    stdout, stderr = folder / "measured.stdout", folder / "measured.stderr"
    launcher = [sys.executable, "-I", "-S", *map(str, (_LAUNCHER, stdout, stderr, folder)), *command]
    # A session of its own, so that whatever ends this ends the program too, and not the launcher alone.
    with subprocess.Popen(launcher, env=dict(environment), stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            told = process.communicate(timeout=_LIMIT_SECONDS)[0].decode().split()
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise BenchmarkFailed(f"{Path(command[0]).name} took more than {_LIMIT_SECONDS:.0f} s") from None
            raise
    if not told or told[0] != "0":
        problem = stderr.read_text(errors="replace") if stderr.exists() else "it could not be started"
        raise BenchmarkFailed(f"{Path(command[0]).name}: status {' '.join(told[:1])}\n{problem}")
    return Sample(
        seconds=float(told[1]),
        processor_seconds=float(told[2]),
        peak_mib=int(told[3]) / 1024,
        output=stdout.read_text(errors="replace"),
    )


def measure_in_turn(
    contenders: Mapping[str, Contender], *, scene: Scene, place: Place, runs: int | None = None, warm_up: bool = True
) -> dict[str, list[Sample]]:
    """Run each contender several times, one after the other (A B C, A B C, ...), each in an empty folder.

    On a disk each run waits until everything written earlier has reached it, so that nobody pays for another's writing.

    Args:
        contenders: By name, in their order.
        scene: Says how many rounds count, and how long a run may wait for a quiet machine.
        place: Where the empty folders are made.
        runs: In place of the scene's.
        warm_up: Run a further round first that does not count: the first one finds files that are in no cache, code
            that was never compiled, and memory that the machine's host has yet to hand out.
    """
    runs = scene.runs if runs is None else runs
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for turn in range(-1 if warm_up else 0, runs):
        for name, contender in contenders.items():
            run = place.folder / "run"
            run.mkdir()
            try:
                contender.prepare(run)
                if place.is_disk:
                    os.sync()
                wait_until_quiet(scene.patience_seconds)
                sample = measure(contender.command(run), environment=contender.environment(run), folder=run)
                contender.check(run)
            finally:
                remove(run)
            if turn >= 0:
                samples[name].append(sample)
    return samples


def remove(folder: Path) -> None:
    """Remove a folder, however deep it is: Python's own way ends where its recursion does."""
    subprocess.run(["rm", "-rf", "--", folder], check=True)


def wait_until_quiet(limit_seconds: float) -> None:
    """Return once others have left the processors alone for a moment, or the time is over; at once where it is 0."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        busy, idle = _processor_ticks()
        time.sleep(_QUIET_SECONDS)
        now_busy, now_idle = _processor_ticks()
        if now_busy - busy <= _QUIET_SHARE * (now_busy - busy + now_idle - idle):
            return


def _processor_ticks() -> tuple[int, int]:
    with open("/proc/stat", encoding="ascii") as lines:
        user, nice, system, idle, waiting, *others = map(int, lines.readline().split()[1:])
    return user + nice + system + sum(others), idle + waiting


def median_seconds(samples: Sequence[Sample]) -> float:
    """Return the median of the wall times."""
    return statistics.median(sample.seconds for sample in samples)


def median_processor_seconds(samples: Sequence[Sample]) -> float:
    """Return the median of the times of the processors."""
    return statistics.median(sample.processor_seconds for sample in samples)


def largest_mib(samples: Sequence[Sample]) -> float:
    """Return the largest peak: memory has no noise to be averaged away."""
    return max(sample.peak_mib for sample in samples)
