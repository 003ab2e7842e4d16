"""skopeo while it copies into a store of ours: held by its source, or slow while it writes a file in place."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.forks import not_possible
from tests.support.peers import require_peer, skopeo_command, skopeo_environment
from tests.support.processes import read_log, running

# How long a file stays as empty as it is between its truncation and its writing.
_SLOW_SECONDS = 0.5
_END_SECONDS = 60.0
_POLL_SECONDS = 0.005
# A machine that is busy for so long that nobody sees the file empty is so once or twice.
_MOST_COPIES = 20


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

    A copy that has ended before anybody could look is made once more.

    Where one process may not trace another the test is skipped, or fails where MINIBOX_REQUIRE_PEERS is 1.
    """
    home.mkdir(parents=True, exist_ok=True)
    strace = require_peer("strace")
    if subprocess.run([strace, "-qq", "-o", home / "probe", "true"], capture_output=True, check=False).returncode:
        not_possible("one process may not trace another here")
    delay = f"inject=openat:delay_exit={int(_SLOW_SECONDS * 1_000_000)}"
    through = [strace, "-f", "-qq", "-o", str(home / "trace"), "-P", str(slowly), "-e", delay]
    for _ in range(_MOST_COPIES):
        with skopeo_copying(home, source, target, through=through) as process:
            if _is_seen_empty(slowly, process):
                yield
                return
    raise AssertionError("skopeo did not come to where it should")


def _is_seen_empty(path: Path, process: "subprocess.Popen[bytes]") -> bool:
    """Whether a file is empty before a process has ended; return as soon as that is known."""
    while not (path.exists() and path.stat().st_size == 0):
        if process.poll() is not None:
            return False
        time.sleep(_POLL_SECONDS)
    return True
