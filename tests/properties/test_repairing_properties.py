"""Laws of repair: with a source that has all a store is whole again; without any, nothing wrong is left in it."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import BlobSource, IncompleteImage, RepairReport, Store, StoreDamaged
from tests.support.images import OCI_INDEX, build_image, build_index, build_layer, digest_of
from tests.support.invariants import check_invariants, read_names, stored
from tests.support.layouts import blob_path
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedRegistry, serve_image
from tests.support.snapshots import snapshot
from tests.support.sources import memory_of

SHARED = [build_layer({f"srv/{number}": bytes([number]) * 50}) for number in range(2)]
ONE = build_image([SHARED[0], {"one": b"1"}], salt="one")
TWO = build_image([SHARED[0], SHARED[1]], salt="two")
ARM64 = build_image([SHARED[1]], salt="arm64", platform="linux/arm64")
IMAGES = {
    "one:1": ONE,
    "two:1": TWO,
    "index:1": build_index([ONE, ARM64], attestations=True),
    "nested:1": build_index([build_index([TWO, ARM64])], nested=1),
}
BLOBS = {digest: content for image in IMAGES.values() for digest, content in image.blobs.items()}
# What only an index names: where nobody knows that it was here, its absence is no damage.
BELOW = {
    entry["digest"]
    for image in IMAGES.values()
    for digest, content in image.blobs.items()
    if image.media_types[digest] == OCI_INDEX
    for entry in json.loads(content)["manifests"]
} - {image.digest for image in IMAGES.values()}
HARMS = ["missing", "other bytes", "short", "long", "empty", "a link", "a folder", "a FIFO"]

Damage = dict[str, str]


def damages(of: list[str]) -> st.SearchStrategy[Damage]:
    """Some blobs, and what becomes of each."""
    return st.dictionaries(st.sampled_from(sorted(of)), st.sampled_from(HARMS), max_size=len(of))


def harm(path: Path, how: str) -> None:
    """Make something else of a blob."""
    content = path.read_bytes()
    path.unlink()
    match how:
        case "other bytes":
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "short":
            path.write_bytes(content[:-1])
        case "long":
            path.write_bytes(content + b" ")
        case "empty":
            path.touch()
        case "a link":
            path.symlink_to("/etc/hostname")
        case "a folder":
            path.mkdir()
        case "a FIFO":
            os.mkfifo(path)


@pytest.fixture(scope="module")
def registry() -> Iterator[ScriptedRegistry]:
    """A registry that has every image."""
    with ScriptedRegistry() as scripted:
        for name, image in IMAGES.items():
            serve_image(scripted, f"team/{name.partition(':')[0]}", "1", image)
        yield scripted


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory, registry: ScriptedRegistry) -> Path:
    """A store that pulled them all."""
    root = tmp_path_factory.mktemp("pulled") / "store"
    for name in IMAGES:
        store, reference = Store(root, durability="none"), registry.reference(f"team/{name.partition(':')[0]}", "1")
        store.pull(reference, name=name, platform=None, client=quick_client())
    return root


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that has them all from nowhere that is known."""
    root = tmp_path_factory.mktemp("imported") / "store"
    for name in IMAGES:
        Store(root, durability="none").import_image(memory_of(IMAGES), name)
    return root


def repair(root: Path, *sources: BlobSource) -> RepairReport:
    return Store(root, durability="none", settle_seconds=0.0).repair(client=quick_client(), sources=sources)


def after(template: Path, damage: Damage, check: Callable[[Path, dict[str, tuple[int, bytes]]], None]) -> None:
    """Check a copy of a store after such damage; given is what lies in the place of each harmed blob."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        shutil.copytree(template, root, symlinks=True)
        for digest, how in damage.items():
            harm(blob_path(root, digest), how)
        seen = snapshot(root / "blobs")
        check(root, {digest: seen[key] for digest in damage if (key := digest.replace(":", "/")) in seen})


def check_whole(root: Path) -> None:
    """Check that every image is whole, byte for byte, and that nothing else has changed."""
    store = Store(root, durability="none", settle_seconds=0.0)
    assert store.verify() == ()
    assert not any(image.damaged for image in store.images())
    assert read_names(root) == {name: image.digest for name, image in IMAGES.items()}
    assert {digest: blob_path(root, digest).read_bytes() for digest in stored(root)} == BLOBS
    check_invariants(root)


def check_quarantine(root: Path, wrong: dict[str, tuple[int, bytes]]) -> None:
    """Check that all that was wrong is in quarantine, as it was, and nothing else."""
    kept = snapshot(root / "quarantine") if (root / "quarantine").exists() else {}
    found = {name.partition(".")[0].replace("-", ":"): thing for name, thing in kept.items()}
    assert len(found) == len(kept)
    assert found == wrong


@settings(max_examples=40, deadline=None)
@given(damage=damages(list(BLOBS)))
def test_whatever_was_damaged_a_store_whose_images_were_pulled_is_whole_again(pulled: Path, damage: Damage) -> None:
    def check(root: Path, wrong: dict[str, tuple[int, bytes]]) -> None:
        report = repair(root)
        assert {str(each.finding.digest) for each in report.mended} == set(damage)
        assert report.unmended == ()
        check_whole(root)
        check_quarantine(root, wrong)
        assert repair(root) == RepairReport()

    after(pulled, damage, check)


@settings(max_examples=40, deadline=None)
@given(damage=damages(list(BLOBS)), order=st.permutations(sorted(BLOBS)), split=st.integers(0, len(BLOBS)))
def test_whatever_was_damaged_sources_that_have_it_all_between_them_make_a_store_whole_again(
    imported: Path, damage: Damage, order: list[str], split: int
) -> None:
    damage = {digest: "short" if how == "missing" and digest in BELOW else how for digest, how in damage.items()}
    one, other = memory_of(IMAGES), memory_of(IMAGES)
    for digest in list(one.blobs):
        del (one if str(digest) in order[:split] else other).blobs[digest]

    def check(root: Path, wrong: dict[str, tuple[int, bytes]]) -> None:
        report = repair(root, one, other)
        assert {str(each.finding.digest) for each in report.mended} == set(damage)
        assert report.unmended == ()
        check_whole(root)
        check_quarantine(root, wrong)

    after(imported, damage, check)


@settings(max_examples=40, deadline=None)
@given(damage=damages(list(BLOBS)))
def test_without_a_source_nothing_wrong_is_left_under_blobs_and_all_of_it_is_kept(
    imported: Path, damage: Damage
) -> None:
    def check(root: Path, wrong: dict[str, tuple[int, bytes]]) -> None:
        report = repair(root)
        assert report.mended == ()
        assert {each.kept_aside for each in report.unmended} - {None} == {
            path.relative_to(root).as_posix() for path in (root / "quarantine").glob("*")
        }
        for digest in stored(root):
            path = blob_path(root, digest)
            assert stat.S_ISREG(path.lstat().st_mode)
            assert digest_of(path.read_bytes()) == digest
        assert stored(root) == set(BLOBS) - set(damage)
        check_quarantine(root, wrong)
        assert read_names(root) == {name: image.digest for name, image in IMAGES.items()}
        if not any(how == "missing" and digest in BELOW for digest, how in damage.items()):
            again = repair(root, memory_of(IMAGES))
            assert {str(each.finding.digest) for each in again.mended} == set(damage)
            check_whole(root)

    after(imported, damage, check)


@settings(max_examples=40, deadline=None)
@given(damage=damages(list(BLOBS)))
def test_behind_a_repair_that_found_no_source_a_prune_takes_nothing(imported: Path, damage: Damage) -> None:
    """A manifest that is set aside hides what it leads to: no prune may take that for garbage."""
    damage = {digest: "short" if how == "missing" else how for digest, how in damage.items()}

    def check(root: Path, wrong: dict[str, tuple[int, bytes]]) -> None:
        repair(root)
        before = stored(root)
        with suppress(StoreDamaged, IncompleteImage):
            Store(root, durability="none", settle_seconds=0.0).prune()
        assert stored(root) == before

    after(imported, damage, check)
