"""What a repository reads for the first questions after a start, and that each answer is that of reading everything."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import BlobNotFound, Descriptor, Digest, LocalRepository, StillNeeded, Store, StoreDamaged
from minibox_store.layout import listing, listing_cache, reaching
from minibox_store.layout.listing_cache import read_cache
from minibox_store.layout.paths import LayoutPaths
from minibox_store.outlines import MARK_CHARACTERS
from tests.support.images import OCI_MANIFEST, BuiltImage, build_artifact, build_image, build_index, digest_of
from tests.support.invariants import read_index
from tests.support.layouts import write_layout
from tests.support.os_proxy import replaced_os
from tests.support.pushes import manifest_over, push_blob, push_image
from tests.support.stores import blob, open_store, put, require_root, rot


def escaped(image: BuiltImage) -> BuiltImage:
    """Return an artifact whose manifest spells the field that tells what it refers to as nobody else does."""
    content = image.blobs[image.digest].replace(b'"subject"', b'"sub\\u006aect"')
    digest = digest_of(content)
    others = image.without(image.digest)
    return BuiltImage(
        root={**image.root, "digest": digest, "size": len(content)},
        blobs={**others.blobs, digest: content},
        media_types={**others.media_types, digest: image.media_type},
    )


# Enough for a listing to be kept, and for a repository to ask for it.
COUNT = 70
SINGLE = {f"team/app:{number}": build_image(salt=str(number)) for number in range(COUNT)}
SOME = SINGLE["team/app:7"]
CHILDREN = [build_image(salt="multi", platform=platform) for platform in ("linux/amd64", "linux/arm64")]
MULTI = build_index(CHILDREN)
SIGNATURE = build_artifact(SOME.root)
ESCAPED = escaped(build_artifact(SOME.root, content=b"escaped"))
SECRET = build_image(salt="secret")
IMAGES = {**SINGLE, "team/app:multi": MULTI, "team/app:signature": SIGNATURE, "team/app:escaped": ESCAPED}
IMAGES["team/other:1"] = SECRET
ABSENT = Digest.parse("sha256:" + "0" * 64)
CACHE = "listing.cache"


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("listed") / "store"
    write_layout(root, IMAGES)
    root.chmod(0o700)
    return root


@pytest.fixture
def root(listed: Path, tmp_path: Path) -> Path:
    """A store that an earlier process has listed."""
    root = tmp_path / "store"
    shutil.copytree(listed, root)
    open_store(root).images()
    return root


def fresh(root: Path) -> LocalRepository:
    """Return the repository as a process sees it that has just begun."""
    return open_store(root).repository("team/app")


def digest_at(image: BuiltImage, layer: int = 0) -> Digest:
    return Digest.parse(image.layer_digests[layer])


def opened_by(action: Callable[[], object]) -> list[str]:
    """Return the names of the files that an action opens, in order."""
    with replaced_os() as system:
        action()
    return [os.path.basename(call.paths[0]) for call in system.calls if call.name == "open"]


def hexes(*digests: str) -> set[str]:
    return {digest.removeprefix("sha256:") for digest in digests}


def missed(call: Callable[[], object]) -> Callable[[], None]:
    def action() -> None:
        with pytest.raises(BlobNotFound):
            call()

    return action


def forge(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write other entries into the cache, under a right checksum."""
    first, _, body = (root / CACHE).read_bytes().partition(b"\n")
    value = json.loads(body)
    change(value["entries"])
    body = json.dumps(value).encode()
    beginning = first.rpartition(b" ")[0] + b" "
    (root / CACHE).write_bytes(beginning + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert len(read_cache(LayoutPaths(str(root)))) == len(value["entries"])


# ---- what is read


def test_the_first_question_for_a_blob_reads_the_listing_and_no_other_image_than_its_own(root: Path) -> None:
    repository = fresh(root)
    assert opened_by(lambda: repository.find(digest_at(SOME))) == ["index.json", CACHE, *hexes(SOME.digest)]
    other = SINGLE["team/app:8"]
    assert opened_by(lambda: repository.find(digest_at(other))) == ["index.json", *hexes(other.digest)]
    assert opened_by(lambda: repository.find(digest_at(SOME))) == ["index.json"]


def test_the_first_question_for_what_no_image_reaches_reads_no_image(root: Path) -> None:
    repository = fresh(root)
    questions = [repository.find, repository.find_manifest, repository.hold_blob]
    for number, question in enumerate(questions):
        read = opened_by(missed(lambda question=question: question(ABSENT)))  # type: ignore[misc]  # bound at once
        assert [name for name in read if name == CACHE or len(name) == len(ABSENT.hex)] == [CACHE][number:]
    assert opened_by(lambda: repository.referrers(ABSENT)) == ["index.json"]


def test_the_first_question_for_a_manifest_below_an_index_reads_that_index_alone(root: Path) -> None:
    repository = fresh(root)
    read = opened_by(lambda: repository.find_manifest(Digest.parse(CHILDREN[1].digest)))
    assert set(read) == {"index.json", CACHE, *hexes(MULTI.digest, *(each.digest for each in CHILDREN))}


def test_the_first_question_for_referrers_reads_those_and_what_they_refer_to(root: Path) -> None:
    repository = fresh(root)
    found: list[object] = []
    read = opened_by(lambda: found.extend(repository.referrers(Digest.parse(SOME.digest))))
    assert len(found) == 2
    assert (read[:2], set(read[2:])) == (["index.json", CACHE], hexes(SIGNATURE.digest, ESCAPED.digest))
    (root / CACHE).unlink()
    assert len(fresh(root).referrers(Digest.parse(SOME.digest))) == 2


def test_a_push_to_a_repository_reads_none_of_its_other_images(root: Path) -> None:
    new = build_image(salt="new")
    others = hexes(*(image.digest for image in IMAGES.values()))
    assert not others & set(opened_by(lambda: push_image(fresh(root), new, "new")))
    assert fresh(root).find(digest_at(new)).size_bytes == len(new.blobs[new.layer_digests[0]])


def test_what_a_listing_does_not_know_is_read_and_asked_for_once(root: Path) -> None:
    (root / CACHE).write_bytes(b"")
    repository = fresh(root)
    read = opened_by(missed(lambda: repository.find(ABSENT)))
    assert (read.count(CACHE), hexes(*(image.digest for image in SINGLE.values())) <= set(read)) == (1, True)
    assert opened_by(missed(lambda: repository.find(ABSENT))) == ["index.json"]


def test_of_what_nobody_can_tell_a_listing_is_asked_once(root: Path) -> None:
    for image in SINGLE.values():
        blob(root, image.digest).unlink()
    repository = fresh(root)
    assert opened_by(missed(lambda: repository.find(ABSENT))).count(CACHE) == 1
    read = opened_by(missed(lambda: repository.find(ABSENT)))
    assert (CACHE in read, hexes(SOME.digest) <= set(read)) == (False, True)  # it may have come


def test_indexes_of_which_a_part_is_absent_are_read_once_for_each_question(tmp_path: Path) -> None:
    indexes = [build_index([build_image(salt=str(number)), CHILDREN[0]]) for number in range(COUNT)]
    write_layout(tmp_path, {f"team/app:{number}": index for number, index in enumerate(indexes)})
    aside = blob(tmp_path, CHILDREN[0].digest).rename(tmp_path / "aside")
    repository = fresh(tmp_path)
    wanted = [*hexes(*(index.digest for index in indexes))]
    for is_first in (True, False, False):
        read = opened_by(missed(lambda: repository.find(ABSENT)))
        assert sorted(filter(wanted.__contains__, read)) == sorted(wanted * (2 if is_first else 1))
    aside.rename(blob(tmp_path, CHILDREN[0].digest))
    assert str(repository.find(digest_at(CHILDREN[0])).digest) == CHILDREN[0].layer_digests[0]
    missed(lambda: repository.find(ABSENT))()
    assert opened_by(missed(lambda: repository.find(ABSENT))) == ["index.json"]


@pytest.mark.parametrize("is_listed", [True, False])
def test_what_was_absent_below_an_index_is_seen_once_it_has_come(root: Path, is_listed: bool) -> None:
    manifest = blob(root, CHILDREN[0].digest)
    aside = manifest.rename(root / "aside")
    (root / CACHE).unlink()
    if is_listed:
        open_store(root).images()
    repository = fresh(root)
    with pytest.raises(BlobNotFound):
        repository.find(digest_at(CHILDREN[0]))
    aside.rename(manifest)
    for each in (repository, fresh(root)):
        assert str(each.find(digest_at(CHILDREN[0])).digest) == CHILDREN[0].layer_digests[0]


def test_of_a_repository_with_few_images_no_listing_of_many_is_read(root: Path) -> None:
    assert CACHE not in opened_by(missed(lambda: open_store(root).repository("team/other").find(ABSENT)))


def test_a_listing_that_is_too_large_for_what_is_unknown_is_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaching, "_WORTH_BYTES", (root / CACHE).stat().st_size // (2 * COUNT))
    read = opened_by(lambda: fresh(root).find(digest_at(SOME)))
    assert hexes(*(image.digest for image in IMAGES.values())) & set(read) > hexes(SOME.digest)


def test_a_listing_that_is_too_large_with_outlines_is_kept_without_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size_bytes = (root / CACHE).stat().st_size
    (root / CACHE).unlink()
    monkeypatch.setattr(listing_cache, "MAX_LISTING_BYTES", size_bytes - 1)
    open_store(root).images()
    kept = read_cache(LayoutPaths(str(root)))
    assert (len(kept), (root / CACHE).stat().st_size < size_bytes) == (len(IMAGES), True)
    assert fresh(root).find(digest_at(SOME)).size_bytes > 0


# ---- what is believed


def test_a_listing_that_lies_shows_nobody_a_blob_of_another_repository(root: Path) -> None:
    secret = digest_at(SECRET)

    def add_secret(entries: dict[str, Any]) -> None:
        for entry in entries.values():
            entry[8] = secret.hex[:MARK_CHARACTERS] + entry[8]

    forge(root, add_secret)
    with pytest.raises(BlobNotFound):
        fresh(root).find(secret)
    assert open_store(root).repository("team/other").find(secret).size_bytes > 0


def _let_others_write(path: Path) -> None:
    path.chmod(0o622)


def _give_away(path: Path) -> None:
    require_root()
    os.chown(path, 12345, -1)


def _copy_elsewhere(path: Path) -> None:
    """Give every file another inode, and its time, as a copy of the store does."""
    copied = path.parent.with_name("copied")
    shutil.copytree(path.parent, copied)
    shutil.rmtree(path.parent)
    copied.rename(path.parent)


@pytest.mark.parametrize("change", [_let_others_write, _give_away, _copy_elsewhere])
def test_a_listing_that_somebody_else_may_have_written_is_not_believed(
    root: Path, change: Callable[[Path], None]
) -> None:
    def empty(entries: dict[str, Any]) -> None:
        for entry in entries.values():
            entry[8:10] = ["", ""]

    forge(root, empty)
    change(root / CACHE)
    for image in (SOME, *CHILDREN):
        assert fresh(root).find(digest_at(image)).size_bytes == len(image.blobs[image.layer_digests[0]])


@pytest.mark.parametrize("count", [1, COUNT])
def test_an_entry_that_takes_a_manifest_for_a_leaf_hides_no_layer_of_it(tmp_path: Path, count: int) -> None:
    write_layout(tmp_path, {"team/app:some": SOME, **dict(list(SINGLE.items())[:count])})
    index = read_index(tmp_path)
    name = {"org.opencontainers.image.ref.name": "team/app:leaf"}
    leaf = {**SOME.root, "mediaType": "application/octet-stream", "annotations": name}
    (tmp_path / "index.json").write_text(json.dumps({**index, "manifests": [*index["manifests"], leaf]}))
    repository = fresh(tmp_path)
    assert repository.find(digest_at(SOME)).size_bytes > 0
    with pytest.raises(StillNeeded):
        repository.delete_blob(digest_at(SOME))


HARMS: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "a shorter file": lambda path: os.truncate(path, 10),
    "a bit": rot,
    "a link": lambda path: path.symlink_to(shutil.move(path, path.parents[2] / "elsewhere")),
}


@pytest.mark.parametrize("image", [SOME, MULTI, CHILDREN[0]], ids=["a manifest", "an index", "a manifest below it"])
@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_told_as_it_is_where_nothing_was_listed(root: Path, harm: str, image: BuiltImage) -> None:
    HARMS[harm](blob(root, image.digest))
    with_listing = answers(fresh(root))
    (root / CACHE).unlink()
    assert with_listing == answers(fresh(root))
    assert with_listing[ABSENT] == (BlobNotFound if harm == "gone" else StoreDamaged)


def test_a_document_that_a_manifest_has_for_a_layer_is_seen_once_it_has_come(root: Path) -> None:
    inner = build_image(salt="inner")
    named = Descriptor(media_type=OCI_MANIFEST, digest=Digest.parse(inner.digest), size_bytes=inner.root["size"])
    config = push_blob(fresh(root), b"{}")
    content = manifest_over(named, config=config)
    push_blob(fresh(root), content)
    odd = hashlib.sha256(content).hexdigest()
    index = read_index(root)
    index["manifests"].append(
        {
            "mediaType": OCI_MANIFEST,
            "digest": f"sha256:{odd}",
            "size": len(content),
            "annotations": {"org.opencontainers.image.ref.name": "team/app:odd"},
        }
    )
    (root / "index.json").write_text(json.dumps(index))
    (root / CACHE).unlink()
    open_store(root).images()
    assert odd.encode() in (root / CACHE).read_bytes()
    put(root, inner, "elsewhere:1")
    assert fresh(root).find(digest_at(inner)).size_bytes == len(inner.blobs[inner.layer_digests[0]])


def test_what_an_image_needs_is_not_deleted_by_the_first_request(root: Path) -> None:
    with pytest.raises(StillNeeded):
        fresh(root).delete_blob(digest_at(SOME))
    with pytest.raises(StillNeeded):
        fresh(root).delete_manifest(Digest.parse(CHILDREN[0].digest))


# ---- the same answers as by reading everything


def answers(repository: LocalRepository) -> dict[Digest, object]:
    """Return what a repository says of each blob that there may be: its size, or which error."""
    found: dict[Digest, object] = {}
    for digest in (*map(Digest.parse, {each for image in IMAGES.values() for each in image.blobs}), ABSENT):
        try:
            found[digest] = repository.find(digest).size_bytes
        except (BlobNotFound, StoreDamaged) as error:
            found[digest] = type(error)
    return found


SHARED = [b"shared %d" % number for number in range(3)]
POOL = [
    *(build_image([{"f": SHARED[number % 3]}, {"g": b"%d" % number}], salt=str(number)) for number in range(4)),
    build_index([build_image(salt="0"), build_image(salt="other", platform="linux/arm64")]),
    build_index([build_image([{"f": SHARED[0]}], salt="deep")], nested=2, attestations=True),
]
POOL += [build_artifact(POOL[0].root), build_artifact(POOL[4].root, content=b"of an index")]
POOL += [build_index([POOL[0], POOL[6]]), escaped(build_artifact(POOL[0].root, content=b"escaped"))]
NAMES = ["team/app:1", "team/app:2", "quay.io/team/app:3", "team/other:1", "app:1"]
EVERYTHING = sorted({digest for image in POOL for digest in image.blobs})


# Of a repository each blob that is seen, and what refers to what.
Seen = tuple[set[str], set[tuple[str, str]]]


def plainly(root: Path) -> Seen:
    """Return what the images of ``team/app`` reach, by reading all of their documents."""
    todo = [
        entry
        for entry in (read_index(root)["manifests"] if (root / "index.json").exists() else [])
        if "team/app:" in entry["annotations"].get("org.opencontainers.image.ref.name", "")
    ]
    found, references = set(), set()
    while todo:
        each = todo.pop()
        found.add(each["digest"])
        if each["mediaType"].endswith((".index.v1+json", ".manifest.v1+json")):
            document = json.loads(blob(root, each["digest"]).read_bytes())
            todo += [*document.get("manifests", ()), *document.get("layers", ())]
            todo += [document["config"]] if "config" in document else []
            references |= {(document["subject"]["digest"], each["digest"])} if "subject" in document else set()
    return found, references


def seen(repository: LocalRepository) -> Seen:
    found, references = set(), set()
    for digest in EVERYTHING:
        references |= {(digest, str(each.descriptor.digest)) for each in repository.referrers(Digest.parse(digest))}
        try:
            assert str(repository.find(Digest.parse(digest)).digest) == digest
        except BlobNotFound:
            continue
        found.add(digest)
    return found, references


def put_plainly(root: Path, image: BuiltImage, name: str) -> None:
    """Let another tool write an image and its name, in place."""
    put(root, image, "aside:1")
    index = read_index(root)
    [entry] = [
        each for each in index["manifests"] if each["annotations"]["org.opencontainers.image.ref.name"] == "aside:1"
    ]
    kept = [
        each
        for each in index["manifests"]
        if each["annotations"]["org.opencontainers.image.ref.name"] not in ("aside:1", name)
    ]
    entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    (root / "index.json").write_text(json.dumps({**index, "manifests": [*kept, entry]}))


def remove(store: Store, name: str) -> None:
    if name in store.iter_names():
        store.remove(name)


_images, _names = st.sampled_from(POOL), st.sampled_from(NAMES)
STEPS: st.SearchStrategy[Callable[[Path], object]] = st.one_of(
    st.builds(lambda image, name: lambda root: put(root, image, name), _images, _names),
    st.builds(lambda image, name: lambda root: put_plainly(root, image, name), _images, _names),
    st.builds(lambda name: lambda root: remove(open_store(root), name), _names),
    st.just(lambda root: open_store(root).images()),
    st.just(lambda root: open_store(root).prune()),
)


@pytest.fixture
def any_number_is_worth_it() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_WORTH_KEEPING", 1)
        patch.setattr(reaching, "_WORTH_ASKING", 1)
        yield


@pytest.mark.usefixtures("any_number_is_worth_it")
@given(steps=st.lists(STEPS, min_size=1, max_size=8))
@settings(max_examples=40)
def test_whatever_others_do_between_questions_each_blob_is_seen_that_an_image_reaches_and_no_other(
    steps: list[Callable[[Path], object]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        lasting = open_store(root).repository("team/app")
        for step in steps:
            step(root)
            expected = plainly(root)
            assert seen(lasting) == expected
            assert seen(fresh(root)) == expected
