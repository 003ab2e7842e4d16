"""Clients of a daemon that draw what they ask, know what must be true once it is acknowledged, and bear its death.

A thing counts as acknowledged when its whole answer has come: for a pull with its last line. Whatever else comes is a
failure, unless the daemon has died: then what was asked may have happened or not, and the ledger says so.
"""

import http.client
import random
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minibox_store import Store
from tests.support.archives import members_of, pack, read_archive
from tests.support.daemon import Daemon, Reply
from tests.support.image_families import build_family
from tests.support.images import BuiltImage
from tests.support.invariants import read_names
from tests.support.ledgers import Ledger

_NAMES = 4
_OWN_LAYER_BYTES = 393_216
_DEATH_SECONDS = 30.0


class DaemonDied(Exception):
    """The daemon died before it had acknowledged what it was asked for."""


@dataclass(frozen=True, kw_only=True)
class DaemonScene:
    """What all clients of one test have in common.

    Attributes:
        root: The DataRoot.
        folder: For archives and ledgers; beside the DataRoot.
        images: Single images, by the name that a registry and the archives have for them, of which each client
            has its own: ``client-N/…``.
        host: The registry.
    """

    root: Path
    folder: Path
    images: Mapping[str, BuiltImage]
    host: str

    @property
    def by_digest(self) -> dict[str, BuiltImage]:
        """The images by their digests."""
        return {image.digest: image for image in self.images.values()}


def images_of_clients(clients: int) -> dict[str, BuiltImage]:
    """Return the images of each client by name: they share layers, and each has one that is fetched for it alone."""
    return {
        f"client-{client}/app:{number}": image
        for client in range(clients)
        for number, image in enumerate(
            build_family(_NAMES, salt=str(client), with_indexes=False, own_layer_bytes=_OWN_LAYER_BYTES)
        )
    }


class DaemonClient:
    """One client, with names that it alone writes: some by pulls, some by loads, some by tags of the library.

    Args:
        scene: Where it asks.
        number: Which names are its own.
        seed: What it draws from.
    """

    def __init__(self, scene: DaemonScene, number: int, seed: int) -> None:
        self._scene = scene
        self._number = number
        self._random = random.Random(seed)
        self._store = Store(scene.root, durability="none", lock_timeout_seconds=20.0)
        self._sources = [name for name in scene.images if name.startswith(f"client-{number}/")]
        self._archive = scene.folder / f"client-{number}.tar"
        self._saved = scene.folder / f"client-{number}-saved.tar"
        self.ledger = Ledger(scene.folder / f"client-{number}.ledger")
        self.done: Counter[str] = Counter()
        self.interrupted: Counter[str] = Counter()
        self._daemons: Sequence[Daemon] = ()

    def work(self, daemons: Sequence[Daemon], stopped: threading.Event) -> None:
        """Ask for one thing after the other until it is stopped or a daemon has died; an error is a failure."""
        while not stopped.is_set():
            if not self.ask_once(daemons):
                return

    def ask_once(self, daemons: Sequence[Daemon]) -> bool:
        """Ask one daemon for something, and look at another one's list at once; return whether all live still.

        Raises:
            AssertionError: when an answer is not what it must be.
        """
        verb = self._random.choice(_VERBS)
        self._daemons = daemons
        daemon = self._random.choice(daemons)
        try:
            verb(self, daemon)
            self._look(self._random.choice(daemons))
        except (OSError, http.client.HTTPException, DaemonDied) as error:
            for each in daemons:
                if _has_died(each):
                    self.interrupted[verb.__name__] += 1
                    return False
            raise AssertionError(f"{verb.__name__} broke off, and no daemon has died: {error!r}") from error
        self.done[verb.__name__] += 1
        return True

    def check_death(self, names: Mapping[str, str]) -> None:
        """Check what a dead daemon has left of its names and files, and learn what became of the last request."""
        self.ledger.settle_all(names)
        if self._saved.exists():
            _, digest, blobs = read_archive(self._saved.read_bytes())
            assert blobs == self._scene.by_digest[digest].blobs

    # ---- what it asks

    def pull(self, daemon: Daemon) -> None:
        """Pull an image of its own."""
        source = self._random.choice(self._sources)
        name, digest = f"{self._scene.host}/{source}", self._scene.images[source].digest
        self.ledger.begin(name, digest)
        with daemon.stream("POST", "/images/pull", {"image": name}) as stream:
            assert stream.status == 200
            lines = list(stream)
        if not lines or not (lines[-1] == "[pull] Done" or lines[-1].startswith("[error]")):
            raise DaemonDied
        assert lines[-1] == "[pull] Done", lines
        self.ledger.settle(name, digest)

    def load(self, daemon: Daemon) -> None:
        """Load an archive, mostly over another image of that name."""
        name = f"client-{self._number}/loaded:{self._random.randrange(_NAMES)}"
        image = self._scene.images[self._random.choice(self._sources)]
        self._archive.write_bytes(pack(members_of(image, name)))
        self.ledger.begin(name, image.digest)
        _check(daemon.request("POST", "/images/load", {"path": str(self._archive)}))
        self.ledger.settle(name, image.digest)

    def tag(self, daemon: Daemon) -> None:
        """Give an image of its own a further name, by the library, past the daemon."""
        standing = self.ledger.standing
        if standing:
            digest = standing[source := self._random.choice(sorted(standing))]
            name = f"client-{self._number}/tagged:{self._random.randrange(_NAMES)}"
            self._store.tag(source, name)
            self.ledger.settle(name, digest)

    def remove(self, daemon: Daemon) -> None:
        """Remove a name of its own."""
        standing = sorted(self.ledger.standing)
        if standing:
            name = self._random.choice(standing)
            self.ledger.begin(name, None)
            _check(daemon.post("/images/remove", image=name))
            self.ledger.settle(name, None)
            for each in self._daemons:
                assert each.post("/images/remove", image=name).status == 404, "what is gone is gone for all"

    def save(self, daemon: Daemon) -> None:
        """Save an image of its own, and read the archive."""
        standing = self.ledger.standing
        if standing:
            name = self._random.choice(sorted(standing))
            _check(daemon.request("POST", "/images/save", {"image": name, "path": str(self._saved)}))
            said, digest, blobs = read_archive(self._saved.read_bytes())
            assert (said, digest) == (name, standing[name])
            assert blobs == self._scene.by_digest[digest].blobs

    def prune(self, daemon: Daemon) -> None:
        """Collect."""
        reply = daemon.post("/system/prune")
        _check(reply)
        assert reply.json()["errors"] == []

    # ---- parts of it

    def _look(self, daemon: Daemon) -> None:
        """See in a daemon's list that its names are what they must be, at once."""
        listed = daemon.get("/images")
        _check(listed)
        names = {str(each["name"]): str(each["digest"]) for each in listed.json()}
        self.ledger.check(names)
        assert [each for each in listed.json() if each.get("damaged")] == []
        self.ledger.check(read_names(self._scene.root))


def _has_died(daemon: Daemon) -> bool:
    """Whether a daemon is dead, or is so soon: its connections may break a moment before it can be waited for."""
    try:
        daemon.process.wait(_DEATH_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _check(reply: Reply) -> None:
    assert reply.status == 200, reply.text


_VERBS: tuple[Callable[[DaemonClient, Daemon], None], ...] = (
    *(DaemonClient.pull, DaemonClient.pull, DaemonClient.load, DaemonClient.load),
    *(DaemonClient.tag, DaemonClient.remove, DaemonClient.save, DaemonClient.prune),
)
DAEMON_VERB_NAMES = frozenset(verb.__name__ for verb in _VERBS)
