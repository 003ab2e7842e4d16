"""wrk, and what a server that it asks has taken of the processors."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.originals import is_installed
from tests.benchmarks.timing import BenchmarkFailed
from tests.support.processes import plain_environment

_AROUND_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a server answered under wrk.

    Attributes:
        requests_per_second: how many answers came whole.
        body_bytes: of all of them, whole or not, with their heads.
        seconds: how long it asked.
        processor_seconds: what the server, with its children, has taken meanwhile.
    """

    requests_per_second: float
    body_bytes: int
    seconds: float
    processor_seconds: float

    @property
    def processor_seconds_per_request(self) -> float:
        """What each answer has cost the server."""
        return self.processor_seconds / (self.requests_per_second * self.seconds)

    @property
    def gib_per_second(self) -> float:
        """How much came."""
        return self.body_bytes / self.seconds / 1024**3

    @property
    def processor_seconds_per_gib(self) -> float:
        """What each GiB has cost the server."""
        return self.processor_seconds / (self.body_bytes / 1024**3)


# wrk writes what a script hands to io.write, and its own report with units of its own, which loses digits.
_SCRIPT = """
done = function(summary, latency, requests)
    local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
    io.write(string.format("told %d %d %d %d\\n", summary.requests, summary.bytes, summary.duration, errors))
end
"""


def ask_with_wrk(url: str, *, connections: int, seconds: int, server_pid: int, folder: Path) -> Load:
    """Ask for a URL over so many connections.

    Raises:
        BenchmarkFailed: when wrk is not installed, or an answer is an error or breaks off.
    """
    if not is_installed("wrk"):
        raise BenchmarkFailed("wrk is not installed, so nobody asks")
    script = folder / "wrk.lua"
    script.write_text(_SCRIPT)
    threads = min(2, connections)
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
    before = processor_seconds(server_pid)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds + _AROUND_SECONDS,
        env=plain_environment(folder),
        check=False,
    )
    after = processor_seconds(server_pid)
    told = re.search(r"^told (\d+) (\d+) (\d+) (\d+)$", done.stdout, re.MULTILINE)
    if told is None:
        raise BenchmarkFailed(f"wrk: status {done.returncode}\n{done.stdout}{done.stderr}")
    requests, body_bytes, microseconds, errors = map(int, told.groups())
    if errors or not body_bytes:
        raise BenchmarkFailed(f"wrk: {errors} of {requests} answers were errors or broke off")
    return Load(
        requests_per_second=requests / (microseconds / 1e6),
        body_bytes=body_bytes,
        seconds=microseconds / 1e6,
        processor_seconds=after - before,
    )


def processor_seconds(pid: int) -> float:
    """Return what a process and its children have taken of the processors so far."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in (str(pid), *children)]
    return sum(int(each[11]) + int(each[12]) for each in fields) / _TICKS


def peak_mib(pid: int) -> float:
    """Return the most memory that a process has had at once."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
