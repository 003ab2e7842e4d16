"""A small archive of each form, cut off at every byte and with every single bit flipped, through load.

Each is refused, or is the very same image: never anything else, and never with anything left. All of them are loaded
into a store in memory, but for the bits of those forms that one archive has at once, of which it is every so many; and
every so many into one on a disk, from a file. All of them where MINIBOX_DEEP is 1.
"""

import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest

from minibox_store import InvalidArchive
from tests.support.archive_forms import FORMS, pack_parts
from tests.support.archives import piped
from tests.support.forks import run_forked
from tests.support.hostile_archives import FORMS_READ, tiny_image
from tests.support.invariants import check_invariants, find_leftovers, read_names, stored
from tests.support.memory_stores import Loaded, MemoryStore
from tests.support.stores import open_store
from tests.support.trials import DEEP, part_of

NAME = "app:1"
IMAGE = tiny_image()
# Primes, so that the places wander through bytes, fields and blocks.
FLIP_STEP = 1 if DEEP else 211
CUT_STEP = 1 if DEEP else 29
# Of an archive that has both an index.json and a manifest.json every bit is tried, always: two minutes of a processor
# go into those of the other forms, each of which has one of these tables, or a smaller one.
ALL_BITS_OF = "both"
BIT_STEP = 1 if DEEP else 5
MOST_SECONDS = 600.0


def small(form: str) -> bytes:
    """Return an archive without those members that are passed over."""
    parts = FORMS[form](IMAGE, NAME)
    return pack_parts([part for part in parts if part.flag != b"5" and not part.name.endswith(("/json", "/VERSION"))])


def places_of_the_name(archive: bytes) -> set[int]:
    """Return the offsets at which the archive has the name, or the parts of it.

    No digest vouches for a name: who changes it has made an archive of the same image under another one.
    """
    found: set[int] = set()
    for text in (b'"app:1"', b'"app"', b'"1"'):
        start = archive.find(text)
        while start >= 0:
            found.update(range(start + 1, start + len(text) - 1))
            start = archive.find(text, start + 1)
    return found


def flipped(archive: bytes, bit: int) -> bytes:
    changed = bytearray(archive)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def load(store: MemoryStore, archive: bytes) -> Loaded | None:
    """Return what comes of an archive, None where it is refused; any other error is for the test."""
    try:
        store.load(io.BytesIO(archive))
    except InvalidArchive:
        assert store.take() == ({}, {})
        return None
    return store.take()


def memory_store(folder: Path) -> MemoryStore:
    (folder / "ingest").mkdir(parents=True, exist_ok=True)
    return MemoryStore(folder)


@pytest.mark.parametrize("form", FORMS_READ)
def test_an_archive_is_refused_wherever_it_is_cut_off(form: str, tmp_path: Path) -> None:
    archive, memory = small(form), memory_store(tmp_path)
    assert load(memory, archive) is not None
    for length in range(len(archive)):
        assert load(memory, archive[:length]) is None, length
    assert [path.name for path in tmp_path.rglob("*")] == ["ingest"]


@pytest.mark.timeout(MOST_SECONDS)
@pytest.mark.parametrize("form", FORMS_READ)
def test_with_any_bit_flipped_it_is_refused_or_the_very_same_image(form: str, tmp_path: Path) -> None:
    processes = len(os.sched_getaffinity(0))

    def flip(number: int) -> int:
        return run_forked(
            lambda: flip_each(form, memory_store(tmp_path), number, processes), timeout_seconds=MOST_SECONDS
        )

    with ThreadPoolExecutor(processes) as pool:
        assert list(pool.map(flip, range(processes))) == [0] * processes
    assert [path.name for path in tmp_path.rglob("*")] == ["ingest"]


def flip_each(form: str, memory: MemoryStore, first: int, step: int) -> None:
    """Flip every ``step``-th bit that is tried, and see what comes of it."""
    archive = small(form)
    intact = load(memory, archive)
    assert intact is not None
    if form != ALL_BITS_OF:
        first, step = BIT_STEP * first, BIT_STEP * step
    names = places_of_the_name(archive)
    refused = same = 0
    for bit in range(first, 8 * len(archive), step):
        found = load(memory, flipped(archive, bit))
        if found is None:
            refused += 1
        elif bit // 8 in names:
            assert (set(found[0].values()), found[1]) == (set(intact[0].values()), intact[1]), bit
        else:
            assert found == intact, bit
            same += 1
    # All that counts is refused: headers, documents, blobs and the end. Zeros behind the data of a member do not.
    assert refused * step > 8 * len(archive) // 2
    assert same * step > 1000


@pytest.mark.timeout(3600 if DEEP else 120)
@pytest.mark.parametrize("form", FORMS_READ)
@pytest.mark.parametrize("way", ["a file", "a pipe"])
def test_a_store_on_a_disk_keeps_every_rule_whatever_was_cut_off_or_flipped(
    form: str, way: str, tmp_path: Path
) -> None:
    archive = small(form)
    root, file = tmp_path / "store", tmp_path / "image.tar"
    store = open_store(root)
    (image,) = store.load(io.BytesIO(archive))
    blobs = stored(root)
    shutil.rmtree(root)  # what lies there already would stand in for what comes
    names = places_of_the_name(archive)
    outcomes = {"loaded": 0, "refused": 0}
    flips = ((bit // 8, flipped(archive, bit)) for bit in range(0, 8 * len(archive), FLIP_STEP))
    cuts = ((-1, archive[:length]) for length in range(0, len(archive), CUT_STEP))
    for place, changed in part_of(chain(flips, cuts)):
        try:
            if way == "a file":
                file.write_bytes(changed)
                (loaded,) = store.load(file)
            else:
                with piped(changed) as pipe:
                    (loaded,) = store.load(pipe)
        except InvalidArchive:
            outcomes["refused"] += 1
        else:
            outcomes["loaded"] += 1
            assert place >= 0
            assert loaded.digest == image.digest
            assert loaded.name == NAME or place in names
            assert read_names(root) == {loaded.name: str(image.digest)}
            assert stored(root) == blobs
            check_invariants(root)
            shutil.rmtree(root)
        assert read_names(root) == {}
        assert stored(root) == set()
        assert not find_leftovers(root)
    check_invariants(root)
    assert min(outcomes.values()) > 10
