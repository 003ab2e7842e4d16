"""Archives that lack something: platforms of an index, or what the other side has. It is named, or completed."""

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minibox_store import LINUX_AMD64, Platform, Policy, Store
from minibox_store.errors import InvalidArchive, InvalidArgument, PlatformNotFound, PolicyRefused
from minibox_store.events import Event, IndexMade
from tests.support.archives import members_of, pack
from tests.support.images import BuiltImage, build_image, build_index, digest_of, encode_document
from tests.support.layouts import blob_path, read_layout_blobs, read_layout_names
from tests.support.loads import HELD, holds, refusal_of, refused, store_with_something
from tests.support.tool_archives import (
    DOCKER_STYLES,
    AnyMembers,
    DockerStyle,
    docker_members,
    entry_of,
    made_image,
    named_oci_members,
    oci_members,
)

NAME = "quay.io/team/app:1.0"
AMD64, ARM64, RISCV = (build_image(platform=f"linux/{each}") for each in ("amd64", "arm64", "riscv64"))
LINUX_ARM64, LINUX_RISCV = Platform.parse("linux/arm64"), Platform.parse("linux/riscv64")
INDEX = build_index([AMD64, ARM64, RISCV])
ATTESTED = build_index([AMD64, ARM64], attestations=True)
IMAGE = build_image()

Form = Callable[[BuiltImage], AnyMembers]
FORMS: dict[str, Form] = {
    "minibox": lambda image: list(members_of(image, NAME)),
    "OCI": lambda image: named_oci_members({NAME: image}),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_with_something(tmp_path / "store")


def lacking(form: str, image: BuiltImage, *digests: str) -> bytes:
    """Return an archive that lacks some blobs."""
    hexes = {digest.partition(":")[2] for digest in digests}
    return pack([member for member in FORMS[form](image) if str(member[0]).rpartition("/")[2] not in hexes])


def own_blobs(image: BuiltImage, *others: BuiltImage) -> set[str]:
    """Return what one image has and no other."""
    return set(image.blobs) - {digest for other in others for digest in other.blobs}


def index_of(*images: BuiltImage, docker: bool = False) -> BuiltImage:
    return build_index(images, docker=docker)


# ---- a sparse index


@pytest.mark.parametrize("form", FORMS)
def test_a_sparse_index_is_refused_with_the_platforms_that_are_missing_and_those_that_are_there(
    form: str, store: Store
) -> None:
    gone = own_blobs(ARM64, AMD64, RISCV) | own_blobs(RISCV, AMD64, ARM64)
    error = refusal_of(store, lacking(form, INDEX, *gone))
    assert isinstance(error, InvalidArchive)
    assert str(error) == (
        f"invalid archive: it lacks {ARM64.digest} and 1 more, which its manifest names; "
        "of its platforms it lacks linux/arm64, linux/riscv64, and has linux/amd64"
    )
    assert error.missing == (ARM64.digest, RISCV.digest)


def test_of_an_index_of_which_no_platform_is_there_it_is_said_too(store: Store) -> None:
    sentence = refused(store, lacking("OCI", INDEX, AMD64.digest, ARM64.digest, RISCV.digest))
    assert sentence.endswith("it lacks linux/amd64, linux/arm64, linux/riscv64, and has no other")
    for platform in ("present", "all", LINUX_AMD64):
        nothing = lacking("OCI", INDEX, *AMD64.blobs, *ARM64.blobs, *RISCV.blobs)
        assert refused(store, nothing, platform=platform).startswith("invalid archive: it lacks sha256:")


def test_what_is_missing_and_is_for_no_known_platform_is_none_of_the_platforms_that_are_missing(store: Store) -> None:
    unknown = {"os": "unknown", "architecture": "unknown"}
    entries = [INDEX.document()["manifests"][0], ARM64.root, {**RISCV.root, "platform": unknown}]
    content = encode_document({"schemaVersion": 2, "mediaType": INDEX.media_type, "manifests": entries})
    root = {"mediaType": INDEX.media_type, "digest": digest_of(content), "size": len(content)}
    image = BuiltImage(root=root, blobs={**AMD64.blobs, digest_of(content): content}, media_types={})
    sentence = refused(store, pack(oci_members([entry_of(image, NAME)], image)))
    assert sentence == f"invalid archive: it lacks {ARM64.digest} and 1 more, which its manifest names"


def test_S26_a_sentence_about_many_odd_platforms_stays_one(store: Store) -> None:
    entries = [
        {**AMD64.root, "digest": f"sha256:{number:064x}", "platform": {"os": "x" * 5000 + "\n", "architecture": "y"}}
        for number in range(100)
    ]
    content = encode_document({"schemaVersion": 2, "mediaType": INDEX.media_type, "manifests": entries})
    digest = digest_of(content)
    root = {"mediaType": INDEX.media_type, "digest": digest, "size": len(content)}
    image = BuiltImage(root=root, blobs={digest: content}, media_types={})
    assert len(refused(store, pack(oci_members([entry_of(image, NAME)], image)))) < 2000


@pytest.mark.parametrize("form", FORMS)
def test_one_platform_of_a_sparse_index_comes_in_where_all_of_it_is_there(form: str, store: Store) -> None:
    archive = lacking(form, INDEX, *own_blobs(ARM64, AMD64, RISCV))
    (loaded,) = store.load(io.BytesIO(archive), platform=LINUX_AMD64)
    assert str(loaded.digest) == AMD64.digest
    assert holds(store, {NAME: AMD64})
    error = refusal_of(store, archive, platform=LINUX_ARM64)
    assert isinstance(error, InvalidArchive)
    assert error.missing == (ARM64.digest,)
    assert str(error) == f"invalid archive: it lacks {ARM64.digest}, which its manifest names"
    assert "and has linux/riscv64" in refused(store, archive, platform=[LINUX_ARM64, LINUX_RISCV])
    assert "it lacks linux/arm64, and has linux/amd64, linux/riscv64" in refused(store, archive, platform="all")


@pytest.mark.parametrize("form", FORMS)
def test_several_platforms_come_in_as_an_index_of_just_those(form: str, store: Store) -> None:
    archive = lacking(form, INDEX, ARM64.digest)
    made = index_of(AMD64, RISCV)
    events: list[Event] = []
    (loaded,) = store.load(io.BytesIO(archive), platform=[LINUX_RISCV, LINUX_AMD64], on_event=events.append)
    assert str(loaded.digest) == made.digest
    assert holds(store, {NAME: made})
    (event,) = [event for event in events if isinstance(event, IndexMade)]
    assert (str(event.original.digest), str(event.descriptor.digest)) == (INDEX.digest, made.digest)
    assert store.verify() == ()


def test_a_platform_that_the_index_does_not_offer_is_not_found(store: Store) -> None:
    archive = pack(FORMS["OCI"](INDEX))
    sentence = refused(store, archive, PlatformNotFound, platform=Platform.parse("linux/s390x"))
    assert "on offer: linux/amd64, linux/arm64, linux/riscv64" in sentence
    refused(store, pack(FORMS["OCI"](AMD64)), PlatformNotFound, platform=LINUX_ARM64)
    docker = pack(docker_members(AMD64, NAME, style="docker"))
    refused(store, docker, PlatformNotFound, platform=LINUX_ARM64)
    store.load(io.BytesIO(docker), platform=LINUX_AMD64)
    assert holds(store, {NAME: made_image(AMD64, "docker")})


@pytest.mark.parametrize("platform", ["", "some", "linux/amd64", [], [None], 5])
def test_a_platform_that_none_may_be_is_refused_before_anything_is_read(platform: Any, store: Store) -> None:
    with pytest.raises(InvalidArgument):
        store.load("/nowhere", platform=platform)


def test_a_platform_that_is_spelled_as_a_text_is_told_what_reads_it_and_which_texts_count(store: Store) -> None:
    platform: Any = "linux/arm64"
    with pytest.raises(InvalidArgument, match=r"'all', and for a load 'present': Platform.parse reads a platform"):
        store.load("/nowhere", platform=platform)
    document = (Path(__file__).parent.parent / "docs" / "archives.md").read_text()
    assert set(re.findall(r"platform=[^`]+", document)) == {
        'platform=Platform.parse("linux/arm64")',
        'platform="present"',
    }


# ---- those that are present


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gone", ["manifest", "all of it", "config", "layer"])
def test_those_platforms_that_are_present_come_in_as_an_index_of_just_those(gone: str, form: str, store: Store) -> None:
    missing = {
        "manifest": {ARM64.digest},
        "all of it": own_blobs(ARM64, AMD64, RISCV),
        "config": {ARM64.config_digest},
        "layer": {ARM64.layer_digests[-1]},
    }[gone]
    (loaded,) = store.load(io.BytesIO(lacking(form, INDEX, *missing)), platform="present")
    made = index_of(AMD64, RISCV)
    assert str(loaded.digest) == made.digest
    assert holds(store, {NAME: made})
    assert store.verify() == ()


def test_an_index_that_was_made_is_not_left_where_another_image_turns_out_wrong(store: Store) -> None:
    document = IMAGE.document()
    document["layers"][0]["size"] += 1
    content = encode_document(document)
    root = {**IMAGE.root, "digest": digest_of(content), "size": len(content)}
    wrong = BuiltImage(root=root, blobs={**IMAGE.blobs, digest_of(content): content}, media_types={})
    members = oci_members([entry_of(INDEX, "a:1"), entry_of(wrong, "b:1")], INDEX.without(ARM64.digest), wrong)
    assert "does not match" in refused(store, pack(members), platform="present")
    members = oci_members([entry_of(INDEX, "a:1"), entry_of(IMAGE, "b:1")], INDEX.without(ARM64.digest), IMAGE)
    store.load(io.BytesIO(pack(members)), platform="present")
    assert holds(store, {"a:1": index_of(AMD64, RISCV), "b:1": IMAGE})


@pytest.mark.parametrize("image", [INDEX, ATTESTED, AMD64, build_index([AMD64, ARM64], nested=2, docker=True)])
def test_an_image_that_is_whole_is_kept_as_it_is(image: BuiltImage, store: Store) -> None:
    (loaded,) = store.load(io.BytesIO(pack(FORMS["OCI"](image))), platform="present")
    assert str(loaded.digest) == image.digest
    assert holds(store, {NAME: image})


def test_of_an_index_that_lacks_an_attestation_alone_the_platforms_are_present(store: Store) -> None:
    attestation = ATTESTED.document()["manifests"][2]["digest"]
    archive = lacking("OCI", ATTESTED, attestation)
    assert refused(store, archive) == f"invalid archive: it lacks {attestation}, which its manifest names"
    (loaded,) = store.load(io.BytesIO(archive), platform="present")
    assert str(loaded.digest) == index_of(AMD64, ARM64).digest


def test_a_nested_index_that_is_absent_hides_no_other(store: Store) -> None:
    inner = index_of(ARM64, RISCV)
    outer = build_index([AMD64, inner])
    (loaded,) = store.load(io.BytesIO(lacking("OCI", outer, inner.digest)), platform="present")
    assert str(loaded.digest) == index_of(AMD64).digest


def test_a_single_manifest_that_lacks_something_is_never_present(store: Store) -> None:
    sentence = f"invalid archive: it lacks {AMD64.layer_digests[0]}, which its manifest names"
    assert refused(store, lacking("OCI", AMD64, AMD64.layer_digests[0]), platform="present") == sentence


# ---- thin archives


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("image", [IMAGE, INDEX], ids=["manifest", "index"])
def test_a_thin_archive_names_what_it_lacks(form: str, image: BuiltImage, store: Store) -> None:
    leaves = [digest for digest in image.blobs if digest not in image.document_digests]
    error = refusal_of(store, lacking(form, image, *leaves))
    assert isinstance(error, InvalidArchive)
    assert set(error.missing) == set(leaves)
    first, more = error.missing[0], len(leaves) - 1
    assert str(error) == f"invalid archive: it lacks {first} and {more} more, which its manifest names"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("image", [IMAGE, INDEX, build_image(algorithm="sha512")], ids=["manifest", "index", "sha512"])
def test_a_thin_archive_is_completed_from_the_store_where_that_is_asked_for(
    image: BuiltImage, in_file: bool, form: str, store: Store, tmp_path: Path
) -> None:
    store.load(io.BytesIO(pack(FORMS[form](image))), names=lambda _: "before:1")
    leaves = [digest for digest in image.blobs if digest not in image.document_digests]
    archive = lacking(form, image, *leaves)
    refused(store, archive)
    (tmp_path / "thin.tar").write_bytes(archive)
    (loaded,) = store.load(tmp_path / "thin.tar" if in_file else io.BytesIO(archive), complete_from_store=True)
    assert str(loaded.digest) == image.digest
    assert holds(store, {"before:1": image, NAME: image})
    assert store.verify() == ()


def test_what_the_store_lacks_too_is_named(store: Store) -> None:
    shared = build_image([{"shared": b"1"}, {"own": b"1"}])
    store.load(io.BytesIO(pack(FORMS["OCI"](build_image([{"shared": b"1"}], salt="other")))), names=lambda _: "b:1")
    archive = lacking("OCI", shared, *shared.layer_digests, shared.config_digest)
    error = refusal_of(store, archive, complete_from_store=True)
    assert isinstance(error, InvalidArchive)
    assert set(error.missing) == {shared.config_digest, shared.layer_digests[1]}


@pytest.mark.parametrize("damage", ["short", "gone", "a folder"])
def test_a_blob_of_the_store_that_has_not_the_right_size_completes_nothing(damage: str, store: Store) -> None:
    store.load(io.BytesIO(pack(FORMS["OCI"](IMAGE))))
    blob = blob_path(Path(store.root), IMAGE.layer_digests[0])
    content = blob.read_bytes()
    blob.unlink()
    if damage == "short":
        blob.write_bytes(content[:-1])
    elif damage == "a folder":
        blob.mkdir()
    archive = lacking("OCI", IMAGE, *IMAGE.layer_digests)
    with pytest.raises(InvalidArchive) as caught:
        store.load(io.BytesIO(archive), names=lambda _: "new:1", complete_from_store=True)
    assert caught.value.missing == (IMAGE.layer_digests[0],)
    assert "new:1" not in read_layout_names(Path(store.root))


def test_a_document_of_the_store_that_is_wrong_completes_nothing(store: Store) -> None:
    store.load(io.BytesIO(pack(FORMS["OCI"](INDEX))))
    blob = blob_path(Path(store.root), ARM64.digest)
    content = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(content[:-1] + b" ")
    with pytest.raises(InvalidArchive) as caught:
        store.load(io.BytesIO(lacking("OCI", INDEX, ARM64.digest)), names=lambda _: "n:1", complete_from_store=True)
    assert caught.value.missing == (ARM64.digest,)
    blob.unlink()
    blob.write_bytes(content)
    store.load(io.BytesIO(lacking("OCI", INDEX, ARM64.digest)), names=lambda _: "n:1", complete_from_store=True)
    assert read_layout_names(Path(store.root))["n:1"]["digest"] == INDEX.digest


def test_what_is_present_counts_the_store_where_it_may_complete(store: Store) -> None:
    store.load(io.BytesIO(pack(FORMS["OCI"](ARM64))), names=lambda _: "arm:1")
    archive = lacking("OCI", INDEX, *own_blobs(ARM64, AMD64, RISCV), RISCV.digest)
    (loaded,) = store.load(io.BytesIO(archive), platform="present", complete_from_store=True)
    assert str(loaded.digest) == index_of(AMD64, ARM64).digest
    (loaded,) = store.load(io.BytesIO(archive), platform="present")
    assert str(loaded.digest) == index_of(AMD64).digest


@pytest.mark.parametrize("style", DOCKER_STYLES)
def test_a_thin_docker_archive_is_completed_where_its_names_tell_of_what(style: DockerStyle, store: Store) -> None:
    made = made_image(IMAGE, style)
    whole = docker_members(IMAGE, NAME, style=style)
    store.load(io.BytesIO(pack(whole)), names=lambda _: "before:1")
    thin = pack([member for member in whole if not _is_part(member[0])])
    error = refusal_of(store, thin)
    assert isinstance(error, InvalidArchive)
    assert len(error.missing) == 3
    if style == "containerd":
        store.load(io.BytesIO(thin), complete_from_store=True)
        assert holds(store, {"before:1": made, NAME: made})
    else:  # what a layer is called promises nothing, so nobody knows which one is missing
        assert len(getattr(refusal_of(store, thin, complete_from_store=True), "missing")) == 2  # noqa: B009


def _is_part(name: str | tarfile.TarInfo) -> bool:
    text = name if isinstance(name, str) else name.name
    return text not in ("manifest.json", "repositories") and not text.endswith(("VERSION", "/json"))


def test_completing_changes_no_store_where_the_policy_refuses(store: Store) -> None:
    store.load(io.BytesIO(pack(FORMS["OCI"](IMAGE))), names=lambda _: "before:1")
    archive = lacking("OCI", IMAGE, *IMAGE.layer_digests)
    policy = Policy(max_layers=1)
    refused(store, archive, PolicyRefused, complete_from_store=True, checked_by=policy)
    assert read_layout_blobs(Path(store.root)).keys() == {*HELD.blobs, *IMAGE.blobs}
