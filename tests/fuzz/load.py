"""Loading archives that a fuzzer makes: each is refused as an archive, or what comes of it keeps every rule."""

import importlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]  # no stubs; no wheel on some Pythons

with atheris.instrument_imports(include=["minibox_store"]):
    # Whoever imports a module of the library first decides whether what it does is seen.
    from minibox_store.errors import InvalidArchive, StoreFull
    from minibox_store.reference import check_image_name
    from tests.support.invariants import check_invariants, find_leftovers, read_names, stored
    from tests.support.memory_stores import Loaded, MemoryStore
    from tests.support.stores import open_store

    importlib.import_module("minibox_store.face.loading")  # which the store imports when it is first used

from tests.fuzz.made_archives import made
from tests.fuzz.running import arguments, fuzz
from tests.support.images import DOCUMENT_TYPES, INDEX_TYPES, digest_of

_EACH_ON_DISK = 8
_SEEDS = 200


class Target:
    """Loads each archive into a store in memory, and every so many into one on a disk."""

    def __init__(self, folder: Path) -> None:
        self._root = folder / "store"
        self._memory = MemoryStore(folder / "memory")
        (folder / "memory" / "ingest").mkdir(parents=True, exist_ok=True)

    def check(self, content: bytes) -> None:
        """Load what the choices make.

        Raises:
            AssertionError: when a rule is broken, or the two stores differ.
        """
        archive = made(atheris.FuzzedDataProvider(content))
        loaded = self._load_into_memory(archive)
        if not content or not content[0] % _EACH_ON_DISK:
            assert self._load_onto_disk(archive) == (None if loaded is None else loaded[0])

    def _load_into_memory(self, archive: bytes) -> Loaded | None:
        try:
            self._memory.load(io.BytesIO(archive))
        except (InvalidArchive, StoreFull) as error:  # a member that claims more than there is room for
            _check_sentence(str(error))
            assert self._memory.take() == ({}, {})
            return None
        names, blobs = self._memory.take()
        assert names
        assert all(digest == digest_of(content, digest.partition(":")[0]) for digest, content in blobs.items())
        for name, digest in names.items():
            check_image_name(name)
            _check_whole(blobs, json.loads(blobs[digest]))
        return names, blobs

    def _load_onto_disk(self, archive: bytes) -> dict[str, str] | None:
        store = open_store(self._root)
        before = stored(self._root)
        try:
            store.load(io.BytesIO(archive))
        except (InvalidArchive, StoreFull):
            assert stored(self._root) == before
            assert read_names(self._root) == {}
            assert not find_leftovers(self._root)
            return None
        check_invariants(self._root)
        names = read_names(self._root)
        shutil.rmtree(self._root)
        return names


def _check_whole(blobs: dict[str, bytes], document: Any) -> None:
    below = document.get("manifests") or [document["config"], *document["layers"]]
    for child in below:
        assert len(blobs[child["digest"]]) == child["size"]
        if child["mediaType"] in DOCUMENT_TYPES:
            assert (child["mediaType"] in INDEX_TYPES) == ("manifests" in json.loads(blobs[child["digest"]]))
            _check_whole(blobs, json.loads(blobs[child["digest"]]))


def _check_sentence(sentence: str) -> None:
    assert sentence.isprintable()
    assert len(sentence) < 1000


def seeds() -> dict[str, bytes]:
    """Return choices by which little, and much, is changed of each archive."""
    found = {f"zeros {length}": bytes(length) for length in (1, 16, 64)}
    return found | {str(number): os.urandom(16 + number) for number in range(_SEEDS)}


if __name__ == "__main__":
    folder, options = arguments()
    fuzz(Target(folder).check, seeds(), folder, options)
