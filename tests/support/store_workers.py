"""A process that does to a store whatever comes, by the library alone, and checks after each thing what it must find.

Each worker has names that only it writes, and knows what they stand for; others belong to all. Whatever it asks, it
may only ever be told that a name of all is not there: everything else is a failure, StoreBusy first of all.
"""

import faulthandler
import os
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from minibox_store import ImageNotFound, RegistryClient, Store
from tests.support.archives import members_of, pack, read_archive
from tests.support.images import BuiltImage
from tests.support.invariants import read_names
from tests.support.ledgers import Ledger, check_whole
from tests.support.sources import memory_of

# Longer than the store waits for any lock: what takes longer than this is stuck, and nobody says why but its stack.
STUCK_SECONDS = 60.0
_LOCK_SECONDS = 30.0
_OWN_NAMES = 4
_SHARED_NAMES = tuple(f"shared/app:{number}" for number in range(4))


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What all workers of one test have in common.

    Attributes:
        root: The store.
        folder: For archives, ledgers and logs; beside the store.
        images: What may be brought in, by the name that the peer and the archives have for it.
        host: A registry that serves the images under these names.
    """

    root: Path
    folder: Path
    images: Mapping[str, BuiltImage]
    host: str

    def archive(self, name: str) -> Path:
        """Return where the archive of an image is."""
        return self.folder / f"{name.replace('/', '-').replace(':', '-')}.tar"

    def write_archives(self) -> None:
        """Write an archive of each image."""
        for name, image in self.images.items():
            self.archive(name).write_bytes(pack(members_of(image, name)))

    def ledger(self, number: int) -> Path:
        """Return the ledger of a worker."""
        return self.folder / f"worker-{number}.ledger"

    def log(self, number: int) -> Path:
        """Return the log of a worker."""
        return self.folder / f"worker-{number}.log"

    def is_allowed(self, name: str) -> bool:
        """Whether anybody here gives such a name."""
        return name in _SHARED_NAMES or name.startswith("own-")


class StoreWorker:
    """One worker. An earlier one of the same number may have been killed: this one goes on in its place.

    Args:
        place: Where it works.
        number: Which names are its own.
        seed: What it draws from.
    """

    def __init__(self, place: Workplace, number: int, seed: int) -> None:
        self._place = place
        self._number = number
        self._random = random.Random(seed)
        # One of all waits for the disk too, so that locks are held for longer now and then.
        durability = "full" if number == 0 else "none"
        self._store = Store(place.root, durability=durability, lock_timeout_seconds=_LOCK_SECONDS)  # type: ignore[arg-type]  # drawn from the two that there are
        self._client = RegistryClient()
        self._by_digest = {image.digest: image for image in place.images.values()}
        self._own = [f"own-{number}/app:{each}" for each in range(_OWN_NAMES)]
        self._ledger = Ledger(place.ledger(number))
        self.done: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Work for so long. What goes wrong, and where it is stuck if it is, stands in its log."""
        deadline = time.monotonic() + seconds
        with self._place.log(self._number).open("a", buffering=1) as log, self._told(log):
            self._check_names(settling=True)
            while time.monotonic() < deadline:
                verb = self._random.choice(_VERBS)
                print(f"{time.monotonic():.3f} {os.getpid()} {verb.__name__}", file=log)
                faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True, file=log)
                verb(self)
                self._check_names()
                faulthandler.cancel_dump_traceback_later()
                self.done[verb.__name__] += 1
            print("done", *(f"{name}={count}" for name, count in sorted(self.done.items())), file=log)

    @contextmanager
    def _told(self, log: TextIO) -> Iterator[None]:
        try:
            yield
        except BaseException:
            traceback.print_exc(file=log)
            raise

    def _check_names(self, *, settling: bool = False) -> None:
        """Check that all its names are what it last wrote, and one of them byte by byte."""
        names = read_names(self._place.root)
        (self._ledger.settle_all if settling else self._ledger.check)(names)
        standing = sorted(self._ledger.standing.values())
        if standing:
            check_whole(self._place.root, self._by_digest[self._random.choice(standing)])

    # ---- what it does

    def pull(self) -> None:
        """Pull an image over HTTP."""
        source, image = self._any_image()
        with self._writing(image.digest) as name:
            self._store.pull(f"{self._place.host}/{source}", name=name, platform=None, client=self._client)

    def import_(self) -> None:
        """Take an image from memory."""
        source, image = self._any_image()
        with self._writing(image.digest) as name:
            self._store.import_image(memory_of({source: image}), source, as_name=name)

    def load(self) -> None:
        """Load an archive."""
        source, image = self._any_image()
        with self._writing(image.digest) as name:
            self._store.load(self._place.archive(source), names=lambda _: name)

    def tag(self) -> None:
        """Give one of its own images, which nobody else removes, a further name."""
        standing = self._ledger.standing
        if standing:
            source = self._random.choice(sorted(standing))
            with self._writing(standing[source]) as name:
                assert str(self._store.tag(source, name).digest) in (standing[source], *self._others(name))

    def tag_shared(self) -> None:
        """Give what belongs to all a name of its own: it may be any image, or gone."""
        name = self._random.choice(self._own)
        before = next(iter(self._ledger.may_be(name)))
        self._ledger.begin(name, *self._by_digest)
        try:
            after: str | None = str(self._store.tag(self._random.choice(_SHARED_NAMES), name).digest)
        except ImageNotFound:
            after = before
        self._ledger.settle(name, after)

    def remove(self) -> None:
        """Take a name of its own away."""
        standing = sorted(self._ledger.standing)
        if standing:
            name = self._random.choice(standing)
            self._ledger.begin(name, None)
            assert self._store.remove(name) == name
            self._ledger.settle(name, None)

    def remove_shared(self) -> None:
        """Take a name of all away, if nobody has done so before."""
        with suppress(ImageNotFound):
            self._store.remove(self._random.choice(_SHARED_NAMES))

    def save(self) -> None:
        """Save an image of its own, and read every byte of the archive."""
        standing = self._ledger.standing
        if standing:
            name = self._random.choice(sorted(standing))
            assert self._saved(name) == standing[name]

    def save_shared(self) -> None:
        """Save what belongs to all, and read it: one of the images, whole, whatever others do meanwhile."""
        with suppress(ImageNotFound):
            assert self._saved(self._random.choice(_SHARED_NAMES)) in self._by_digest

    def prune(self) -> None:
        """Collect."""
        errors = self._store.prune(dry_run=self._random.random() < 0.2).errors
        assert errors == (), errors

    def verify(self) -> None:
        """Read every byte of every image."""
        damage = [each for each in self._store.verify() if each.is_damage]
        assert damage == []

    def repair(self) -> None:
        """Look for damage to mend, of which there is none."""
        report = self._store.repair(client=self._client)
        assert (report.index, report.mended, report.unmended) == (None, (), ())

    def look(self) -> None:
        """List all images, and weigh them."""
        listed = {image.name: image for image in self._store.images()}
        assert [image for image in listed.values() if image.damaged] == []
        for name, digest in self._ledger.standing.items():
            assert str(listed[name].digest) == digest
        self._store.usage()

    # ---- parts of it

    def _any_image(self) -> tuple[str, BuiltImage]:
        return self._random.choice(sorted(self._place.images.items(), key=lambda item: item[0]))

    @contextmanager
    def _writing(self, digest: str) -> Iterator[str]:
        """Give a name, mostly one of its own, that stands for ``digest`` once the block is left."""
        name = self._random.choice((*self._own, *_SHARED_NAMES[:2]))
        if name in _SHARED_NAMES:
            yield name
            return
        self._ledger.begin(name, digest)
        yield name
        self._ledger.settle(name, digest)

    def _others(self, name: str) -> tuple[str, ...]:
        """Return what else a name may be found to stand for right behind a write: of a name of all, anything."""
        return tuple(self._by_digest) if name in _SHARED_NAMES else ()

    def _saved(self, name: str) -> str:
        path = self._place.folder / f"saved-{self._number}.tar"
        self._store.save(name, path)
        said, digest, blobs = read_archive(path.read_bytes())
        assert said == name
        assert blobs == self._by_digest[digest].blobs
        return digest


_VERBS: tuple[Callable[[StoreWorker], None], ...] = (
    *(StoreWorker.pull, StoreWorker.pull, StoreWorker.import_, StoreWorker.load, StoreWorker.load),
    *(StoreWorker.tag, StoreWorker.tag_shared, StoreWorker.save, StoreWorker.save_shared),
    *(StoreWorker.remove, StoreWorker.remove, StoreWorker.remove_shared, StoreWorker.remove_shared),
    *(StoreWorker.prune, StoreWorker.prune, StoreWorker.verify, StoreWorker.look, StoreWorker.repair),
)
VERB_NAMES = frozenset(verb.__name__ for verb in _VERBS)
