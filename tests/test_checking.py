"""What a check finds, and what it leaves alone; why a blob is kept; and what each image takes."""

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from minibox_store import (
    BlobNotFound,
    BlobSource,
    Cancellation,
    Cancelled,
    ContentMismatch,
    Descriptor,
    Digest,
    Finding,
    IncompleteImage,
    InvalidArgument,
    MemoryImages,
    Need,
    Store,
    StoreDamaged,
    StoreUnavailable,
    image_map,
)
from minibox_store.checking import check_images
from minibox_store.events import BlobAdvanced, BlobsCounted, BlobStarted, Event
from minibox_store.image_map import ImageMap
from minibox_store.layout_index import name_of
from tests.support.images import (
    OCI_MANIFEST,
    BuiltImage,
    build_image,
    build_index,
    build_layer,
    digest_of,
    encode_document,
)
from tests.support.invariants import held_locks, open_files, read_index, stored
from tests.support.layouts import write_layout
from tests.support.os_proxy import replaced_os
from tests.support.snapshots import snapshot
from tests.support.sources import (
    BlockingSource,
    BreakingSource,
    EndlessSource,
    LackingSource,
    LyingSource,
    RecordingSource,
    descriptors_of,
    memory_of,
    root_of,
)
from tests.support.stores import blob, layer_of, mounted, open_layout, open_store, put, put_dead, remount, rot

LAYERS = [{f"file-{number}": bytes([number]) * 5000} for number in range(4)]
IMAGE = build_image(LAYERS[:2], salt="image", compressed=False)
OTHER = build_image(LAYERS[1:3], salt="other", compressed=False)
AMD64, ARM64 = build_image(salt="m"), build_image(salt="m", platform="linux/arm64")
MULTI = build_index([AMD64, ARM64])
SHARED = IMAGE.layer_digests[1]
LEAVES = {*IMAGE.layer_digests, IMAGE.config_digest}


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("minibox")]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store that holds three images. Whatever a test does leaves no open file and no lock."""
    folder = tmp_path / "store"
    for name, image in {"image:1": IMAGE, "other:1": OTHER, "multi:1": MULTI}.items():
        put(folder, image, name)
    yield folder
    assert open_files(folder) == []
    assert held_locks(folder) == []


def verify(root: Path) -> tuple[Finding, ...]:
    """Verify a store, and show that nothing in it was changed by that."""
    before = snapshot(root)
    with replaced_os(trees=True) as system:
        found = open_store(root).verify()
        assert system.changes == []
    assert snapshot(root) == before
    return found


def brief(found: tuple[Finding, ...] | list[Finding]) -> set[tuple[str, str, tuple[str, ...]]]:
    """Return what was found, where, and whom it concerns."""
    return {(each.kind, each.path, each.names) for each in found}


def path_of(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def check(source: BlobSource, *images: BuiltImage) -> list[Finding]:
    return list(check_images(source, [root_of(image) for image in images], ImageMap(), path_of=str, parallel=2))


# ---- what is found


def test_a_store_that_is_whole_has_no_findings(root: Path) -> None:
    put(root, build_image(salt="512", algorithm="sha512"), "sha512:1")
    put(root, build_image(salt="docker", docker=True), "docker:1")
    assert verify(root) == ()


def test_a_store_that_does_not_exist_has_no_findings_and_is_not_made(tmp_path: Path) -> None:
    assert open_store(tmp_path / "none").verify() == ()
    assert not (tmp_path / "none").exists()


def harm(path: Path, how: str) -> None:
    """Make something else of a blob."""
    content = path.read_bytes()
    if how == "wrong digest":
        rot(path)
        return
    path.unlink()
    match how:
        case "short":
            path.write_bytes(content[:-1])
        case "long":
            path.write_bytes(content + b"x")
        case "empty":
            path.touch()
        case "link":
            path.symlink_to(path.with_name("aside"))
            path.with_name("aside").write_bytes(content)
        case "dangling link":
            path.symlink_to("/nowhere")
        case "FIFO":
            os.mkfifo(path)
        case "folder":
            path.mkdir()


KINDS = {
    "missing": "missing",
    "wrong digest": "wrong digest",
    **dict.fromkeys(["short", "long", "empty"], "wrong size"),
    **dict.fromkeys(["link", "dangling link", "FIFO", "folder"], "not a file"),
}


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("victim", ["manifest", "config", "layer"])
def test_S17_each_damage_is_found_with_its_kind_its_path_and_the_images_it_harms(
    root: Path, victim: str, how: str
) -> None:
    put(root, IMAGE, "again:1")
    digest = {"manifest": IMAGE.digest, "config": IMAGE.config_digest, "layer": IMAGE.layer_digests[0]}[victim]
    harm(blob(root, digest), how)
    found = verify(root)
    assert brief(found) == {(KINDS[how], path_of(digest), ("again:1", "image:1"))}
    assert [str(each.digest) for each in found] == [digest]
    assert found[0].is_damage
    assert digest.partition(":")[2] in found[0].problem


def test_a_blob_that_images_share_is_told_once_with_the_names_of_all(root: Path) -> None:
    rot(blob(root, SHARED))
    assert brief(verify(root)) == {("wrong digest", path_of(SHARED), ("image:1", "other:1"))}


def test_everything_that_is_wrong_is_told_sorted_by_path(root: Path) -> None:
    for digest in (*IMAGE.layer_digests, OTHER.digest, AMD64.digest):
        rot(blob(root, digest))
    found = verify(root)
    wrong = {*IMAGE.layer_digests, OTHER.digest, AMD64.digest}
    assert {each.path for each in found} == {path_of(digest) for digest in wrong}
    assert [each.path for each in found] == sorted(each.path for each in found)


def test_S29_a_manifest_that_cannot_be_read_hides_nothing_of_its_siblings(root: Path) -> None:
    rot(blob(root, AMD64.digest))
    rot(blob(root, ARM64.layer_digests[1]))
    assert brief(verify(root)) == {
        ("wrong digest", path_of(AMD64.digest), ("multi:1",)),
        ("wrong digest", path_of(ARM64.layer_digests[1]), ("multi:1",)),
    }


def test_S29_nothing_is_called_unreferenced_while_a_document_cannot_be_read(root: Path) -> None:
    put_dead(root, build_image(salt="dead"))
    blob(root, OTHER.digest).unlink()
    assert brief(verify(root)) == {("missing", path_of(OTHER.digest), ("other:1",))}


def test_a_document_of_the_right_bytes_that_is_none_is_unreadable(root: Path) -> None:
    content = encode_document({**IMAGE.document(), **MULTI.document(), "mediaType": OCI_MANIFEST})
    blob(root, digest_of(content)).write_bytes(content)
    index = read_index(root)
    index["manifests"].append({"mediaType": OCI_MANIFEST, "digest": digest_of(content), "size": len(content)})
    (root / "index.json").write_text(json.dumps(index))
    assert brief(verify(root)) == {("unreadable", path_of(digest_of(content)), ())}


def test_an_entry_that_gives_another_size_is_wrong_and_the_blob_of_the_others_is_not(root: Path) -> None:
    index = read_index(root)
    index["manifests"].append({**IMAGE.root, "size": 5, "annotations": {"other": "thing"}})
    (root / "index.json").write_text(json.dumps(index))
    assert [each.kind for each in verify(root)] == ["wrong size"]


def test_a_manifest_that_a_foreign_index_names_and_that_was_never_fetched_is_told_and_is_no_damage(root: Path) -> None:
    blob(root, ARM64.digest).unlink()
    for digest in ARM64.blobs.keys() - AMD64.blobs.keys() - {ARM64.digest}:
        blob(root, digest).unlink()
    found = verify(root)
    assert brief(found) == {("absent", path_of(ARM64.digest), ("multi:1",))}
    assert not found[0].is_damage


@pytest.mark.parametrize("first", [True, False])
def test_a_manifest_that_is_absent_below_an_index_and_a_root_itself_is_missing(root: Path, first: bool) -> None:
    index = read_index(root)
    named = {**ARM64.root, "annotations": {"org.opencontainers.image.ref.name": "arm:1"}}
    index["manifests"].insert(0 if first else len(index["manifests"]), named)
    (root / "index.json").write_text(json.dumps(index))
    blob(root, ARM64.digest).unlink()
    assert brief(verify(root)) == {("missing", path_of(ARM64.digest), ("arm:1", "multi:1"))}


# ---- what nobody needs


def test_blobs_that_no_image_needs_are_unreferenced_and_are_what_a_prune_would_take(root: Path) -> None:
    put_dead(root, build_image(salt="dead"))
    found = verify(root)
    assert {each.kind for each in found} == {"unreferenced"}
    assert not any(each.is_damage for each in found)
    assert {each.path for each in found} == {each.path for each in open_store(root).prune(dry_run=True).removed}


def test_what_a_running_transaction_holds_is_not_unreferenced(root: Path) -> None:
    dead = build_image(salt="dead")
    put_dead(root, dead)
    with open_layout(root).open_writer() as writer:
        assert all(writer.has_blob(descriptor) for descriptor in descriptors_of(dead))
        assert open_store(root).verify() == ()
    assert {each.kind for each in verify(root)} == {"unreferenced"}


def test_S17_what_is_no_file_is_told_though_nobody_needs_it(root: Path) -> None:
    folder = root / "blobs" / "sha256"
    (folder / ("a" * 64)).symlink_to("/etc/passwd")
    os.mkfifo(folder / ("b" * 64))
    (folder / "folder").mkdir()
    found = verify(root)
    assert brief(found) == {("not a file", f"blobs/sha256/{name}", ()) for name in ("a" * 64, "b" * 64, "folder")}
    assert [each.digest and each.digest.hex[0] for each in found] == ["a", "b", None]


def test_regular_files_that_are_called_by_no_digest_are_left_alone(root: Path) -> None:
    (root / "blobs" / "sha256" / f"{'a' * 64}.index.json").write_bytes(b"{}")
    (root / "blobs" / "README").write_bytes(b"")
    assert verify(root) == ()


# ---- how it looks


def test_each_blob_is_opened_once_however_many_images_share_it_and_the_largest_first() -> None:
    source = RecordingSource(memory_of({"a": IMAGE, "b": OTHER, "c": MULTI}))
    assert check(source, IMAGE, OTHER, MULTI, IMAGE) == []
    assert sorted(map(str, source.opened_digests)) == sorted({*IMAGE.blobs, *OTHER.blobs, *MULTI.blobs})
    assert source.open_streams == 0
    sizes = {each.digest: each.size_bytes for image in (IMAGE, OTHER, MULTI) for each in descriptors_of(image)}
    leaves = [sizes[each] for each in source.opened_digests[-3:]]
    assert leaves == sorted(leaves, reverse=True)
    assert max(sizes.values()) not in leaves


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_the_progress_of_each_blob_is_told_and_its_place_among_all(root: Path, parallel: int) -> None:
    events: list[Event] = []
    open_store(root).verify(parallel=parallel, on_event=events.append)
    started = [event for event in events if isinstance(event, BlobStarted)]
    expected = {*LEAVES, *OTHER.layer_digests, OTHER.config_digest}
    expected |= {digest for image in (AMD64, ARM64) for digest in (*image.layer_digests, image.config_digest)}
    assert sorted(str(event.descriptor.digest) for event in started) == sorted(expected)
    assert sorted(event.position for event in started) == list(range(1, len(expected) + 1))
    assert {event.total for event in started} == {len(expected)}
    done = {event.digest: event.done_bytes for event in events if isinstance(event, BlobAdvanced)}
    assert done == {event.descriptor.digest: event.descriptor.size_bytes for event in started}


def test_a_source_that_lies_lacks_or_never_ends_is_found_out() -> None:
    short, other, endless, gone = map(Digest.parse, [*IMAGE.layer_digests, IMAGE.config_digest, OTHER.layer_digests[1]])
    source = LackingSource(
        EndlessSource(
            LyingSource(
                memory_of({"a": IMAGE, "b": OTHER}), {short: b"short", other: bytes(layer_of(IMAGE, 1).size_bytes)}
            ),
            [endless],
        ),
        [gone],
    )
    assert {(each.kind, each.digest) for each in check(source, IMAGE, OTHER)} == {
        ("wrong size", short),
        ("wrong digest", other),
        ("wrong size", endless),
        ("missing", gone),
    }


def test_a_disk_that_fails_while_a_blob_is_read_makes_it_unreadable(root: Path) -> None:
    with replaced_os() as system:
        system.fail("preadv", errno.EIO, path=SHARED.removeprefix("sha256:"))
        system.fail("open", errno.EACCES, path=OTHER.digest.removeprefix("sha256:"))
        found = open_store(root).verify()
    assert brief(found) == {
        ("unreadable", path_of(SHARED), ("image:1",)),
        ("unreadable", path_of(OTHER.digest), ("other:1",)),
    }


@pytest.mark.parametrize("digest", [SHARED, OTHER.digest])
def test_what_says_nothing_of_a_blob_ends_the_check(root: Path, digest: str) -> None:
    with replaced_os() as system:
        system.fail("open", errno.EMFILE, path=digest.removeprefix("sha256:"))
        with pytest.raises(StoreUnavailable, match="Too many open files"):
            open_store(root).verify()


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_S29_an_index_that_cannot_be_read_is_an_error_and_no_empty_store(root: Path, content: bytes) -> None:
    (root / "index.json").write_bytes(content)
    with pytest.raises(StoreDamaged, match=r"index\.json"):
        open_store(root).verify()


def test_a_store_that_may_only_be_read_is_checked_all_the_same(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk") as disk:
        write_layout(disk / "store", {"image:1": IMAGE, "other:1": OTHER})
        rot(blob(disk / "store", SHARED))
        remount(disk, "ro")
        store = open_store(disk / "store")
        assert brief(store.verify()) == {("wrong digest", path_of(SHARED), ("image:1", "other:1"))}
        assert [need.name for need in store.why(Digest.parse(SHARED))] == ["image:1", "other:1"]
        assert store.usage().reclaimable_bytes == 0


# ---- meanwhile


@pytest.mark.parametrize("digest", [IMAGE.digest, IMAGE.layer_digests[0], IMAGE.config_digest])
def test_an_image_that_is_removed_and_collected_meanwhile_is_not_damaged(root: Path, digest: str) -> None:
    def remove() -> None:
        open_store(root).remove("image:1")
        open_store(root).prune()

    with replaced_os() as system:
        system.before("open", remove, path=digest.removeprefix("sha256:"))
        assert open_store(root).verify() == ()
    assert not blob(root, digest).exists()


def test_an_image_that_is_collected_and_comes_again_meanwhile_is_not_damaged(root: Path) -> None:
    config = blob(root, IMAGE.config_digest)
    aside = root.parent / "aside"

    def come_again() -> None:
        if aside.exists():
            aside.rename(config)

    with replaced_os() as system:
        system.before("open", lambda: config.rename(aside), path=config.name)
        system.before("open", come_again, path="index.json", times=2)
        assert open_store(root).verify() == ()
    assert config.exists()


def test_a_blob_that_goes_while_its_image_stays_is_missing(root: Path) -> None:
    with replaced_os() as system:
        system.before("open", blob(root, SHARED).unlink, path=SHARED.removeprefix("sha256:"))
        found = open_store(root).verify()
    assert brief(found) == {("missing", path_of(SHARED), ("image:1", "other:1"))}


def test_an_image_that_comes_meanwhile_is_neither_missing_nor_unreferenced(root: Path) -> None:
    with replaced_os() as system:
        late = build_image(salt="late")
        system.before("open", lambda: put(root, late, "late:1"), path=IMAGE.digest.removeprefix("sha256:"))
        assert open_store(root).verify() == ()
    assert blob(root, late.digest).exists()


# ---- cancelling


@pytest.mark.parametrize("kind", [BlobStarted, BlobAdvanced])
def test_a_check_that_is_cancelled_ends_and_leaves_no_thread(root: Path, kind: type) -> None:
    cancellation = Cancellation()

    def cancel(event: Event) -> None:
        if isinstance(event, kind):
            cancellation.cancel()

    with pytest.raises(Cancelled):
        open_store(root).verify(on_event=cancel, cancellation=cancellation)


def test_a_check_that_was_cancelled_before_reads_nothing(root: Path) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with replaced_os() as system:
        with pytest.raises(Cancelled):
            open_store(root).verify(cancellation=cancellation)
        assert system.count("open", "blobs") == 0


def test_a_cancel_ends_a_read_that_blocks() -> None:
    source = BlockingSource(memory_of({"": IMAGE}), [Digest.parse(IMAGE.config_digest)])
    cancellation = Cancellation()

    def cancel() -> None:
        assert source.blocked.wait(5)
        cancellation.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        list(check_images(source, [root_of(IMAGE)], ImageMap(), path_of=str, parallel=2, cancellation=cancellation))
    thread.join()


@pytest.mark.parametrize("kind", [BlobsCounted, BlobStarted, BlobAdvanced])
def test_an_error_of_the_listener_ends_the_check_and_is_not_lost(root: Path, kind: type[Event]) -> None:
    def fail(event: Event) -> None:
        if isinstance(event, kind):
            raise RuntimeError(f"no room for {type(event).__name__}")

    with pytest.raises(RuntimeError, match=f"no room for {kind.__name__}"):
        open_store(root).verify(on_event=fail)


@pytest.mark.parametrize("kind", [BlobStarted, BlobAdvanced])
@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.EIO, "Input/output error"),
        BlobNotFound(IMAGE.digest),
        ContentMismatch(IMAGE.digest, "one thing", "another"),
        StoreDamaged("elsewhere", "it is not this store"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_listener_raises_says_nothing_of_the_blob_that_was_just_read(
    root: Path, error: Exception, kind: type[Event]
) -> None:
    rot(blob(root, IMAGE.layer_digests[0]))

    def fail(event: Event) -> None:
        if isinstance(event, kind):
            raise error

    for check in (open_store(root).verify, open_store(root).repair):
        with pytest.raises(type(error)) as caught:
            check(on_event=fail, parallel=1)
        assert caught.value is error


def test_a_check_that_is_given_up_half_way_leaves_no_thread() -> None:
    leaves = [Digest.parse(digest) for digest in IMAGE.layer_digests]
    source = BreakingSource(memory_of({"": IMAGE}), leaves, OSError(errno.EIO, "broken"))
    found = check_images(source, [root_of(IMAGE)], ImageMap(), path_of=str, parallel=2)
    assert isinstance(found, Iterator)
    assert next(found).kind == "unreadable"
    del found


# ---- why a blob is kept


def ways(needs: tuple[Need, ...]) -> list[tuple[str | None, list[str]]]:
    return [(need.name, [str(each.digest) for each in need.path]) for need in needs]


def test_the_way_to_a_blob_leads_from_each_name_that_needs_it(root: Path) -> None:
    put(root, AMD64, "amd64:1")
    layer = AMD64.layer_digests[1]
    assert ways(open_store(root).why(Digest.parse(layer))) == [
        ("multi:1", [MULTI.digest, AMD64.digest, layer]),
        ("amd64:1", [AMD64.digest, layer]),
    ]
    assert ways(open_store(root).why(Digest.parse(SHARED))) == [
        ("image:1", [IMAGE.digest, SHARED]),
        ("other:1", [OTHER.digest, SHARED]),
    ]
    assert ways(open_store(root).why(Digest.parse(MULTI.digest))) == [("multi:1", [MULTI.digest])]


def test_the_way_says_which_platform_an_index_offers_a_manifest_for(root: Path) -> None:
    (need,) = open_store(root).why(Digest.parse(ARM64.config_digest))
    assert [str(each.platform) if each.platform else None for each in need.path] == [None, "linux/arm64", None]


def test_an_entry_without_a_name_keeps_a_blob_too(root: Path) -> None:
    index = read_index(root)
    del index["manifests"][0]["annotations"]
    (root / "index.json").write_text(json.dumps(index))
    assert ways(open_store(root).why(Digest.parse(IMAGE.digest))) == [(None, [IMAGE.digest])]


def test_nothing_needs_a_blob_that_is_dead_or_unknown(root: Path) -> None:
    dead = build_image(salt="dead")
    put_dead(root, dead)
    assert open_store(root).why(Digest.parse(dead.digest)) == ()
    assert open_store(root).why(Digest.of(b"unknown")) == ()
    assert open_store(root.parent / "none").why(Digest.of(b"unknown")) == ()


@pytest.mark.parametrize("verb", ["why", "usage"])
def test_where_a_document_cannot_be_read_there_is_no_answer_that_might_lack_something(root: Path, verb: str) -> None:
    store = open_store(root)
    ask = store.usage if verb == "usage" else lambda: store.why(Digest.parse(SHARED))
    rot(blob(root, OTHER.digest))
    with pytest.raises(StoreDamaged, match=OTHER.digest.removeprefix("sha256:")):
        ask()
    blob(root, OTHER.digest).unlink()
    with pytest.raises(IncompleteImage, match=f"image other:1 is incomplete: {OTHER.digest}"):
        ask()


@pytest.mark.parametrize("verb", ["why", "usage"])
def test_an_image_that_is_removed_and_collected_meanwhile_counts_no_more(root: Path, verb: str) -> None:
    def remove() -> None:
        open_store(root).remove("other:1")
        open_store(root).prune()

    with replaced_os() as system:
        system.before("open", remove, path=OTHER.digest.removeprefix("sha256:"))
        if verb == "why":
            assert [need.name for need in open_store(root).why(Digest.parse(SHARED))] == ["image:1"]
        else:
            assert [usage.name for usage in open_store(root).usage().images] == ["image:1", "multi:1"]


# ---- what takes how much


def test_the_usage_tells_own_and_shared_bytes_of_each_image_and_what_a_prune_would_free(root: Path) -> None:
    dead = build_image(LAYERS[3:], salt="dead")
    put_dead(root, dead)
    usage = open_store(root).usage()
    shared = len(IMAGE.blobs[SHARED])
    assert [(each.name, each.own_bytes, each.shared_bytes) for each in usage.images] == [
        ("image:1", IMAGE.size_bytes - shared, shared),
        ("multi:1", MULTI.size_bytes, 0),
        ("other:1", OTHER.size_bytes - shared, shared),
    ]
    assert [each.size_bytes for each in usage.images] == [IMAGE.size_bytes, MULTI.size_bytes, OTHER.size_bytes]
    assert usage.reclaimable_bytes == dead.size_bytes == open_store(root).prune(dry_run=True).bytes_freed
    needed = IMAGE.size_bytes + OTHER.size_bytes - shared + MULTI.size_bytes
    assert usage.total_bytes == needed + dead.size_bytes


def test_two_names_for_one_image_share_all_of_it(root: Path) -> None:
    open_store(root).tag("multi:1", "again:1")
    usage = {each.name: (each.own_bytes, each.shared_bytes) for each in open_store(root).usage().images}
    assert usage["multi:1"] == usage["again:1"] == (0, MULTI.size_bytes)


def test_a_store_that_does_not_exist_takes_nothing(tmp_path: Path) -> None:
    usage = open_store(tmp_path / "none").usage()
    assert (usage.images, usage.total_bytes, usage.reclaimable_bytes) == ((), 0, 0)


def test_a_map_may_be_asked_of_images_in_memory() -> None:
    images = ImageMap()
    source = memory_of({"a": IMAGE})
    assert isinstance(source, MemoryImages)
    images.add_root(source, root_of(IMAGE))
    assert {str(digest) for digest in images.reached_from(root_of(IMAGE))} == set(IMAGE.blobs)


def test_what_is_missing_is_told_at_a_cost_that_grows_with_it_and_not_with_its_square(root: Path) -> None:
    write_layout(root, {f"app:{number}": build_image([], salt=str(number)) for number in range(200)})
    store = open_store(root)
    for name in store.iter_names():
        (document,) = store.inspect(name).manifests
        blob(root, str(document.config_descriptor.digest)).unlink()
    looked = 0

    def look(descriptor: Descriptor) -> str | None:
        nonlocal looked
        looked += 1
        return name_of(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_map, "name_of", look)
        found = [finding for finding in store.verify() if finding.kind == "missing"]
    assert [len(finding.names) for finding in found] == [1] * 200
    assert looked <= 2 * len(found)


def test_a_clock_that_was_set_back_makes_no_damage_look_as_if_it_were_being_written(root: Path) -> None:
    put(root, IMAGE, "app:1")
    path = blob(root, IMAGE.digest)
    path.chmod(0o600)
    path.write_bytes(b"{")
    os.utime(path, (time.time() + 3600, time.time() + 3600))
    begin = time.monotonic()
    assert [finding.kind for finding in Store(root, settle_seconds=30.0).verify()] == ["wrong size"]
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize("parallel", [0, -1])
def test_nothing_can_be_checked_by_nobody(root: Path, parallel: int) -> None:
    put(root, IMAGE, "app:1")
    for call in (open_store(root).verify, open_store(root).repair):
        with pytest.raises(InvalidArgument, match=f"invalid parallel {parallel}"):
            call(parallel=parallel)


def test_no_more_read_than_there_are_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []

    class Counting(ThreadPoolExecutor):
        def submit(self, *call: Any, **named: Any) -> Any:
            begun.append(call)
            return super().submit(*call, **named)

    monkeypatch.setattr("minibox_store.checking.ThreadPoolExecutor", Counting)
    assert open_store(tmp_path).verify(parallel=1000) == ()
    assert begun == []
    put(tmp_path, IMAGE, "app:1")
    assert open_store(tmp_path).verify(parallel=1000) == ()
    assert len(begun) == len({*IMAGE.layer_digests, IMAGE.config_digest})


def test_the_largest_blobs_are_told_one_by_one_with_who_needs_them(root: Path) -> None:
    dead = build_image([build_layer({"a": b"dead" * 50_000}, compressed=False)], salt="dead")
    put_dead(root, dead)
    usage = open_store(root).usage(most_blobs=1000)
    assert usage.blob_count == len(usage.blobs) == len(stored(root))
    assert [(-each.size_bytes, each.digest) for each in usage.blobs] == sorted(
        (-each.size_bytes, each.digest) for each in usage.blobs
    )
    assert sum(each.size_bytes for each in usage.blobs) == usage.total_bytes
    by_digest = {str(each.digest): each for each in usage.blobs}
    shared = by_digest[SHARED]
    assert (shared.names, shared.needed_by, shared.role) == (("image:1", "other:1"), 2, "layer")
    assert shared.media_type == IMAGE.media_types[SHARED]
    manifest, config = by_digest[IMAGE.digest], by_digest[IMAGE.config_digest]
    assert [(each.names, each.role) for each in (manifest, config)] == [
        (("image:1",), "manifest"),
        (("image:1",), "config"),
    ]
    largest = usage.blobs[0]
    assert (str(largest.digest), largest.role, largest.media_type) == (dead.layer_digests[0], None, None)
    assert (largest.needed_by, largest.names) == (0, ())
    assert open_store(root).usage(most_blobs=2).blobs == usage.blobs[:2]
    assert open_store(root).usage().blobs == ()
    assert sum(each.size_bytes for each in usage.blobs if not each.needed_by) == usage.reclaimable_bytes
    with pytest.raises(InvalidArgument, match="less than nothing"):
        open_store(root).usage(most_blobs=-1)


def test_why_the_text_of_a_digest_stays_is_no_question(root: Path) -> None:
    text: Any = SHARED
    with pytest.raises(InvalidArgument, match=r"Digest\.parse"):
        open_store(root).why(text)


def test_of_very_many_names_the_first_are_told_with_a_blob(tmp_path: Path) -> None:
    put(tmp_path / "data", IMAGE, *[f"image:{number:04}" for number in range(120)])
    [largest] = open_store(tmp_path / "data").usage(most_blobs=1).blobs
    assert largest.needed_by == 120
    assert largest.names == tuple(f"image:{number:04}" for number in range(100))
