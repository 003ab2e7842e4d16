"""Eight processes do whatever comes to one store at once: no name is lost, no blob, and nothing is left behind.

Two of these tests draw for a while: 60 s and 12 s, 600 s and 120 s under MINIBOX_DEEP=1, or MINIBOX_TEST_SECONDS.
"""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from minibox_store import Store
from tests.support.daemon import running_daemon
from tests.support.forks import forked, run_forked
from tests.support.image_families import build_family
from tests.support.invariants import check_invariants, reachable, read_names, stored
from tests.support.layouts import write_layout
from tests.support.ledgers import Ledger, check_whole
from tests.support.store_workers import STUCK_SECONDS, VERB_NAMES, StoreWorker, Workplace
from tests.support.trials import drawing, trial_seconds

WORKERS = 8
SECONDS = trial_seconds(60, 600)
KILLING_SECONDS = trial_seconds(12, 120)
# So much later than it should a worker may end: it may have been stuck for as long as it takes to say so.
PATIENCE_SECONDS = STUCK_SECONDS + 15
IMAGES = {f"family/app:{number}": image for number, image in enumerate(build_family())}


@contextmanager
def workplace(folder: Path) -> Iterator[Workplace]:
    """Give a place with all archives, and a peer that serves the images from a store of its own."""
    write_layout(folder / "peer-data", IMAGES)
    (folder / "work").mkdir()
    with running_daemon(folder / "peer", data_root=folder / "peer-data") as peer:
        place = Workplace(root=folder / "store", folder=folder / "work", images=IMAGES, host=peer.host)
        place.write_archives()
        yield place
        assert "Traceback" not in peer.read_log()


def work(place: Workplace, number: int, seed: int, seconds: float) -> None:
    StoreWorker(place, number, seed).run(seconds)


def live(place: Workplace, number: int, seed: int, tell_ready: Callable[[], None]) -> None:
    """Work until somebody ends the process."""
    tell_ready()
    work(place, number, seed, KILLING_SECONDS + PATIENCE_SECONDS)


def end_of_log(place: Workplace, number: int) -> str:
    """Return the last lines that a worker has written: what it did, how it failed, where it is stuck."""
    log = place.log(number)
    lines = log.read_text().splitlines() if log.exists() else []
    return "\n".join([f"worker {number}:", *lines[-60:]])


def check_statuses(place: Workplace, statuses: dict[int, int]) -> None:
    """Fail with the logs of the workers that did not come to a good end."""
    failed = {number: status for number, status in statuses.items() if status}
    assert not failed, "\n".join([str(failed), *(end_of_log(place, number) for number in failed)])


def check_end(place: Workplace) -> None:
    """Check a store that nobody works on any more: every name, every byte, and then what a prune leaves of it."""
    names = read_names(place.root)
    by_digest = {image.digest: image for image in place.images.values()}
    for number in range(WORKERS):
        ledger = Ledger(place.ledger(number))
        ledger.settle_all(names)
        ledger.close()
    assert [name for name in names if not place.is_allowed(name)] == []
    for digest in set(names.values()):
        check_whole(place.root, by_digest[digest])
    store = Store(place.root, durability="none")
    assert {finding.kind for finding in store.verify()} <= {"unreferenced"}
    assert store.prune().errors == ()
    check_invariants(place.root, history_behind=True)
    assert stored(place.root) == reachable(place.root)
    assert list((place.root / "ingest" / "partial").iterdir()) == []
    assert read_names(place.root) == names
    assert store.verify() == ()


def counts(place: Workplace) -> Counter[str]:
    """Return how often each thing was done by workers that came to their end."""
    logs = [place.log(number).read_text() for number in range(WORKERS)]
    found: Counter[str] = Counter()
    for name, count in re.findall(r"(\w+)=(\d+)", "\n".join(re.findall("^done .*$", "\n".join(logs), re.MULTILINE))):
        found[name] += int(count)
    return found


@pytest.mark.timeout(SECONDS + PATIENCE_SECONDS + 60)
def test_eight_processes_do_whatever_comes_to_one_store(tmp_path: Path) -> None:
    with drawing() as seed, workplace(tmp_path) as place:
        run = partial(run_forked, timeout_seconds=SECONDS + PATIENCE_SECONDS)
        with ThreadPoolExecutor(WORKERS) as pool:
            tasks = [partial(work, place, number, seed + number, SECONDS) for number in range(WORKERS)]
            statuses = list(pool.map(run, tasks))
        check_statuses(place, dict(enumerate(statuses)))
        # Before any further prune: who came to an end has cleared up behind itself.
        check_invariants(place.root)
        assert list((place.root / "ingest" / "partial").iterdir()) == []
        assert [path.name for path in place.folder.iterdir() if path.name.startswith(".")] == []
        check_end(place)
        assert set(counts(place)) == VERB_NAMES or SECONDS < 10


@pytest.mark.timeout(KILLING_SECONDS + PATIENCE_SECONDS + 60)
def test_processes_that_are_killed_and_replaced_take_no_name_and_no_blob_with_them(tmp_path: Path) -> None:
    def be_replaced(number: int, seed: int) -> int:
        """Let workers of this number live one after the other, each until it is killed; return how many were."""
        drawn = random.Random(seed)
        killed = 0
        deadline = time.monotonic() + KILLING_SECONDS
        while time.monotonic() < deadline:
            life = partial(live, place, number, drawn.randrange(1 << 32))
            with forked(life):
                time.sleep(drawn.uniform(0, 1))
            killed += 1
            assert "Traceback" not in place.log(number).read_text(), end_of_log(place, number)
        return killed

    mortal = range(3)
    with drawing() as seed, workplace(tmp_path) as place:
        run = partial(run_forked, timeout_seconds=KILLING_SECONDS + PATIENCE_SECONDS)
        with ThreadPoolExecutor(WORKERS) as pool:
            deaths = [pool.submit(be_replaced, number, seed + number) for number in mortal]
            tasks = [partial(work, place, each, seed + each, KILLING_SECONDS) for each in range(3, WORKERS)]
            statuses = list(pool.map(run, tasks))
            killed = sum(each.result() for each in deaths)
        check_statuses(place, dict(zip(range(3, WORKERS), statuses, strict=True)))
        assert killed > KILLING_SECONDS, "three workers are killed twice a second between them"
        check_invariants(place.root, leftovers=True)
        check_end(place)
