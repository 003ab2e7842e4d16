"""skopeo while it copies into a store of ours: held by its source, or slow while it writes a file in place."""

import functools
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.forks import not_possible
from tests.support.peers import require_peer, skopeo_command, skopeo_environment
from tests.support.processes import read_log, running

# How long a file stays as empty as it is between its truncation and its writing: half of what the store waits for.
SLOW_SECONDS = 0.5

_END_SECONDS = 20.0
_POLL_SECONDS = 0.005


@contextmanager
def skopeo_copying(
    home: Path, source: str, target: str, *options: str, through: Sequence[str] = ()
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``skopeo copy`` beside the block; behind it, wait for its end, which must be a success.

    Args:
        home: A folder for its settings and its log.
        source: As it stands on its command line; ``docker:`` is spoken without TLS.
        target: As it stands on its command line.
        options: Further ones.
        through: A command that runs it.
    """
    home.mkdir(parents=True, exist_ok=True)
    log = home / "skopeo.log"
    words = skopeo_command(home, "copy", "--src-tls-verify=false", *options, source, target)
    with running([*through, *words], environment=skopeo_environment(home), log=log, folder=home) as process:
        yield process
        assert process.wait(_END_SECONDS) == 0, read_log(log)


@contextmanager
def skopeo_rewriting(home: Path, slowly: Path, source: str, target: str) -> Iterator[None]:
    """Run ``skopeo copy`` so that ``slowly``, which it writes in place, is empty as the block begins, and a while yet.

    Where one process may not trace another the test is skipped, or fails where MINIBOX_REQUIRE_PEERS is 1.
    """
    home.mkdir(parents=True, exist_ok=True)
    strace = require_peer("strace")
    if subprocess.run([strace, "-qq", "-o", home / "probe", "true"], capture_output=True, check=False).returncode:
        not_possible("one process may not trace another here")
    delay = f"inject=openat:delay_exit={int(SLOW_SECONDS * 1_000_000)}"
    through = [strace, "-f", "-qq", "-o", str(home / "trace"), "-P", str(slowly), "-e", delay]
    with skopeo_copying(home, source, target, through=through) as process:
        wait_for(functools.partial(_is_empty, slowly), process)
        yield


def wait_for(has_come: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Return once something has come that a process does.

    Raises:
        AssertionError: when the process has ended before, or time has.
    """
    deadline = time.monotonic() + _END_SECONDS
    while not has_come():
        assert process.poll() is None, "skopeo has ended before"
        assert time.monotonic() < deadline, "skopeo did not come to where it should"
        time.sleep(_POLL_SECONDS)


def _is_empty(path: Path) -> bool:
    return path.exists() and path.stat().st_size == 0
