"""A daemon under load is killed at any moment, again and again: what it has acknowledged is there, and it goes on.

20 times, 200 times under MINIBOX_DEEP=1, on one DataRoot. The library works on that DataRoot beside it all the time.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minibox_store import Store
from tests.support.daemon import Daemon, running_daemon
from tests.support.daemon_clients import DAEMON_VERB_NAMES, DaemonClient, DaemonScene, images_of_clients
from tests.support.families import descendants, wait_until_none_lives
from tests.support.invariants import check_invariants, find_leftovers, reachable, read_names, stored
from tests.support.layouts import write_layout
from tests.support.ledgers import check_whole
from tests.support.trials import drawing, trial_count

KILLS = trial_count(20, 200)
CLIENTS = 5
# Twenty kills in a minute, with all that is checked between them; what a test may wait for is no part of it.
LONGEST_LIFE_SECONDS = 0.8
NEXT_SECONDS = 20.0
IMAGES = images_of_clients(CLIENTS)


def be_killed(daemon: Daemon, clients: Sequence[DaemonClient], seconds: float, *, in_download: bool) -> None:
    """Let all clients ask at once, and kill the daemon after so long; return when nobody asks any more.

    With ``in_download`` it lives on until something is being fetched, for a second at most.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(len(clients)) as pool:
        asking = [pool.submit(client.work, [daemon], stopped) for client in clients]
        time.sleep(seconds)
        deadline = time.monotonic() + 1
        while in_download and not unfinished_downloads(daemon.data_root) and time.monotonic() < deadline:
            time.sleep(0.001)
        family = descendants(daemon.process.pid)
        daemon.process.kill()
        daemon.process.wait()
        stopped.set()
        for each in asking:
            each.result()
        wait_until_none_lives(family)  # its transfers end with it, each by itself


def unfinished_downloads(root: Path) -> list[Path]:
    return list((root / "ingest" / "partial").glob("*"))


def check_dead(scene: DaemonScene, clients: Sequence[DaemonClient]) -> None:
    """Check what a killed daemon has left: whole, without a lock, and with every name that it has acknowledged."""
    check_invariants(scene.root, leftovers=True)
    names = read_names(scene.root)
    for client in clients:
        client.check_death(names)
    for digest in set(names.values()):
        check_whole(scene.root, scene.by_digest[digest])


@pytest.mark.timeout(60 + 6 * KILLS)
def test_a_daemon_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    write_layout(tmp_path / "peer-data", IMAGES)
    (tmp_path / "work").mkdir()
    settings = {"MINIBOX_ARCHIVE_PREFIXES": str(tmp_path / "work")}
    with drawing() as seed, running_daemon(tmp_path / "peer", data_root=tmp_path / "peer-data") as peer:
        drawn = random.Random(seed)
        scene = DaemonScene(root=tmp_path / "store", folder=tmp_path / "work", images=IMAGES, host=peer.host)
        clients = [DaemonClient(scene, number, drawn.randrange(1 << 32)) for number in range(CLIENTS)]
        cut = Counter[str]()
        for number in range(KILLS):
            with running_daemon(tmp_path / f"{number}", data_root=scene.root, environment=settings) as daemon:
                if number % 3 == 2:
                    check_pruned(daemon, scene, clients)
                start = time.monotonic()
                assert drawn.choice(clients).ask_once([daemon])
                assert time.monotonic() - start < NEXT_SECONDS, "whoever comes next waits for nobody who is dead"
                # It may end by itself between the look at it and the kill: until one is cut, each kill tries it.
                in_download = number % 4 == 0 or not cut["download"]
                be_killed(daemon, clients, drawn.uniform(0, LONGEST_LIFE_SECONDS), in_download=in_download)
                assert "Traceback" not in daemon.read_log(), daemon.read_log()
            cut["transaction"] += bool(find_leftovers(scene.root))
            cut["download"] += bool(unfinished_downloads(scene.root))
            check_dead(scene, clients)
        with running_daemon(tmp_path / "last", data_root=scene.root, environment=settings) as daemon:
            check_pruned(daemon, scene, clients)
        assert Store(scene.root).verify() == ()
        check_load(clients, cut)


def check_pruned(daemon: Daemon, scene: DaemonScene, clients: Sequence[DaemonClient]) -> None:
    """Check that a prune leaves nothing of all those deaths, and takes nothing else."""
    reply = daemon.post("/system/prune")
    assert (reply.status, reply.json()["errors"]) == (200, [])
    check_dead(scene, clients)
    check_invariants(scene.root, history_behind=True)
    assert stored(scene.root) == reachable(scene.root)
    assert unfinished_downloads(scene.root) == []


def check_load(clients: Sequence[DaemonClient], cut: Counter[str]) -> None:
    """Check that the deaths came in the midst of work, and of all of it: else they would have proven nothing."""
    done = sum((client.done for client in clients), Counter[str]())
    interrupted = sum((client.interrupted for client in clients), Counter[str]())
    assert set(done) == DAEMON_VERB_NAMES
    assert sum(interrupted.values()) > KILLS, interrupted
    assert {"pull", "load"} <= set(interrupted), interrupted
    assert cut["transaction"] > KILLS / 4, cut
    assert cut["download"], cut
