"""A store as a registry: uploads, what is pushed and not needed yet, manifests, and what is deleted."""

import errno
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minibox_store import (
    BlobNotFound,
    Cancelled,
    ContentMismatch,
    Descriptor,
    Digest,
    ImageNotFound,
    IncompleteImage,
    InvalidDocument,
    InvalidReference,
    Limits,
    LocalRepository,
    StillNeeded,
    Store,
    StoreBusy,
    StoreFull,
    StoreUnavailable,
    UploadNotFound,
    UploadOutOfOrder,
)
from minibox_store import _moving as moving
from minibox_store._locks import is_locked
from minibox_store.layout import leftovers, reaching
from tests.support.forks import forked, run_as_user
from tests.support.images import (
    OCI_INDEX,
    OCI_MANIFEST,
    build_artifact,
    build_image,
    build_index,
    digest_of,
    encode_document,
)
from tests.support.invariants import check_invariants, reachable, read_index, read_names, stored
from tests.support.os_proxy import no_hard_links, replaced_os
from tests.support.pushes import make_old, manifest_over, pins_in, push_blob, push_image
from tests.support.stores import blob, mounted, open_layout, open_store, put, require_root, rot

FIRST, SECOND = b"the first part, ", b"and the second"
BOTH = FIRST + SECOND
ABSENT = Digest.parse("sha256:" + "0" * 64)
REPOSITORY = "dev.minibox.store.repository"
REFERRER = "dev.minibox.store.referrer"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root)


@pytest.fixture
def repository(store: Store) -> LocalRepository:
    return store.repository("team/app")


def pieces(*contents: bytes, error: BaseException | None = None) -> io.RawIOBase:
    """Return a file that gives one content at each read, and then ends, or raises an error."""
    rest = list(contents)

    class Pieces(io.RawIOBase):
        def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # what it is called with
            if not rest and error is not None:
                raise error
            content = rest.pop(0) if rest else b""
            buffer[: len(content)] = content
            return len(content)

    return Pieces()


def uploads_in(root: Path) -> list[Path]:
    return sorted((root / "ingest" / "uploads").glob("*"))


def nameless(root: Path) -> list[tuple[str, dict[str, str]]]:
    """Return each entry without a name: its digest, and its annotations."""
    entries = [(each["digest"], each.get("annotations", {})) for each in read_index(root)["manifests"]]
    return [(digest, said) for digest, said in entries if "org.opencontainers.image.ref.name" not in said]


# ---- uploads


def test_an_upload_grows_by_pieces_and_becomes_a_blob_that_is_seen(root: Path, repository: LocalRepository) -> None:
    upload = repository.begin_upload()
    assert (upload.repository, upload.size_bytes) == ("team/app", 0)
    for offset, piece in ((0, FIRST), (len(FIRST), SECOND)):
        upload = repository.append_upload(upload.id, io.BytesIO(piece), offset=offset, size_bytes=len(piece))
        assert repository.upload(upload.id) == upload
    assert upload.size_bytes == len(BOTH)
    descriptor = repository.finish_upload(upload.id, Digest.of(BOTH))
    assert (descriptor.digest, descriptor.size_bytes) == (Digest.of(BOTH), len(BOTH))
    assert repository.find(descriptor.digest) == descriptor
    assert blob(root, str(descriptor.digest)).read_bytes() == BOTH
    assert blob(root, str(descriptor.digest)).stat().st_mode & 0o777 == 0o444
    with pytest.raises(UploadNotFound):
        repository.upload(upload.id)
    check_invariants(root)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("content", [b"", b"x", os.urandom(3 * 1024 * 1024 + 7)], ids=["empty", "one", "large"])
def test_a_blob_of_any_size_is_kept_by_either_algorithm(
    root: Path, repository: LocalRepository, algorithm: str, content: bytes
) -> None:
    descriptor = push_blob(repository, content, algorithm)
    assert str(descriptor.digest) == digest_of(content, algorithm)
    assert blob(root, str(descriptor.digest)).read_bytes() == content


def test_a_piece_that_begins_elsewhere_is_refused_before_it_is_read(repository: LocalRepository) -> None:
    upload = repository.begin_upload()
    repository.append_upload(upload.id, io.BytesIO(FIRST))
    for offset in (0, len(FIRST) - 1, len(FIRST) + 1):
        stream = io.BytesIO(SECOND)
        with pytest.raises(UploadOutOfOrder) as caught:
            repository.append_upload(upload.id, stream, offset=offset)
        assert (caught.value.size_bytes, caught.value.offset, stream.tell()) == (len(FIRST), offset, 0)
    repository.append_upload(upload.id, io.BytesIO(SECOND), offset=len(FIRST))
    repository.finish_upload(upload.id, Digest.of(BOTH))


def test_of_too_many_bytes_none_stay_and_of_too_few_all(repository: LocalRepository) -> None:
    upload = repository.begin_upload()
    with pytest.raises(ContentMismatch):
        repository.append_upload(upload.id, pieces(FIRST, SECOND), size_bytes=len(FIRST) + 1)
    assert repository.upload(upload.id).size_bytes == 0
    with pytest.raises(ContentMismatch):
        repository.append_upload(upload.id, pieces(FIRST), size_bytes=len(BOTH))
    assert repository.upload(upload.id).size_bytes == len(FIRST)
    repository.append_upload(upload.id, pieces(SECOND), size_bytes=len(SECOND))
    repository.finish_upload(upload.id, Digest.of(BOTH))


@pytest.mark.parametrize("error", [Cancelled(), OSError(5, "input/output error"), KeyboardInterrupt()])
def test_what_came_before_an_error_stays_and_the_upload_goes_on_behind_it(
    repository: LocalRepository, error: BaseException
) -> None:
    upload = repository.begin_upload()
    with pytest.raises(BaseException):  # noqa: B017, PT011  # whatever the reader raises, in the library's words
        repository.append_upload(upload.id, pieces(FIRST, error=error))
    assert repository.upload(upload.id).size_bytes == len(FIRST)
    repository.append_upload(upload.id, io.BytesIO(SECOND), offset=len(FIRST))
    assert repository.finish_upload(upload.id, Digest.of(BOTH)).size_bytes == len(BOTH)


def test_an_upload_of_another_digest_is_refused_and_gone(root: Path, repository: LocalRepository) -> None:
    upload = repository.begin_upload()
    repository.append_upload(upload.id, io.BytesIO(FIRST))
    with pytest.raises(ContentMismatch):
        repository.finish_upload(upload.id, Digest.of(SECOND))
    with pytest.raises(UploadNotFound):
        repository.upload(upload.id)
    for digest in (Digest.of(FIRST), Digest.of(SECOND)):
        with pytest.raises(BlobNotFound):
            repository.find(digest)
    assert (stored(root), pins_in(root), uploads_in(root)) == (set(), [], [])


def test_an_upload_that_the_disk_may_have_lost_is_gone(root: Path) -> None:
    repository = Store(root, durability="full").repository("team/app")
    upload = repository.begin_upload()
    repository.append_upload(upload.id, io.BytesIO(FIRST))
    with replaced_os() as system:
        system.fail("fsync", errno.EIO, path="/uploads/")
        with pytest.raises(StoreUnavailable, match=r"[Ii]nput/output"):
            repository.finish_upload(upload.id, Digest.of(FIRST))
    assert uploads_in(root) == []
    with pytest.raises(UploadNotFound):
        repository.finish_upload(upload.id, Digest.of(FIRST))
    check_invariants(root)


def test_another_store_object_goes_on_with_an_upload_and_reads_what_it_did_not_write(
    root: Path, repository: LocalRepository
) -> None:
    upload = repository.begin_upload()
    repository.append_upload(upload.id, io.BytesIO(FIRST))
    other = open_store(root).repository("team/app")
    assert other.upload(upload.id).size_bytes == len(FIRST)
    other.append_upload(upload.id, io.BytesIO(SECOND), offset=len(FIRST))
    # This one remembers a hash of the first part alone.
    assert repository.finish_upload(upload.id, Digest.of(BOTH)).size_bytes == len(BOTH)


def test_the_digest_is_that_of_the_bytes_that_are_kept_whoever_wrote_them(
    root: Path, repository: LocalRepository
) -> None:
    upload = repository.begin_upload()
    repository.append_upload(upload.id, io.BytesIO(FIRST))
    [path] = uploads_in(root)
    path.write_bytes(SECOND[:-1] + b"!!!")
    with pytest.raises(ContentMismatch):
        repository.finish_upload(upload.id, Digest.of(FIRST))


def test_an_upload_belongs_to_its_repository(store: Store, repository: LocalRepository) -> None:
    upload = repository.begin_upload()
    other = store.repository("team/app2")
    calls: list[Callable[[], object]] = [
        lambda: other.upload(upload.id),
        lambda: other.append_upload(upload.id, io.BytesIO(FIRST)),
        lambda: other.finish_upload(upload.id, Digest.of(b"")),
        lambda: other.cancel_upload(upload.id),
    ]
    for call in calls:
        with pytest.raises(UploadNotFound):
            call()
    assert repository.upload(upload.id) == upload


@pytest.mark.parametrize(
    "identifier",
    [
        "",
        ".",
        "..",
        "../../index.json",
        "0" * 31,
        "0" * 33,
        "A" * 32,
        "0" * 32 + "\n",
        "\0" * 32,
        "\u0661" * 32,
        "/" * 32,
    ],
)
def test_s4_what_is_no_id_is_no_path(root: Path, repository: LocalRepository, identifier: str) -> None:
    repository.begin_upload()
    before = sorted(root.rglob("*"))
    for call in (repository.upload, repository.cancel_upload):
        with pytest.raises(UploadNotFound):
            call(identifier)
    with pytest.raises(UploadNotFound):
        repository.append_upload(identifier, io.BytesIO(FIRST))
    with pytest.raises(UploadNotFound):
        repository.finish_upload(identifier, Digest.of(FIRST))
    assert sorted(root.rglob("*")) == before


def test_ids_are_not_alike(repository: LocalRepository) -> None:
    identifiers = {repository.begin_upload().id for _ in range(50)}
    assert len(identifiers) == 50
    assert len({identifier[:8] for identifier in identifiers}) == 50


@pytest.mark.parametrize("name", ["", "App", "a//b", "..", "a/../b", "a b", "a:b", "a" * 256, "/a"])
def test_s4_what_is_no_name_of_a_repository_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidReference):
        store.repository(name)


def test_a_repository_of_the_longest_name_takes_a_blob(store: Store) -> None:
    repository = store.repository("a" * 125 + "/" + "b" * 125)
    pushed = push_blob(repository, BOTH, "sha512")
    assert (pushed.digest.algorithm, repository.find(pushed.digest).size_bytes) == ("sha512", len(BOTH))


def test_one_at_a_time_adds_to_an_upload_in_whatever_process(root: Path) -> None:
    store = open_store(root, lock_timeout_seconds=0.2)
    repository = store.repository("team/app")
    upload = repository.begin_upload()

    def hold(ready: Callable[[], None]) -> None:
        reading, _ = os.pipe()

        class Waiting(io.RawIOBase):
            def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # what it is called with
                ready()
                return os.readv(reading, [buffer])

        open_store(root).repository("team/app").append_upload(upload.id, Waiting())

    with forked(hold):
        for call in (
            lambda: repository.append_upload(upload.id, io.BytesIO(FIRST)),
            lambda: repository.finish_upload(upload.id, Digest.of(b"")),
        ):
            with pytest.raises(StoreBusy):
                call()
        # It is told how far it is, and it may be given up, whoever adds to it.
        assert repository.upload(upload.id).size_bytes == 0
    repository.append_upload(upload.id, io.BytesIO(FIRST))
    repository.finish_upload(upload.id, Digest.of(FIRST))


def test_an_upload_that_is_given_up_is_gone_also_for_who_adds_to_it(root: Path, repository: LocalRepository) -> None:
    upload = repository.begin_upload()

    class GivingUp(io.BytesIO):
        def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # what it is called with
            if uploads_in(root):
                repository.cancel_upload(upload.id)
            return super().readinto(buffer)

    repository.append_upload(upload.id, GivingUp(FIRST))
    with pytest.raises(UploadNotFound):
        repository.finish_upload(upload.id, Digest.of(FIRST))
    assert uploads_in(root) == []
    check_invariants(root)


@pytest.mark.parametrize("how", ["announced", "found out"])
def test_an_upload_that_does_not_fit_is_refused_and_leaves_the_room_that_there_was(tmp_path: Path, how: str) -> None:
    require_root()
    with mounted(tmp_path / "disk", "size=4m") as disk:
        repository = open_store(disk / "store").repository("team/app")
        upload = repository.begin_upload()
        repository.append_upload(upload.id, io.BytesIO(FIRST))
        content = bytes(8 * 1024 * 1024)
        size_bytes = len(content) if how == "announced" else None
        with pytest.raises(StoreFull):
            repository.append_upload(upload.id, io.BytesIO(content), size_bytes=size_bytes)
        assert repository.upload(upload.id).size_bytes == len(FIRST)
        repository.append_upload(upload.id, io.BytesIO(SECOND))
        repository.finish_upload(upload.id, Digest.of(BOTH))


def test_a_blob_that_is_there_is_pushed_again_and_one_that_is_wrong_is_replaced(
    root: Path, repository: LocalRepository
) -> None:
    digest = str(push_blob(repository, BOTH).digest)
    there = blob(root, digest).stat().st_ino
    push_blob(repository, BOTH)
    assert blob(root, digest).stat().st_ino == there
    rot(blob(root, digest))
    push_blob(repository, BOTH)
    assert blob(root, digest).read_bytes() == BOTH
    check_invariants(root)


def test_a_process_that_died_as_it_finished_an_upload_leaves_a_blob_that_nobody_adds_to(
    root: Path, repository: LocalRepository
) -> None:
    upload = repository.begin_upload()
    repository.append_upload(upload.id, io.BytesIO(FIRST))
    [path] = uploads_in(root)
    push_blob(repository, FIRST)
    path.unlink()
    os.link(blob(root, str(Digest.of(FIRST))), path)
    with pytest.raises(UploadNotFound):
        repository.append_upload(upload.id, io.BytesIO(SECOND))
    assert repository.finish_upload(upload.id, Digest.of(FIRST)).size_bytes == len(FIRST)
    check_invariants(root)


def test_a_user_finishes_an_upload_that_is_a_blob_already_as_root_does() -> None:
    require_root()

    def finish(folder: Path) -> None:
        root = folder / "store"
        repository = open_store(root).repository("team/app")
        upload = repository.begin_upload()
        [path] = uploads_in(root)
        push_blob(repository, FIRST)
        path.unlink()
        os.link(blob(root, str(Digest.of(FIRST))), path)  # here the process died that finished it
        assert not os.access(path, os.W_OK)
        with pytest.raises(UploadNotFound):
            repository.append_upload(upload.id, io.BytesIO(SECOND))
        assert repository.finish_upload(upload.id, Digest.of(FIRST)).size_bytes == len(FIRST)
        assert not uploads_in(root)
        check_invariants(root)

    assert run_as_user(finish) == 0


@contextmanager
def links(*, possible: bool) -> Iterator[None]:
    with replaced_os() as system:
        if not possible:
            no_hard_links(system)
        yield


def test_a_store_without_hard_links_takes_all_the_same(root: Path) -> None:
    image = build_index([build_image(salt="a"), build_image(platform="linux/arm64")])
    with links(possible=False):
        store = open_store(root)
        repository = store.repository("team/app")
        kept = push_blob(repository, BOTH)
        push_image(repository, image, "1")
        assert store.prune().errors == ()
        assert repository.find(kept.digest) == kept
    assert stored(root) == {*image.blobs, str(kept.digest)}
    check_invariants(root)


# ---- what is pushed, and not needed yet


def test_a_pushed_blob_is_seen_in_its_repository_alone(store: Store, repository: LocalRepository) -> None:
    digest = push_blob(repository, BOTH).digest
    with pytest.raises(BlobNotFound):
        store.repository("team/other").find(digest)
    assert repository.is_known()
    assert not store.repository("team/other").is_known()
    assert store.repositories() == ()


def test_a_prune_leaves_what_was_pushed_within_a_day_and_takes_it_then(root: Path, store: Store) -> None:
    repository = store.repository("team/app")
    young, old = push_blob(repository, FIRST), push_blob(repository, SECOND)
    upload, forgotten = repository.begin_upload(), repository.begin_upload()
    make_old(*(path for path in pins_in(root) if path.name.endswith(old.digest.hex)))
    make_old(*(path for path in uploads_in(root) if path.name.startswith(forgotten.id)))
    planned = store.prune(dry_run=True)
    assert stored(root) == {str(young.digest), str(old.digest)}
    report = store.prune()
    assert {(each.kind, each.path.rpartition("/")[2]) for each in report.removed} == {
        ("upload", f"{forgotten.id}-{Digest.of(b'team/app').hex}"),
        ("pin", f"sha256-{old.digest.hex}"),
        ("blob", old.digest.hex),
    }
    assert sorted(each.path for each in planned.removed) == sorted(each.path for each in report.removed)
    assert (report.errors, report.kept) == ((), ())
    assert repository.find(young.digest) == young
    assert repository.upload(upload.id) == upload
    with pytest.raises(UploadNotFound):
        repository.upload(forgotten.id)
    with pytest.raises(BlobNotFound):
        repository.find(old.digest)


def test_what_is_pushed_again_is_durable_whoever_brought_it_before(root: Path, store: Store) -> None:
    digest = push_blob(store.repository("team/app"), FIRST).digest  # by a store that syncs nothing
    [pin] = pins_in(root)
    repository = Store(root, durability="full").repository("team/app")
    upload = repository.begin_upload()
    repository.append_upload(upload.id, io.BytesIO(FIRST))
    with replaced_os() as system:
        repository.finish_upload(upload.id, digest)
    synced = {path for call in system.changes if call.name == "fsync" for path in call.paths}
    expected = {root, root / "ingest", root / "ingest" / "pushed", pin.parent, pin, blob(root, str(digest))}
    assert {str(each) for each in expected} <= synced


def test_many_old_pins_go_in_pieces_and_who_waits_for_the_store_comes_in_between(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "BATCH", 2)
    for number in range(5):
        push_blob(store.repository(f"team/{number}"), b"%d" % number)
    make_old(*pins_in(root))
    left: list[int] = []

    def look() -> None:
        with open_layout(root).store_lock("looking"):
            left.append(len(pins_in(root)))

    looking = threading.Thread(target=look)

    def begin_looking() -> None:
        looking.start()
        while not is_locked(str(root / "ingest" / "store.turn")):
            time.sleep(0.001)

    with replaced_os() as system:
        system.before("unlink", begin_looking, path="ingest/pushed")
        store.prune()
    looking.join()
    assert (left, pins_in(root)) == ([3], [])
    assert list((root / "ingest" / "pushed").iterdir()) == []


def test_how_long_that_is_is_a_limit(root: Path) -> None:
    store = Store(root, durability="none", limits=Limits(pushed_seconds=0.0))
    repository = store.repository("team/app")
    push_blob(repository, BOTH)
    repository.begin_upload()
    make_old(*pins_in(root), *uploads_in(root), seconds=1)
    store.prune()
    assert (stored(root), uploads_in(root), pins_in(root)) == (set(), [], [])
    assert list((root / "ingest" / "pushed").iterdir()) == []


def test_what_is_pushed_again_or_grows_is_young_again(root: Path, store: Store) -> None:
    repository = store.repository("team/app")
    push_blob(repository, BOTH)
    upload = repository.begin_upload()
    make_old(*pins_in(root), *uploads_in(root))
    push_blob(repository, BOTH)
    repository.append_upload(upload.id, io.BytesIO(FIRST))
    assert store.prune().removed == ()


def test_an_upload_that_somebody_adds_to_is_left_however_old_it_looks(root: Path, store: Store) -> None:
    repository = store.repository("team/app")
    upload = repository.begin_upload()

    class Pruning(io.BytesIO):
        def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # what it is called with
            make_old(*uploads_in(root))
            assert store.prune().removed == ()
            return super().readinto(buffer)

    assert repository.append_upload(upload.id, Pruning(FIRST)).size_bytes == len(FIRST)


def test_a_prune_takes_what_lies_among_uploads_and_is_none(root: Path, store: Store) -> None:
    store.repository("team/app").begin_upload()
    stray = root / "ingest" / "uploads" / "stray"
    stray.write_bytes(b"x")
    report = store.prune()
    # It stays where there are processes that nobody may look into.
    assert [*(each.path for each in report.removed), *(said.partition(":")[0] for said in report.kept)] == [
        "ingest/uploads/stray"
    ]
    assert len([path for path in uploads_in(root) if path.name != "stray"]) == 1


def test_a_blob_of_another_repository_is_mounted_if_it_is_seen_there(root: Path, store: Store) -> None:
    image = build_image()
    put(root, image, "origin:1")
    target = store.repository("team/app")
    for digest in (image.config_digest, *image.layer_digests):
        mounted_blob = target.mount_blob(Digest.parse(digest), store.repository("origin"))
        assert target.find(mounted_blob.digest) == mounted_blob
    with pytest.raises(BlobNotFound):
        target.mount_blob(Digest.parse(build_image(salt="absent").config_digest), store.repository("origin"))
    with pytest.raises(BlobNotFound):
        store.repository("other").mount_blob(Digest.parse(image.config_digest), store.repository("nowhere"))
    store.remove("origin:1")
    store.prune()
    assert stored(root) == {image.config_digest, *image.layer_digests}
    target.put_manifest(image.blobs[image.digest], OCI_MANIFEST, tag="1")
    assert pins_in(root) == []
    check_invariants(root)


def test_a_blob_that_a_prune_takes_while_it_is_mounted_is_given_back(root: Path, store: Store) -> None:
    source, repository = store.repository("team/app"), store.repository("team/other")
    digest = push_blob(source, FIRST).digest
    pruning = threading.Thread(target=open_store(root).prune)

    with replaced_os() as system:
        gate = system.block("unlink", path=f"blobs/sha256/{digest.hex}")

        def begin_prune() -> None:  # by when the mount has its blob, the prune has looked at all that holds it
            make_old(*pins_in(root))
            pruning.start()
            gate.wait()

        system.before("link", begin_prune, target=f"sha256-{digest.hex}")
        system.after("link", gate.open, target=f"sha256-{digest.hex}")
        repository.mount_blob(digest, source)
        pruning.join()
    assert repository.find(digest).size_bytes == len(FIRST)
    assert blob(root, str(digest)).read_bytes() == FIRST
    assert store.prune().removed == ()


def test_a_mounted_blob_that_is_gone_from_the_disk_is_not_mounted(root: Path, store: Store) -> None:
    image = build_image()
    put(root, image, "origin:1")
    blob(root, image.config_digest).unlink()
    with pytest.raises(BlobNotFound):
        store.repository("app").mount_blob(Digest.parse(image.config_digest), store.repository("origin"))
    assert pins_in(root) == []


# ---- manifests


def test_an_image_that_is_pushed_with_a_tag_has_that_name(root: Path, repository: LocalRepository) -> None:
    image = build_index([build_image(), build_image(platform="linux/arm64", docker=True)])
    pushed = push_image(repository, image, "1", "latest")
    assert (str(pushed.descriptor.digest), pushed.descriptor.media_type, pushed.subject) == (
        image.digest,
        OCI_INDEX,
        None,
    )
    assert read_names(root) == {"team/app:1": image.digest, "team/app:latest": image.digest}
    assert nameless(root) == []  # the manifests of the index had entries until its name came
    assert repository.tags() == ("1", "latest")
    assert repository.resolve("1").digest == pushed.descriptor.digest
    assert open_store(root).get("team/app:1").layers == open_store(root).get("team/app:latest").layers
    assert pins_in(root) == []
    check_invariants(root)
    assert open_store(root).prune().removed == ()


@pytest.mark.parametrize("name", ["a_b.c/app", "x" * 251, "a/" + "x" * 249, "localhost", "quay.io/team/app", "b" * 64])
def test_what_was_pushed_is_seen_whatever_the_repository_is_called(root: Path, store: Store, name: str) -> None:
    repository, image = store.repository(name), build_image()
    push_image(repository, image, "1")
    assert (repository.tags(), str(repository.resolve("1").digest)) == (("1",), image.digest)
    assert name in store.repositories()
    assert store.prune().removed == ()
    repository.delete_tag("1")
    assert not repository.is_known()


def test_what_is_pushed_by_digest_is_kept_by_an_entry_without_a_name(root: Path, store: Store) -> None:
    repository, image = store.repository("team/app"), build_image(algorithm="sha512")
    for _ in range(2):
        push_image(repository, image)
    assert nameless(root) == [(image.digest, {REPOSITORY: "team/app"})]
    assert store.prune().removed == ()
    assert (repository.tags(), store.repositories(), store.images()) == ((), ("team/app",), ())
    assert str(repository.find(Digest.parse(image.digest)).digest) == image.digest
    with pytest.raises(BlobNotFound):
        store.repository("team/other").find(Digest.parse(image.digest))


def test_one_image_in_two_repositories_has_an_entry_in_each(root: Path, store: Store) -> None:
    image = build_image()
    for name in ("a", "b"):
        push_image(store.repository(name), image)
    assert [said[REPOSITORY] for _, said in nameless(root)] == ["a", "b"]
    push_image(store.repository("a"), image, "1")
    assert nameless(root) == [(image.digest, {REPOSITORY: "b"})]


def test_what_a_tag_stood_for_stays_by_its_digest_if_it_is_whole(root: Path, store: Store) -> None:
    repository = store.repository("team/app")
    earlier, damaged, later = build_image(salt="earlier"), build_image(salt="damaged"), build_image(salt="later")
    push_image(repository, earlier, "1")
    push_image(repository, damaged, "2")
    blob(root, damaged.layer_digests[0]).unlink()
    push_image(repository, later, "1", "2")
    assert nameless(root) == [(earlier.digest, {REPOSITORY: "team/app"})]
    assert store.prune().errors == ()
    assert stored(root) == {*earlier.blobs, *later.blobs}
    push_image(repository, earlier, "1")
    assert nameless(root) == []


@pytest.mark.parametrize("missing", ["config", "layer"])
def test_a_manifest_is_refused_when_something_it_needs_is_not_seen(
    root: Path, store: Store, repository: LocalRepository, missing: str
) -> None:
    image = build_image()
    absent = image.config_digest if missing == "config" else image.layer_digests[1]
    put(root, image, "elsewhere:1")  # the store has it all, and who knows a digest gets nothing by it
    for digest in {image.config_digest, *image.layer_digests} - {absent}:
        push_blob(repository, image.blobs[digest])
    with pytest.raises(IncompleteImage) as caught:
        repository.put_manifest(image.blobs[image.digest], OCI_MANIFEST, tag="1")
    assert caught.value.missing == (absent,)
    assert read_names(root) == {"elsewhere:1": image.digest}
    assert store.prune().errors == ()
    push_blob(repository, image.blobs[absent])
    repository.put_manifest(image.blobs[image.digest], OCI_MANIFEST, tag="1")


def test_s5_nobody_gets_at_a_blob_by_pushing_a_manifest_as_a_blob_and_naming_it(
    root: Path, repository: LocalRepository
) -> None:
    secret = build_image(salt="secret")
    put(root, secret, "secret:1")
    push_blob(repository, secret.blobs[secret.digest])
    index = build_index([secret])
    with pytest.raises(IncompleteImage) as caught:
        repository.put_manifest(index.blobs[index.digest], OCI_INDEX, tag="1")
    assert set(caught.value.missing) == {secret.config_digest, *secret.layer_digests}
    with pytest.raises(BlobNotFound):
        repository.find(Digest.parse(secret.layer_digests[0]))


def test_s5_a_size_that_is_not_the_blobs_is_refused(repository: LocalRepository) -> None:
    config, layer = push_blob(repository, b"{}"), push_blob(repository, BOTH)
    wrong = Descriptor(media_type=layer.media_type, digest=layer.digest, size_bytes=layer.size_bytes + 1)
    with pytest.raises(IncompleteImage):
        repository.put_manifest(manifest_over(wrong, config=config), OCI_MANIFEST, tag="1")
    image = build_image()
    push_image(repository, image)
    child = {**image.root, "size": image.root["size"] - 1}
    index = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]})
    with pytest.raises(InvalidDocument):
        repository.put_manifest(index, OCI_INDEX, tag="1")


def test_s5_a_document_that_is_another_than_it_is_said_to_be_is_refused(repository: LocalRepository) -> None:
    image = build_image()
    push_image(repository, image)
    content = image.blobs[image.digest]
    for media_type in (OCI_INDEX, "application/json", "text/html"):
        with pytest.raises(InvalidDocument):
            repository.put_manifest(content, media_type, tag="1")
    child = {**image.root, "mediaType": OCI_INDEX}
    index = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]})
    with pytest.raises(InvalidDocument):
        repository.put_manifest(index, OCI_INDEX, tag="1")
    with pytest.raises(ContentMismatch):
        repository.put_manifest(content, OCI_MANIFEST, digest=ABSENT)
    for tag in ("", "-a", "a b", "x" * 129, "a/b"):
        with pytest.raises(InvalidReference):
            repository.put_manifest(content, OCI_MANIFEST, tag=tag)
    assert repository.put_manifest(content, None, tag="1").descriptor.media_type == OCI_MANIFEST


def test_s5_a_manifest_that_another_image_has_for_a_layer_is_a_manifest_still(
    repository: LocalRepository,
) -> None:
    image = build_image()
    [manifest] = image.document_digests
    layer, config = push_blob(repository, image.blobs[manifest]), push_blob(repository, b"{}")
    repository.put_manifest(manifest_over(layer, config=config), OCI_MANIFEST, tag="a")
    with pytest.raises(BlobNotFound):
        repository.find_manifest(layer.digest)
    push_image(repository, build_index([image]), "b")
    assert repository.find_manifest(layer.digest).media_type == OCI_MANIFEST
    push_image(repository, build_artifact(image.root))
    assert len(repository.referrers(layer.digest)) == 1


def test_of_many_images_none_is_read_again_for_a_blob_that_it_does_not_reach(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaching, "_MOST_BLOBS", 8)
    images = [build_image(salt=str(number)) for number in range(6)]
    for number, image in enumerate(images):
        push_image(repository, image, str(number))
    for image in images:
        for digest in image.blobs:
            assert repository.find(Digest.parse(digest)).size_bytes == len(image.blobs[digest])
    with replaced_os() as system:
        with pytest.raises(BlobNotFound):
            repository.find(ABSENT)
        assert repository.referrers(ABSENT) == ()
        repository.find(Digest.parse(images[0].config_digest))
    assert system.count("open", path="blobs/sha256/") == 1


@pytest.mark.parametrize(("long", "reads"), [(100, 0), (100_000, 1)])
def test_an_image_whose_documents_say_much_is_not_kept_in_memory(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch, long: int, reads: int
) -> None:
    monkeypatch.setattr(reaching, "_MOST_BLOBS", 100)
    image = build_image(annotations={"long": "x" * long})
    push_image(repository, image, "1")
    repository.find(Digest.parse(image.config_digest))
    with replaced_os() as system:
        repository.find(Digest.parse(image.config_digest))
    assert system.count("open", path="blobs/sha256/") == reads


def test_referrers_are_listed_though_an_image_goes_meanwhile(root: Path, repository: LocalRepository) -> None:
    image, other = build_image(), build_image(salt="other")
    push_image(repository, other, "other")
    push_image(repository, image, "1")
    push_image(repository, build_artifact(image.root))
    there = open_store(root).repository("team/app")  # which has read nothing yet

    def remove() -> None:
        repository.delete_tag("other")
        open_store(root).prune()

    with replaced_os() as system:
        system.before("open", remove, path=f"blobs/{other.digest.replace(':', '/')}")
        assert len(there.referrers(Digest.parse(image.digest))) == 1


def test_a_prune_meanwhile_takes_nothing_that_a_manifest_needs(root: Path, store: Store) -> None:
    repository, image = store.repository("team/app"), build_image()
    for digest in (image.config_digest, *image.layer_digests):
        push_blob(repository, image.blobs[digest])
    make_old(*pins_in(root))  # a prune would take them now
    with replaced_os() as system:
        system.before("replace", lambda: check_prune(store), target="/index.json")
        repository.put_manifest(image.blobs[image.digest], OCI_MANIFEST, tag="1")
    check_invariants(root)
    assert stored(root) == set(image.blobs)


def check_prune(store: Store) -> None:
    with pytest.raises(StoreBusy):  # it waits for the commit, and so comes too late
        Store(store.root, durability="none", lock_timeout_seconds=0.0).prune()


def test_what_is_pushed_again_once_its_manifest_was_deleted_is_pinned_still(root: Path, store: Store) -> None:
    repository, image = store.repository("team/app"), build_image()
    for digest in (image.config_digest, *image.layer_digests):
        push_blob(repository, image.blobs[digest])
    other = open_store(root).repository("team/app")

    def delete() -> None:  # the manifest is named, and its blobs are pinned still
        other.delete_tag("1")
        push_blob(other, image.blobs[image.config_digest])

    with replaced_os() as system:
        system.after("rmdir", delete, path="ingest")
        repository.put_manifest(image.blobs[image.digest], OCI_MANIFEST, tag="1")
    store.prune()
    assert repository.find(Digest.parse(image.config_digest)).size_bytes == len(image.blobs[image.config_digest])


def test_a_tag_that_another_process_moves_meanwhile_is_looked_at_again(root: Path, store: Store) -> None:
    repository = store.repository("team/app")
    images = [build_image(salt=salt) for salt in ("first", "second", "third")]
    push_image(repository, images[0], "1")
    for image in images[1:]:
        push_image(repository, image)
    other = open_store(root).repository("team/app")
    moved: list[object] = []

    def move() -> None:
        if not moved:
            moved.append(other.put_manifest(images[1].blobs[images[1].digest], OCI_MANIFEST, tag="1"))

    with replaced_os() as system:
        system.before("link", move, target=images[0].digest.removeprefix("sha256:"))
        repository.put_manifest(images[2].blobs[images[2].digest], OCI_MANIFEST, tag="1")
    assert moved
    assert read_names(root) == {"team/app:1": images[2].digest}
    assert {digest for digest, _ in nameless(root)} == {images[0].digest, images[1].digest}
    check_invariants(root)


# ---- what refers to an image


def test_a_referrer_lives_as_long_as_its_subject(root: Path, store: Store) -> None:
    repository, image = store.repository("team/app"), build_image()
    push_image(repository, image, "1")
    signature = build_artifact(image.root)
    pushed = push_image(repository, signature)
    assert str(pushed.subject) == image.digest
    assert nameless(root) == [(signature.digest, {REPOSITORY: "team/app", REFERRER: "true"})]
    [found] = repository.referrers(Digest.parse(image.digest))
    assert str(found.descriptor.digest) == signature.digest
    assert store.repository("team/other").referrers(Digest.parse(image.digest)) == ()
    assert store.prune().removed == ()
    repository.delete_manifest(Digest.parse(image.digest))
    store.prune()
    assert (stored(root), nameless(root)) == (set(), [])


def test_a_referrer_whose_subject_is_absent_is_kept_for_itself(root: Path, store: Store) -> None:
    repository, image = store.repository("team/app"), build_image()
    put(root, image, "elsewhere:1")
    signature = build_artifact(image.root)
    push_image(repository, signature)
    assert nameless(root) == [(signature.digest, {REPOSITORY: "team/app"})]
    store.remove("elsewhere:1")
    store.prune()
    assert stored(root) == set(signature.blobs)
    assert [str(each.descriptor.digest) for each in repository.referrers(Digest.parse(image.digest))] == [
        signature.digest
    ]


def test_a_referrer_that_is_pushed_again_once_its_subject_is_gone_is_kept_for_itself(root: Path, store: Store) -> None:
    repository, image = store.repository("team/app"), build_image()
    push_image(repository, image, "1")
    signature = build_artifact(image.root)
    push_image(repository, signature)
    repository.delete_manifest(Digest.parse(image.digest))
    push_image(repository, signature)
    assert nameless(root) == [(signature.digest, {REPOSITORY: "team/app"})]
    store.prune()
    assert stored(root) == set(signature.blobs)


def test_a_referrer_that_a_tag_stood_for_stays_though_its_subject_is_gone(root: Path, store: Store) -> None:
    repository, image, other = store.repository("team/app"), build_image(), build_image(salt="other")
    push_image(repository, image, "1")
    signature = build_artifact(image.root)
    push_image(repository, signature)
    push_image(repository, signature, "signature")
    repository.delete_manifest(Digest.parse(image.digest))
    push_image(repository, other, "signature")
    store.prune()
    assert stored(root) == {*signature.blobs, *other.blobs}


def test_referrers_that_an_index_has_taken_in_are_listed_still(store: Store, repository: LocalRepository) -> None:
    image = build_image()
    signature = build_artifact(image.root)
    push_image(repository, build_index([image, signature]), "1")
    assert [str(each.descriptor.digest) for each in repository.referrers(Digest.parse(image.digest))] == [
        signature.digest
    ]


# ---- what is deleted


def test_a_manifest_goes_with_all_its_tags_those_of_other_registries_included(root: Path, store: Store) -> None:
    image, other = build_image(salt="a"), build_image(salt="b")
    put(root, image, "team/app:1", "quay.io/team/app:2", "unrelated:1")
    put(root, other, "team/app:3")
    repository = store.repository("team/app")
    assert repository.tags() == ("1", "2", "3")
    assert repository.delete_manifest(Digest.parse(image.digest)) == ("quay.io/team/app:2", "team/app:1")
    assert read_names(root) == {"unrelated:1": image.digest, "team/app:3": other.digest}
    with pytest.raises(ImageNotFound):
        repository.delete_manifest(Digest.parse(image.digest))


def test_a_manifest_that_an_index_needs_stays(root: Path, store: Store) -> None:
    repository, image = store.repository("team/app"), build_image()
    index = build_index([image])
    push_image(repository, index, "1")
    push_image(repository, image, "2")
    before = read_index(root)
    with pytest.raises(StillNeeded):
        repository.delete_manifest(Digest.parse(image.digest))
    assert read_index(root) == before
    repository.delete_manifest(Digest.parse(index.digest))
    assert repository.delete_manifest(Digest.parse(image.digest)) == ("team/app:2",)


def test_a_tag_goes_alone_and_another_image_that_claims_it_has_it_then(root: Path, store: Store) -> None:
    image, quay = build_image(salt="a"), build_image(salt="quay")
    put(root, image, "team/app:1", "team/app:2", "docker.io/team/app:1")
    put(root, quay, "quay.io/team/app:1")
    repository = store.repository("team/app")
    assert repository.delete_tag("1") == ("docker.io/team/app:1", "team/app:1")
    assert str(repository.resolve("1").digest) == quay.digest
    assert str(repository.resolve("2").digest) == image.digest
    with pytest.raises(ImageNotFound):
        repository.delete_tag("3")


def test_a_blob_goes_unless_an_image_of_the_repository_needs_it(store: Store, repository: LocalRepository) -> None:
    image = build_image()
    push_image(repository, image, "1")
    apart = push_blob(repository, BOTH)
    for digest in (image.config_digest, image.layer_digests[0], image.digest):
        with pytest.raises(StillNeeded):
            repository.delete_blob(Digest.parse(digest))
    repository.delete_blob(apart.digest)
    for absent in (apart.digest, ABSENT):
        with pytest.raises(BlobNotFound):
            repository.delete_blob(absent)
    store.prune()
    assert stored(Path(store.root)) == set(image.blobs)


def test_where_there_is_no_store_nothing_is_made_by_looking_or_deleting(root: Path, store: Store) -> None:
    repository = store.repository("team/app")
    assert (repository.tags(), repository.is_known(), repository.referrers(ABSENT)) == ((), False, ())
    calls: list[Callable[[], object]] = [
        lambda: repository.find(ABSENT),
        lambda: repository.delete_manifest(ABSENT),
        lambda: repository.delete_tag("1"),
        lambda: repository.delete_blob(ABSENT),
        lambda: repository.upload("0" * 32),
        lambda: repository.resolve("1"),
    ]
    for call in calls:
        with pytest.raises((BlobNotFound, ImageNotFound, UploadNotFound)):
            call()
    assert not root.exists()


def test_what_was_deleted_by_name_is_given_back_by_undo_and_what_a_push_replaced_too(root: Path, store: Store) -> None:
    repository, image, later = store.repository("team/app"), build_image(), build_image(salt="later")
    push_image(repository, image, "1")
    repository.delete_tag("1")
    assert [each.name for each in store.undo()] == ["team/app:1"]
    push_image(repository, later, "1")
    store.undo()
    assert read_names(root) == {"team/app:1": image.digest}
    assert reachable(root) >= set(image.blobs)


def test_a_repository_is_found_by_the_name_that_it_was_pushed_to(store: Store) -> None:
    for name in ("quay.io/app", "localhost/team/app", "library/app", "docker.io/library/alpine"):
        repository = store.repository(name)
        push_image(repository, build_image(salt=name), "1")
        assert repository.tags() == ("1",), name
    assert set(store.repositories()) >= {"quay.io/app", "localhost/team/app", "library/app", "docker.io/library/alpine"}


def test_an_image_is_built_into_no_more_memory_than_a_piece(repository: LocalRepository) -> None:
    largest = []

    class Measuring(io.BytesIO):
        def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # what it is called with
            largest.append(len(buffer))
            return super().readinto(buffer)

    upload = repository.begin_upload()
    repository.append_upload(upload.id, Measuring(bytes(5 * 1024 * 1024)))
    assert max(largest) <= moving.BUFFER_BYTES
