"""Who was told that a blob is in a repository may name it in a manifest, whatever others push, delete and prune."""

import errno
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import BlobNotFound, Descriptor, Digest, Limits, LocalRepository, StillNeeded, Store
from minibox_store._locks import holding_lock
from minibox_store.layout.pushed import PinnedBlobs
from tests.support.images import OCI_INDEX, OCI_MANIFEST, build_image, build_index, random_layer
from tests.support.invariants import check_invariants, stored
from tests.support.os_proxy import Gate, replaced_os
from tests.support.pushes import DAY_SECONDS, HOUR_SECONDS, make_old, manifest_over, pins_in, push_blob, push_image
from tests.support.stores import blob, mounted, open_layout, open_store, put, remount, require_root
from tests.support.trials import trial_count

CONTENT = b"what several clients push"
DIGEST = Digest.of(CONTENT)
ABSENT = Digest.parse("sha256:" + "0" * 64)
MINUTE_SECONDS = 60.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def first(root: Path) -> LocalRepository:
    return open_store(root).repository("team/app")


@pytest.fixture
def second(root: Path) -> LocalRepository:
    """The same repository, for another client in another process."""
    return open_store(root).repository("team/app")


def manifest_of(repository: LocalRepository, salt: str) -> bytes:
    """Push a config of its own, and return a manifest that needs it and the blob that all of these need."""
    config = push_blob(repository, b'{"salt": "%s"}' % salt.encode())
    layer = Descriptor(media_type="application/octet-stream", digest=DIGEST, size_bytes=len(CONTENT))
    return manifest_over(layer, config=config)


def put_and_delete(repository: LocalRepository, salt: str) -> None:
    """Push a manifest that needs the blob, and delete it; all that is its alone goes with the next prune."""
    pushed = repository.put_manifest(manifest_of(repository, salt), OCI_MANIFEST, tag=salt)
    repository.delete_manifest(pushed.descriptor.digest)


def prune(root: Path) -> set[str]:
    """Collect, and return what stays."""
    report = open_store(root).prune()
    assert report.errors == ()
    return stored(root)


def asked_in(root: Path) -> list[Path]:
    return [path for path in pins_in(root) if path.name.endswith(".asked")]


# ---- what was pushed


@pytest.mark.parametrize("how", ["an upload", "a mount"])
def test_what_two_have_pushed_stays_for_the_second_though_the_first_used_its_own_and_it_was_deleted(
    root: Path, first: LocalRepository, second: LocalRepository, how: str
) -> None:
    push_blob(first, CONTENT)
    if how == "an upload":
        push_blob(second, CONTENT)
    else:
        other = open_store(root).repository("team/other")
        push_blob(other, CONTENT)
        second.mount_blob(DIGEST, other)
        other.delete_blob(DIGEST)
    put_and_delete(first, "first")
    assert prune(root) == {str(DIGEST)}
    put_and_delete(second, "second")
    assert prune(root) == set()
    assert pins_in(root) == []


def test_a_further_tag_takes_nothing_from_who_has_pushed(
    root: Path, first: LocalRepository, second: LocalRepository
) -> None:
    push_blob(first, CONTENT)
    manifest = manifest_of(first, "first")
    digest = first.put_manifest(manifest, OCI_MANIFEST, tag="1").descriptor.digest
    push_blob(second, CONTENT)
    first.put_manifest(manifest, OCI_MANIFEST, tag="2")
    first.put_manifest(manifest, OCI_MANIFEST, digest=digest)
    first.delete_manifest(digest)
    assert prune(root) == {str(DIGEST)}
    put_and_delete(second, "second")
    assert prune(root) == set()


def test_a_manifest_that_an_index_brought_is_no_new_one(
    root: Path, first: LocalRepository, second: LocalRepository
) -> None:
    image = build_image()
    index = build_index([image])
    push_image(first, index, "1")
    layer = image.layer_digests[0]
    push_blob(second, image.blobs[layer])
    first.put_manifest(image.blobs[image.digest], OCI_MANIFEST, tag="2")
    assert [path.name for path in pins_in(root)] == [layer.replace(":", "-")]


def test_a_manifest_that_was_deleted_with_its_blobs_meanwhile_takes_nothing_from_who_pushes_them_again(
    root: Path, first: LocalRepository, second: LocalRepository
) -> None:
    push_blob(first, CONTENT)
    manifest = manifest_of(first, "first")

    def push_again() -> None:  # the manifest is named, and has taken no line yet
        second.delete_tag("1")
        second.delete_blob(DIGEST)
        push_blob(second, CONTENT)

    with replaced_os() as system:
        system.after("rmdir", push_again, path="ingest")
        first.put_manifest(manifest, OCI_MANIFEST, tag="1")
    assert str(DIGEST) in prune(root)


def test_a_manifest_takes_of_each_blob_one_line_however_often_it_names_it(root: Path, first: LocalRepository) -> None:
    for _ in range(3):
        layer = push_blob(first, CONTENT)
    config = push_blob(first, b"{}")
    first.put_manifest(manifest_over(layer, layer, config=config), OCI_MANIFEST, tag="1")
    [pin] = pins_in(root)
    assert pin.read_text() == "team/app\n" * 2


def test_a_line_that_was_not_written_to_its_end_is_one_line(root: Path, first: LocalRepository) -> None:
    push_blob(first, CONTENT)
    [pin] = pins_in(root)
    pin.write_text("team/app\nteam")
    put_and_delete(first, "first")
    assert pin.read_text() == "team/app\n"
    put_and_delete(first, "second")
    assert pins_in(root) == []


def test_an_index_takes_what_pinned_the_manifests_that_came_as_blobs(root: Path, first: LocalRepository) -> None:
    image = build_image()
    index = build_index([image])
    for content in image.blobs.values():
        push_blob(first, content)
    first.put_manifest(index.blobs[index.digest], OCI_INDEX, tag="1")
    assert {path.name for path in pins_in(root)} == {
        each.replace(":", "-") for each in (image.config_digest, *image.layer_digests)
    }


# ---- what was asked for


@pytest.mark.parametrize("when", ["before the other's manifest", "behind it"])
def test_who_was_told_that_a_blob_is_there_finds_it_again(
    root: Path, first: LocalRepository, second: LocalRepository, when: str
) -> None:
    push_blob(first, CONTENT)
    if when == "before the other's manifest":
        assert second.hold_blob(DIGEST).size_bytes == len(CONTENT)
        put_and_delete(first, "first")
    else:
        pushed = first.put_manifest(manifest_of(first, "first"), OCI_MANIFEST, tag="1")
        assert second.hold_blob(DIGEST).size_bytes == len(CONTENT)
        first.delete_manifest(pushed.descriptor.digest)
    assert prune(root) == {str(DIGEST)}
    kept = second.put_manifest(manifest_of(second, "second"), OCI_MANIFEST, tag="2")
    make_old(*pins_in(root))
    assert len(prune(root)) == 3
    second.delete_manifest(kept.descriptor.digest)
    assert prune(root) == set()
    assert pins_in(root) == []
    check_invariants(root)


def test_what_was_asked_for_goes_an_hour_after_the_last_push(root: Path, first: LocalRepository) -> None:
    push_blob(first, CONTENT)
    first.hold_blob(DIGEST)
    upload = first.begin_upload()
    put_and_delete(first, "first")
    [asked] = asked_in(root)
    make_old(asked, seconds=HOUR_SECONDS + MINUTE_SECONDS)
    assert prune(root) == {str(DIGEST)}  # somebody is sending another blob
    [path] = (root / "ingest" / "uploads").iterdir()
    make_old(path, seconds=HOUR_SECONDS - MINUTE_SECONDS)
    assert prune(root) == {str(DIGEST)}
    make_old(path, seconds=2 * MINUTE_SECONDS)
    planned = open_store(root).prune(dry_run=True)
    assert prune(root) == set()
    assert [each.kind for each in planned.removed] == ["pin", "blob"]
    assert (pins_in(root), first.upload(upload.id)) == ([], upload)


def test_what_was_asked_for_lasts_while_blobs_come_and_never_longer_than_a_day(
    root: Path, first: LocalRepository
) -> None:
    push_blob(first, CONTENT)
    first.hold_blob(DIGEST)
    put_and_delete(first, "first")
    other = push_blob(first, b"another")
    push_blob(open_store(root).repository("team/other"), b"elsewhere")
    [asked] = asked_in(root)
    make_old(asked, seconds=HOUR_SECONDS + MINUTE_SECONDS)
    assert str(DIGEST) in prune(root)
    make_old(asked, seconds=23 * HOUR_SECONDS)
    assert str(DIGEST) not in prune(root)
    assert str(other.digest) in stored(root)


@pytest.mark.parametrize("what", ["a push", "a question", "an upload"])
def test_what_came_while_the_clock_was_ahead_begins_to_age_at_the_next_collection(
    what: str, root: Path, first: LocalRepository
) -> None:
    push_blob(first, CONTENT)
    if what != "a push":
        first.hold_blob(DIGEST)
        put_and_delete(first, "first")  # which takes the line that the push has left
        assert prune(root) == {str(DIGEST)}
    if what == "an upload":
        first.begin_upload()
    ahead = [*(root / "ingest" / "uploads").iterdir(), *pins_in(root)]
    make_old(*ahead, seconds=-400 * 24 * HOUR_SECONDS)
    assert all(path.stat().st_mtime > time.time() for path in ahead)
    planned = open_store(root).prune(dry_run=True)
    assert (planned.removed, prune(root)) == ((), {str(DIGEST)})
    assert not any(path.stat().st_mtime > time.time() for path in ahead)
    make_old(*ahead)
    assert prune(root) == set()
    assert not any(path.exists() for path in ahead)


def test_what_somebody_asks_for_keeps_nothing_else_that_was_asked_for(root: Path, first: LocalRepository) -> None:
    push_blob(first, CONTENT)
    first.hold_blob(DIGEST)
    put_and_delete(first, "first")
    make_old(*asked_in(root), seconds=HOUR_SECONDS + MINUTE_SECONDS)
    other = push_blob(first, b"another")
    first.hold_blob(other.digest)
    pushed = first.put_manifest(manifest_over(config=other), OCI_MANIFEST, tag="2")
    first.delete_manifest(pushed.descriptor.digest)
    assert prune(root) == {str(other.digest)}


def test_a_push_to_another_repository_keeps_nothing_that_was_asked_for(root: Path, first: LocalRepository) -> None:
    push_blob(first, CONTENT)
    first.hold_blob(DIGEST)
    put_and_delete(first, "first")
    other = open_store(root).repository("team/other")
    other.begin_upload()
    elsewhere = push_blob(other, b"elsewhere")
    make_old(*asked_in(root), seconds=HOUR_SECONDS + MINUTE_SECONDS)
    assert prune(root) == {str(elsewhere.digest)}


def test_how_long_that_is_is_a_limit(root: Path) -> None:
    store = Store(root, durability="none", limits=Limits(asked_seconds=0.0))
    repository = store.repository("team/app")
    push_blob(repository, CONTENT)
    repository.hold_blob(DIGEST)
    put_and_delete(repository, "first")
    make_old(*pins_in(root), seconds=1)
    store.prune()
    assert (stored(root), pins_in(root)) == (set(), [])


def test_who_asks_again_and_again_writes_once_in_a_while(root: Path, first: LocalRepository) -> None:
    push_blob(first, CONTENT)
    first.hold_blob(DIGEST)
    [asked] = asked_in(root)
    with replaced_os() as system:
        first.hold_blob(DIGEST)
        assert system.changes == []
    for seconds in (2 * MINUTE_SECONDS, HOUR_SECONDS, -HOUR_SECONDS):  # the last of them by a clock that was set back
        make_old(asked, seconds=seconds)
        first.hold_blob(DIGEST)
        assert abs(time.time() - asked.stat().st_mtime) < MINUTE_SECONDS
    assert asked.read_text() == "team/app\n"


def test_who_asks_waits_for_no_disk(root: Path) -> None:
    repository = Store(root, durability="full").repository("team/app")
    push_blob(repository, CONTENT)
    with replaced_os() as system:
        repository.hold_blob(DIGEST)
    assert system.count("fsync") == 0
    assert len(asked_in(root)) == 1


def test_what_is_not_seen_is_not_pinned_by_asking(root: Path, first: LocalRepository) -> None:
    with pytest.raises(BlobNotFound):
        first.hold_blob(DIGEST)
    assert not root.exists()
    push_blob(open_store(root).repository("team/other"), CONTENT)
    image = build_image()
    push_image(first, image, "1")
    blob(root, image.layer_digests[0]).unlink()
    before = pins_in(root)
    for digest in (DIGEST, ABSENT, Digest.parse(image.layer_digests[0])):
        with pytest.raises(BlobNotFound):
            first.hold_blob(digest)
    assert pins_in(root) == before


def test_a_blob_that_is_deleted_is_kept_for_nobody(root: Path, first: LocalRepository) -> None:
    push_blob(first, CONTENT)
    first.hold_blob(DIGEST)
    pushed = first.put_manifest(manifest_of(first, "first"), OCI_MANIFEST, tag="1")
    with pytest.raises(StillNeeded):
        first.delete_blob(DIGEST)
    first.delete_manifest(pushed.descriptor.digest)
    assert first.find(DIGEST).size_bytes == len(CONTENT)
    first.delete_blob(DIGEST)
    with pytest.raises(BlobNotFound):
        first.find(DIGEST)
    assert prune(root) == set()


def test_a_blob_that_is_deleted_as_somebody_asks_for_it_stays_deleted(
    root: Path, first: LocalRepository, second: LocalRepository
) -> None:
    push_blob(first, CONTENT)
    with replaced_os() as system:  # it was found, and is not held yet
        system.before("open", lambda: first.delete_blob(DIGEST), path="ingest/store.turn")
        with pytest.raises(BlobNotFound):
            second.hold_blob(DIGEST)
    assert pins_in(root) == []
    assert prune(root) == set()


def test_a_blob_that_a_manifest_takes_over_as_somebody_asks_for_it_is_there(
    root: Path, first: LocalRepository, second: LocalRepository
) -> None:
    push_blob(first, CONTENT)
    manifest = manifest_of(first, "first")
    with replaced_os() as system:
        system.before("open", lambda: first.put_manifest(manifest, OCI_MANIFEST, tag="1"), path="ingest/store.turn")
        assert second.hold_blob(DIGEST).size_bytes == len(CONTENT)
    assert pins_in(root) == asked_in(root) != []


def test_a_blob_is_deleted_before_somebody_asks_for_it_or_behind_that(
    root: Path, first: LocalRepository, second: LocalRepository
) -> None:
    push_blob(first, CONTENT)
    deleting = threading.Thread(target=first.delete_blob, args=(DIGEST,))

    def delete() -> None:  # it is seen still, and about to be pinned
        deleting.start()
        deleting.join(0.5)

    with replaced_os() as system:
        system.before("open", delete, path=".asked")
        second.hold_blob(DIGEST)
        deleting.join(30)
    assert pins_in(root) == []
    with pytest.raises(BlobNotFound):
        first.find(DIGEST)


# ---- a collection that runs meanwhile


def test_a_blob_that_a_collection_took_as_somebody_asked_is_not_there(
    root: Path, first: LocalRepository, second: LocalRepository
) -> None:
    push_blob(first, CONTENT)
    pushed = first.put_manifest(manifest_of(first, "first"), OCI_MANIFEST, tag="1")

    def take() -> None:  # it was found, and is not held yet
        first.delete_manifest(pushed.descriptor.digest)
        assert prune(root) == set()

    with replaced_os() as system:
        system.before("open", take, path="ingest/store.turn")
        with pytest.raises(BlobNotFound):
            second.hold_blob(DIGEST)
    assert pins_in(root) == []


def test_a_collection_that_has_marked_leaves_what_was_asked_for_since(
    root: Path, first: LocalRepository, second: LocalRepository
) -> None:
    push_blob(first, CONTENT)
    pushed = first.put_manifest(manifest_of(first, "first"), OCI_MANIFEST, tag="1")
    pruning = threading.Thread(target=open_store(root).prune)
    with replaced_os() as system:
        gates: list[Gate] = []

        def mark() -> None:  # it was found, and is not held yet
            first.delete_manifest(pushed.descriptor.digest)
            gates.append(system.block("open", path="ingest/store.turn"))
            pruning.start()
            gates[0].wait()  # it has found what is alive, and wants the lock to remove the rest

        system.before("open", mark, path="ingest/store.turn")
        try:
            second.hold_blob(DIGEST)
        finally:
            gates[0].open()
            pruning.join(30)
    assert stored(root) == {str(DIGEST)}
    put_and_delete(second, "second")


# ---- where it cannot be noted


def test_in_a_store_that_is_read_only_blobs_are_found_as_before(tmp_path: Path) -> None:
    require_root()
    with mounted(tmp_path / "disk", "size=16m") as disk:
        repository = open_store(disk / "store").repository("team/app")
        push_blob(repository, CONTENT)
        remount(disk, "ro")
        assert repository.hold_blob(DIGEST).size_bytes == len(CONTENT)
        assert asked_in(disk / "store") == []


@pytest.mark.parametrize("call", ["open", "write", "mkdir"])
def test_on_a_disk_that_is_full_blobs_are_found_as_before(root: Path, call: str) -> None:
    image = build_image()
    put(root, image, "team/app:1")
    repository = open_store(root).repository("team/app")
    with replaced_os() as system:
        system.fail(call, errno.ENOSPC, path="ingest/pushed")
        assert repository.hold_blob(Digest.parse(image.config_digest)).digest == Digest.parse(image.config_digest)
    assert str(image.config_digest) in stored(root)


def test_in_a_store_that_is_busy_blobs_are_found_as_before(root: Path) -> None:
    repository = open_store(root, lock_timeout_seconds=0.1).repository("team/app")
    push_blob(repository, CONTENT)
    lock = open_layout(root).paths.store_lock
    with holding_lock(lock, doing="testing", timeout_seconds=1):
        assert repository.hold_blob(DIGEST).size_bytes == len(CONTENT)
    assert asked_in(root) == []


def test_in_the_store_of_another_user_nothing_is_written(root: Path) -> None:
    require_root()
    image = build_image()
    put(root, image, "team/app:1")
    os.chown(root, 12345, 12345)
    assert open_store(root).repository("team/app").hold_blob(Digest.parse(image.config_digest)).size_bytes > 0
    assert pins_in(root) == []


# ---- all of it together

SHARED = (random_layer(8192, salt="of every image"), random_layer(8192, salt="of every other image"))


class Client:
    """Pushes one image behind another as clients do: what it is told is there it does not send."""

    def __init__(self, root: Path, number: int) -> None:
        self._repository = open_store(root).repository("team/app")
        self._number, self._round = number, 0
        self._begin()

    def _begin(self) -> None:
        self._round += 1
        self._image = build_image(SHARED[: 1 + self._number % 2], salt=f"{self._number} {self._round}")
        self._rest = [digest for digest in self._image.blobs if digest != self._image.digest]

    @property
    def has_begun(self) -> bool:
        """Whether some of an image was pushed, and its manifest was not."""
        return len(self._rest) + 1 < len(self._image.blobs)

    def step(self, *, asks: bool) -> Digest | None:
        """Push the next blob, or the manifest, whose digest is returned then: it must be taken."""
        if self._rest:
            digest = self._rest.pop()
            if not (asks and self._is_told(Digest.parse(digest))):
                push_blob(self._repository, self._image.blobs[digest])
            return None
        content = self._image.blobs[self._image.digest]
        pushed = self._repository.put_manifest(content, OCI_MANIFEST, tag=f"t{self._number % 3}")
        self._begin()
        return pushed.descriptor.digest

    def _is_told(self, digest: Digest) -> bool:
        try:
            self._repository.hold_blob(digest)
        except BlobNotFound:
            return False
        return True


_STEPS = st.tuples(st.just("step"), st.integers(0, 3), st.booleans())
_OTHERS = st.tuples(st.sampled_from(["delete", "prune", "tag"]), st.integers(0, 20), st.booleans())


@settings(max_examples=trial_count(30, 300), deadline=None)
@given(st.lists(st.one_of(_STEPS, _STEPS, _OTHERS), max_size=40))
def test_each_manifest_is_taken_whatever_comes_in_between_and_in_the_end_nothing_stays(
    actions: list[tuple[str, int, bool]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        clients = [Client(root, number) for number in range(4)]
        repository, there = open_store(root).repository("team/app"), dict[Digest, None]()
        for what, number, asks in actions:
            digest = list(there)[number % len(there)] if there else None
            if what == "step":
                put = clients[number].step(asks=asks)
                there.update({} if put is None else {put: None})
            elif what == "prune":
                prune(root)
            elif digest is not None and what == "delete":
                repository.delete_manifest(digest)
                del there[digest]
            elif digest is not None:
                content = blob(root, str(digest)).read_bytes()
                repository.put_manifest(content, OCI_MANIFEST, tag="further")
        for client in clients:
            while client.has_begun:
                put = client.step(asks=True)
                there.update({} if put is None else {put: None})
        for digest in there:
            repository.delete_manifest(digest)
        make_old(*asked_in(root), seconds=HOUR_SECONDS + MINUTE_SECONDS)
        assert prune(root) == set()
        assert pins_in(root) == []


# ---- asking again and again which blobs are pinned

PIN_NAMES = [f"sha256-{number:064x}{ending}" for number in range(3) for ending in ("", ".asked")]
STEPS = st.tuples(
    st.sampled_from(["push", "ask", "take", "age", "look"]), st.sampled_from(PIN_NAMES), st.sampled_from("ab")
)


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=14))
def test_who_asks_again_sees_each_blob_that_is_pinned_and_none_whose_pin_is_gone(
    steps: list[tuple[str, str, str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        layout = open_layout(Path(folder) / "store")
        layout.prepare()
        remembering = PinnedBlobs(layout.paths, layout.limits)
        for doing, name, repository in [*steps, ("look", "", "")]:
            path = Path(layout.paths.pushed_to(repository or "a")) / name
            if doing in ("push", "ask"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("line\n")
            elif doing == "take":
                path.unlink(missing_ok=True)
            elif doing == "age" and path.exists():
                make_old(path, seconds=2 * DAY_SECONDS)
            elif doing == "look":
                there = {
                    each.name.removesuffix(".asked").removeprefix("sha256-")
                    for each in pins_in(Path(layout.paths.root))
                }
                seen = set(remembering.read())
                assert set(PinnedBlobs(layout.paths, layout.limits).read()) <= seen <= there


def test_who_asks_again_looks_at_no_pin_that_was_young(root: Path, first: LocalRepository) -> None:
    push_blob(first, CONTENT)
    layout = open_layout(root)
    pinned = PinnedBlobs(layout.paths, layout.limits)
    [pin] = pins_in(root)
    assert set(pinned.read()) == {DIGEST.hex}
    make_old(pin, seconds=2 * DAY_SECONDS)  # it cannot become old in the time of a collection
    assert set(pinned.read()) == {DIGEST.hex}
    assert PinnedBlobs(layout.paths, layout.limits).read() == {}
