"""What refers to an image comes along with it, lives as long as that, and goes by the same collection."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from minibox_store import (
    BlobNotFound,
    Event,
    IncompleteImage,
    InvalidDocument,
    Limits,
    NothingToDo,
    Platform,
    Policy,
    PolicyRefused,
    PruneReport,
    ReferrerFound,
    RegistryError,
    Store,
    StoreDamaged,
    StoreUnavailable,
    render_line,
)
from minibox_store.documents import LayoutIndex
from minibox_store.layout import sweeping
from minibox_store.layout.reading import known_referrers
from minibox_store.layout.sweeping import Sweep
from minibox_store.layout_index import REFERRER_ANNOTATION
from tests.support.answers import Answer, registry_error
from tests.support.forks import run_forked
from tests.support.images import OCI_INDEX, SBOM, SIGNATURE, BuiltImage, build_artifact, build_image, build_index
from tests.support.invariants import check_invariants, read_index, read_names, stored
from tests.support.os_proxy import DIED, replaced_os
from tests.support.registries import quick_client
from tests.support.scripted_registry import blob_target, manifest_target
from tests.support.snapshots import snapshot
from tests.support.sources import descriptors_of, root_of
from tests.support.stores import blob, open_layout, open_store, put
from tests.support.upload_registry import UploadRegistry

NAME = "app:1"
IMAGE = build_image()
ARM = build_image(platform="linux/arm64")
S390X = build_image(platform="linux/s390x")
INDEX = build_index([IMAGE, ARM, S390X], attestations=True)
SIGNED = build_artifact(IMAGE.root)
BILL = build_artifact(IMAGE.root, kind=SBOM, content=b"bill")
SIGNED_BILL = build_artifact(BILL.root, content=b"of the bill")
OF_ARM = build_artifact(ARM.root, content=b"of arm64")
OF_INDEX = build_artifact(INDEX.root, content=b"of the index")
ALONG = [SIGNED, BILL, SIGNED_BILL]
EVERY = [*ALONG, OF_ARM, OF_INDEX]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store, which keeps every rule whatever a test has done."""
    yield tmp_path / "store"
    check_invariants(tmp_path / "store")


@pytest.fixture
def registry() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        running.put("team/app", *EVERY, IMAGE, tag="image")
        running.put("team/app", INDEX, tag="1")
        yield running


def pull(root: Path, registry: UploadRegistry, tag: str = "1", **options: Any) -> str:
    """Pull with what refers to it, and return the digest of what came."""
    options = {"name": NAME, "referrers": True, "client": quick_client(), **options}
    return str(open_store(root).pull(registry.reference("team/app", tag), **options).digest)


def blobs(*images: BuiltImage) -> set[str]:
    return {digest for image in images for digest in image.blobs}


def kept(root: Path) -> dict[str, dict[str, Any]]:
    """Return the entries that are kept as referrers, by digest; each stands there once."""
    marked = [each for each in read_index(root)["manifests"] if REFERRER_ANNOTATION in each.get("annotations", {})]
    found = {each["digest"]: each for each in marked}
    assert len(found) == len(marked)
    return found


def digests(*images: BuiltImage) -> set[str]:
    return {image.digest for image in images}


# What comes


@pytest.mark.parametrize("knows_subjects", [True, False], ids=["lists", "tags"])
def test_what_refers_to_the_image_comes_along_and_what_refers_to_that(
    root: Path, registry: UploadRegistry, knows_subjects: bool
) -> None:
    registry.knows_subjects = knows_subjects
    if not knows_subjects:
        for image in (*EVERY, INDEX):
            put(root, image, f"{image.digest[7:19]}:1")
            open_store(root).push(f"{image.digest[7:19]}:1", registry.reference("team/app", "x"), client=quick_client())
            open_store(root).remove(f"{image.digest[7:19]}:1")
        open_store(root).prune()
    events: list[Event] = []
    assert pull(root, registry, on_event=events.append) == IMAGE.digest
    assert stored(root) == blobs(IMAGE, *ALONG)
    assert kept(root).keys() == digests(*ALONG)
    assert {str(each.referrer.descriptor.digest) for each in events if isinstance(each, ReferrerFound)} == digests(
        *ALONG
    )
    assert f"[pull] referrer: {BILL.digest[7:19]} ({SBOM})" in map(render_line, events)


def test_an_entry_says_what_it_is_kept_for_and_nothing_that_a_registry_made_up(
    root: Path, registry: UploadRegistry
) -> None:
    forged = {"org.opencontainers.image.ref.name": "latest", "dev.minibox.store.source-digest": IMAGE.digest}
    odd = build_artifact(IMAGE.root, annotations=forged, content=b"odd")
    registry.put("team/app", odd)
    pull(root, registry)
    entry = {**odd.root, "annotations": {REFERRER_ANNOTATION: "true"}, "artifactType": SIGNATURE}
    assert kept(root)[odd.digest] == entry
    assert read_names(root) == {NAME: IMAGE.digest}


def test_of_an_index_that_is_kept_whole_what_refers_to_it_and_to_each_manifest_comes(
    root: Path, registry: UploadRegistry
) -> None:
    assert pull(root, registry, platform=None) == INDEX.digest
    assert kept(root).keys() == digests(*EVERY)
    assert stored(root) == blobs(INDEX, *EVERY)


def test_of_several_platforms_what_refers_to_their_manifests_comes_and_nobody_is_asked_for_the_new_index(
    root: Path, registry: UploadRegistry
) -> None:
    made = pull(root, registry, platform=[Platform.parse("linux/amd64"), Platform.parse("linux/arm64")])
    assert kept(root).keys() == digests(*ALONG, OF_ARM)
    assert not [each for each in registry.sent() if made in each]


def test_without_being_asked_for_nothing_comes_and_nothing_is_asked(root: Path, registry: UploadRegistry) -> None:
    pull(root, registry, referrers=False)
    assert stored(root) == set(IMAGE.blobs)
    assert not [each for each in registry.sent() if "referrers" in each]


def test_each_document_is_fetched_once(root: Path, registry: UploadRegistry) -> None:
    pull(root, registry)
    sent = registry.sent("GET")
    assert len(sent) == len(set(sent))


def test_what_is_listed_and_refers_to_something_else_or_is_gone_does_not_come(
    root: Path, registry: UploadRegistry
) -> None:
    gone = build_artifact(IMAGE.root, content=b"gone")
    other = build_artifact(ARM.root, content=b"other")
    none = build_artifact(None, content=b"none")
    registry.put("team/app", other, none)
    listed = [each.root for each in (gone, other, none, ARM, SIGNED, SIGNED)]
    listed.append({"mediaType": "application/xml", "digest": IMAGE.config_digest, "size": 5})
    lie(registry, IMAGE, listed)
    pull(root, registry, "image")
    assert kept(root).keys() == {SIGNED.digest}
    assert stored(root) == blobs(IMAGE, SIGNED)


def lie(registry: UploadRegistry, subject: BuiltImage, listed: list[dict[str, Any]], *, at_most: int = 9) -> None:
    """Let a registry list what a test says."""
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
    answer = Answer(headers={"Content-Type": OCI_INDEX}, body=json.dumps(document).encode())
    registry.allow("GET", f"/v2/team/app/referrers/{subject.digest}", answer, at_most=at_most)


def test_a_registry_that_lists_without_end_is_left_with_an_error_and_no_name(
    root: Path, registry: UploadRegistry
) -> None:
    limits = Limits(documents=20)
    many = [build_artifact(IMAGE.root, content=str(number).encode()) for number in range(30)]
    registry.put("team/app", *many)
    store = Store(root, durability="none", limits=limits)
    with pytest.raises(InvalidDocument, match="more than 20 documents are said to refer to it"):
        store.pull(registry.reference("team/app", "image"), name=NAME, referrers=True, client=quick_client())
    assert store.images() == ()
    assert len([each for each in registry.sent("GET") if "/manifests/" in each]) < 25


def test_what_refers_to_what_refers_to_something_has_an_end(root: Path, registry: UploadRegistry) -> None:
    last = IMAGE
    for number in range(12):
        last = build_artifact(last.root, content=str(number).encode())
        registry.put("team/app", last)
    with pytest.raises(InvalidDocument, match="more than 7 deep"):
        pull(root, registry, "image")
    assert open_store(root).images() == ()


def test_a_registry_that_fails_to_list_fails_the_pull(root: Path, registry: UploadRegistry) -> None:
    registry.allow("GET", f"/v2/team/app/referrers/{IMAGE.digest}", registry_error(403, "DENIED"), at_most=9)
    with pytest.raises(RegistryError):
        pull(root, registry)
    assert open_store(root).images() == ()


def test_a_referrer_that_cannot_be_fetched_leaves_no_name_and_no_entry(root: Path, registry: UploadRegistry) -> None:
    layer = BILL.layer_digests[0]
    registry.allow("GET", blob_target("team/app", layer), registry_error(404, "BLOB_UNKNOWN"), at_most=9)
    with pytest.raises(Exception, match=layer):
        pull(root, registry)
    assert read_index(root)["manifests"] == []


def test_a_document_with_other_bytes_fails_the_pull(root: Path, registry: UploadRegistry) -> None:
    wrong = Answer(headers={"Content-Type": SIGNED.media_type}, body=SIGNED.blobs[SIGNED.digest].replace(b"2", b"3", 1))
    registry.allow("GET", manifest_target("team/app", SIGNED.digest), wrong, at_most=9)
    with pytest.raises(Exception, match=SIGNED.digest):
        pull(root, registry)
    assert open_store(root).images() == ()


def test_a_policy_bounds_what_comes_along(root: Path, registry: UploadRegistry) -> None:
    size_bytes = build_artifact(IMAGE.root, content=bytes(1 << 20))
    registry.put("team/app", size_bytes)
    with pytest.raises(PolicyRefused, match="max_image_bytes"):
        pull(root, registry, checked_by=Policy(max_image_bytes=1 << 19))
    assert not [each for each in registry.sent("GET") if "/blobs/" in each]
    pull(root, registry, checked_by=Policy(max_image_bytes=1 << 21))


def test_if_newer_looks_for_new_signatures_of_what_is_held_and_if_missing_asks_nobody(
    root: Path, registry: UploadRegistry
) -> None:
    pull(root, registry, referrers=False)
    count = len(registry.requests)
    pull(root, registry, policy="if-missing")
    assert len(registry.requests) == count
    pull(root, registry, policy="if-newer")
    assert kept(root).keys() == digests(*ALONG)
    new = build_artifact(IMAGE.root, content=b"new")
    registry.put("team/app", new)
    pull(root, registry, policy="if-newer")
    assert kept(root).keys() == digests(*ALONG, new)


def test_pulling_twice_leaves_what_pulling_once_does(root: Path, registry: UploadRegistry) -> None:
    pull(root, registry)
    before = read_index(root)
    pull(root, registry)
    assert read_index(root) == before


# What is said of it


def test_the_store_says_what_refers_to_an_image_and_lists_it_as_no_image(root: Path, registry: UploadRegistry) -> None:
    pull(root, registry)
    put(root, OF_ARM, "of-arm:1")
    store = open_store(root)
    assert [image.name for image in store.images()] == [NAME, "of-arm:1"]
    assert {str(each.descriptor.digest) for each in store.referrers(NAME)} == digests(*ALONG)
    (bill,) = store.referrers(NAME, artifact_type=SBOM)
    assert (str(bill.subject), str(bill.descriptor.digest)) == (IMAGE.digest, BILL.digest)
    with pytest.raises(LookupError):
        store.referrers("other:1")


def test_a_referrer_with_a_name_is_told_too(root: Path) -> None:
    put(root, IMAGE, NAME)
    put(root, SIGNED, "signature:1")
    assert [str(each.descriptor.digest) for each in open_store(root).referrers(NAME)] == [SIGNED.digest]


def test_what_cannot_be_read_is_an_error_though_the_index_changes_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, SIGNED, NAME)
    layout = open_layout(tmp_path)
    index = layout.read_index()
    blob(tmp_path, SIGNED.digest).unlink()
    read: list[LayoutIndex] = []

    def read_index(_: object) -> LayoutIndex:
        read.append(attrs.evolve(index))
        assert len(read) < 50
        return read[-1]

    monkeypatch.setattr(type(layout), "read_index", read_index)
    with pytest.raises(BlobNotFound):
        known_referrers(layout)


def test_what_comes_along_is_checked_and_counted(root: Path, registry: UploadRegistry) -> None:
    pull(root, registry)
    store = open_store(root)
    usage = store.usage()
    assert usage.reclaimable_bytes == 0
    assert {str(each.digest) for each in usage.images} == digests(IMAGE, *ALONG)
    blob(root, BILL.layer_digests[0]).unlink()
    assert {str(finding.digest) for finding in store.verify()} == {BILL.layer_digests[0]}
    assert store.repair(client=quick_client()).unmended == ()
    assert store.verify() == ()


def test_an_archive_has_the_image_alone(root: Path, registry: UploadRegistry, tmp_path: Path) -> None:
    pull(root, registry)
    open_store(root).save(NAME, tmp_path / "a.tar")
    other = open_store(tmp_path / "other")
    other.load(tmp_path / "a.tar")
    assert stored(tmp_path / "other") == set(IMAGE.blobs)


def test_a_push_has_what_refers_to_the_chosen_manifest_there_before_the_tag(
    root: Path, registry: UploadRegistry
) -> None:
    pull(root, registry, platform=None)
    with UploadRegistry() as target:
        arm = Platform.parse("linux/arm64")
        place = target.reference("team/app", "arm")
        open_store(root).push(NAME, place, platform=arm, referrers=True, client=quick_client())
        assert target.sent("PUT")[-1] == "PUT /v2/team/app/manifests/arm"
        assert target.holds("team/app", ARM)
        assert [each for each in EVERY if target.holds("team/app", each)] == [OF_ARM]
        open_store(root).push(NAME, target.reference("team/alone", "1"), client=quick_client())
        assert not any(target.holds("team/alone", each) for each in EVERY)
        open_store(root).push(NAME, target.reference("team/all", "1"), referrers=True, client=quick_client())
        assert all(target.holds("team/all", each) for each in EVERY)


def test_a_push_of_which_a_referrer_lacks_a_blob_sends_nothing(root: Path, registry: UploadRegistry) -> None:
    pull(root, registry)
    path = blob(root, BILL.layer_digests[0])
    content = path.read_bytes()
    path.unlink()
    with UploadRegistry() as target:
        with pytest.raises(IncompleteImage):
            open_store(root).push(NAME, target.reference("team/app", "1"), referrers=True, client=quick_client())
        assert target.requests == []
    path.write_bytes(content)


# What goes


def collect(root: Path) -> set[str]:
    """Collect as it was planned, and return what was dropped of what refers to something."""
    before = snapshot(root)
    plan = open_store(root).prune(dry_run=True)
    assert snapshot(root) == before
    reclaimable = open_store(root).usage().reclaimable_bytes
    report = open_store(root).prune()
    assert (plan.removed, plan.errors) == (report.removed, report.errors)
    assert report.bytes_freed == reclaimable
    return {each.path for each in report.removed if each.kind == "referrer"}


def test_it_stays_as_long_as_the_image_and_goes_with_it_and_comes_again(root: Path, registry: UploadRegistry) -> None:
    for _ in range(2):
        pull(root, registry)
        assert collect(root) == set()
        assert stored(root) == blobs(IMAGE, *ALONG)
        open_store(root).remove(NAME)
        assert kept(root).keys() == digests(*ALONG)
        assert collect(root) == digests(*ALONG)
        assert (stored(root), read_index(root)["manifests"]) == (set(), [])


def test_it_stays_where_the_image_has_another_name(root: Path, registry: UploadRegistry) -> None:
    pull(root, registry)
    open_store(root).tag(NAME, "other:1")
    open_store(root).remove(NAME)
    assert collect(root) == set()
    assert kept(root).keys() == digests(*ALONG)


def test_it_stays_where_an_index_has_the_manifest_that_it_refers_to(root: Path, registry: UploadRegistry) -> None:
    pull(root, registry)
    put(root, INDEX, "index:1")
    open_store(root).remove(NAME)
    assert collect(root) == set()
    open_store(root).remove("index:1")
    assert collect(root) == digests(*ALONG)


def test_it_stays_where_what_it_refers_to_is_part_of_another_referrer(root: Path, registry: UploadRegistry) -> None:
    signatures = build_index([OF_ARM], subject=IMAGE.root)
    countersigned = build_artifact(OF_ARM.root, content=b"of the signature of arm64")
    registry.put("team/app", signatures, countersigned)
    pull(root, registry, "image")
    registry.put("team/app", signatures, tag="signatures")
    pull(root, registry, "signatures", name="signatures:1", platform=None)
    open_store(root).remove("signatures:1")
    assert {signatures.digest, countersigned.digest} <= kept(root).keys()
    assert collect(root) == set()
    open_store(root).remove(NAME)
    assert {signatures.digest, countersigned.digest} <= collect(root)
    assert stored(root) == set()


def test_what_has_a_name_of_its_own_stays_and_what_refers_to_it(root: Path, registry: UploadRegistry) -> None:
    pull(root, registry)
    put(root, BILL, "bill:1")
    open_store(root).remove(NAME)
    assert collect(root) == digests(SIGNED, BILL)
    assert stored(root) == blobs(BILL, SIGNED_BILL)
    assert kept(root).keys() == digests(SIGNED_BILL)


def test_an_entry_that_nobody_else_needs_a_blob_of_goes_though_no_blob_does(root: Path) -> None:
    put(root, SIGNED, "signature:1")
    index = read_index(root)
    index["manifests"].append({**SIGNED.root, "annotations": {REFERRER_ANNOTATION: "true"}})
    (root / "index.json").write_text(json.dumps(index))
    assert collect(root) == {SIGNED.digest}
    assert read_names(root) == {"signature:1": SIGNED.digest}


def test_an_entry_with_a_name_is_a_root_whatever_else_it_says(root: Path) -> None:
    put(root, SIGNED, "signature:1")
    index = read_index(root)
    index["manifests"][0]["annotations"][REFERRER_ANNOTATION] = "true"
    (root / "index.json").write_text(json.dumps(index))
    put(root, ARM, "arm:1")
    assert collect(root) == set()
    assert stored(root) == blobs(SIGNED, ARM)


def test_one_that_refers_to_nothing_stays(root: Path) -> None:
    put(root, IMAGE, NAME)
    index = read_index(root)
    index["manifests"] = [{**IMAGE.root, "annotations": {REFERRER_ANNOTATION: "true"}}]
    (root / "index.json").write_text(json.dumps(index))
    put(root, ARM, "arm:1")
    assert collect(root) == set()
    assert stored(root) == blobs(IMAGE, ARM)


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "wrong"])
def test_one_that_cannot_be_read_stops_the_collection(root: Path, registry: UploadRegistry, missing: bool) -> None:
    pull(root, registry)
    open_store(root).remove(NAME)
    path = blob(root, BILL.digest)
    content = path.read_bytes()
    path.unlink()
    if not missing:
        path.write_bytes(content.replace(b"2", b"3", 1))
    before = stored(root)
    with pytest.raises((IncompleteImage, StoreDamaged)):
        open_store(root).prune()
    assert stored(root) == before
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def test_an_undone_removal_gives_the_name_back_and_what_came_along_is_there_still(
    root: Path, registry: UploadRegistry
) -> None:
    pull(root, registry)
    store = open_store(root)
    store.remove(NAME)
    store.undo()
    assert collect(root) == set()
    assert {str(each.descriptor.digest) for each in store.referrers(NAME)} == digests(*ALONG)


def test_where_a_disk_is_too_full_for_an_index_without_them_they_stay_until_the_next_time(
    root: Path, registry: UploadRegistry
) -> None:
    pull(root, registry)
    open_store(root).remove(NAME)
    with replaced_os() as proxy:
        proxy.fail("write", errno.ENOSPC, path=".index.json.")
        report = open_store(root).prune()
    assert report.blobs_removed == len(IMAGE.blobs)
    assert "no room for an index.json" in report.kept[0]
    assert stored(root) == blobs(*ALONG)
    assert collect(root) == digests(*ALONG)
    assert stored(root) == set()


def test_what_is_dropped_goes_in_the_first_batch_and_so_does_what_it_refers_to(
    root: Path, registry: UploadRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(root, registry)
    open_store(root).remove(NAME)
    together = {IMAGE.digest, *digests(*ALONG)}
    monkeypatch.setattr(sweeping, "_BATCH", len(together))
    with replaced_os() as proxy:
        proxy.fail("open", errno.EIO, path="ingest/store.turn", skip=1)
        with pytest.raises(StoreUnavailable):
            open_store(root).prune()
    assert stored(root) == blobs(IMAGE, *ALONG) - together
    assert kept(root) == {}


def test_where_a_disk_takes_no_index_without_them_nothing_goes_and_that_is_told(
    root: Path, registry: UploadRegistry
) -> None:
    pull(root, registry)
    open_store(root).remove(NAME)
    before = stored(root)
    with replaced_os() as proxy:
        proxy.fail("write", errno.EIO, path=".index.json.")
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            open_store(root).prune()
    assert stored(root) == before
    assert collect(root) == digests(*ALONG)


# Several at once


def test_a_collection_during_a_pull_keeps_what_comes_and_what_refers_to_it(
    root: Path, registry: UploadRegistry
) -> None:
    pull(root, registry)
    open_store(root).remove(NAME)
    pruned: list[PruneReport] = []

    def look(event: Event) -> None:
        if not pruned and type(event).__name__ == "RegisteringName":
            pruned.append(open_store(root).prune())

    pull(root, registry, on_event=look)
    assert pruned[0].removed == ()
    assert kept(root).keys() == digests(*ALONG)
    assert stored(root) == blobs(IMAGE, *ALONG)


def test_a_collection_during_a_pull_that_does_not_ask_for_them_keeps_them_too(
    root: Path, registry: UploadRegistry
) -> None:
    pull(root, registry)
    open_store(root).remove(NAME)
    pruned: list[PruneReport] = []

    def look(event: Event) -> None:
        if not pruned and type(event).__name__ == "RegisteringName":
            pruned.append(open_store(root).prune())

    pull(root, registry, referrers=False, on_event=look)
    assert pruned[0].removed == ()
    assert kept(root).keys() == digests(*ALONG)


def test_a_name_that_comes_between_the_marks_and_the_first_batch_keeps_what_refers_to_it(
    root: Path, registry: UploadRegistry
) -> None:
    pull(root, registry)
    open_store(root).tag(NAME, "other:1")
    for name in (NAME, "other:1"):
        open_store(root).remove(name)
    sweep = Sweep(open_layout(root), build_cache=False, dry_run=False)
    with sweep.holding_locks():
        sweep.mark()
        put(root, IMAGE, "late:1")
        report = sweep.collect()
    assert report.removed == ()
    assert kept(root).keys() == digests(*ALONG)


def test_an_image_that_a_transaction_comes_to_hold_after_the_marks_keeps_what_refers_to_it(
    root: Path, registry: UploadRegistry
) -> None:
    pull(root, registry)
    open_store(root).remove(NAME)
    layout = open_layout(root)
    sweep = Sweep(layout, build_cache=False, dry_run=False)
    with sweep.holding_locks():
        sweep.mark()
        with layout.open_writer() as writer:
            assert all(writer.has_blob(each) for each in descriptors_of(IMAGE))
            sweep.collect()
            assert stored(root) == blobs(IMAGE, *ALONG)
            assert kept(root).keys() == digests(*ALONG)
            writer.write_name("late:1", root_of(IMAGE))
    assert collect(root) == set()


def test_what_went_for_want_of_its_subject_is_no_change_to_undo(root: Path, registry: UploadRegistry) -> None:
    pull(root, registry)
    open_store(root).remove(NAME)
    open_store(root).prune()
    with pytest.raises(NothingToDo):
        open_store(root).undo()


@pytest.mark.parametrize("position", range(0, 60, 3))
def test_a_process_that_dies_in_a_collection_leaves_a_store_that_the_next_one_ends(
    root: Path, registry: UploadRegistry, position: int
) -> None:
    pull(root, registry)
    put(root, ARM, "arm:1")
    open_store(root).remove(NAME)

    def die() -> None:
        with replaced_os() as proxy:
            proxy.die_at(position)
            open_store(root).prune()

    assert run_forked(die) in (0, DIED)
    check_invariants(root, leftovers=True)
    open_store(root).prune()
    assert (stored(root), kept(root)) == (set(ARM.blobs), {})
    put(root, ARM, "later:1")  # the history may be behind until something changes


@pytest.mark.parametrize("position", range(0, 240, 12))
def test_a_process_that_dies_in_a_pull_leaves_the_name_with_all_of_it_or_neither(
    root: Path, registry: UploadRegistry, position: int
) -> None:
    def die() -> None:
        with replaced_os() as proxy:
            proxy.die_at(position)
            pull(root, registry)

    assert run_forked(die) in (0, DIED)
    check_invariants(root, leftovers=True)
    if root.exists() and (root / "index.json").exists():
        assert bool(read_names(root)) == bool(kept(root))
    pull(root, registry)
    open_store(root).prune()
    assert kept(root).keys() == digests(*ALONG)
    assert stored(root) == blobs(IMAGE, *ALONG)
