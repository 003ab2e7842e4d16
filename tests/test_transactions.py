"""Each way in which processes may come between one another in a store, made to happen: by gates, forks and orders."""

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest

from minibox_store import (
    BlobNotFound,
    Cancellation,
    Cancelled,
    ContentMismatch,
    Descriptor,
    ImageNotFound,
    IncompleteImage,
    InvalidArchive,
    RegistryError,
    Store,
    StoreBusy,
    StoreError,
    StoreFull,
)
from minibox_store import _locks as locks
from minibox_store.copying import copy_graph, copy_image
from minibox_store.digest import Digest
from minibox_store.layout import Layout, TransactionTarget, contents, opening_image, partials, sweeping
from minibox_store.layout.transaction import Transaction
from minibox_store.protocols import BlobSource, BlobStream
from tests.support.archives import members_of, pack, read_archive
from tests.support.failing_system import failing_system
from tests.support.forks import forked, kill, run_as_user, run_forked, sleep_for_ever
from tests.support.images import BuiltImage, build_image, build_index, random_layer
from tests.support.invariants import check_invariants, find_leftovers, held_locks, open_files, read_names, stored
from tests.support.os_proxy import DIED, Gate, OsProxy, no_hard_links, replaced_os
from tests.support.snapshots import snapshot
from tests.support.sources import (
    BreakingSource,
    LyingSource,
    RecordingSource,
    copy_into,
    memory_of,
    read_all,
    root_of,
)
from tests.support.stores import blob, layer_of, open_layout, open_store, put, put_dead, require_root, rot
from tests.support.waiting import SOON_SECONDS

IMAGE = build_image(salt="image")
OTHER = build_image(salt="other")
BIG = build_image([random_layer(307_200, salt="big")])
CUT = RegistryError("GET", "https://example.org/", None, (), "the line was cut")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store. Whatever a test does, it leaves no open file and no lock behind."""
    folder = tmp_path / "store"
    put(folder, build_image(salt="always there"), "always:1")
    yield folder
    assert open_files(folder) == []
    assert held_locks(folder) == []


@contextmanager
def thread(function: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run a function beside the test. At exit it must have ended, and without an error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001  # it is raised where the test sees it
            errors.append(error)

    started = threading.Thread(target=run, daemon=True)
    started.start()
    try:
        yield started
    finally:
        started.join(60)
    assert not started.is_alive(), "the thread has not come to its end"
    if errors:
        raise errors[0]


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return once something is so."""
    deadline = time.monotonic() + 60
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError("it did not come to pass")
        time.sleep(0.002)


def prune(root: Path) -> int:
    """Collect, and return how many blobs went."""
    report = open_store(root).prune()
    assert report.errors == ()
    return report.blobs_removed


def write_all(writer: Transaction, image: BuiltImage) -> None:
    """Copy the whole graph into a transaction."""
    copy_graph(memory_of({"x": image}), writer, root_of(image))


def partial_of(root: Path, descriptor: Descriptor) -> Path:
    """Return where the unfinished download of a blob lies."""
    return root / "ingest" / "partial" / f"{descriptor.digest.algorithm}-{descriptor.digest.hex}"


def content_of(image: BuiltImage, descriptor: Descriptor) -> bytes:
    """Return the bytes of a blob."""
    return image.blobs[str(descriptor.digest)]


class GatedSource:
    """A source that stands before a gate once it has given ``after_bytes`` of each blob."""

    def __init__(self, source: BlobSource, after_bytes: int, gate: Callable[[], None]) -> None:
        self._source = source
        self._after_bytes = after_bytes
        self._gate = gate

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return a stream that waits at the gate once."""
        return _GatedStream(self._source.open_blob(descriptor, offset), self._after_bytes, self._gate)


class _GatedStream:
    def __init__(self, stream: BlobStream, before_bytes: int, gate: Callable[[], None]) -> None:
        self._stream = stream
        self._before_bytes = before_bytes
        self._gate = gate
        self._passed = False

    def readinto(self, buffer: memoryview, /) -> int:
        if self._before_bytes:
            count = self._stream.readinto(buffer[: self._before_bytes])
            self._before_bytes -= count
            return count
        if not self._passed:
            self._passed = True
            self._gate()
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()


# Pins


def test_a_prune_spares_a_blob_that_a_running_pull_has_found(root: Path) -> None:
    put_dead(root, IMAGE)
    with open_layout(root).open_writer() as writer:
        assert writer.has_blob(layer_of(IMAGE))
        assert prune(root) == len(IMAGE.blobs) - 1
        assert blob(root, IMAGE.layer_digests[0]).exists()
        write_all(writer, IMAGE)
        writer.write_name("image:1", root_of(IMAGE))
    check_invariants(root)
    assert read_names(root)["image:1"] == IMAGE.digest


def test_a_pin_is_made_before_the_blob_is_relied_on(root: Path) -> None:
    put_dead(root, IMAGE)
    with replaced_os() as system, open_layout(root).open_writer() as writer:
        assert writer.has_blob(layer_of(IMAGE))
        (folder,) = [path for path in (root / "ingest").iterdir() if (path / "lock").exists()]
        pin = folder / f"sha256-{layer_of(IMAGE).digest.hex}"
        assert pin.stat().st_ino == blob(root, IMAGE.layer_digests[0]).stat().st_ino
        assert [call.paths[1] for call in system.calls if call.name == "link"][-1] == str(pin)


def test_a_new_blob_is_pinned_before_it_appears_among_the_blobs(root: Path) -> None:
    with replaced_os() as system:
        copy_into(open_layout(root), IMAGE, "image:1")
        moves = [(call.name, call.paths) for call in system.calls if call.name in ("replace", "link")]
    for digest in IMAGE.blobs:
        encoded = digest.removeprefix("sha256:")
        pinned = next(i for i, (name, paths) in enumerate(moves) if name == "replace" and encoded in paths[1])
        placed = next(i for i, (_, paths) in enumerate(moves) if paths[1] == str(blob(root, digest)))
        assert pinned < placed


def test_a_descriptor_that_lies_takes_no_pin_from_the_one_that_tells_the_truth(root: Path) -> None:
    put_dead(root, IMAGE)
    layer = layer_of(IMAGE)
    with open_layout(root).open_writer() as writer:
        assert writer.has_blob(layer)
        assert not writer.has_blob(attrs.evolve(layer, size_bytes=layer.size_bytes + 1))
        assert prune(root) == len(IMAGE.blobs) - 1
        assert writer.has_blob(layer)
        write_all(writer, IMAGE)
        writer.write_name("image:1", root_of(IMAGE))
    check_invariants(root)


def test_a_descriptor_that_lies_has_no_good_blob_set_aside(root: Path) -> None:
    put_dead(root, IMAGE)
    layer = layer_of(IMAGE)
    with open_layout(root).open_writer() as writer:
        assert not writer.has_blob(attrs.evolve(layer, size_bytes=layer.size_bytes + 1))
        write_all(writer, IMAGE)
        writer.write_name("image:1", root_of(IMAGE))
    assert not list((root / "quarantine").glob("*"))
    check_invariants(root)


def test_a_descriptor_that_lies_takes_nothing_away_of_what_was_staged(root: Path) -> None:
    layer = layer_of(IMAGE)
    with open_layout(root).open_writer() as writer:
        writer.stage_blob(memory_of({"x": IMAGE}).open_blob(layer), layer.size_bytes)
        assert not writer.has_blob(attrs.evolve(layer, size_bytes=layer.size_bytes + 1))
        assert writer.has_blob(layer)


def test_what_was_found_by_its_size_and_then_set_aside_as_wrong_is_not_brought_back(root: Path) -> None:
    put_dead(root, IMAGE)
    layer = layer_of(IMAGE)
    rot(blob(root, str(layer.digest)))

    def copy_while_it_is_set_aside() -> None:
        with open_layout(root).open_writer() as writer:
            write_all(writer, IMAGE)
            blob(root, str(layer.digest)).unlink()
            writer.write_name("image:1", root_of(IMAGE))

    with pytest.raises(BlobNotFound, match=str(layer.digest)):
        copy_while_it_is_set_aside()
    assert "image:1" not in read_names(root)
    check_invariants(root)


def test_a_blob_that_a_prune_took_just_before_it_was_pinned_is_back_at_the_commit(root: Path) -> None:
    put_dead(root, IMAGE)
    layer = layer_of(IMAGE)
    with replaced_os() as system, open_layout(root).open_writer() as writer:
        # The pins have been looked at, the blob is about to go: now the pull finds it.
        found: list[bool] = []
        system.before("unlink", lambda: found.append(writer.has_blob(layer)), path=f"blobs/sha256/{layer.digest.hex}")
        assert prune(root) == len(IMAGE.blobs)
        assert found == [True]
        assert not blob(root, str(layer.digest)).exists()
        assert read_all(writer, layer) == content_of(IMAGE, layer)
        write_all(writer, IMAGE)
        writer.write_name("image:1", root_of(IMAGE))
    check_invariants(root)
    assert open_store(root).get("image:1").damaged is False


def test_a_prune_between_the_publishing_and_the_commit_takes_nothing_of_it(root: Path) -> None:
    with open_layout(root).open_writer() as writer:
        write_all(writer, IMAGE)
        assert stored(root) >= set(IMAGE.blobs)
        assert prune(root) == 0
        writer.write_name("image:1", root_of(IMAGE))
    check_invariants(root)


def test_what_other_tools_took_away_meanwhile_is_linked_back_at_the_commit(root: Path) -> None:
    with open_layout(root).open_writer() as writer:
        write_all(writer, IMAGE)
        for digest in IMAGE.blobs:
            blob(root, digest).unlink()
        writer.write_name("image:1", root_of(IMAGE))
    check_invariants(root)


def test_a_transaction_that_fails_leaves_its_verified_blobs_and_no_folder_and_no_name(root: Path) -> None:
    names = read_names(root)

    def fail() -> None:
        with open_layout(root).open_writer() as writer:
            write_all(writer, IMAGE)
            writer.write_name("image:1", root_of(IMAGE))
            raise CUT

    with pytest.raises(RegistryError, match="cut"):
        fail()
    assert read_names(root) == names
    assert stored(root) >= set(IMAGE.blobs)
    check_invariants(root)


def test_a_failed_transaction_deletes_nothing_but_its_own_folder(root: Path) -> None:
    put_dead(root, IMAGE)
    partial_of(root, layer_of(BIG)).write_bytes(content_of(BIG, layer_of(BIG))[:1000])

    def fail() -> None:
        with open_layout(root).open_writer() as writer:
            assert writer.has_blob(layer_of(IMAGE))
            writer.write_blob(root_of(OTHER), memory_of({"x": OTHER}))
            assert len(find_leftovers(root)) == 2
            raise CUT

    with open_layout(root).open_writer() as other:
        assert other.has_blob(layer_of(IMAGE, 1))
        before = snapshot(root)
        with pytest.raises(RegistryError, match="cut"):
            fail()
        after = snapshot(root)
    assert after.keys() - before.keys() == {f"blobs/sha256/{root_of(OTHER).digest.hex}"}
    assert {path: after.get(path) for path in before} == before


def test_a_name_that_was_written_without_its_graph_is_refused(root: Path) -> None:
    before = snapshot(root)
    with pytest.raises(IncompleteImage, match=IMAGE.digest), open_layout(root).open_writer() as writer:
        writer.write_name("image:1", root_of(IMAGE))
    assert snapshot(root) == before


# Prune and commit


def test_a_commit_waits_for_one_batch_at_most(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_BATCH", 2)
    put_dead(root, build_image([random_layer(2048, salt=str(number)) for number in range(18)]))
    with replaced_os() as system, ExitStack() as stack:
        gate = system.block("unlink", path=f"{root}/blobs/")
        writer = stack.enter_context(open_layout(root).open_writer())
        write_all(writer, IMAGE)
        writer.write_name("image:1", root_of(IMAGE))
        with thread(lambda: prune(root)):
            gate.wait()
            with thread(stack.close):
                wait_until(lambda: locks.is_locked(str(root / "ingest" / "store.turn")))
                gate.open()
        happened = [call for call in system.calls if call.name in ("unlink", "replace")]
    taken = [index for index, call in enumerate(happened) if call.paths[0].startswith(f"{root}/blobs/")]
    named = next(i for i, call in enumerate(happened) if call.paths[1:] == (f"{root}/index.json",))
    assert len(taken) == 20
    assert sum(index < named for index in taken) == 2, "the commit came after the batch that was running"
    check_invariants(root)


def test_a_prune_waits_for_one_commit_and_a_commit_that_comes_second_for_the_prune(root: Path) -> None:
    put_dead(root, OTHER)
    with replaced_os() as system, ExitStack() as stack:
        gate = system.block("replace", path=f"{root}/index.json")
        writer = stack.enter_context(open_layout(root).open_writer())
        write_all(writer, IMAGE)
        writer.write_name("image:1", root_of(IMAGE))
        with thread(stack.close):
            gate.wait()
            with thread(lambda: prune(root)):
                wait_until(lambda: locks.is_locked(str(root / "ingest" / "store.turn")))
                assert stored(root) >= set(OTHER.blobs)
                gate.open()
    assert not stored(root) & set(OTHER.blobs)
    check_invariants(root)


def test_a_pull_waits_for_no_prune_before_its_commit(root: Path) -> None:
    put_dead(root, OTHER)
    with replaced_os() as system:
        gate = system.block("unlink", path=f"{root}/blobs/")
        with thread(lambda: prune(root)):
            gate.wait()
            with open_layout(root).open_writer() as writer:
                write_all(writer, IMAGE)
                assert locks.is_locked(str(root / "ingest" / "store.lock"))
                gate.open()
                writer.write_name("image:1", root_of(IMAGE))
    check_invariants(root)


def test_a_prune_that_marks_sees_a_name_that_is_committed_meanwhile(root: Path) -> None:
    put_dead(root, IMAGE)
    always = build_image(salt="always there")
    with replaced_os() as system:
        gate = system.block("open", path=always.digest.removeprefix("sha256:"))
        with thread(lambda: prune(root)):
            gate.wait()
            with replaced_os():
                copy_into(open_layout(root), IMAGE, "image:1")
            gate.open()
    assert stored(root) >= set(IMAGE.blobs)
    check_invariants(root)


@pytest.mark.parametrize("batches", [0, 1, 5])
def test_a_name_that_is_committed_between_two_batches_is_marked_before_the_next(
    root: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    monkeypatch.setattr(sweeping, "_BATCH", 1)
    dead = build_image([random_layer(2048, salt=str(number)) for number in range(8)], salt="dead")
    put_dead(root, IMAGE)
    put_dead(root, dead)
    with replaced_os() as system:
        # Everything dead is in the plan by now; the store lock is free before each batch.
        commit = lambda: copy_into(open_layout(root), IMAGE, "image:1")  # noqa: E731
        system.before("open", commit, path="ingest/store.turn", skip=batches)
        assert prune(root) >= len(dead.blobs)
    assert not stored(root) & set(dead.blobs)
    assert read_names(root)["image:1"] == IMAGE.digest
    check_invariants(root)


def test_a_prune_begins_to_mark_again_when_an_image_goes_while_it_is_marked(root: Path) -> None:
    put(root, IMAGE, "image:1")
    manifest = blob(root, IMAGE.digest)

    def take_away() -> None:
        open_store(root).remove("image:1")
        manifest.unlink()

    with replaced_os() as system:
        system.before("open", take_away, path=manifest.name)
        assert prune(root) == len(IMAGE.blobs) - 1
    check_invariants(root)


def test_S29_an_image_that_went_and_came_back_under_another_name_is_marked_from_its_root(root: Path) -> None:
    put(root, IMAGE, "image:1")
    manifest = blob(root, IMAGE.digest)

    def take_away() -> None:
        open_store(root).remove("image:1")
        manifest.unlink()
        # The root was looked for, and was not there; before the index is read again it is back.
        system.before("open", lambda: copy_into(open_layout(root), IMAGE, "back:1"), path="index.json")

    with replaced_os() as system:
        system.before("open", take_away, path=manifest.name)
        assert prune(root) == 0
    assert read_names(root)["back:1"] == IMAGE.digest
    check_invariants(root)


def test_a_manifest_that_was_absent_when_it_was_marked_and_came_since_keeps_its_layers(root: Path) -> None:
    here, absent = build_image(salt="here"), build_image(salt="absent", platform="linux/arm64")
    index = build_index([here, absent])
    put(root, index, "multi:1")
    manifest = blob(root, absent.digest)
    manifest.unlink()  # a foreign tool kept the index and fetched one platform; the other's layers lie about, dead
    with replaced_os() as system:
        gate = system.block("open", path="ingest/store.turn")
        with thread(lambda: prune(root)):
            gate.wait()
            with replaced_os():
                copy_into(open_layout(root), index, "multi:1")
            gate.open()
    check_invariants(root)
    assert open_store(root).save("multi:1", root.parent / "a.tar").name == "multi:1"


def test_one_prune_at_a_time_and_the_second_is_told_who_is_at_it(root: Path) -> None:
    put_dead(root, IMAGE)
    with replaced_os() as system:
        gate = system.block("unlink", path=f"{root}/blobs/")
        with thread(lambda: prune(root)):
            gate.wait()
            with pytest.raises(StoreBusy, match=rf"process {os.getpid()} holds .*prune\.lock \(collecting\)") as caught:
                open_store(root, lock_timeout_seconds=0.05).prune()
            gate.open()
    assert caught.value.holder_pid == os.getpid()
    assert caught.value.since is not None
    assert abs(time.time() - caught.value.since) < 60
    check_invariants(root)


def test_a_prune_that_loses_the_lock_between_its_batches_tells_what_it_has_removed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "_BATCH", 1)
    put_dead(root, IMAGE)
    with replaced_os() as system, ExitStack() as stack:
        busy = locks.holding_lock(str(root / "ingest" / "store.turn"), doing="sleeping", timeout_seconds=1)
        system.after("unlink", lambda: stack.enter_context(busy), path=f"{root}/blobs/")
        report = open_store(root, lock_timeout_seconds=0.05).prune()
    assert report.blobs_removed == 1
    assert any("busy" in error for error in report.errors)


# The life of a transaction


@pytest.mark.parametrize("step", ["mkdir", "chmod", "open"])
def test_a_folder_that_a_prune_takes_before_it_is_locked_is_made_again(root: Path, step: str) -> None:
    taken: list[str] = []

    def take() -> None:
        folders = [path.name for path in (root / "ingest").iterdir() if re.fullmatch("[0-9a-f]{16}", path.name)]
        assert prune(root) == 0
        taken.extend(name for name in folders if not (root / "ingest" / name).exists())

    with replaced_os() as system:
        # The folders of the store itself are there already, so the first one that is made is the transaction's.
        system.after(step, take, path="/lock" if step == "open" else f"{root}/ingest/")
        copy_into(open_layout(root), IMAGE, "image:1")
    assert len(taken) == 1
    check_invariants(root)
    assert read_names(root)["image:1"] == IMAGE.digest


def test_a_folder_that_is_taken_again_and_again_is_given_up_with_a_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minibox_store.layout.living._ATTEMPTS", 3)
    with replaced_os() as system:
        system.fail("open", errno.ENOENT, path="/lock")
        with pytest.raises(StoreBusy, match="lock"), open_layout(root).open_writer():
            raise AssertionError("there is no transaction")


def test_a_dead_transaction_is_swept_with_all_that_it_pinned_while_a_live_one_stays(root: Path) -> None:
    put_dead(root, IMAGE)
    put_dead(root, OTHER)

    def work(ready: Callable[[], None]) -> None:
        with open_layout(root).open_writer() as writer:
            assert writer.has_blob(layer_of(IMAGE))
            writer.write_blob(layer_of(BIG), memory_of({"x": BIG}))
            ready()
            sleep_for_ever()

    with forked(work) as pid, open_layout(root).open_writer() as writer:
        assert writer.has_blob(layer_of(OTHER))
        assert prune(root) == len(IMAGE.blobs) - 1 + len(OTHER.blobs) - 1
        assert len(find_leftovers(root)) == 2
        kill(pid)
        plan = open_store(root).prune(dry_run=True)
        report = open_store(root).prune()
        assert (report.removed, report.errors) == (plan.removed, ())
        assert sorted(each.kind for each in report.removed) == ["blob", "blob", "transaction"]
        assert len(find_leftovers(root)) == 1
        assert read_all(writer, layer_of(OTHER)) == content_of(OTHER, layer_of(OTHER))
    assert prune(root) == 1
    check_invariants(root)


def test_a_lock_dies_with_its_process_and_the_next_call_succeeds_within_a_second(root: Path) -> None:
    def work(ready: Callable[[], None]) -> None:
        with open_layout(root).store_lock("dying"), open_layout(root).open_writer():
            ready()
            sleep_for_ever()

    with forked(work) as pid:
        with pytest.raises(StoreBusy, match=rf"process {pid} holds .*store\.lock \(dying\)"):
            open_store(root, lock_timeout_seconds=0.05).tag("always:1", "never:1")
        kill(pid)
        open_store(root, lock_timeout_seconds=0.0).tag("always:1", "again:1")
    assert "never:1" not in read_names(root)


def test_S18_a_child_that_was_forked_while_a_lock_was_held_does_not_keep_it(root: Path) -> None:
    def stay(ready: Callable[[], None]) -> None:
        ready()
        sleep_for_ever()

    path = str(root / "ingest" / "store.lock")
    with ExitStack() as stack:
        with locks.holding_lock(path, doing="forking", timeout_seconds=1):
            stack.enter_context(forked(stay))
        open_store(root, lock_timeout_seconds=0.5).tag("always:1", "second:1")
    assert "second:1" in read_names(root)


def test_S18_when_the_folder_of_a_transaction_cannot_be_removed_its_lock_is_let_go(root: Path) -> None:
    def fail() -> None:
        with open_layout(root).open_writer() as writer:
            assert writer.has_blob(layer_of(build_image(salt="always there")))
            raise CUT

    with replaced_os() as system:
        system.fail("unlink", errno.EIO, path="/sha256-", times=1)
        with pytest.raises((RegistryError, OSError)):
            fail()
    assert open_files(root) == []
    assert held_locks(root) == []
    assert prune(root) == 0
    check_invariants(root)


def test_a_commit_counts_though_the_folder_of_its_transaction_cannot_be_removed(root: Path) -> None:
    with replaced_os() as system:
        system.fail("unlink", errno.EIO, path="/sha256-")
        image = open_store(root).import_image(memory_of({"image:1": IMAGE}), "image:1")
    assert (image.name, read_names(root)["image:1"]) == ("image:1", IMAGE.digest)
    assert prune(root) == 0
    check_invariants(root)


# Partial downloads


def test_who_wants_the_same_blob_waits_while_it_grows_and_fetches_nothing(root: Path) -> None:
    layer, gate = layer_of(BIG), Gate()
    memory = memory_of({"x": BIG})
    mine = RecordingSource(memory)
    with open_layout(root).open_writer() as first, open_layout(root).open_writer() as second:
        with thread(lambda: first.write_blob(layer, GatedSource(memory, 100_000, gate))):
            gate.wait()
            assert partial_of(root, layer).stat().st_size == 100_000
            with thread(lambda: second.write_blob(layer, mine)):
                time.sleep(0.2)
                assert mine.opened == []
                gate.open()
        assert mine.opened == []
        assert second.has_blob(layer)
        assert read_all(second, layer) == content_of(BIG, layer)
    assert not partial_of(root, layer).exists()
    check_invariants(root)


def test_who_waits_fetches_nothing_when_the_blob_is_verified_and_about_to_appear(root: Path) -> None:
    assert opened_while_it_is_about_to_appear(root) == []


def test_a_user_fetches_nothing_either_when_the_blob_is_about_to_appear_though_it_is_read_only_by_then() -> None:
    require_root()

    def wait(folder: Path) -> None:
        assert opened_while_it_is_about_to_appear(folder / "store") == []

    assert run_as_user(wait) == 0


def opened_while_it_is_about_to_appear(root: Path) -> list[tuple[Digest, int]]:
    """Return what is fetched by who wants a blob that another one has verified, and is about to link."""
    layer = layer_of(BIG)
    mine = RecordingSource(memory_of({"x": BIG}))
    with (
        replaced_os() as system,
        open_layout(root).open_writer() as first,
        open_layout(root).open_writer() as second,
        ExitStack() as stack,
    ):
        gate = system.block("link", target=str(blob(root, str(layer.digest))))
        with thread(lambda: first.write_blob(layer, memory_of({"x": BIG}))):
            gate.wait()
            stack.enter_context(thread(lambda: second.write_blob(layer, mine)))
            time.sleep(0.2)
            gate.open()
        stack.close()
    assert not partial_of(root, layer).exists()
    check_invariants(root)
    return mine.opened


def test_who_came_too_late_to_wait_looks_for_the_blob_once_more_before_it_fetches(root: Path) -> None:
    layer = layer_of(BIG)
    memory = memory_of({"x": BIG})
    mine = RecordingSource(memory)
    with (
        replaced_os() as system,
        open_layout(root).open_writer() as first,
        open_layout(root).open_writer() as second,
    ):
        # The second one has looked, and found nothing; now the first one gets all of it done.
        system.before("open", lambda: first.write_blob(layer, memory), path=str(partial_of(root, layer)))
        second.write_blob(layer, mine)
    assert mine.opened == []
    assert not partial_of(root, layer).exists()
    check_invariants(root)


def test_who_opens_an_unfinished_download_that_is_finished_just_then_leaves_the_blob_as_it_is(root: Path) -> None:
    layer = layer_of(BIG)
    memory = memory_of({"x": BIG})
    partial_of(root, layer).write_bytes(content_of(BIG, layer)[:1000])
    mine = RecordingSource(memory)
    with (
        replaced_os() as system,
        open_layout(root).open_writer() as first,
        open_layout(root).open_writer() as second,
    ):
        system.after("open", lambda: first.write_blob(layer, memory), path=str(partial_of(root, layer)))
        second.write_blob(layer, mine)
    assert mine.opened == []
    assert blob(root, str(layer.digest)).stat().st_mode & 0o7777 == 0o444
    assert blob(root, str(layer.digest)).read_bytes() == content_of(BIG, layer)
    check_invariants(root)


def test_what_was_verified_as_it_came_is_not_read_again(root: Path) -> None:
    layer = layer_of(BIG)
    with replaced_os() as system, open_layout(root).open_writer() as writer:
        writer.write_blob(layer, memory_of({"x": BIG}))
        assert system.count("preadv", layer.digest.hex) == 0
        assert writer.has_blob(layer)
        assert system.count("preadv", layer.digest.hex) == 0


@pytest.mark.parametrize("kind", ["link", "folder", "FIFO"])
def test_S17_what_lies_in_the_place_of_an_unfinished_download_is_not_written_to(root: Path, kind: str) -> None:
    outside = root.parent / "outside"
    outside.write_bytes(b"precious")
    layer = layer_of(BIG)
    shared = partial_of(root, layer)
    if kind == "link":
        shared.symlink_to(outside)
    elif kind == "folder":
        shared.mkdir()
    else:
        os.mkfifo(shared)
    store = open_store(root)
    start = time.monotonic()
    with suppress(StoreError):
        store.import_image(memory_of({"big:1": BIG}), "big:1")
    open_store(root).prune()
    store.import_image(memory_of({"big:1": BIG}), "big:1")
    assert time.monotonic() - start < SOON_SECONDS
    assert outside.read_bytes() == b"precious"
    assert blob(root, str(layer.digest)).read_bytes() == content_of(BIG, layer)
    check_invariants(root)


def test_who_waits_goes_on_from_what_a_process_that_died_has_left(root: Path) -> None:
    layer = layer_of(BIG)
    memory = memory_of({"x": BIG})
    mine = RecordingSource(memory)

    def work(ready: Callable[[], None]) -> None:
        def stop() -> None:
            ready()
            sleep_for_ever()

        with open_layout(root).open_writer() as writer:
            writer.write_blob(layer, GatedSource(memory, 100_000, stop))

    with forked(work) as pid, open_layout(root).open_writer() as writer:
        with thread(lambda: writer.write_blob(layer, mine)):
            time.sleep(0.15)
            assert mine.opened == []
            kill(pid)
        assert mine.opened == [(layer.digest, 100_000)]
        assert read_all(writer, layer) == content_of(BIG, layer)
    assert prune(root) == 1
    check_invariants(root)


@pytest.mark.parametrize("after_bytes", [1, 100_000, 307_199])
def test_a_pull_that_was_cut_is_gone_on_with_from_its_last_byte(root: Path, after_bytes: int) -> None:
    layer = layer_of(BIG)
    memory = memory_of({"big:1": BIG})
    with (
        pytest.raises(RegistryError, match="cut"),
        open_layout(root).open_writer() as writer,
    ):
        writer.write_blob(layer, BreakingSource(memory, [layer.digest], CUT, after_bytes=after_bytes))
    assert partial_of(root, layer).read_bytes() == content_of(BIG, layer)[:after_bytes]
    check_invariants(root)
    again = RecordingSource(memory)
    with open_layout(root).open_writer() as writer:
        writer.write_blob(layer, again)
    assert again.opened == [(layer.digest, after_bytes)]
    assert blob(root, str(layer.digest)).read_bytes() == content_of(BIG, layer)


def test_a_download_that_was_whole_but_not_yet_published_is_verified_and_asked_for_no_more(root: Path) -> None:
    layer = layer_of(BIG)
    partial_of(root, layer).write_bytes(content_of(BIG, layer))
    source = RecordingSource(memory_of({"x": BIG}))
    with open_layout(root).open_writer() as writer:
        writer.write_blob(layer, source)
    assert source.opened == []
    assert blob(root, str(layer.digest)).read_bytes() == content_of(BIG, layer)


def test_a_cut_before_the_first_byte_leaves_no_partial(root: Path) -> None:
    layer = layer_of(BIG)
    with pytest.raises(RegistryError), open_layout(root).open_writer() as writer:
        writer.write_blob(layer, BreakingSource(memory_of({"x": BIG}), [layer.digest], CUT))
    assert not partial_of(root, layer).exists()


def test_a_copy_of_its_own_is_fetched_when_the_holder_does_not_get_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "_STALLED_SECONDS", 0.2)
    layer, gate = layer_of(BIG), Gate()
    memory = memory_of({"x": BIG})
    mine = RecordingSource(memory)
    with open_layout(root).open_writer() as first, open_layout(root).open_writer() as second:
        with thread(lambda: first.write_blob(layer, GatedSource(memory, 100_000, gate))):
            gate.wait()
            second.write_blob(layer, mine)
            assert mine.opened == [(layer.digest, 0)]
            assert blob(root, str(layer.digest)).read_bytes() == content_of(BIG, layer)
            assert partial_of(root, layer).stat().st_size == 100_000
            gate.open()
        assert read_all(first, layer) == read_all(second, layer) == content_of(BIG, layer)
    assert not partial_of(root, layer).exists()
    check_invariants(root)


def test_a_copy_of_its_own_is_fetched_when_the_holder_is_slow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partials, "_SLOW_SECONDS", 0.3)
    layer = layer_of(BIG)
    memory = memory_of({"x": BIG})
    mine, stop = RecordingSource(memory), threading.Event()

    class Slow:
        def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
            return _SlowStream(memory.open_blob(descriptor, offset), stop)

    with open_layout(root).open_writer() as first, open_layout(root).open_writer() as second:
        with thread(lambda: first.write_blob(layer, Slow())):
            wait_until(lambda: partial_of(root, layer).exists() and partial_of(root, layer).stat().st_size > 0)
            start = time.monotonic()
            second.write_blob(layer, mine)
            assert mine.opened == [(layer.digest, 0)]
            assert time.monotonic() - start >= 0.3
            stop.set()
        assert read_all(first, layer) == content_of(BIG, layer)
    check_invariants(root)


class _SlowStream:
    """Gives a hundred bytes at a time, with a pause, until it is told to hurry."""

    def __init__(self, stream: BlobStream, hurry: threading.Event) -> None:
        self._stream = stream
        self._hurry = hurry

    def readinto(self, buffer: memoryview, /) -> int:
        if self._hurry.is_set():
            return self._stream.readinto(buffer)
        self._hurry.wait(0.01)
        return self._stream.readinto(buffer[:100])

    def close(self) -> None:
        self._stream.close()


def test_a_holder_that_gets_on_well_is_waited_for_however_long_it_takes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "_SLOW_SECONDS", 0.1)
    monkeypatch.setattr(partials, "_SLOW_BYTES", 1)
    layer = layer_of(BIG)
    memory = memory_of({"x": BIG})
    mine, stop = RecordingSource(memory), threading.Event()

    class Steady:
        def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
            return _SlowStream(memory.open_blob(descriptor, offset), stop)

    with (
        open_layout(root).open_writer() as first,
        open_layout(root).open_writer() as second,
        thread(lambda: first.write_blob(layer, Steady())),
        ExitStack() as stack,
    ):
        wait_until(lambda: partial_of(root, layer).exists() and partial_of(root, layer).stat().st_size > 0)
        stack.enter_context(thread(lambda: second.write_blob(layer, mine)))
        time.sleep(0.5)
        assert partial_of(root, layer).exists()
        stop.set()
    assert mine.opened == []
    check_invariants(root)


def test_a_partial_with_a_wrong_beginning_is_dropped_and_fetched_once_from_its_start(root: Path) -> None:
    layer = layer_of(BIG)
    partial_of(root, layer).write_bytes(b"x" * 1000)
    source = RecordingSource(memory_of({"x": BIG}))
    with open_layout(root).open_writer() as writer:
        writer.write_blob(layer, source)
    assert source.opened == [(layer.digest, 1000), (layer.digest, 0)]
    assert blob(root, str(layer.digest)).read_bytes() == content_of(BIG, layer)
    assert not partial_of(root, layer).exists()


def test_a_wrong_beginning_is_gone_when_the_second_try_is_cut_too(root: Path) -> None:
    layer = layer_of(BIG)
    memory = memory_of({"x": BIG})
    partial_of(root, layer).write_bytes(b"x" * 200_000)

    class CutTheSecondTime:
        def __init__(self) -> None:
            self.offsets: list[int] = []

        def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
            self.offsets.append(offset)
            source = BreakingSource(memory, [layer.digest], CUT, after_bytes=1000)
            return (memory if offset else source).open_blob(descriptor, offset)

    source = CutTheSecondTime()
    with pytest.raises(RegistryError, match="cut"), open_layout(root).open_writer() as writer:
        writer.write_blob(layer, source)
    assert source.offsets == [200_000, 0]
    assert partial_of(root, layer).read_bytes() == content_of(BIG, layer)[:1000]


@pytest.mark.parametrize("had_bytes", [0, 1000])
def test_a_source_that_lies_is_asked_at_most_once_more_and_nothing_is_kept_of_it(root: Path, had_bytes: int) -> None:
    layer = layer_of(BIG)
    content = content_of(BIG, layer)
    partial_of(root, layer).write_bytes(content[:had_bytes]) if had_bytes else None
    source = RecordingSource(LyingSource(memory_of({"x": BIG}), {layer.digest: bytes(len(content))}))
    with pytest.raises(ContentMismatch, match=str(layer.digest)), open_layout(root).open_writer() as writer:
        writer.write_blob(layer, source)
    assert [offset for _, offset in source.opened] == ([0] if not had_bytes else [1000, 0])
    assert not partial_of(root, layer).exists()
    assert not blob(root, str(layer.digest)).exists()
    check_invariants(root)


@pytest.mark.parametrize("extra", ["too long", "another name"])
def test_a_partial_that_cannot_be_the_beginning_is_left_alone(root: Path, extra: str) -> None:
    layer = layer_of(BIG)
    content = content_of(BIG, layer)
    if extra == "too long":
        partial_of(root, layer).write_bytes(content + b"x")
    else:
        (root.parent / "somebody's").write_bytes(content[:10])
        os.link(root.parent / "somebody's", partial_of(root, layer))
    partial_of(root, layer).chmod(0o640)
    before = partial_of(root, layer).read_bytes()
    source = RecordingSource(memory_of({"x": BIG}))
    with open_layout(root).open_writer() as writer:
        writer.write_blob(layer, source)
    assert source.opened == [(layer.digest, 0)]
    assert partial_of(root, layer).read_bytes() == before
    if extra != "too long":
        assert (root.parent / "somebody's").stat().st_mode & 0o7777 == 0o640
    assert blob(root, str(layer.digest)).read_bytes() == content


def test_bytes_are_written_to_no_partial_that_has_lost_its_name(root: Path) -> None:
    layer = layer_of(BIG)
    shared = partial_of(root, layer)
    shared.write_bytes(content_of(BIG, layer)[:1000])
    aside = root.parent / "aside"
    with replaced_os() as system, open_layout(root).open_writer() as writer:
        # Somebody finishes it between our opening and our locking.
        system.after("open", lambda: shared.rename(aside), path=str(shared))
        source = RecordingSource(memory_of({"x": BIG}))
        writer.write_blob(layer, source)
    assert aside.read_bytes() == content_of(BIG, layer)[:1000]
    assert source.opened == [(layer.digest, 0)]
    assert blob(root, str(layer.digest)).read_bytes() == content_of(BIG, layer)


@pytest.mark.parametrize("instead", ["nothing", "other bytes"])
def test_what_was_verified_is_what_is_kept_though_its_name_was_taken_from_it(root: Path, instead: str) -> None:
    layer, gate = layer_of(BIG), Gate()
    memory = memory_of({"x": BIG})
    shared = partial_of(root, layer)
    with open_layout(root).open_writer() as writer:
        with thread(lambda: writer.write_blob(layer, GatedSource(memory, 1000, gate))):
            gate.wait()
            shared.unlink()
            if instead != "nothing":
                shared.write_bytes(bytes(layer.size_bytes))
            gate.open()
        assert read_all(writer, layer) == content_of(BIG, layer)
    assert blob(root, str(layer.digest)).read_bytes() == content_of(BIG, layer)
    check_invariants(root)


def test_a_partial_is_at_every_moment_the_beginning_of_its_blob(root: Path) -> None:
    layer, stop = layer_of(BIG), threading.Event()
    memory = memory_of({"x": BIG})
    content = content_of(BIG, layer)

    class Steady:
        def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
            return _SlowStream(memory.open_blob(descriptor, offset), stop)

    seen = set()
    with open_layout(root).open_writer() as writer, thread(lambda: writer.write_blob(layer, Steady())):
        wait_until(partial_of(root, layer).exists)
        for _ in range(40):
            found = partial_of(root, layer).read_bytes()
            assert content.startswith(found)
            seen.add(len(found))
            time.sleep(0.005)
        stop.set()
    assert len(seen) > 3


def test_two_threads_of_one_transaction_fetch_a_blob_once(root: Path) -> None:
    layer, gate = layer_of(BIG), Gate()
    memory = memory_of({"x": BIG})
    mine = RecordingSource(memory)
    with open_layout(root).open_writer() as writer:
        with thread(lambda: writer.write_blob(layer, GatedSource(memory, 1000, gate))):
            gate.wait()
            with thread(lambda: writer.write_blob(layer, mine)):
                time.sleep(0.1)
                gate.open()
        assert mine.opened == []
    check_invariants(root)


def test_two_threads_of_one_transaction_that_cannot_wait_do_not_spoil_each_others_copy(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "_STALLED_SECONDS", 0.0)
    layer = layer_of(BIG)
    memory = memory_of({"x": BIG})
    gates = [Gate(), Gate(), Gate()]
    with open_layout(root).open_writer() as writer, ExitStack() as stack:
        for gate in gates:
            source = GatedSource(memory, 1000, gate)
            stack.enter_context(thread(partial(writer.write_blob, layer, source)))
            gate.wait()
        for gate in gates[1:]:
            gate.open()
        gates[0].open()
        stack.close()
        assert read_all(writer, layer) == content_of(BIG, layer)
    assert blob(root, str(layer.digest)).read_bytes() == content_of(BIG, layer)
    check_invariants(root)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_gets_back_the_room_of_an_unfinished_download(root: Path, number: int) -> None:
    layer = layer_of(BIG)
    with replaced_os() as system:
        system.fail("write", number, path="/partial/", skip=1)
        source = LyingSource(memory_of({"x": BIG}), {layer.digest: content_of(BIG, layer)}, step_bytes=65536)
        with pytest.raises(OSError, match=os.strerror(number)), open_layout(root).open_writer() as writer:
            writer.write_blob(layer, source)
    assert not partial_of(root, layer).exists()
    check_invariants(root)


@pytest.mark.parametrize("steps", [0, 3])
def test_another_error_of_the_disk_keeps_what_has_come(root: Path, steps: int) -> None:
    layer = layer_of(BIG)
    with replaced_os() as system:
        system.fail("write", errno.EIO, path="/partial/", skip=steps)
        source = LyingSource(memory_of({"x": BIG}), {layer.digest: content_of(BIG, layer)}, step_bytes=65536)
        with pytest.raises(OSError, match=r"[Ii]nput/output"), open_layout(root).open_writer() as writer:
            writer.write_blob(layer, source)
    assert partial_of(root, layer).read_bytes() == content_of(BIG, layer)[: steps * 65536]
    check_invariants(root)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_unfinished_download_that_the_disk_may_have_lost_is_not_gone_on_with(root: Path, number: int) -> None:
    layer = layer_of(BIG)
    with replaced_os() as system:
        system.fail("fsync", number, path="/partial/")
        with pytest.raises(OSError, match=os.strerror(number)), Layout(root).open_writer() as writer:
            writer.write_blob(layer, memory_of({"x": BIG}))
    assert not partial_of(root, layer).exists()
    check_invariants(root)


def test_what_the_disk_does_not_give_back_of_an_unfinished_download_is_fetched_again(root: Path) -> None:
    layer = layer_of(BIG)
    partial_of(root, layer).write_bytes(content_of(BIG, layer)[:1000])
    with failing_system() as system, open_layout(root).open_writer() as writer:
        system.fail_from(lambda call: call.name == "preadv", errno.EIO, skip=0)
        writer.write_blob(layer, memory_of({"x": BIG}))
    assert len(system.failed) == 1
    assert blob(root, str(layer.digest)).read_bytes() == content_of(BIG, layer)
    assert not partial_of(root, layer).exists()
    check_invariants(root)


def test_what_has_taken_the_place_of_a_download_that_the_disk_may_have_lost_is_left_alone(root: Path) -> None:
    layer = layer_of(BIG)

    def lose_it() -> None:
        partial_of(root, layer).unlink()
        partial_of(root, layer).write_bytes(content_of(BIG, layer)[:10])
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with replaced_os() as system:
        system.before("fsync", lose_it, path="/partial/")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)), Layout(root).open_writer() as writer:
            writer.write_blob(layer, memory_of({"x": BIG}))
    assert partial_of(root, layer).read_bytes() == content_of(BIG, layer)[:10]


def test_of_a_disk_that_loses_a_download_and_does_not_let_it_go_the_first_error_is_told(root: Path) -> None:
    layer = layer_of(BIG)
    with replaced_os() as system:
        system.fail("fsync", errno.EIO, path="/partial/")
        system.fail("unlink", errno.EROFS, path="/partial/")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)), Layout(root).open_writer() as writer:
            writer.write_blob(layer, memory_of({"x": BIG}))


def test_an_unfinished_download_that_cannot_be_read_now_is_kept(root: Path) -> None:
    layer = layer_of(BIG)
    partial_of(root, layer).write_bytes(content_of(BIG, layer)[:1000])
    with replaced_os() as system:
        system.fail("preadv", errno.ENOMEM, path="/partial/")
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)), open_layout(root).open_writer() as writer:
            writer.write_blob(layer, memory_of({"x": BIG}))
    assert partial_of(root, layer).read_bytes() == content_of(BIG, layer)[:1000]


def test_a_large_unfinished_download_is_verified_in_steps(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partials, "_STEP_BYTES", 300)
    layer = layer_of(BIG)
    partial_of(root, layer).write_bytes(content_of(BIG, layer)[:1000])
    source = RecordingSource(memory_of({"x": BIG}))
    with open_layout(root).open_writer() as writer:
        writer.write_blob(layer, source)
    assert source.opened == [(layer.digest, 1000)]


def test_a_cancel_does_not_wait_for_a_large_unfinished_download_to_be_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "_STEP_BYTES", 300)
    layer, cancellation = layer_of(BIG), Cancellation()
    partial_of(root, layer).write_bytes(content_of(BIG, layer)[:1000])
    with replaced_os() as system:
        system.before("preadv", cancellation.cancel, path="/partial/")
        with pytest.raises(Cancelled):
            copy_image(memory_of({"x": BIG}), open_layout(root), root_of(BIG), ["x"], cancellation=cancellation)
        assert system.count("preadv", "/partial/") == 1
    assert partial_of(root, layer).read_bytes() == content_of(BIG, layer)[:1000]


def test_a_prune_takes_a_partial_that_nobody_writes_and_leaves_one_that_somebody_does(root: Path) -> None:
    layer, gate = layer_of(BIG), Gate()
    partial_of(root, layer_of(IMAGE)).write_bytes(b"half")
    with open_layout(root).open_writer() as writer:
        with thread(lambda: writer.write_blob(layer, GatedSource(memory_of({"x": BIG}), 1000, gate))):
            gate.wait()
            report = open_store(root).prune()
            assert [(each.kind, each.size_bytes) for each in report.removed] == [("partial", 4)]
            assert partial_of(root, layer).stat().st_size == 1000
            gate.open()
        assert writer.has_blob(layer)
    check_invariants(root)


def test_a_prune_does_not_count_an_unfinished_download_that_was_finished_before_its_turn(root: Path) -> None:
    layer = layer_of(BIG)
    partial_of(root, layer).write_bytes(content_of(BIG, layer)[:1000])
    with open_layout(root).open_writer() as writer, replaced_os() as system:
        finish = lambda: writer.write_blob(layer, memory_of({"x": BIG}))  # noqa: E731
        system.before("open", finish, path=str(partial_of(root, layer)))
        report = open_store(root).prune()
    assert report.removed == ()
    assert not partial_of(root, layer).exists()
    check_invariants(root)


# Wrong blobs


def test_of_two_that_replace_the_same_wrong_blob_the_second_leaves_the_good_one(root: Path) -> None:
    put(root, IMAGE, "image:1")
    manifest = root_of(IMAGE)
    rot(blob(root, IMAGE.digest))
    wrong = blob(root, IMAGE.digest).read_bytes()
    memory = memory_of({"x": IMAGE})
    with open_layout(root).open_writer() as first, open_layout(root).open_writer() as second:
        assert not first.has_blob(manifest)
        assert not second.has_blob(manifest)
        first.write_blob(manifest, memory)
        good = blob(root, IMAGE.digest).stat().st_ino
        second.write_blob(manifest, memory)
        assert blob(root, IMAGE.digest).stat().st_ino == good
    assert [path.read_bytes() for path in (root / "quarantine").iterdir()] == [wrong]
    check_invariants(root)


def test_who_dies_while_it_replaces_a_wrong_blob_loses_no_good_one(root: Path) -> None:
    put(root, IMAGE, "image:1")
    rot(blob(root, IMAGE.digest))

    def work() -> None:
        with open_layout(root).open_writer() as second:
            assert not second.has_blob(root_of(IMAGE))
            copy_into(open_layout(root), IMAGE, "image:1")
            with replaced_os() as system:
                system.after("replace", lambda: os._exit(DIED), path="/quarantine/")
                second.write_blob(root_of(IMAGE), memory_of({"x": IMAGE}))

    assert run_forked(work) in (0, DIED)
    check_invariants(root, leftovers=True)


def test_a_wrong_blob_is_replaced_in_one_step(root: Path) -> None:
    put(root, IMAGE, "image:1")
    layer = layer_of(IMAGE)
    path = blob(root, str(layer.digest))
    path.chmod(0o644)
    path.write_bytes(b"short")
    missing: list[bool] = []
    with replaced_os() as system:
        system.after("replace", lambda: missing.append(not path.exists()), path=path.name, times=9)
        copy_into(open_layout(root), IMAGE, "image:1")
    assert path.read_bytes() == content_of(IMAGE, layer)
    assert not any(missing), "for a moment the name led nowhere"


def test_no_image_is_named_whose_blob_is_wrong_again_as_soon_as_the_wrong_one_is_set_aside(root: Path) -> None:
    put(root, IMAGE, "image:1")
    path = blob(root, IMAGE.digest)
    path.unlink()
    path.mkdir()  # a folder has no second name: for a moment nothing is in its place
    with replaced_os() as system:
        system.after("replace", path.mkdir, target="/quarantine/", times=9)
        with pytest.raises(BlobNotFound):
            copy_into(open_layout(root), IMAGE, "new:1")
    assert "new:1" not in read_names(root)


# Load


@pytest.mark.parametrize("harm", ["wrong bytes", "lacking", "no meta", "bad name", "cut", "unknown member"])
def test_a_load_that_fails_leaves_nothing(root: Path, harm: str) -> None:
    image = IMAGE.corrupted(IMAGE.layer_digests[1]) if harm == "wrong bytes" else IMAGE
    members = members_of(image, "a//b" if harm == "bad name" else "image:1")
    if harm == "lacking":
        members = members[:-1]
    elif harm == "no meta":
        members = members[1:]
    elif harm == "unknown member":
        members.append(("etc/passwd", b"x"))
    content = pack(members)
    (root.parent / "a.tar").write_bytes(content[: len(content) // 2] if harm == "cut" else content)
    before = snapshot(root)
    with pytest.raises(InvalidArchive):
        open_store(root).load(root.parent / "a.tar")
    assert snapshot(root) == before
    check_invariants(root)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("name", "path"),
    [("copy_file_range", "/ingest/"), ("fsync", "/ingest/"), ("open", "store/."), ("write", "store/.")],
)
def test_a_load_that_finds_the_disk_full_leaves_nothing(root: Path, name: str, path: str, number: int) -> None:
    (root.parent / "a.tar").write_bytes(pack(members_of(IMAGE, "image:1")))
    open_store(root).info()
    before = snapshot(root)
    with replaced_os() as system:
        system.fail(name, number, path=path)
        with pytest.raises(StoreFull, match="no space left"):
            Store(root).load(root.parent / "a.tar")
    assert snapshot(root) == before
    check_invariants(root)


def test_a_blob_that_an_archive_holds_and_its_image_does_not_reach_goes_with_the_transaction(root: Path) -> None:
    extra = members_of(OTHER, "x:1")[1:]
    (root.parent / "a.tar").write_bytes(pack([*members_of(IMAGE, "image:1"), *extra]))
    before = stored(root)
    open_store(root).load(root.parent / "a.tar")
    assert stored(root) == before | set(IMAGE.blobs)
    check_invariants(root)


@pytest.mark.parametrize("processes", [8])
def test_many_processes_make_one_store_at_once(tmp_path: Path, processes: int) -> None:
    folder = tmp_path / "new"
    images = [build_image(salt=str(number)) for number in range(processes)]

    def work(number: int) -> None:
        put(folder, images[number], f"image:{number}")
        open_store(folder).prune()

    with ThreadPoolExecutor(processes) as pool:
        ended = list(pool.map(lambda number: run_forked(partial(work, number)), range(processes)))
    assert ended == [0] * processes
    assert read_names(folder) == {f"image:{number}": image.digest for number, image in enumerate(images)}
    check_invariants(folder)


# Readers


def test_a_save_has_all_blobs_open_before_its_first_byte_and_survives_a_removal_and_a_prune(root: Path) -> None:
    put(root, IMAGE, "image:1")

    def take_away() -> None:
        open_store(root).remove("image:1")
        assert prune(root) == len(IMAGE.blobs)

    with replaced_os() as system:
        system.before("write", take_away, path=f"{root.parent}/#")  # as a file is told that has no name yet
        image = open_store(root).save("image:1", root.parent / "a.tar")
    assert read_archive((root.parent / "a.tar").read_bytes()) == ("image:1", IMAGE.digest, IMAGE.blobs)
    assert not stored(root) & set(IMAGE.blobs)
    assert (image.name, image.damaged, image.layers) == ("image:1", False, 2)


def test_an_opened_image_needs_no_right_to_write_and_no_lock(root: Path) -> None:
    put(root, IMAGE, "image:1")
    with replaced_os() as system, opening_image(open_layout(root), "image:1") as image:
        assert system.changes == []
        assert held_locks(root) == []
        assert read_all(image, layer_of(IMAGE)) == content_of(IMAGE, layer_of(IMAGE))
        with pytest.raises(BlobNotFound):
            image.open_blob(layer_of(OTHER))


def test_who_finds_a_blob_missing_reads_the_index_again_and_follows_the_name(root: Path) -> None:
    put(root, IMAGE, "image:1")
    put(root, OTHER, "other:1")

    def move() -> None:
        open_store(root).tag("other:1", "image:1")
        assert prune(root) == len(IMAGE.blobs)

    with replaced_os() as system:
        system.before("open", move, path=layer_of(IMAGE).digest.hex)
        open_store(root).save("image:1", root.parent / "a.tar")
    assert read_archive((root.parent / "a.tar").read_bytes()) == ("image:1", OTHER.digest, OTHER.blobs)


def test_who_finds_a_blob_missing_because_its_name_is_gone_says_so(root: Path) -> None:
    put(root, IMAGE, "image:1")

    def take_away() -> None:
        open_store(root).remove("image:1")
        prune(root)

    with replaced_os() as system:
        system.before("open", take_away, path=layer_of(IMAGE).digest.hex)
        with pytest.raises(ImageNotFound, match="image:1"):
            open_store(root).save("image:1", root.parent / "a.tar")
    assert open_files(root) == []


def test_a_blob_that_is_missing_indeed_makes_the_image_incomplete(root: Path) -> None:
    put(root, IMAGE, "image:1")
    for digest in IMAGE.layer_digests:
        blob(root, digest).unlink()
    with pytest.raises(IncompleteImage) as caught:
        open_store(root).save("image:1", root.parent / "a.tar")
    assert caught.value.missing == tuple(IMAGE.layer_digests)
    assert caught.value.root == "image:1"


def test_an_image_that_went_and_came_back_while_it_was_opened_is_whole(root: Path) -> None:
    put(root, IMAGE, "image:1")
    layer = layer_of(IMAGE)
    aside = root.parent / "aside"
    with replaced_os() as system:
        system.before("open", lambda: blob(root, str(layer.digest)).rename(aside), path=layer.digest.hex)
        system.before("open", lambda: aside.rename(blob(root, str(layer.digest))), path="index.json", skip=1)
        open_store(root).save("image:1", root.parent / "a.tar")
    assert read_archive((root.parent / "a.tar").read_bytes())[2] == IMAGE.blobs


# Without hard links


@pytest.fixture
def linkless(root: Path) -> Iterator[OsProxy]:
    """A file system without hard links."""
    with replaced_os() as system:
        no_hard_links(system)
        yield system


def test_without_hard_links_the_store_says_so_and_everything_works(root: Path, linkless: OsProxy) -> None:
    store = open_store(root)
    assert store.info().hard_links is False
    put(root, build_index([IMAGE, build_image(platform="linux/arm64")]), "multi:1")
    put(root, IMAGE, "image:1")
    store.save("image:1", root.parent / "a.tar")
    store.remove("image:1")
    store.load(root.parent / "a.tar")
    put_dead(root, OTHER)
    assert prune(root) == len(OTHER.blobs)
    rot(blob(root, IMAGE.digest))
    put(root, IMAGE, "image:1")
    blob(root, IMAGE.layer_digests[0]).unlink()
    put(root, IMAGE, "image:1")
    blob(root, IMAGE.layer_digests[0]).unlink()
    store.load(root.parent / "a.tar")
    assert linkless.count("link", "/blobs/") == 0
    check_invariants(root)


def test_without_hard_links_two_transactions_live_at_once_and_a_prune_waits_for_both(
    root: Path, linkless: OsProxy
) -> None:
    put_dead(root, OTHER)
    with open_layout(root).open_writer() as first, open_layout(root).open_writer() as second:
        write_all(first, IMAGE)
        write_all(second, BIG)
        with pytest.raises(StoreBusy, match=rf"process {os.getpid()} holds .*life\.lock \(writing images\)") as caught:
            open_store(root, lock_timeout_seconds=0.05).prune()
        assert caught.value.holder_pid == os.getpid()
        assert stored(root) >= {*IMAGE.blobs, *BIG.blobs, *OTHER.blobs}
        first.write_name("image:1", root_of(IMAGE))
        second.write_name("big:1", root_of(BIG))
    assert prune(root) == len(OTHER.blobs)
    check_invariants(root)


def test_without_hard_links_a_prune_begins_once_the_last_transaction_has_ended(root: Path, linkless: OsProxy) -> None:
    put_dead(root, OTHER)
    with ExitStack() as stack:
        stack.enter_context(open_layout(root).open_writer())
        with thread(lambda: prune(root)):
            wait_until(lambda: locks.is_locked(str(root / "ingest" / "prune.lock")))
            time.sleep(0.05)
            assert stored(root) >= set(OTHER.blobs)
            stack.close()
    assert not stored(root) & set(OTHER.blobs)


def test_without_hard_links_a_transaction_waits_for_a_prune_and_is_told_of_it(root: Path, linkless: OsProxy) -> None:
    put_dead(root, OTHER)
    gate = linkless.block("unlink", path=f"{root}/blobs/")
    with thread(lambda: prune(root)):
        gate.wait()
        with (
            pytest.raises(StoreBusy, match=r"life\.lock \(collecting\)"),
            open_layout(root, lock_timeout_seconds=0.05).open_writer(),
        ):
            raise AssertionError("there is no transaction")
        gate.open()
    check_invariants(root)


def test_without_hard_links_a_process_that_dies_leaves_a_store_that_can_be_pruned(
    root: Path, linkless: OsProxy
) -> None:
    def work(ready: Callable[[], None]) -> None:
        with open_layout(root).open_writer() as writer:
            write_all(writer, IMAGE)
            ready()
            sleep_for_ever()

    with forked(work) as pid:
        with pytest.raises(StoreBusy, match=rf"process {pid} "):
            open_store(root, lock_timeout_seconds=0.05).prune()
        kill(pid)
        assert prune(root) == len(IMAGE.blobs)
    check_invariants(root)


# Locks


def test_two_threads_of_one_process_conflict_as_two_processes_do(root: Path) -> None:
    path = str(root / "ingest" / "store.lock")
    order: list[str] = []

    def take() -> None:
        with locks.holding_lock(path, doing="second", timeout_seconds=60):
            order.append("second")

    with locks.holding_lock(path, doing="first", timeout_seconds=1):
        with pytest.raises(StoreBusy, match=rf"process {os.getpid()} holds .*\(first\)"):
            locks.holding_lock(path, doing="third", timeout_seconds=0).__enter__()
        assert run_forked(lambda: _expect_busy(path)) == 0
        started = threading.Thread(target=take)
        started.start()
        time.sleep(0.05)
        order.append("first")
    started.join(60)
    assert order == ["first", "second"]


def _expect_busy(path: str) -> None:
    with (
        pytest.raises(StoreBusy, match="first"),
        locks.holding_lock(path, doing="other process", timeout_seconds=0.02),
    ):
        raise AssertionError("the lock was held twice")


def test_a_lock_whose_file_was_replaced_while_it_was_waited_for_is_taken_on_the_new_file(root: Path) -> None:
    path = root / "ingest" / "store.lock"
    entered = threading.Event()

    def wait() -> None:
        with locks.holding_lock(str(path), doing="waiting", timeout_seconds=60):
            entered.set()
            assert os.fstat(_descriptor_of(path)).st_ino == path.stat().st_ino

    with locks.holding_lock(str(path), doing="holding", timeout_seconds=1), thread(wait):
        time.sleep(0.05)
        assert not entered.is_set()
        path.rename(root.parent / "old.lock")
        path.write_bytes(b"")
        assert entered.wait(60)


def _descriptor_of(path: Path) -> int:
    links = {name: f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")}
    return next(int(name) for name, link in links.items() if os.path.exists(link) and os.readlink(link) == str(path))


def test_a_lock_on_a_file_that_has_lost_its_name_is_no_lock(root: Path) -> None:
    path = root / "ingest" / "some.lock"
    opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        path.unlink()
        assert not locks.try_lock(opened, str(path))
        path.write_bytes(b"")
        assert not locks.try_lock(opened, str(path))
        with locks.holding_lock(str(path), doing="x", timeout_seconds=0):
            assert not locks.try_lock(opened, str(path))
    finally:
        os.close(opened)
        path.unlink()


def test_the_note_of_a_lock_that_is_no_note_does_not_hide_that_it_is_held(root: Path) -> None:
    path = root / "ingest" / "store.lock"
    with locks.holding_lock(str(path), doing="x", timeout_seconds=0):
        for note in (b"", b"\xff\xfe", b"x y z", b"1", b"1 2", b"9" * 9000):
            path.write_bytes(note)
            with pytest.raises(StoreBusy, match="another process holds") as caught:
                locks.holding_lock(str(path), doing="y", timeout_seconds=0).__enter__()
            assert str(caught.value).isprintable()
            assert caught.value.holder_pid is None


def test_a_caller_waits_for_no_longer_than_it_said_though_others_wait_too(root: Path) -> None:
    with open_layout(root).store_lock("holding"), ExitStack() as stack:
        stack.enter_context(thread(lambda: _give_up(root, 4.0)))
        wait_until(lambda: locks.is_locked(str(root / "ingest" / "store.turn")))
        start = time.monotonic()
        with pytest.raises(StoreBusy, match=r"store\.lock \(holding\)"):
            open_store(root, lock_timeout_seconds=5.0).tag("always:1", "x:1")
        assert time.monotonic() - start < 8.5, "the time of both waits is one"


def _give_up(root: Path, seconds: float) -> None:
    with pytest.raises(StoreBusy):
        open_store(root, lock_timeout_seconds=seconds).tag("always:1", "y:1")


def test_digests_of_both_algorithms_are_pinned(root: Path) -> None:
    image = build_image(algorithm="sha512", salt="sha512")
    put_dead(root, image)
    with open_layout(root).open_writer() as writer:
        for digest in image.blobs:
            assert writer._pin(Digest.parse(digest)) == len(image.blobs[digest])
        assert prune(root) == 0
    assert prune(root) == len(image.blobs)


@pytest.mark.parametrize("how", ["a cancel", "a failure elsewhere"])
def test_a_large_layer_that_is_only_read_is_not_read_to_its_end_behind_a_copy_that_has_ended(
    root: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(contents, "_STEP_BYTES", 1 << 20)
    image = build_image([random_layer(8 << 20, salt="held"), random_layer(10240, salt="fails")])
    put(root, image, "app:1")
    held, failing = image.document()["layers"]
    blob(root, failing["digest"]).unlink()
    is_read, is_told, cancellation = threading.Event(), threading.Event(), Cancellation()
    interrupt_it = Transaction.interrupt

    def interrupt_and_note(transaction: Transaction) -> None:
        interrupt_it(transaction)
        is_told.set()

    monkeypatch.setattr(Transaction, "interrupt", interrupt_and_note)

    class Failing:
        def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
            if str(descriptor.digest) != failing["digest"]:
                return memory_of({"app": image}).open_blob(descriptor, offset)
            assert is_read.wait(15)
            raise BlobNotFound(str(descriptor.digest))

    def begin_to_read() -> None:
        is_read.set()
        if how == "a cancel":
            cancellation.cancel()
        assert is_told.wait(60)

    target = TransactionTarget(open_layout(root), verify_content=True)
    with replaced_os() as system:
        system.before("preadv", begin_to_read, path=held["digest"].replace(":", "-"))
        with pytest.raises(Cancelled if how == "a cancel" else BlobNotFound):
            copy_image(Failing(), target, root_of(image), ["app:2"], cancellation=cancellation)
        assert system.count("preadv", held["digest"].replace(":", "-")) <= 2
    assert set(read_names(root)) == {"always:1", "app:1"}


def test_an_interrupt_as_a_transaction_is_cleared_away_leaves_no_lock_that_keeps_it(root: Path) -> None:
    layer = layer_of(BIG)
    with replaced_os() as system:
        system.before("unlink", interrupt, path=layer.digest.hex)
        with pytest.raises(KeyboardInterrupt), open_layout(root).open_writer() as writer:
            writer.stage_blob(memory_of({"x": BIG}).open_blob(layer), layer.size_bytes)
    assert held_locks(root) == []
    open_store(root).prune()
    assert find_leftovers(root) == []


def interrupt() -> None:
    raise KeyboardInterrupt
