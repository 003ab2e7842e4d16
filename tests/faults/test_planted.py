"""What somebody has planted in a store's folder: it is never followed, never waited for, never taken for our own."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from minibox_store import InvalidArchive, InvalidInput, RegistryError, Store, StoreDamaged, StoreError, StoreUnavailable
from tests.support.archives import blob_name, members_of, metadata, pack
from tests.support.forks import run_forked
from tests.support.images import (
    OCI_INDEX,
    OCI_MANIFEST,
    BuiltImage,
    build_image,
    build_index,
    digest_of,
    encode_document,
)
from tests.support.invariants import (
    generations,
    held_locks,
    open_files,
    read_index,
    read_names,
    stored,
)
from tests.support.os_proxy import replaced_os
from tests.support.snapshots import snapshot
from tests.support.sources import BreakingSource, image_of, memory_of, root_document
from tests.support.stores import blob, layer_of, open_layout, open_store, put, put_dead, require_root, rot

IMAGE = build_image(salt="image")
OTHER = build_image(salt="other")
INDEX = build_index([IMAGE, build_image(platform="linux/arm64")])
CUT = RegistryError("GET", "https://example.org/", None, (), "the line was cut")
LOCKS = ("store.lock", "store.turn", "prune.lock")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store. Whatever a test does, it leaves no open file and no lock behind."""
    folder = tmp_path / "store"
    put(folder, IMAGE, "image:1", "going:1")
    (tmp_path / "a.tar").write_bytes(pack(members_of(OTHER, "other:1")))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_bytes(b"precious")
    yield folder
    assert open_files(folder) == []
    assert held_locks(folder) == []


def change_in_every_way(root: Path) -> None:
    """Do everything that writes; what cannot be done must say so as an error of the library."""
    store = open_store(root, lock_timeout_seconds=1.0)
    actions: tuple[Callable[[], object], ...] = (
        lambda: store.import_image(memory_of({"other:1": OTHER}), "other:1"),
        lambda: store.load(root.parent / "a.tar"),
        lambda: store.tag("image:1", "tag:1"),
        lambda: store.remove("tag:1"),
        store.undo,
        store.repair,
        store.prune,
    )
    for action in actions:
        with suppress(StoreError):
            action()


# S17: links, and what is no file, beside the blobs


@pytest.mark.parametrize("path", [f"ingest/{name}" for name in LOCKS])
@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "FIFO", "socket"])
def test_S17_what_lies_in_the_place_of_a_lock_is_not_written_to_and_nobody_waits_for_it(
    root: Path, path: str, kind: str
) -> None:
    plant(root / path, kind, root.parent / "outside" / "precious")
    before = snapshot(root.parent / "outside")
    assert run_forked(lambda: change_in_every_way(root), timeout_seconds=20) == 0
    assert snapshot(root.parent / "outside") == before
    assert read_names(root)["image:1"] == IMAGE.digest
    assert stored(root) >= set(IMAGE.blobs)


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "FIFO", "socket"])
def test_S17_what_lies_in_the_place_of_a_generation_is_not_read_as_one(root: Path, kind: str) -> None:
    outside = root.parent / "outside" / "precious"
    outside.write_bytes((root / "index.json").read_bytes())
    open_store(root).remove("going:1")
    plant(generations(root)[-2], kind, outside)
    before = snapshot(root.parent / "outside")

    def work() -> None:
        store = open_store(root)
        with pytest.raises(StoreDamaged, match="history/"):
            store.undo()
        store.lost_names()
        for number in range(12):  # it goes when it is the oldest, or says that it cannot; it stops nothing
            store.tag("image:1", f"tag:{number}")

    assert run_forked(work, timeout_seconds=20) == 0
    assert snapshot(root.parent / "outside") == before
    assert len(read_names(root)) == 13


@pytest.mark.parametrize("kind", ["link", "FIFO", "folder", "socket"])
@pytest.mark.parametrize("path", ["index.json", "oci-layout"])
def test_S17_what_lies_in_the_place_of_the_index_or_the_marker_is_damage(root: Path, path: str, kind: str) -> None:
    content = (root / path).read_bytes()
    (root.parent / "outside" / "precious").write_bytes(content)
    plant(root / path, kind, root.parent / "outside" / "precious")
    before = snapshot(root.parent / "outside")

    def work() -> None:
        store = open_store(root)
        for action in (lambda: store.tag("image:1", "tag:1"), lambda: store.load(root.parent / "a.tar"), store.prune):
            with pytest.raises(StoreDamaged, match=path):
                action()

    assert run_forked(work, timeout_seconds=20) == 0
    assert snapshot(root.parent / "outside") == before
    assert stored(root) == set(IMAGE.blobs)


@pytest.mark.parametrize("folder", ["blobs", "blobs/sha256", "ingest", "ingest/partial", "history", "quarantine"])
def test_S17_a_folder_of_the_store_that_is_a_link_is_not_written_through(root: Path, folder: str) -> None:
    outside = root.parent / "outside"
    if (root / folder).exists():
        (root / folder).rename(root.parent / "moved")
    (root / folder).symlink_to(outside)
    before = snapshot(outside)
    rot(blob(root, IMAGE.digest)) if folder == "quarantine" else None
    store = open_store(root, lock_timeout_seconds=1.0)
    with pytest.raises((StoreUnavailable, StoreDamaged), match=str(root)):
        store.import_image(memory_of({"image:1": OTHER if folder != "quarantine" else IMAGE}), "image:1")
    change_in_every_way(root)
    assert snapshot(outside) == before


def plant(path: Path, kind: str, target: Path) -> None:
    """Put something that is no file of the store where one belongs."""
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(target)
    elif kind == "dangling link":
        path.symlink_to(target.with_name("nothing"))
    elif kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.open(path.parent, os.O_RDONLY)
            try:
                listener.bind(f"/proc/self/fd/{here}/{path.name}")
            finally:
                os.close(here)


# S19: modes


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077, 0o277, 0o777])
def test_S19_what_is_unfinished_set_aside_or_kept_is_for_its_owner_alone_whatever_the_umask(
    root: Path, umask: int
) -> None:
    layer = layer_of(OTHER)
    seen: set[tuple[str, int]] = set()

    def note(kind: str, path: Path) -> None:
        with suppress(FileNotFoundError):  # two blobs are staged at once, and one of them has got its place
            seen.add((kind, path.lstat().st_mode & 0o7777))

    def look() -> None:
        for path in root.glob("ingest/*/*"):
            note("staged" if path.name.startswith("staged-") else "lock" if path.name == "lock" else "bytes", path)
        for path in root.glob("ingest/*"):
            if path.is_dir():
                note("folder", path)
        for path in root.glob(".*.tmp"):
            note("write", path)

    def work() -> None:
        os.umask(umask)
        store = open_store(root)
        with replaced_os() as system:
            for name in ("write", "copy_file_range", "replace", "link", "fchmod"):
                system.before(name, look, times=1 << 30)
            store.load(root.parent / "a.tar")
            rot(blob(root, OTHER.digest))
            store.load(root.parent / "a.tar")
        blob(root, str(layer.digest)).unlink()
        with pytest.raises(RegistryError, match="cut"), open_layout(root).open_writer() as writer:
            writer.write_blob(layer, BreakingSource(memory_of({"x": OTHER}), [layer.digest], CUT, after_bytes=10))
        store.load(root.parent / "a.tar")
        (root / "index.json").write_bytes(b"{")
        store.repair()
        # Unfinished bytes are 0600; a verified blob is 0444 from the moment at which it has its pin.
        # For a moment the umask takes from a new file what its owner is given behind it.
        new = {0o600, 0o600 & ~umask}
        allowed = {"staged": new, "lock": new, "bytes": {*new, 0o444}, "write": {*new, 0o644}, "folder": {0o700}}
        wrong = [(kind, oct(mode)) for kind, mode in seen if mode not in allowed[kind]]
        if wrong or {kind for kind, _ in seen} != set(allowed):
            raise AssertionError(f"{wrong} of {seen}")

    assert run_forked(work) == 0
    modes = {path.relative_to(root).as_posix(): path.lstat().st_mode & 0o7777 for path in root.rglob("*")}
    for folder in ("ingest", "ingest/partial", "history", "quarantine"):
        assert modes[folder] == 0o700, folder
    assert {mode for path, mode in modes.items() if path.startswith("history/")} == {0o600}
    assert {mode for path, mode in modes.items() if path.startswith("ingest/partial/")} <= {0o600}
    assert {mode for path, mode in modes.items() if path.startswith("blobs/sha256/")} == {0o444}
    assert len([path for path in modes if path.startswith("quarantine/")]) == 2


def test_S19_the_store_of_another_user_is_neither_undone_nor_mended_nor_pulled_into(root: Path) -> None:
    require_root()
    open_store(root).remove("going:1")
    os.chown(root, 12345, 12345)
    before = snapshot(root)
    store = open_store(root)
    for action in (store.undo, lambda: store.import_image(memory_of({"b:1": OTHER}), "b:1")):
        with pytest.raises(StoreUnavailable, match=f"{root}.*another user"):
            action()
    (root / "index.json").write_bytes(b"{")
    damaged = snapshot(root)
    with pytest.raises(StoreUnavailable, match=f"{root}.*another user"):
        store.repair()
    assert snapshot(root) == damaged
    assert damaged.keys() == before.keys()


# S5: one parser for what comes in and for what is collected


def bad_documents() -> dict[str, tuple[bytes, str]]:
    """Return documents that mean one thing to one reader and another to the next, with the type they are given."""
    manifest, index = IMAGE.document(), INDEX.document()
    plain = encode_document(manifest)
    twice = plain[:-1] + b',"layers":[]}'
    return {
        "both at once, called an index": (encode_document({**index, **manifest, "mediaType": OCI_INDEX}), OCI_INDEX),
        "both at once, called a manifest": (
            encode_document({**index, **manifest, "mediaType": OCI_MANIFEST}),
            OCI_MANIFEST,
        ),
        "a manifest that is called an index": (plain, OCI_INDEX),
        "an index that is called a manifest": (encode_document(index), OCI_MANIFEST),
        "a key that stands twice": (twice, OCI_MANIFEST),
        "something behind its end": (plain + b"{}", OCI_MANIFEST),
        "a size that is true": (
            encode_document({**manifest, "layers": [{**manifest["layers"][0], "size": True}]}),
            OCI_MANIFEST,
        ),
        "a size that is negative": (
            encode_document({**manifest, "layers": [{**manifest["layers"][0], "size": -1}]}),
            OCI_MANIFEST,
        ),
        "a size of 2 to the 53rd": (
            encode_document({**manifest, "layers": [{**manifest["layers"][0], "size": 2**53}]}),
            OCI_MANIFEST,
        ),
    }


def bad_image(name: str) -> BuiltImage:
    """Return an image whose root is such a document."""
    content, media_type = bad_documents()[name]
    blobs = {**INDEX.blobs, **IMAGE.blobs, digest_of(content): content}
    return image_of(blobs, root_document(content, media_type), {**INDEX.media_types, digest_of(content): media_type})


@pytest.mark.parametrize("name", bad_documents())
def test_S5_S26_S29_what_no_pull_takes_no_load_takes_and_no_prune_passes_over(root: Path, name: str) -> None:
    bad = bad_image(name)
    store = open_store(root)
    before = snapshot(root)
    with pytest.raises(InvalidInput, match=bad.digest):
        store.import_image(memory_of({"bad:1": bad}), "bad:1")
    members = [(blob_name(digest), content) for digest, content in bad.blobs.items()]
    (root.parent / "bad.tar").write_bytes(pack([("meta.json", metadata("bad:1", bad.digest)), *members]))
    if not name.endswith(("called an index", "called a manifest")) or name.startswith("both"):
        with pytest.raises(InvalidArchive):  # an archive says of no document what it is called
            store.load(root.parent / "bad.tar")
    assert snapshot(root) == before
    # Another tool has written it, and names it.
    put_dead(root, OTHER)
    if bad.digest not in IMAGE.blobs:  # that one is there
        blob(root, bad.digest).write_bytes(bad.blobs[bad.digest])
    index = read_index(root)
    index["manifests"].append(dict(bad.root))
    (root / "index.json").write_text(json.dumps(index))
    before = snapshot(root)
    for dry_run in (True, False):
        with pytest.raises(StoreDamaged, match=bad.digest.removeprefix("sha256:")):
            Store(root, settle_seconds=0).prune(dry_run=dry_run)
    assert snapshot(root) == before
    assert [each.path for each in store.verify() if each.is_damage] == [
        f"blobs/sha256/{bad.digest.removeprefix('sha256:')}"
    ]
    assert stored(root) == {*IMAGE.blobs, *OTHER.blobs, bad.digest}
