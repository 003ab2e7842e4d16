"""Several processes on one socket: they stand in for each other, share the store, and end together."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minibox_server import processes
from minibox_server.processes import Processes
from tests.support.daemon import DAEMON_COMMAND, Daemon, run_daemon_to_its_end, running_daemon
from tests.support.forks import run_forked
from tests.support.images import build_image, random_layer
from tests.support.layouts import write_layout
from tests.support.processes import children_in_session, end_process, read_log, running, wait_until
from tests.support.waiting import SOON_SECONDS

BOTH = (*DAEMON_COMMAND, "--workers", "2")
WAIT_SECONDS = 60.0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    write_layout(tmp_path / "data", {"app:1": build_image()})
    with running_daemon(tmp_path, command=BOTH) as daemon:
        yield daemon
    assert "Traceback" not in daemon.read_log()


def children_of(daemon: Daemon) -> set[int]:
    return children_in_session(daemon.process.pid)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_children(daemon: Daemon, *, without: set[int]) -> set[int]:
    """Return the two processes that serve, once none of those that have died is among them."""
    deadline = time.monotonic() + WAIT_SECONDS
    while len(living := children_of(daemon)) != 2 or living & without:
        assert time.monotonic() < deadline, "nothing has taken its place"
        time.sleep(0.02)
    return living


def server_of(connection: socket.socket, among: set[int]) -> int | None:
    """Return which process has accepted a connection; None while it has not been accepted."""
    ours, theirs = connection.getsockname()[1], connection.getpeername()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[1].endswith(f":{theirs:04X}") and fields[2].endswith(f":{ours:04X}"):
            for pid in among:
                if f"socket:[{fields[9]}]" in links_of(pid):
                    return pid
    return None


def links_of(pid: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(link))
    return found


def connections_to_each(daemon: Daemon, stack: contextlib.ExitStack) -> dict[int, http.client.HTTPConnection]:
    """Return a connection to each of the processes; those that came to the same one stay open meanwhile."""
    among = children_of(daemon)
    found: dict[int, http.client.HTTPConnection] = {}
    deadline = time.monotonic() + WAIT_SECONDS
    while len(found) < 2:
        assert time.monotonic() < deadline, f"all came to {set(found)} of {among}"
        connection = stack.enter_context(
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30))
        )
        connection.request("GET", "/ping")
        assert connection.getresponse().read() == b"Daemon is running"
        assert connection.sock is not None
        pid = server_of(connection.sock, among)
        assert pid is not None
        found[pid] = connection
    return found


def test_a_process_that_dies_is_replaced_and_requests_go_on(daemon: Daemon) -> None:
    dead: set[int] = set()
    for number in (signal.SIGKILL, signal.SIGSEGV):
        victim = min(wait_for_children(daemon, without=dead))
        os.kill(victim, number)
        dead.add(victim)
        for _ in range(10):
            assert [each["name"] for each in daemon.get("/images").json()] == ["app:1"]
        wait_for_children(daemon, without=dead)
        assert f"process {victim} was ended by {signal.Signals(number).name}" in daemon.read_log()
    with contextlib.ExitStack() as stack:
        assert set(connections_to_each(daemon, stack)) == children_of(daemon)


def test_one_is_replaced_and_all_end_though_whoever_began_the_daemon_ignores_its_children(tmp_path: Path) -> None:
    ignoring = ("/bin/sh", "-c", 'trap "" CHLD; exec "$@"', "sh", *BOTH)
    with running_daemon(tmp_path, command=ignoring) as daemon:
        before = wait_for_children(daemon, without=set())
        os.kill(min(before), signal.SIGKILL)
        wait_for_children(daemon, without={min(before)})
        assert end_process(daemon.process, timeout_seconds=10)
        assert daemon.process.returncode == 0
        assert "Traceback" not in daemon.read_log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_end_when_the_first_one_is_told_to(daemon: Daemon, number: int) -> None:
    children = wait_for_children(daemon, without=set())
    with contextlib.ExitStack() as stack:
        connections_to_each(daemon, stack)
        begin = time.monotonic()
        daemon.process.send_signal(number)
        assert daemon.process.wait(10) == 0
        assert time.monotonic() - begin < 5
    assert not any(map(is_alive, children))


def test_none_is_left_when_the_first_one_is_killed(daemon: Daemon) -> None:
    children = wait_for_children(daemon, without=set())
    daemon.process.kill()
    daemon.process.wait(10)
    deadline = time.monotonic() + WAIT_SECONDS
    while any(map(is_alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", daemon.port), timeout=5)


def test_a_process_that_is_stuck_is_ended_all_the_same(daemon: Daemon) -> None:
    stuck = min(wait_for_children(daemon, without=set()))
    os.kill(stuck, signal.SIGSTOP)
    assert end_process(daemon.process, timeout_seconds=WAIT_SECONDS)
    assert not is_alive(stuck)


# Two processes that do not end when they are told to, and that the system ends after so many seconds, or never.
_ENDING_LATE = """
import os, signal, sys, threading, time
from minibox_server import processes

kill, late, killed = os.kill, float(sys.argv[1]), []

def late_kill(pid, number):
    if number == signal.SIGKILL:
        killed.append(pid)
        threading.Timer(late, kill, (pid, number)).start() if late else None
    else:
        kill(pid, number)

def work(lifeline):
    os.read(lifeline, 1)

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the children's, too; the first process waits for it all the same
os.kill = late_kill
processes._END_SECONDS, processes._KILLED_SECONDS = 0.2, 1.0
begin = time.monotonic(), time.process_time()
processes.Processes(2, work).run(lambda: kill(os.getpid(), signal.SIGTERM), lambda: None)
took, used = time.monotonic() - begin[0], time.process_time() - begin[1]
sys.stderr.write(f"{len(killed)} killed, {took} s, {used} s\\n")
"""


@pytest.mark.parametrize(("late", "least", "left"), [("0.5", 0.7, 0), ("0", 1.2, 2)])
def test_no_processor_is_used_to_wait_for_those_that_do_not_end_and_the_wait_has_an_end(
    late: str, least: float, left: int
) -> None:
    command = (sys.executable, "-c", _ENDING_LATE, late)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=os.getcwd(), check=True)
    killed, took, used = ended.stderr.splitlines()[-1].split(", ")
    assert killed == "2 killed"
    assert least <= float(took[:-2]) < SOON_SECONDS
    assert float(used[:-2]) < 0.2
    assert ended.stderr.count("does not end, whatever it is told") == left


# Two processes, each of which ends at once or serves; of the forks that begin them, the third fails.
_NO_ROOM_ONCE = """
import errno, os, sys, time
from minibox_server import processes
from minibox_server.processes import Processes

fork, begun = os.fork, 0

def failing_fork():
    global begun
    begun += 1
    if begun == 3:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()

def work(lifeline):
    if begun > 1:
        time.sleep(60)

os.fork = failing_fork
Processes(2, work).run(lambda: sys.stderr.write("begun\\n"), lambda: None)
sys.exit(7 if begun == 4 else 8)
"""


def test_those_that_live_serve_on_though_there_is_no_room_for_another_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = (sys.executable, "-c", _NO_ROOM_ONCE)
    with running(command, environment=environment, log=log, folder=tmp_path, end_seconds=15) as process:
        wait_until(lambda: "no process can begin" in read_log(log), process, log=log)
        wait_until(lambda: len(children_in_session(process.pid)) == 2, process, log=log)
        assert end_process(process, timeout_seconds=10)
        assert process.returncode == 7


def test_an_image_that_two_processes_pull_at_once_is_downloaded_once(tmp_path: Path) -> None:
    image = build_image([random_layer(6 * 1024 * 1024, salt=str(number)) for number in range(3)])
    write_layout(tmp_path / "peer-data", {"team/app:1": image})
    with (
        running_daemon(tmp_path / "peer", data_root=tmp_path / "peer-data") as peer,
        running_daemon(tmp_path / "both", command=BOTH) as daemon,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(2) as threads,
    ):

        def pull(connection: http.client.HTTPConnection) -> bytes:
            connection.request("POST", f"/images/pull?image={peer.host}/team/app:1")
            return connection.getresponse().read()

        both = connections_to_each(daemon, stack)
        for told in threads.map(pull, both.values()):
            assert told.endswith(b"[pull] Done\n"), told
        fetched = re.findall(r'"GET (/v2/team/app/blobs/\S+)" 20', peer.read_log())
    layers = [f"/v2/team/app/blobs/{layer['digest']}" for layer in image.document()["layers"]]
    assert sorted(path for path in fetched if path in layers) == sorted(layers), "each has come once"


@pytest.mark.parametrize("count", ["0", "-1", "two", "1000", ""])
def test_a_number_of_processes_that_is_none_is_refused(tmp_path: Path, count: str) -> None:
    status, output = run_daemon_to_its_end(tmp_path, environment={}, command=[*DAEMON_COMMAND, f"--workers={count}"])
    assert status == 2
    assert "must be a number from 1 to" in output


def test_nobody_is_waited_for_once_all_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    # To wait for one more death would take so long.
    monkeypatch.setattr(processes, "_MOST_WAIT_SECONDS", 2 * SOON_SECONDS)
    monkeypatch.setattr(processes, "_END_SECONDS", 2 * SOON_SECONDS)

    def run() -> None:
        # Each ends at once when it is told to.
        processes = Processes(2, lambda lifeline: signal.pause())
        processes.run(on_start=lambda: os.kill(os.getpid(), signal.SIGTERM), on_hangup=lambda: None)

    assert run_forked(run, timeout_seconds=SOON_SECONDS) == 0
