"""Both fuzz targets at once, for 60 s, each in a process of its own; for 600 s where MINIBOX_DEEP is 1.

So long as MINIBOX_TEST_SECONDS says, where that is set.
"""

import importlib.util
import platform
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.forks import not_possible
from tests.support.processes import plain_environment, read_log, running
from tests.support.trials import trial_seconds

SECONDS = int(trial_seconds(60, 600))
TARGETS = ("tar_reader", "load")
ROOT = Path(__file__).parent.parent
START_AND_END_SECONDS = 60
EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")
COVERED = re.compile(r"DONE +cov: (\d+)")
# Of the 430 and 1,160 places that are come to in half a minute: fewer, and the library is not what is watched.
LEAST_COVERED = {"tar_reader": 300, "load": 800}
TOLD_CHARACTERS = 4000


def require_atheris() -> None:
    """Skip the test where there is no atheris; fail where there must be."""
    if importlib.util.find_spec("atheris") is not None:
        return
    if sys.version_info >= (3, 14) or platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("atheris has no wheel for this Python")
    not_possible("atheris is not installed")


@pytest.mark.timeout(SECONDS + 2 * START_AND_END_SECONDS)
def test_S10_nothing_that_a_fuzzer_makes_is_read_in_two_ways_or_breaks_a_rule(tmp_path: Path) -> None:
    require_atheris()
    environment = {**plain_environment(tmp_path), "PYTHONPATH": str(ROOT)}
    logs = {name: tmp_path / f"{name}.log" for name in TARGETS}
    with ExitStack() as stack:
        processes = {}
        for name, log in logs.items():
            command = [sys.executable, "-m", f"tests.fuzz.{name}", str(tmp_path / name), f"-max_total_time={SECONDS}"]
            processes[name] = stack.enter_context(running(command, environment=environment, log=log, folder=ROOT))
        statuses = {name: process.wait(SECONDS + START_AND_END_SECONDS) for name, process in processes.items()}
    for name, status in statuses.items():
        failed = [f"{path.name}: {path.read_bytes().hex()}" for path in (tmp_path / name).glob("failed-*")]
        told = read_log(logs[name])[-TOLD_CHARACTERS:]
        assert (status, failed) == (0, []), told
        executed, covered = EXECUTED.search(told), COVERED.search(read_log(logs[name]))
        assert executed is not None, told
        assert int(executed[1]) > 5 * SECONDS
        assert covered is not None, told
        assert int(covered[1]) > LEAST_COVERED[name]
