"""Repair: what is wrong is replaced by what is right, or taken out of the way; and nothing else is touched."""

import errno
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest

from minibox_store import (
    BlobSource,
    Cancellation,
    Cancelled,
    ContentMismatch,
    Credentials,
    Digest,
    IncompleteImage,
    InvalidInput,
    MemoryImages,
    RepairReport,
    Store,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from minibox_store import _locks as locks
from minibox_store.documents import Descriptor
from minibox_store.events import BlobAdvanced, BlobStarted, Event
from minibox_store.protocols import BlobStream
from tests.support.failing_system import failing_system
from tests.support.filled import fill
from tests.support.forks import run_as_user
from tests.support.images import (
    OCI_INDEX,
    OCI_MANIFEST,
    BuiltImage,
    build_image,
    build_index,
    build_layer,
    digest_of,
    encode_document,
    random_layer,
)
from tests.support.invariants import check_invariants, held_locks, open_files, read_index, read_names, stored
from tests.support.layouts import write_layout_files
from tests.support.os_proxy import no_hard_links, replaced_os
from tests.support.peers import docker_registry, push_image
from tests.support.registries import quick_client
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    basic_credentials,
    blob_headers,
    blob_target,
    manifest_target,
    registry_error,
    serve_image,
)
from tests.support.snapshots import snapshot
from tests.support.sources import BlockingSource, BreakingSource, LackingSource, LyingSource, RecordingSource, memory_of
from tests.support.stores import blob, bound, mounted, open_store, put, put_dead, remount, require_root, rot
from tests.support.waiting import SOON_SECONDS

SHARED = build_layer({"srv/shared": b"shared" * 100})
AMD64 = build_image([SHARED, {"a": b"own"}], salt="amd64")
ARM64 = build_image([SHARED, {"b": b"own"}], salt="arm64", platform="linux/arm64")
MULTI = build_index([build_index([AMD64]), ARM64])
OTHER = build_image([SHARED, {"c": b"own"}], salt="other")
NAMES = {"multi:1": MULTI, "other:1": OTHER}
BLOBS = {**MULTI.blobs, **OTHER.blobs}

ROLES = {
    "index": MULTI.digest,
    "nested index": next(digest for digest in MULTI.document_digests if MULTI.media_types[digest] == OCI_INDEX),
    "manifest": AMD64.digest,
    "config": AMD64.config_digest,
    "layer": AMD64.layer_digests[1],
    "shared layer": AMD64.layer_digests[0],
}
KINDS = {
    **dict.fromkeys(["short", "long", "empty"], "wrong size"),
    **dict.fromkeys(["a link", "a folder", "a FIFO"], "not a file"),
    "missing": "missing",
    "rotten": "wrong digest",
    "unreadable": "unreadable",
}
DOCUMENTS = ("index", "nested index", "manifest")
EVER = 1 << 60
READS = ("pread", "preadv", "read", "readv")


def harm(path: Path, how: str) -> None:
    """Make something else of a blob; what is unreadable is made so by :func:`unreadable`."""
    content = path.read_bytes()
    if how == "rotten":
        rot(path)
    if how in ("rotten", "unreadable"):
        return
    path.unlink()
    match how:
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


@contextmanager
def unreadable(path: Path, *, at: str = "preadv") -> Iterator[None]:
    """Let the disk not give the bytes of this very file, under whatever name, for the block."""
    inode = path.stat().st_ino
    with failing_system() as system:
        if at == "open":
            system.fail_from(
                lambda call: call.name == "open" and inode_at(call.paths[0]) == inode, errno.EIO, skip=0, times=EVER
            )
        else:
            system.fail_from(
                lambda call: call.name in READS and os.fstat(call.arguments[0]).st_ino == inode,
                errno.EIO,
                skip=0,
                times=EVER,
            )
        yield
        assert system.failed, "nobody has read it"


def inode_at(path: str) -> int | None:
    """Return the inode of what is at a path, if there is something."""
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None


@contextmanager
def harmed(root: Path, digest: str, how: str) -> Iterator[tuple[int, bytes] | None]:
    """Harm a blob for the block; yield what is in its place then, as a snapshot has it."""
    path = blob(root, digest)
    harm(path, how)
    seen = snapshot(path.parent).get(path.name)
    if how != "unreadable":
        yield seen
        return
    with unreadable(path):
        yield seen


@pytest.fixture(scope="module")
def registry() -> Iterator[ScriptedRegistry]:
    """A registry that serves both images, and lasts."""
    with ScriptedRegistry() as scripted:
        serve_image(scripted, "team/multi", "1", MULTI)
        serve_image(scripted, "team/other", "1", OTHER)
        yield scripted


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory, registry: ScriptedRegistry) -> Path:
    """A store whose images were pulled, to be copied."""
    root = tmp_path_factory.mktemp("pulled") / "store"
    for name in NAMES:
        reference = registry.reference(f"team/{name.partition(':')[0]}", "1")
        open_store(root).pull(reference, name=name, platform=None, client=quick_client())
    return root


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose images came from nowhere that is known, to be copied."""
    root = tmp_path_factory.mktemp("imported") / "store"
    for name, image in NAMES.items():
        put(root, image, name)
    return root


@pytest.fixture
def root(tmp_path: Path, pulled: Path) -> Iterator[Path]:
    """The folder of a store whose images were pulled. Whatever a test does leaves no open file and no lock."""
    yield from copy_of(pulled, tmp_path)


@pytest.fixture
def orphaned(tmp_path: Path, imported: Path) -> Iterator[Path]:
    """The same of a store whose blobs have no origin."""
    yield from copy_of(imported, tmp_path)


def copy_of(template: Path, folder: Path) -> Iterator[Path]:
    root = folder / "store"
    shutil.copytree(template, root, symlinks=True)
    yield root
    assert open_files(root) == []
    assert held_locks(root) == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("minibox")]


def source() -> MemoryImages:
    """Return all blobs as a source."""
    return memory_of(NAMES)


def repair(root: Path, *sources: BlobSource, **options: object) -> RepairReport:
    """Repair with a client that loses no time."""
    return open_store(root).repair(client=quick_client(), sources=sources, **options)  # type: ignore[arg-type]  # options of the call by name


def brief(report: RepairReport) -> dict[str, tuple[str, ...]]:
    """Return the kind of what was mended, and of what was not, by the digest."""
    found: dict[str, tuple[str, ...]] = {}
    outcomes = [("mended", each.finding) for each in report.mended]
    outcomes += [("unmended", each.finding) for each in report.unmended]
    for outcome, finding in outcomes:
        key = f"{outcome} {finding.digest}"
        found[key] = (*found.get(key, ()), finding.kind)
    return found


def check_whole(root: Path) -> None:
    """Check that nothing is wrong with the store and its images, byte for byte."""
    store = open_store(root)
    assert [each for each in store.verify() if each.is_damage] == []
    assert read_names(root) == {name: image.digest for name, image in NAMES.items()}
    assert not any(image.damaged for image in store.images())
    for digest, content in BLOBS.items():
        path = blob(root, digest)
        assert (path.read_bytes(), stat.S_IMODE(path.lstat().st_mode)) == (content, 0o444)
    check_invariants(root)
    assert store.prune().errors == ()


def check_blobs(root: Path) -> None:
    """Check that whatever is left under ``blobs/`` is what it is called."""
    for digest in stored(root):
        assert digest_of(blob(root, digest).read_bytes()) == digest


def quarantined(root: Path, digest: str) -> list[tuple[int, bytes]]:
    """Return what lies in quarantine in the name of a blob."""
    found = snapshot(root / "quarantine") if (root / "quarantine").exists() else {}
    return [each for name, each in found.items() if name.startswith(digest.replace(":", "-"))]


def content_of(thing: tuple[int, bytes] | None) -> list[tuple[int, bytes]]:
    """Return a thing as it is to be found in quarantine: nothing where nothing was."""
    return [] if thing is None else [thing]


# Where it came from


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("role", ROLES)
def test_whatever_is_wrong_with_a_blob_it_is_fetched_again_from_where_it_came(
    root: Path, registry: ScriptedRegistry, role: str, how: str
) -> None:
    digest = ROLES[role]
    asked = {target: registry.count("GET", target) for target in targets()}
    with harmed(root, digest, how) as wrong:
        report = repair(root)
    assert brief(report) == {f"mended {digest}": (KINDS[how],)}
    needed_by = ("multi:1", "other:1") if role == "shared layer" else ("multi:1",)
    assert report.mended[0].finding.names == needed_by
    assert report.mended[0].origin in {f"{registry.host}/team/{name}" for name in ("multi", "other")}
    assert report.is_whole
    assert quarantined(root, digest) == content_of(wrong)
    asked_for = {target for target in targets() if registry.count("GET", target) > asked[target]}
    assert len(asked_for) == 1, "nothing else is fetched"
    assert asked_for.pop().endswith(digest)
    check_whole(root)
    assert repair(root) == RepairReport()


def targets() -> list[str]:
    """Return where a registry serves each blob."""
    return [
        target(f"team/{name.partition(':')[0]}", digest)
        for name, image in NAMES.items()
        for digest in image.blobs
        for target in (blob_target, manifest_target)
    ]


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("role", ROLES)
def test_whatever_is_wrong_with_a_blob_another_store_helps_though_nobody_knows_where_it_came_from(
    orphaned: Path, tmp_path: Path, role: str, how: str
) -> None:
    digest = ROLES[role]
    put(tmp_path / "mirror", MULTI, "multi:1")
    with harmed(orphaned, digest, how) as wrong:
        report = repair(orphaned, Store(tmp_path / "mirror"))
    if how == "missing" and role in ("nested index", "manifest"):
        assert brief(report) == {}, "nobody can tell it from one that was never fetched"
        assert [each.kind for each in open_store(orphaned).verify() if each.digest == Digest.parse(digest)] == [
            "absent"
        ]
        return
    assert brief(report) == {f"mended {digest}": (KINDS[how],)}
    assert report.mended[0].origin == "source 1"
    assert quarantined(orphaned, digest) == content_of(wrong)
    check_whole(orphaned)


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("role", ROLES)
def test_what_nobody_has_is_set_aside_told_every_time_and_mended_once_somebody_has_it(
    orphaned: Path, role: str, how: str
) -> None:
    digest = ROLES[role]
    if how == "missing" and role in ("nested index", "manifest"):
        return  # see above
    with harmed(orphaned, digest, how) as wrong:
        report = repair(orphaned)
    assert brief(report) == {f"unmended {digest}": (KINDS[how],)}
    (unmended,) = report.unmended
    assert unmended.problems == ("nobody has noted where it came from",)
    assert not report.is_whole
    assert not os.path.lexists(blob(orphaned, digest))
    assert quarantined(orphaned, digest) == content_of(wrong)
    if wrong is None:
        assert unmended.kept_aside is None
    else:
        assert unmended.kept_aside is not None
        assert snapshot(orphaned)[unmended.kept_aside] == wrong
    check_blobs(orphaned)
    if how == "unreadable":  # the disk gives it again
        again = repair(orphaned)
        assert brief(again) == {f"mended {digest}": ("missing",)}
        assert again.mended[0].origin == "quarantine"
        check_whole(orphaned)
        return
    again = repair(orphaned)
    assert brief(again) == {f"unmended {digest}": ("missing",)}
    assert again.unmended[0].kept_aside is None
    if role in DOCUMENTS:
        before = stored(orphaned)
        with pytest.raises((IncompleteImage, StoreDamaged), match=digest.partition(":")[2]):
            open_store(orphaned).prune()
        assert stored(orphaned) == before, "what it alone leads to is not taken"
        assert [image.name for image in open_store(orphaned).images() if image.damaged] == ["multi:1"]
    assert brief(repair(orphaned, source())) == {f"mended {digest}": ("missing",)}
    check_whole(orphaned)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("answer", ["gone", "wrong bytes", "too few", "refused", "silent"])
def test_an_origin_that_does_not_help_is_told_in_a_sentence_and_the_next_one_is_asked(
    root: Path, registry: ScriptedRegistry, role: str, answer: str
) -> None:
    digest = ROLES[role]
    rot(blob(root, digest))
    wrong = blob(root, digest).read_bytes()
    (root / "journal" / "origins").write_text("")
    with ScriptedRegistry() as bad:
        content = BLOBS[digest]
        answers = {
            "gone": registry_error(404, "BLOB_UNKNOWN"),
            "wrong bytes": Answer(headers=served_as(digest), body=bytes(len(content))),
            "too few": Answer(headers=served_as(digest), body=content[:-1]),
            "refused": registry_error(403, "DENIED"),
            "silent": Answer(raw=b""),
        }
        target = (manifest_target if role in DOCUMENTS else blob_target)("team/app", digest)
        bad.allow("GET", target, answers[answer])
        note_origin(root, digest, f"{bad.host}/team/app")
        report = repair(root)
        assert brief(report) == {f"unmended {digest}": ("wrong digest",)}
        (problem,) = report.unmended[0].problems
        assert problem.startswith(f"{bad.host}/team/app: ")
        assert problem.isprintable()
        assert [content for _, content in quarantined(root, digest)] == [wrong]
        assert list((root / "ingest" / "partial").iterdir()) == []
        check_blobs(root)
        note_origin(root, digest, f"{registry.host}/team/{'other' if role == 'shared layer' else 'multi'}")
        note_origin(root, digest, f"{bad.host}/team/app")  # the latest comes first
        assert brief(repair(root)) == {f"mended {digest}": ("missing",)}
    check_whole(root)


def served_as(digest: str) -> list[tuple[str, str]]:
    """Return the headers of a blob, or of a manifest."""
    media_type = {**MULTI.media_types, **OTHER.media_types}[digest]
    is_document = media_type in (OCI_INDEX, OCI_MANIFEST)
    return [("Content-Type", media_type), ("Docker-Content-Digest", digest)] if is_document else blob_headers(digest)


def note_origin(root: Path, digest: str, origin: str) -> None:
    """Add to the journal of origins."""
    (root / "journal").mkdir(exist_ok=True)
    with (root / "journal" / "origins").open("a") as journal:
        journal.write(f"\n{digest}\t{origin}\t.")


def test_from_a_real_registry_a_ruined_store_is_made_whole_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with docker_registry(tmp_path / "registry") as peer:
        for name, image in NAMES.items():
            push_image(peer, f"team/{name.partition(':')[0]}", "1", image)
            open_store(root).pull(peer.reference(f"team/{name.partition(':')[0]}", "1"), name=name, platform=None)
        for number, digest in enumerate(sorted(BLOBS)):
            harm(blob(root, digest), [how for how in KINDS if how != "unreadable"][number % 8])
        report = repair(root)
    assert len(report.mended) == len(BLOBS)
    assert report.unmended == ()
    assert len(list((root / "quarantine").iterdir())) == sum(number % 8 != 6 for number in range(len(BLOBS)))
    check_whole(root)


def test_an_origin_that_is_reached_by_nobody_is_not_asked_for_blob_after_blob(root: Path) -> None:
    documents = {*MULTI.document_digests, *OTHER.document_digests}
    leaves = set(BLOBS) - documents
    for digest in BLOBS:
        rot(blob(root, digest))
    with ScriptedRegistry() as bad:
        host = bad.host
    (root / "journal" / "origins").write_text("".join(f"\n{digest}\t{host}/gone\t." for digest in BLOBS))
    report = repair(root, LackingSource(source(), [Digest.parse(digest) for digest in leaves]))
    assert {str(each.finding.digest) for each in report.mended} == documents
    assert {str(each.finding.digest) for each in report.unmended} == leaves
    said = [each.problems[1] for each in report.unmended]
    assert all(each.problems[0].startswith("source 1: blob sha256:") for each in report.unmended)
    assert sum(problem == f"{host}/gone: it was not reached before" for problem in said) == len(leaves) - 2
    assert sum(problem.startswith(f"{host}/gone: GET http://{host}/v2/gone/blobs/") for problem in said) == 2


@pytest.mark.parametrize("origin", ["", "a b", "UPPER/case", "x" * 300, "h\x1b[31m/x"])
def test_an_origin_that_is_no_reference_helps_nobody_and_harms_nobody(root: Path, origin: str) -> None:
    digest = ROLES["layer"]
    harm(blob(root, digest), "missing")
    note_origin(root, digest, origin)
    report = repair(root)
    assert brief(report) == {f"mended {digest}": ("missing",)}
    check_whole(root)


def test_S28_no_credentials_come_into_the_report_or_into_the_journal(tmp_path: Path) -> None:
    root, digest = tmp_path / "store", OTHER.layer_digests[0]
    with ScriptedRegistry() as registry:
        serve_image(
            registry,
            "team/other",
            "1",
            OTHER,
            authorization=basic_credentials("user", "secret-word"),
            challenge='Basic realm="x"',
        )
        client = quick_client(credentials={registry.host: Credentials(username="user", password="secret-word")})
        store = open_store(root)
        store.pull(registry.reference("team/other", "1"), name="other:1", client=client)
        rot(blob(root, digest))
        report = store.repair(client=client)
        assert brief(report) == {f"mended {digest}": ("wrong digest",)}
        rot(blob(root, digest))
        wrong = quick_client(credentials={registry.host: Credentials(username="user", password="other-word")})
        registry.allow("GET", blob_target("team/other", digest), registry_error(401, "UNAUTHORIZED", "secret-word?"))
        registry.allow("GET", "/v2/", registry_error(401, "UNAUTHORIZED", "no"))
        refused = store.repair(client=wrong)
        assert brief(refused) == {f"unmended {digest}": ("wrong digest",)}
    told = f"{report!r} {refused!r}" + (root / "journal" / "origins").read_text()
    for secret in ("other-word", basic_credentials("user", "secret-word"), basic_credentials("user", "other-word")):
        assert secret.removeprefix("Basic ") not in told
    assert "secret-word" not in repr(report)


def test_a_pull_that_was_cut_off_and_gone_on_with_leaves_the_origin_of_every_blob(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/other", "1", OTHER)
        target = blob_target("team/other", OTHER.layer_digests[1])
        registry.allow("GET", target, registry_error(404, "BLOB_UNKNOWN"), at_most=1)
        with pytest.raises(StoreError):
            open_store(root).pull(
                registry.reference("team/other", "1"), name="other:1", client=quick_client(), parallel=1
            )
        assert OTHER.layer_digests[0] in stored(root)
        registry.allow("GET", target, Answer(headers=blob_headers("x"), body=OTHER.blobs[OTHER.layer_digests[1]]))
        open_store(root).pull(registry.reference("team/other", "1"), name="other:1", client=quick_client())
        before = (root / "journal" / "origins").read_bytes()
        for digest in OTHER.blobs:
            assert before.count(digest.encode()) == 1, digest
        open_store(root).pull(registry.reference("team/other", "1"), name="other:1", client=quick_client())
        assert (root / "journal" / "origins").read_bytes() == before, "what is known is not noted again"


# Sources


def test_sources_are_asked_in_their_order_and_before_the_origins(root: Path) -> None:
    digest = ROLES["layer"]
    rot(blob(root, digest))
    wanted = Digest.parse(digest)
    sources: list[BlobSource] = [
        LackingSource(source(), [wanted]),
        LyingSource(source(), {wanted: b"lie"}),
        BreakingSource(source(), [wanted], OSError(errno.EIO, "Input/output error"), after_bytes=3),
        BreakingSource(source(), [wanted], StoreFull("/elsewhere"), after_bytes=1),
        source(),
    ]
    report = repair(root, *sources)
    assert [each.origin for each in report.mended] == ["source 5"]
    check_whole(root)
    rot(blob(root, digest))
    report = repair(root, *sources[:-1])
    assert report.mended[0].origin.endswith("/team/multi")
    (root / "journal" / "origins").unlink()
    rot(blob(root, digest))
    report = repair(root, *sources[:-1])
    assert [problem.partition(":")[0] for problem in report.unmended[0].problems] == [
        f"source {number}" for number in range(1, 5)
    ]
    assert "Input/output error" in report.unmended[0].problems[2]
    check_blobs(root)


def test_a_source_whose_own_disk_gives_no_bytes_does_not_end_the_repair(orphaned: Path, tmp_path: Path) -> None:
    digest = ROLES["layer"]
    put(tmp_path / "mirror", MULTI, "multi:1")
    rot(blob(orphaned, digest))
    with unreadable(blob(tmp_path / "mirror", digest)):
        report = repair(orphaned, Store(tmp_path / "mirror"), source())
    assert [each.origin for each in report.mended] == ["source 2"]
    check_whole(orphaned)


def test_an_error_of_the_store_itself_is_not_taken_for_that_of_a_source(orphaned: Path) -> None:
    digest = ROLES["layer"]
    rot(blob(orphaned, digest))
    before = blob(orphaned, digest).read_bytes()
    store = open_store(orphaned, lock_timeout_seconds=0.1)
    lock = str(orphaned / "ingest" / "store.lock")
    with locks.holding_lock(lock, doing="for ever", timeout_seconds=1), pytest.raises(StoreBusy, match="for ever"):
        store.repair(sources=[source(), source()])
    with failing_system() as system:
        system.fail_from(lambda call: call.name == "write" and "partial" in call.paths[0], errno.EIO, skip=0)
        with pytest.raises(StoreUnavailable, match=str(orphaned)):
            store.repair(sources=[source()])
    assert blob(orphaned, digest).read_bytes() == before
    assert brief(repair(orphaned, source())) == {f"mended {digest}": ("wrong digest",)}
    check_whole(orphaned)


def test_a_cancel_ends_a_repair_that_waits_for_a_source_and_what_was_mended_stays(orphaned: Path) -> None:
    first, second = sorted([*OTHER.layer_digests])
    for digest in (first, second):
        rot(blob(orphaned, digest))
    blocking = BlockingSource(source(), [Digest.parse(second)])
    cancellation = Cancellation()
    ended: list[float] = []

    def cancel() -> None:
        assert blocking.blocked.wait(60)
        ended.append(time.monotonic())
        cancellation.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        repair(orphaned, blocking, cancellation=cancellation)
    thread.join()
    assert time.monotonic() - ended[0] < SOON_SECONDS
    assert blob(orphaned, first).read_bytes() == BLOBS[first]
    assert os.path.lexists(blob(orphaned, second)), "nobody has answered yet"
    assert brief(repair(orphaned, source())) == {f"mended {second}": ("wrong digest",)}
    with pytest.raises(Cancelled):
        repair(orphaned, cancellation=cancellation)
    check_whole(orphaned)


def test_whoever_looks_on_is_told_what_is_read_and_what_is_fetched(orphaned: Path) -> None:
    wrong = {OTHER.layer_digests[1]: "layer", OTHER.config_digest: "config", OTHER.digest: "manifest"}
    for digest in wrong:
        rot(blob(orphaned, digest))
    events: list[Event] = []
    repair(orphaned, source(), on_event=events.append)
    fetched = [each for each in events if isinstance(each, BlobStarted) and str(each.descriptor.digest) in wrong]
    assert {str(each.descriptor.digest): each.role for each in fetched} == wrong
    assert [each.position for each in fetched if each.role == "manifest"] == [1]
    assert all(each.position <= each.total for each in fetched)
    done = {str(each.digest): each.done_bytes for each in events if isinstance(each, BlobAdvanced)}
    assert all(done[digest] == len(BLOBS[digest]) for digest in wrong)


def test_what_a_listener_raises_while_a_blob_is_fetched_is_no_fault_of_the_source(orphaned: Path) -> None:
    rot(blob(orphaned, OTHER.digest))
    error = ContentMismatch(OTHER.digest, "one thing", "another")

    def fail(event: Event) -> None:
        if isinstance(event, BlobStarted) and event.role == "manifest":
            raise error

    with pytest.raises(ContentMismatch) as caught:
        repair(orphaned, source(), on_event=fail)
    assert caught.value is error
    assert brief(repair(orphaned, source())) == {f"mended {OTHER.digest}": ("wrong digest",)}


@pytest.mark.parametrize("parallel", [0, -1])
def test_so_many_readers_are_refused(root: Path, parallel: int) -> None:
    with pytest.raises(InvalidInput, match=rf"parallel\D*{parallel}\b"):
        repair(root, parallel=parallel)


# What is more than one blob


def test_below_each_document_that_was_mended_more_is_found_and_mended(root: Path) -> None:
    for digest in BLOBS:
        rot(blob(root, digest))
    report = repair(root)
    assert set(brief(report)) == {f"mended {digest}" for digest in BLOBS}
    assert len(report.mended) == len(BLOBS), "each is told once, whoever needs it"
    for each in report.mended:
        digest = str(each.finding.digest)
        expected = {name for name, image in NAMES.items() if digest in image.blobs}
        assert set(each.finding.names) <= expected
        assert each.finding.names
    check_whole(root)


def test_what_two_images_need_is_told_once_though_one_of_them_shows_it_later(root: Path) -> None:
    rot(blob(root, OTHER.digest))
    rot(blob(root, AMD64.layer_digests[0]))
    report = repair(root)
    assert brief(report) == {
        f"mended {OTHER.digest}": ("wrong digest",),
        f"mended {AMD64.layer_digests[0]}": ("wrong digest",),
    }
    assert report.is_whole


def test_what_nobody_has_is_told_once_though_another_image_shows_it_later(orphaned: Path) -> None:
    shared = AMD64.layer_digests[0]
    for digest in (OTHER.digest, shared):
        rot(blob(orphaned, digest))
    lying = RecordingSource(LyingSource(source(), {Digest.parse(shared): b"other bytes"}))
    report = repair(orphaned, lying)
    assert brief(report) == {f"mended {OTHER.digest}": ("wrong digest",), f"unmended {shared}": ("wrong digest",)}
    assert lying.opened_digests.count(Digest.parse(shared)) == 1, "nobody is asked again"


def test_who_tells_the_truth_is_believed_though_a_liar_was_heard_first(orphaned: Path) -> None:
    layer = OTHER.layer_digests[1]
    add_image(orphaned, lying_image(7, layer=1), "liar:1")
    for digest in (OTHER.digest, layer):
        rot(blob(orphaned, digest))
    report = repair(orphaned, source())
    assert brief(report) == {f"mended {OTHER.digest}": ("wrong digest",), f"mended {layer}": ("wrong size",)}
    open_store(orphaned).remove("liar:1")
    check_whole(orphaned)


def test_what_lies_below_a_document_that_cannot_be_mended_is_left_for_the_time_when_it_is(orphaned: Path) -> None:
    rot(blob(orphaned, AMD64.digest))
    rot(blob(orphaned, AMD64.config_digest))
    report = repair(orphaned, LackingSource(source(), [Digest.parse(AMD64.digest)]))
    assert brief(report) == {
        f"unmended {AMD64.digest}": ("wrong digest",),
        f"unmended {AMD64.config_digest}": ("wrong digest",),
    }
    assert [each.is_needed for each in report.unmended] == [True, False], "nobody knows that it is"
    check_blobs(orphaned)
    assert set(brief(repair(orphaned, source()))) == {
        f"mended {AMD64.digest}",
        f"mended {AMD64.config_digest}",
    }
    check_whole(orphaned)


def test_a_damaged_index_is_mended_first_and_then_the_blobs_of_its_images(root: Path) -> None:
    (root / "index.json").write_bytes(b"{")
    rot(blob(root, MULTI.digest))
    rot(blob(root, ROLES["layer"]))
    report = repair(root)
    assert report.index is not None
    assert report.index.names == ("multi:1", "other:1")
    assert report.index.left_out == ()
    assert set(brief(report)) == {f"mended {MULTI.digest}", f"mended {ROLES['layer']}"}
    assert report.is_whole
    check_whole(root)


def test_a_damaged_index_is_mended_past_a_manifest_that_the_disk_does_not_give(root: Path) -> None:
    (root / "index.json").write_bytes(b"{")
    with unreadable(blob(root, OTHER.digest)):
        report = repair(root)
    assert report.index is not None
    assert report.index.names == ("multi:1", "other:1")
    assert brief(report) == {f"mended {OTHER.digest}": ("unreadable",)}
    check_whole(root)


def test_what_was_mended_is_there_after_a_loss_of_power(orphaned: Path) -> None:
    path = blob(orphaned, ROLES["layer"])
    path.unlink()
    store = Store(orphaned, durability="full", settle_seconds=0.0)
    with replaced_os() as system:
        assert store.repair(client=quick_client(), sources=[source()]).is_whole
    calls = [(call.name, *call.paths[-1:]) for call in system.calls]
    assert ("fsync", os.fspath(path.parent)) in calls[calls.index(("link", os.fspath(path))) :]
    check_whole(orphaned)


@pytest.mark.parametrize("role", ["manifest", "layer"])
def test_a_file_that_the_disk_does_not_even_open_is_replaced(root: Path, role: str) -> None:
    with unreadable(blob(root, ROLES[role]), at="open"):
        report = repair(root)
    assert brief(report) == {f"mended {ROLES[role]}": ("unreadable",)}
    check_whole(root)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_repair_ends_and_tells_all_though_a_document_that_was_mended_stays_closed(root: Path, number: int) -> None:
    path, rotten = os.fspath(blob(root, AMD64.digest)), OTHER.layer_digests[1]
    rot(blob(root, rotten))
    with failing_system() as system:
        system.fail_from(lambda call: call.name == "open" and call.paths == (path,), number, skip=0, times=30)
        report = repair(root)
    assert len(system.failed) < 30, "it was mended and looked at again until somebody opened it"
    assert brief(report) == {f"mended {rotten}": ("wrong digest",), f"unmended {AMD64.digest}": ("unreadable",)}
    assert os.strerror(number) in report.unmended[0].problems[0]
    assert not report.is_whole
    check_whole(root)


def test_what_was_mended_is_told_though_no_generation_may_be_read(root: Path) -> None:
    digest = OTHER.layer_digests[1]
    rot(blob(root, digest))
    with failing_system() as system:
        system.fail_from(lambda call: "/history/" in "".join(call.paths[:1]), errno.EACCES, skip=0, times=EVER)
        assert brief(repair(root)) == {f"mended {digest}": ("wrong digest",)}
        assert system.failed
    check_whole(root)


@pytest.mark.parametrize("role", ["manifest", "config", "layer"])
@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_is_closed_to_its_user_is_replaced_or_stays_and_the_rest_is_mended(role: str, links: bool) -> None:
    require_root()
    closed = {salt: build_image([random_layer(4096, salt=salt)], salt=salt) for salt in ("needed", "dead")}

    def digest_in(image: BuiltImage) -> str:
        return {"manifest": image.digest, "config": image.config_digest, "layer": image.layer_digests[0]}[role]

    def work(folder: Path) -> None:
        root = folder / "store"
        put(root, closed["needed"], "closed:1")
        put(root, AMD64, "rotten:1")
        put_dead(root, closed["dead"])
        paths = [blob(root, digest_in(each)) for each in closed.values()]
        for path in paths:
            path.chmod(0)
        rot(blob(root, AMD64.layer_digests[0]))
        with replaced_os() as system:
            if not links:
                no_hard_links(system)
            report = repair(root, memory_of({"": AMD64}))
            assert [str(each.finding.digest) for each in report.mended] == [AMD64.layer_digests[0]]
            assert [(each.finding.kind, each.kept_aside) for each in report.unmended] == [("unreadable", None)]
            assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0, 0], "nobody knows that they are wrong"
            report = repair(root, memory_of({"": closed["needed"]}))
            assert [each.finding.kind for each in report.mended] == ["unreadable"]
            put(root, closed["dead"], "dead:1")
        assert open_store(root).verify() == ()
        assert open_store(root).prune().errors == ()

    assert run_as_user(work) == 0


def test_a_folder_that_may_not_be_moved_stays_and_what_was_mended_is_told() -> None:
    require_root()

    def work(folder: Path) -> None:
        root, rotten, absent = folder / "store", AMD64.layer_digests[0], digest_of(b"nothing has these bytes")
        put(root, AMD64, "app:1")
        rot(blob(root, rotten))
        stray = blob(root, absent)
        stray.mkdir(mode=0o555)
        report = repair(root, memory_of({"": AMD64}))
        assert brief(report) == {f"mended {rotten}": ("wrong digest",), f"unmended {absent}": ("not a file",)}
        assert report.unmended[0].problems[-1] == "it cannot be moved: Permission denied"
        assert stray.is_dir()

    assert run_as_user(work) == 0


# What is not to be mended


def test_a_store_that_is_whole_is_left_as_it_is_and_may_be_read_only(root: Path, tmp_path: Path) -> None:
    before = snapshot(root)
    with replaced_os(trees=True) as system:
        assert repair(root) == RepairReport()
        assert system.changes == []
    assert snapshot(root) == before
    with bound(root, tmp_path / "bound") as folder:
        remount(folder, "bind,ro")
        assert repair(folder) == RepairReport()
    assert repair(tmp_path / "nowhere") == RepairReport()
    assert not (tmp_path / "nowhere").exists()


def test_a_layer_that_is_right_and_needed_is_read_once(root: Path) -> None:
    with failing_system() as system:
        assert repair(root) == RepairReport()
    opened = [call.paths for call in system.calls if call.name == "open"]
    for digest in {*AMD64.layer_digests, *ARM64.layer_digests, *OTHER.layer_digests}:
        assert opened.count((os.fspath(blob(root, digest)),)) == 1


def test_what_is_wrong_with_a_store_that_is_read_only_is_said_to_be_out_of_reach(root: Path, tmp_path: Path) -> None:
    rot(blob(root, ROLES["layer"]))
    before = snapshot(root)
    with bound(root, tmp_path / "bound") as folder:
        remount(folder, "bind,ro")
        with pytest.raises(StoreUnavailable, match="Read-only"):
            repair(folder)
    assert snapshot(root) == before


@pytest.mark.parametrize("size_bytes", [0, 1, 10_000_000])
def test_a_blob_that_is_right_is_never_set_aside_though_a_descriptor_lies_about_it(
    orphaned: Path, size_bytes: int
) -> None:
    layer, liar = OTHER.document()["layers"][0], lying_image(size_bytes)
    add_image(orphaned, liar, "liar:1")
    report = repair(orphaned, source())
    assert brief(report) == {f"unmended {layer['digest']}": ("wrong size",)}
    (unmended,) = report.unmended
    assert (unmended.kept_aside, unmended.finding.names) == (None, ("liar:1", "multi:1", "other:1"))
    assert "to fetch it again would give no others" in unmended.problems[0]
    assert not (orphaned / "quarantine").exists()
    rot(blob(orphaned, layer["digest"]))
    report = repair(orphaned, source())
    assert brief(report) == {
        f"mended {layer['digest']}": ("wrong digest",),
        f"unmended {layer['digest']}": ("wrong size",),
    }
    harm(blob(orphaned, layer["digest"]), "missing")
    report = repair(orphaned, source())
    assert brief(report) == {f"mended {layer['digest']}": ("missing",)}, "who tells the truth is believed"
    open_store(orphaned).remove("liar:1")
    check_whole(orphaned)


def lying_image(size_bytes: int, *, layer: int = 0) -> BuiltImage:
    """Return an image whose manifest says another size of a layer that others have too."""
    document = OTHER.document()
    document["layers"][layer] = {**document["layers"][layer], "size": size_bytes}
    content = encode_document(document)
    root = {"mediaType": OCI_MANIFEST, "digest": digest_of(content), "size": len(content)}
    return BuiltImage(root=root, blobs={digest_of(content): content}, media_types={digest_of(content): OCI_MANIFEST})


def add_image(root: Path, image: BuiltImage, name: str) -> None:
    """Add an image to a store by other means, as it is."""
    for digest, content in image.blobs.items():
        blob(root, digest).write_bytes(content)
        blob(root, digest).chmod(0o444)
    entries = {
        entry["annotations"]["org.opencontainers.image.ref.name"]: entry for entry in read_index(root)["manifests"]
    }
    roots = {key: {field: entry[field] for field in ("mediaType", "digest", "size")} for key, entry in entries.items()}
    write_layout_files(root, {**roots, name: image.root})
    open_store(root).tag(name, name)


@pytest.mark.parametrize(
    "content", [b"{}", b"no document", b"[1]", b'{"schemaVersion": 2, "manifests": [], "layers": []}']
)
def test_a_document_that_is_right_by_its_digest_and_none_is_told_and_stays(orphaned: Path, content: bytes) -> None:
    digest = digest_of(content)
    root = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(content)}
    for path, data in {blob(orphaned, digest): content}.items():
        path.write_bytes(data)
    index = read_index(orphaned)
    index["manifests"].append({**root, "annotations": {"org.opencontainers.image.ref.name": "none:1"}})
    (orphaned / "index.json").write_text(json.dumps(index))
    bogus = memory_of(NAMES)
    bogus.blobs[Digest.parse(digest)] = content
    report = repair(orphaned, bogus)
    assert brief(report) == {f"unmended {digest}": ("unreadable",)}
    assert report.unmended[0].kept_aside is None
    assert blob(orphaned, digest).read_bytes() == content
    assert report.nameless == ()


def test_a_wrong_blob_that_nobody_needs_is_set_aside_so_that_no_pull_relies_on_it(orphaned: Path) -> None:
    dead = build_image([random_layer(4096, salt="dead"), random_layer(2048, salt="dead too")], salt="dead")
    put_dead(orphaned, dead)
    rotten, whole = dead.layer_digests
    rot(blob(orphaned, rotten))
    wrong = blob(orphaned, rotten).read_bytes()
    report = repair(orphaned)
    assert brief(report) == {f"unmended {rotten}": ("wrong digest",)}
    assert not report.unmended[0].is_needed
    assert report.is_whole
    assert [content for _, content in quarantined(orphaned, rotten)] == [wrong]
    assert whole in stored(orphaned)
    check_blobs(orphaned)
    assert repair(orphaned) == RepairReport()
    put(orphaned, dead, "alive:1")
    assert [each for each in open_store(orphaned).verify() if each.is_damage] == []


def test_what_another_tool_is_just_writing_is_not_set_aside(orphaned: Path) -> None:
    path = blob(orphaned, digest_of(b"all of it"))
    path.write_bytes(b"all")
    patient = Store(orphaned, durability="none", settle_seconds=30.0)
    assert patient.repair() == RepairReport()
    assert path.read_bytes() == b"all"
    os.utime(path, (0, 0))
    assert [str(each.finding.digest) for each in patient.repair().unmended] == [digest_of(b"all of it")]


def test_a_blob_that_nobody_needs_and_that_a_prune_takes_at_this_moment_is_not_wrong(orphaned: Path) -> None:
    dead = build_image(salt="dead")
    put_dead(orphaned, dead)
    first = min(dead.blobs).partition(":")[2]
    with replaced_os() as system:
        system.before("open", lambda: open_store(orphaned).prune(), path=f"blobs/sha256/{first}")
        assert brief(repair(orphaned)) == {}
    check_whole(orphaned)


def test_what_lies_under_blobs_and_is_called_by_no_digest_is_told_and_left_alone(orphaned: Path) -> None:
    folder = orphaned / "blobs" / "sha256"
    (folder / "stray").symlink_to("/etc/hostname")
    (folder / "file").write_bytes(b"not ours")
    os.mkfifo(folder / ("e" * 64))
    before = snapshot(folder)
    report = repair(orphaned)
    assert sorted(each.finding.path for each in report.unmended) == [
        f"blobs/sha256/{'e' * 64}",
        "blobs/sha256/stray",
    ]
    assert report.is_whole
    after = snapshot(folder)
    assert {name: thing for name, thing in before.items() if name != "e" * 64} == after
    assert [stat.S_ISFIFO(mode) for mode, _ in quarantined(orphaned, f"sha256:{'e' * 64}")] == [True]
    check_whole_but_strays(orphaned)


def check_whole_but_strays(root: Path) -> None:
    """Check all images of a store."""
    for digest, content in BLOBS.items():
        assert blob(root, digest).read_bytes() == content


# Where, and beside whom


@pytest.mark.parametrize("how", ["missing", "short", "rotten", "a link", "a folder", "a FIFO"])
def test_without_hard_links_it_is_the_same(root: Path, how: str) -> None:
    digest = ROLES["shared layer"]
    with replaced_os() as system:
        no_hard_links(system)
        with harmed(root, digest, how) as wrong:
            assert brief(repair(root)) == {f"mended {digest}": (KINDS[how],)}
        assert quarantined(root, digest) == content_of(wrong)
        (root / "journal" / "origins").unlink()
        harm(blob(root, digest), how)
        assert brief(repair(root)) == {f"unmended {digest}": (KINDS[how],)}
        assert brief(repair(root, source())) == {f"mended {digest}": ("missing",)}
    check_whole(root)


class ActingSource:
    """A source that does something before it gives a blob: what another process does meanwhile."""

    def __init__(self, behind: BlobSource, action: Callable[[], object]) -> None:
        self._behind = behind
        self._action = action

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Act, and return the stream."""
        self._action()
        return self._behind.open_blob(descriptor, offset)


def remove(root: Path, *names: str) -> None:
    """Take names away."""
    for name in names:
        with suppress(StoreError):
            open_store(root).remove(name)


@pytest.mark.parametrize("role", ROLES)
def test_an_image_that_is_removed_and_collected_while_it_is_mended_is_no_damage(orphaned: Path, role: str) -> None:
    rot(blob(orphaned, ROLES[role]))
    rot(blob(orphaned, OTHER.layer_digests[1]))

    def act() -> None:
        remove(orphaned, "multi:1")
        open_store(orphaned).prune()

    repair(orphaned, ActingSource(source(), act))
    assert read_names(orphaned) == {"other:1": OTHER.digest}
    check_blobs(orphaned)
    open_store(orphaned).prune()
    assert stored(orphaned) == set(OTHER.blobs)
    assert open_store(orphaned).verify() == ()
    check_invariants(orphaned)


@pytest.mark.parametrize("how", ["rotten", "short"])
@pytest.mark.parametrize("role", ["layer", "manifest"])
def test_what_another_process_has_mended_meanwhile_is_not_told_and_never_set_aside(
    orphaned: Path, role: str, how: str
) -> None:
    digest = ROLES[role]
    hexadecimal = digest.partition(":")[2]

    def mend() -> None:
        open_store(orphaned).import_image(source(), "multi:1", verify="content")

    # The check has opened it, and whoever looks at it again finds another file there.
    harm(blob(orphaned, digest), how)
    with replaced_os() as system:
        system.before("open", mend, path=f"blobs/sha256/{hexadecimal}", skip=1)
        assert repair(orphaned) == RepairReport()
    check_whole(orphaned)
    # It was looked at, is wrong, and has been replaced when the lock is taken.
    harm(blob(orphaned, digest), how)
    with replaced_os() as system:
        system.before("open", mend, path="ingest/store.turn")
        report = repair(orphaned)
    assert [each.kept_aside for each in report.unmended] == [None]
    check_whole(orphaned)


def test_below_a_document_that_another_process_has_mended_meanwhile_more_is_found(orphaned: Path) -> None:
    path, layer = blob(orphaned, AMD64.digest), AMD64.layer_digests[1]

    def mend() -> None:
        path.unlink()
        path.write_bytes(AMD64.blobs[AMD64.digest])
        path.chmod(0o444)

    for digest in (AMD64.digest, layer):
        rot(blob(orphaned, digest))
    with replaced_os() as system:
        system.before("open", mend, path=f"blobs/sha256/{path.name}", skip=1)
        report = repair(orphaned, source())
    assert brief(report) == {f"mended {layer}": ("wrong digest",)}
    check_whole(orphaned)


def test_an_index_that_another_process_has_mended_meanwhile_is_no_error(orphaned: Path) -> None:
    (orphaned / "index.json").write_bytes(b"{")
    with replaced_os() as system:
        system.before("open", lambda: open_store(orphaned).repair(), path="ingest/store.turn")
        assert repair(orphaned) == RepairReport()
    check_whole(orphaned)


def test_on_a_full_disk_nothing_is_lost_and_with_room_again_all_is_mended(tmp_path: Path) -> None:
    image = build_image([random_layer(2 << 20, salt="big")], salt="big")
    layer = image.layer_digests[0]
    with mounted(tmp_path / "disk", "size=8m") as disk:
        root = disk / "store"
        put(root, image, "big:1")
        rot(blob(root, layer))
        wrong = blob(root, layer).read_bytes()
        fill(disk / "filler")
        with pytest.raises(StoreFull, match=str(root)):
            repair(root, memory_of({"big:1": image}))
        assert blob(root, layer).read_bytes() == wrong
        assert list((root / "ingest" / "partial").iterdir()) == []
        (disk / "filler").unlink()
        assert brief(repair(root, memory_of({"big:1": image}))) == {f"mended {layer}": ("wrong digest",)}
        assert [content for _, content in quarantined(root, layer)] == [wrong]
        assert open_store(root).verify() == ()


# What was lost


def test_names_that_were_lost_and_images_that_none_reaches_are_told_by_their_tops(orphaned: Path) -> None:
    store = open_store(orphaned)
    store.remove("multi:1")
    report = repair(orphaned)
    assert [(each.name, str(each.descriptor.digest)) for each in report.lost_names] == [("multi:1", MULTI.digest)]
    assert [str(each.digest) for each in report.nameless] == [MULTI.digest], "what it reaches is not told beside it"
    (nameless,) = report.nameless
    assert (nameless.media_type, nameless.size_bytes) == (OCI_INDEX, len(MULTI.blobs[MULTI.digest]))
    assert report.is_whole
    store.import_image(_Named(store, nameless), "x", as_name="multi:1")
    check_whole(orphaned)


class _Named:
    """A store, with one name more than it has."""

    def __init__(self, store: Store, descriptor: Descriptor) -> None:
        self._store = store
        self._descriptor = descriptor

    def resolve(self, name: str) -> Descriptor:
        """Return what it stands for."""
        return self._descriptor

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the store's."""
        return self._store.open_blob(descriptor, offset)


@pytest.mark.parametrize("how", ["missing", "rotten", "a link"])
def test_an_image_without_a_name_that_is_not_whole_is_not_offered(orphaned: Path, how: str) -> None:
    open_store(orphaned).remove("multi:1")
    harm(blob(orphaned, AMD64.layer_digests[1]), how)
    report = repair(orphaned)
    assert [str(each.digest) for each in report.nameless] == [ARM64.digest], "this one is whole without the other"
    assert report.lost_names == ()


def test_a_nameless_document_that_the_disk_does_not_give_ends_nothing(orphaned: Path) -> None:
    open_store(orphaned).remove("multi:1")
    with unreadable(blob(orphaned, AMD64.digest)):
        report = repair(orphaned)
    assert [str(each.digest) for each in report.nameless] == [ARM64.digest]
    check_blobs(orphaned)


def test_as_long_as_a_root_is_wrong_nobody_knows_what_has_no_name(orphaned: Path) -> None:
    dead = build_image(salt="dead")
    put_dead(orphaned, dead)
    rot(blob(orphaned, OTHER.digest))
    assert repair(orphaned).nameless == ()
    assert [str(each.digest) for each in repair(orphaned, source()).nameless] == [dead.digest]


# Replacing what an image brings


@pytest.mark.parametrize("how", ["rotten", "unreadable"])
@pytest.mark.parametrize("verb", ["pull", "import"])
def test_S6_a_pull_that_verifies_content_replaces_a_layer_of_the_right_size_and_one_that_does_not_never_reads_it(
    root: Path, registry: ScriptedRegistry, verb: str, how: str
) -> None:
    layer = OTHER.layer_digests[1]
    hexadecimal = layer.partition(":")[2]

    def bring(**options: object) -> None:
        if verb == "pull":
            reference = registry.reference("team/other", "1")
            open_store(root).pull(reference, name="other:1", client=quick_client(), **options)  # type: ignore[arg-type]  # options of the call by name
        else:
            open_store(root).import_image(source(), "other:1", **options)  # type: ignore[arg-type]  # options of the call by name

    with replaced_os() as system:
        bring()
        bring(verify="size")
        assert sum(system.count(name, hexadecimal) for name in READS) == 0
        bring(verify="content")
        assert sum(system.count(name, hexadecimal) for name in READS) > 0
    assert not (root / "quarantine").exists(), "what is right is not replaced"
    with harmed(root, layer, how) as wrong:
        bring(verify="size")
        assert snapshot(blob(root, layer).parent)[hexadecimal] == wrong
        bring(verify="content")
    assert blob(root, layer).read_bytes() == BLOBS[layer]
    assert quarantined(root, layer) == content_of(wrong)
    check_whole(root)


@pytest.mark.parametrize("value", ["", "Content", "none", None, True])
def test_another_way_to_verify_is_refused_before_anybody_is_asked(root: Path, value: object) -> None:
    before = snapshot(root)
    with ScriptedRegistry() as nobody:
        reference = nobody.reference("a", "1")
        with pytest.raises(InvalidInput, match="neither 'size' nor 'content'"):
            open_store(root).pull(reference, verify=value)  # type: ignore[arg-type]  # what is no such value is tried
        with pytest.raises(InvalidInput, match="neither 'size' nor 'content'"):
            open_store(root).import_image(source(), "other:1", verify=value)  # type: ignore[arg-type]  # what is no such value is tried
    assert snapshot(root) == before


# ---- a machine that is set up wrong


@pytest.mark.parametrize(
    ("variable", "value"), [("MINIBOX_REGISTRIES", "/nowhere/registries.toml"), ("HTTPS_PROXY", "::none")]
)
def test_what_needs_no_registry_is_mended_though_nobody_can_speak_to_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    (root / "index.json").write_bytes(b"{")
    for digest in OTHER.layer_digests:
        rot(blob(root, digest))
    here, nowhere = OTHER.layer_digests
    store = open_store(root)
    report = store.repair(sources=[LackingSource(source(), [Digest.parse(nowhere)])])
    assert report.index is not None
    assert [str(each.finding.digest) for each in report.mended] == [here]
    (unmended,) = report.unmended
    assert str(unmended.finding.digest) == nowhere
    assert any("invalid proxy" in each or value in each for each in unmended.problems)
    assert store.repair(sources=[source()]).is_whole
    check_whole(root)


# ---- oci-layout


BAD_MARKERS = {
    "empty": b"",
    "zeros": bytes(30),
    "torn": b'{"imageLayoutVersion":"1.0',
    "another field": b'{"imageLayoutVersioN":"1.0.0"}',
    "no version": b'{"imageLayoutVersion":"q.0.0"}',
    "too large": b" " * 100_000,
}


@pytest.mark.parametrize("durability", ["full", "none"])
@pytest.mark.parametrize("content", BAD_MARKERS.values(), ids=BAD_MARKERS)
def test_a_rotten_marker_is_found_and_mended_and_the_store_can_be_changed_again(
    root: Path, content: bytes, durability: Literal["full", "none"]
) -> None:
    (root / "oci-layout").write_bytes(content)
    store = Store(root, durability=durability, settle_seconds=0.0)
    (finding,) = [each for each in store.verify() if each.is_damage]
    assert (finding.kind, finding.path, finding.digest) == ("unreadable", "oci-layout", None)
    rot(blob(root, OTHER.layer_digests[0]))
    report = store.repair(sources=[source()])
    assert report.is_whole
    assert report.mended[0].finding == finding
    assert [each.finding.kind for each in report.mended[1:]] == ["wrong digest"]
    (aside,) = (root / "quarantine").glob("oci-layout.*")
    assert aside.read_bytes() == content
    assert json.loads((root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    store.tag("multi:1", "again:1")
    assert store.repair().mended == ()
    check_invariants(root)


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_marker_that_is_no_file_is_kept_and_makes_way(root: Path, kind: str) -> None:
    marker = root / "oci-layout"
    marker.rename(root.parent / "elsewhere")
    marker.mkdir() if kind == "folder" else marker.symlink_to(root.parent / "elsewhere")
    assert [each.kind for each in open_store(root).verify() if each.is_damage] == ["not a file"]
    assert open_store(root).repair().is_whole
    open_store(root).tag("multi:1", "again:1")
    (aside,) = (root / "quarantine").glob("oci-layout.*")
    assert aside.is_symlink() if kind == "link" else aside.is_dir()
    check_invariants(root)


def test_a_marker_of_another_version_is_told_and_left_alone(root: Path) -> None:
    (root / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    before = snapshot(root)
    report = open_store(root).repair()
    assert not report.is_whole
    assert report.unmended[0].finding in open_store(root).verify()
    assert "version" in report.unmended[0].problems[0]
    assert snapshot(root) == before


def test_a_marker_that_is_closed_to_its_user_is_told_and_left_alone() -> None:
    require_root()

    def work(folder: Path) -> None:
        root = folder / "store"
        put(root, OTHER, "other:1")
        (root / "oci-layout").chmod(0)
        (finding,) = open_store(root).verify()
        assert (finding.kind, finding.path) == ("unreadable", "oci-layout")
        assert [each.finding for each in open_store(root).repair().unmended] == [finding]
        assert stat.S_IMODE((root / "oci-layout").stat().st_mode) == 0

    assert run_as_user(work) == 0
