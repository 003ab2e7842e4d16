"""Two daemons on one DataRoot: both bring in, serve, remove and collect, and what one has done the other says at once.

The second test draws for 8 s, for 60 s under MINIBOX_DEEP=1, or MINIBOX_TEST_SECONDS.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from minibox_store import Store
from tests.support.archives import members_of, pack, read_archive
from tests.support.daemon import Daemon, running_daemon
from tests.support.daemon_clients import DAEMON_VERB_NAMES, DaemonClient, DaemonScene, images_of_clients
from tests.support.images import build_image
from tests.support.invariants import check_invariants, reachable, read_names, stored
from tests.support.layouts import write_layout
from tests.support.ledgers import check_whole
from tests.support.trials import drawing, trial_seconds

SECONDS = trial_seconds(8, 60)
CLIENTS = 6
IMAGES = images_of_clients(CLIENTS)
IMAGE = build_image(salt="one")
OTHER = build_image(salt="other")


@contextmanager
def two_daemons(folder: Path) -> Iterator[tuple[Daemon, Daemon]]:
    """Give two daemons on ``folder/store``; archives may lie in ``folder/work``."""
    (folder / "work").mkdir()
    settings = {"MINIBOX_ARCHIVE_PREFIXES": str(folder / "work")}
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(running_daemon(folder / name, data_root=folder / "store", environment=settings))
            for name in ("one", "two")
        )
        yield one, two
    for daemon in (one, two):
        assert "Traceback" not in daemon.read_log()


def names_in(daemon: Daemon) -> list[str]:
    return [each["name"] for each in daemon.get("/images").json()]


def test_what_one_daemon_has_done_the_other_says_at_once(tmp_path: Path) -> None:
    write_layout(tmp_path / "peer-data", {"team/app:1": IMAGE})
    with running_daemon(tmp_path / "peer", data_root=tmp_path / "peer-data") as peer, two_daemons(tmp_path) as both:
        one, two = both
        archive, saved = tmp_path / "work" / "in.tar", tmp_path / "work" / "out.tar"
        archive.write_bytes(pack(members_of(OTHER, "other:1")))
        pulled = f"{peer.host}/team/app:1"
        assert names_in(two) == []
        assert one.post("/images/pull", image=pulled).text.endswith("[pull] Done\n")
        assert names_in(two) == [pulled]
        assert two.request("POST", "/images/save", {"image": pulled, "path": str(saved)}).status == 200
        assert read_archive(saved.read_bytes())[2] == IMAGE.blobs
        assert two.request("POST", "/images/load", {"path": str(archive)}).status == 200
        assert names_in(one) == sorted([pulled, "other:1"])
        layer = f"/v2/other/blobs/{OTHER.layer_digests[0]}"
        assert one.get(layer).body == OTHER.blobs[OTHER.layer_digests[0]]
        assert two.get("/v2/team/app/manifests/1").body == IMAGE.blobs[IMAGE.digest]
        assert one.post("/images/remove", image="other:1").status == 200
        assert names_in(two) == [pulled]
        assert two.get(layer).status == 404
        assert two.post("/system/prune").json()["blobs_removed"] == len(OTHER.blobs)
        assert one.post("/system/prune").json()["blobs_removed"] == 0
        assert one.get("/v2/other/manifests/1").status == 404
        assert one.request("POST", "/images/load", {"path": str(archive)}).status == 200
        assert two.get(layer).body == OTHER.blobs[OTHER.layer_digests[0]]
    check_invariants(tmp_path / "store")


@pytest.mark.timeout(SECONDS + 120)
def test_two_daemons_under_load_agree_on_every_name_at_every_moment(tmp_path: Path) -> None:
    write_layout(tmp_path / "peer-data", IMAGES)
    stopped = threading.Event()
    with drawing() as seed, running_daemon(tmp_path / "peer", data_root=tmp_path / "peer-data") as peer:
        scene = DaemonScene(root=tmp_path / "store", folder=tmp_path / "work", images=IMAGES, host=peer.host)
        with two_daemons(tmp_path) as both, ThreadPoolExecutor(CLIENTS) as pool:
            clients = [DaemonClient(scene, number, seed + number) for number in range(CLIENTS)]
            asking = [pool.submit(client.work, both, stopped) for client in clients]
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline and not any(each.done() for each in asking):
                time.sleep(0.05)
            stopped.set()
            for each in asking:
                each.result()
        check_invariants(scene.root)
        assert list((scene.root / "ingest" / "partial").iterdir()) == []
        names = read_names(scene.root)
        for client in clients:
            client.ledger.check(names)
        for digest in set(names.values()):
            check_whole(scene.root, scene.by_digest[digest])
        store = Store(scene.root, durability="none")
        assert store.prune().errors == ()
        assert stored(scene.root) == reachable(scene.root)
        assert store.verify() == ()
        done = sum((client.done for client in clients), Counter[str]())
        assert set(done) == DAEMON_VERB_NAMES or SECONDS < 5
