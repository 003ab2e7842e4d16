"""Where everything of a store lies: the only module that turns a digest into a path.

Spec: OCI image-spec 1.1, image-layout.md, "Content".
"""

import os

import attrs

from minibox_store.digest import HEX_LENGTHS, Digest
from minibox_store.errors import InvalidDigest
from minibox_store.values import Value

ALGORITHMS = tuple(HEX_LENGTHS)


@attrs.frozen(repr=False)
class LayoutPaths(Value):
    """The paths of one store. What is not in image-layout.md is this project's own."""

    root: str

    @property
    def index(self) -> str:
        """index.json: the names."""
        return os.path.join(self.root, "index.json")

    @property
    def marker(self) -> str:
        """oci-layout: the version of the format."""
        return os.path.join(self.root, "oci-layout")

    @property
    def listing(self) -> str:
        """What the documents say, kept for the next process that lists the store; it may be lost at any time."""
        return os.path.join(self.root, "listing.cache")

    @property
    def ingest(self) -> str:
        """Everything unfinished, and the locks."""
        return os.path.join(self.root, "ingest")

    @property
    def partials(self) -> str:
        """Unfinished downloads, by digest: whoever wants the blob next goes on with them."""
        return os.path.join(self.ingest, "partial")

    @property
    def uploads(self) -> str:
        """Unfinished uploads."""
        return os.path.join(self.ingest, "uploads")

    @property
    def pushed(self) -> str:
        """What was pushed to repositories, and no manifest there needs yet."""
        return os.path.join(self.ingest, "pushed")

    @property
    def base_layers(self) -> str:
        """Root filesystems of whole images, by the tags of their names."""
        return os.path.join(self.root, "base_layers")

    @property
    def quarantine(self) -> str:
        """Blobs that were found to be wrong."""
        return os.path.join(self.root, "quarantine")

    @property
    def history(self) -> str:
        """The last generations of index.json."""
        return os.path.join(self.root, "history")

    @property
    def files(self) -> str:
        """What is known of the files in images and layers; it may be lost at any time."""
        return os.path.join(self.root, "files")

    @property
    def journal(self) -> str:
        """What is good to know of blobs and names."""
        return os.path.join(self.root, "journal")

    @property
    def origins(self) -> str:
        """Where blobs came from: a journal."""
        return os.path.join(self.journal, "origins")

    @property
    def activity(self) -> str:
        """When names were written and used: a journal."""
        return os.path.join(self.journal, "names")

    @property
    def store_lock(self) -> str:
        """Held for short steps that change index.json, or take from ``blobs/``."""
        return os.path.join(self.ingest, "store.lock")

    @property
    def store_turn(self) -> str:
        """Held while waiting for the store lock, so that who waits comes before who has just had it."""
        return os.path.join(self.ingest, "store.turn")

    @property
    def base_layers_lock(self) -> str:
        """Held while a tree takes its place in ``base_layers/`` until its name is written, or while one is removed."""
        return os.path.join(self.ingest, "base_layers.lock")

    @property
    def prune_lock(self) -> str:
        """Held for a whole collection: one at a time."""
        return os.path.join(self.ingest, "prune.lock")

    @property
    def life_lock(self) -> str:
        """Held shared by transactions where there are no hard links to pin blobs with."""
        return os.path.join(self.ingest, "life.lock")

    def blobs(self, algorithm: str) -> str:
        """Return the folder of the blobs of one algorithm."""
        return os.path.join(self.root, "blobs", algorithm)

    def blob(self, digest: Digest) -> str:
        """Return the path of a blob."""
        return f"{self.root}/blobs/{digest.algorithm}/{digest.hex}"

    def upload(self, identifier: str, repository: str) -> str:
        """Return the path of an upload to a repository, by its 32 hexadecimal digits; of the name it has a digest."""
        return os.path.join(self.uploads, f"{identifier}-{Digest.of(repository.encode()).hex}")

    def pushed_to(self, repository: str) -> str:
        """Return the folder of what was pushed to a repository; of its name only a digest is in the path."""
        return os.path.join(self.pushed, Digest.of(repository.encode()).hex)

    def partial(self, digest: Digest) -> str:
        """Return the path of a blob's shared unfinished download."""
        return os.path.join(self.partials, pin_name(digest))


def relative_path(digest: Digest) -> str:
    """Return the path of a blob below the root of any store."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def pin_name(digest: Digest) -> str:
    """Return what a blob is called inside a transaction."""
    return f"{digest.algorithm}-{digest.hex}"


def pinned_digest(name: str) -> Digest | None:
    """Return the digest that a name inside a transaction spells, None where it is something else."""
    try:
        return Digest.parse(name.replace("-", ":", 1))
    except InvalidDigest:
        return None
