"""Laws of collection: what is marked is what can be reached, and half a mark removes nothing."""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import Store
from minibox_store.collecting import Marks, StoredBlob, mark_index, plan_blobs
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, LayoutEntry, LayoutIndex
from minibox_store.errors import BlobNotFound, ContentMismatch, IncompleteImage, InvalidDocument, StoreDamaged
from minibox_store.layout import Layout
from minibox_store.layout.paths import relative_path
from minibox_store.layout.sweeping import Sweep
from minibox_store.memory import MemoryImages
from minibox_store.protocols import BlobStream
from tests.support.images import (
    INDEX_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Document,
    build_image,
    build_index,
    digest_of,
    encode_document,
)
from tests.support.layouts import REFERENCE_NAME, read_layout_blobs, write_layout
from tests.support.snapshots import snapshot
from tests.support.sources import copy_into, descriptor_of, descriptors_of, root_of

DOCUMENT_TYPES = (OCI_INDEX, OCI_MANIFEST)


@dataclass(frozen=True)
class Graph:
    """Blobs that name each other; the roots that an index.json has; and the manifests that were never fetched."""

    blobs: Mapping[str, bytes]
    roots: tuple[Document, ...]
    absent: frozenset[str]

    @property
    def present(self) -> dict[str, bytes]:
        return {digest: content for digest, content in self.blobs.items() if digest not in self.absent}

    def reachable(self, roots: tuple[Document, ...] | None = None) -> set[str]:
        """Return everything that can be reached, found the simplest way there is."""
        found: set[tuple[str, bool]] = set()

        def visit(descriptor: Document) -> None:
            key = (descriptor["digest"], descriptor["mediaType"] in DOCUMENT_TYPES)
            found.add(key)
            if key[1] and key[0] not in self.absent:
                document = json.loads(self.blobs[key[0]])
                for child in [*document.get("manifests", []), *document.get("layers", [])]:
                    visit(child)
                if "config" in document:
                    visit(document["config"])

        for root in self.roots if roots is None else roots:
            visit(root)
        return {digest for digest, _ in found}

    def memory(self) -> MemoryImages:
        images = MemoryImages()
        images.blobs.update({Digest.parse(digest): content for digest, content in self.present.items()})
        return images

    def index(self) -> LayoutIndex:
        return LayoutIndex(entries=tuple(LayoutEntry(descriptor=descriptor_of(root)) for root in self.roots))

    def write(self, folder: Path) -> None:
        """Write the graph as a layout: every other root has a name."""
        write_layout(folder, {})
        for digest, content in self.present.items():
            path = folder / "blobs" / digest.replace(":", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        entries = [
            {**root, **({"annotations": {REFERENCE_NAME: f"app:{number}"}} if number % 2 else {})}
            for number, root in enumerate(self.roots)
        ]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        (folder / "index.json").write_bytes(encode_document(index))


@st.composite
def graphs(draw: st.DrawFn, *, with_absent: bool = True) -> Graph:
    """Graphs of shared leaves, manifests, and indexes of both; some leaves are documents elsewhere."""
    blobs: dict[str, bytes] = {}

    def add(content: bytes, media_type: str) -> Document:
        digest = digest_of(content, draw(st.sampled_from(["sha256", "sha256", "sha512"])))
        blobs[digest] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def some(of: list[Document], most: int) -> list[Document]:
        return draw(st.lists(st.sampled_from(of), max_size=most)) if of else []

    leaves = [add(b"leaf %d" % number, OCI_LAYER) for number in range(draw(st.integers(1, 5)))]
    manifests: list[Document] = []
    for number in range(draw(st.integers(0, 5))):
        config = add(encode_document({"number": number // 2}), OCI_CONFIG)
        layers = some([*leaves, *({**each, "mediaType": OCI_LAYER} for each in manifests)], 4)
        manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
        if draw(st.booleans()):
            manifest["subject"] = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"%d" % number), "size": 1}
        manifests.append(add(encode_document(manifest), OCI_MANIFEST))
    indexes: list[Document] = []
    for number in range(draw(st.integers(0, 4))):
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": some([*manifests, *indexes, *leaves], 4)}
        index["annotations"] = {"number": str(number)}
        indexes.append(add(encode_document(index), OCI_INDEX))
    documents = [*manifests, *indexes]
    roots = tuple(some([*documents, *documents, *leaves], 5))
    rooted = {root["digest"] for root in roots}
    absent: set[str] = set()
    if with_absent:
        absent = {each["digest"] for each in some(documents, 2)} - rooted
    # A leaf is not read: one that is missing is nothing that marking could know of.
    return Graph(blobs=blobs, roots=roots, absent=frozenset(absent))


def texts(digests: set[Digest]) -> set[str]:
    return {str(digest) for digest in digests}


def digests_of(marks: Marks) -> set[str]:
    return {f"{'sha256' if len(name) == 64 else 'sha512'}:{name}" for name in marks.live_names()}


# ---- marking


@settings(max_examples=300)
@given(graph=graphs())
def test_what_is_marked_is_what_can_be_reached(graph: Graph) -> None:
    marks = Marks()
    mark_index(marks, graph.memory(), graph.index())
    assert digests_of(marks) == graph.reachable()
    assert texts(set(marks.absent)) <= graph.absent & graph.reachable()


@given(graph=graphs(), data=st.data())
def test_the_order_of_roots_and_how_often_they_are_marked_make_no_difference(graph: Graph, data: st.DataObject) -> None:
    marks = Marks()
    source = graph.memory()
    for root in data.draw(st.permutations([*graph.roots, *graph.roots])):
        marks.add_root(source, descriptor_of(root))
    mark_index(marks, source, graph.index())
    assert digests_of(marks) == graph.reachable()


@given(graph=graphs())
def test_at_every_step_the_marks_are_those_of_the_roots_so_far(graph: Graph) -> None:
    marks = Marks()
    for count in range(len(graph.roots)):
        marks.add_root(graph.memory(), descriptor_of(graph.roots[count]))
        assert digests_of(marks) == graph.reachable(graph.roots[: count + 1])


@given(graph=graphs())
def test_what_is_planned_is_what_cannot_be_reached(graph: Graph) -> None:
    marks = Marks()
    mark_index(marks, graph.memory(), graph.index())
    paths = {relative_path(Digest.parse(digest)): digest for digest in graph.present}
    stored: list[StoredBlob] = [
        (folder, name, len(graph.blobs[digest]), age)
        for age, (path, digest) in enumerate(paths.items())
        for folder, _, name in [path.rpartition("/")]
    ]
    plan = plan_blobs(stored, marks.live_names())
    assert {paths[removal.path] for removal in plan} == set(graph.present) - graph.reachable()
    for removal in plan:
        assert removal.kind == "blob"
        assert removal.size_bytes == len(graph.blobs[paths[removal.path]])
        assert removal.age_seconds == list(paths).index(removal.path)


@settings(max_examples=200)
@given(graph=graphs())
def test_a_manifest_that_comes_between_two_roots_is_marked_with_all_that_it_reaches(graph: Graph) -> None:
    # A pull may bring what a foreign index never had, while a collection is under way.
    marks = Marks()
    mark_index(marks, graph.memory(), graph.index())
    whole = Graph(blobs=graph.blobs, roots=graph.roots, absent=frozenset())
    for digest in sorted(graph.absent & graph.reachable()):
        kind = OCI_INDEX if "manifests" in json.loads(graph.blobs[digest]) else OCI_MANIFEST
        root = {"mediaType": kind, "digest": digest, "size": len(graph.blobs[digest])}
        before = digests_of(marks)
        marks.add_root(whole.memory(), descriptor_of(root))
        assert before | whole.reachable((root,)) <= digests_of(marks), "and what was marked before stays so"
        assert Digest.parse(digest) not in marks.absent


@settings(max_examples=200)
@given(graph=graphs(), spoil=st.integers(0, 1000), how=st.sampled_from(["missing root", "other bytes"]))
def test_a_document_that_can_be_reached_and_not_read_ends_the_marking(graph: Graph, spoil: int, how: str) -> None:
    reached = sorted(
        digest
        for digest in graph.reachable() - graph.absent
        if b"schemaVersion" in graph.blobs[digest] and is_walked(graph, digest)
    )
    if not reached:
        return
    digest = reached[spoil % len(reached)]
    source = graph.memory()
    content = source.blobs[Digest.parse(digest)]
    roots = {root["digest"] for root in graph.roots if root["mediaType"] in DOCUMENT_TYPES}
    match how:
        case "missing root" if digest in roots:
            del source.blobs[Digest.parse(digest)]
        case _:
            source.blobs[Digest.parse(digest)] = bytes(len(content))
    with pytest.raises((BlobNotFound, ContentMismatch, InvalidDocument)):
        mark_index(Marks(), source, graph.index())


def is_walked(graph: Graph, wanted: str) -> bool:
    """Whether a digest is reached as a document, and not as a leaf alone."""
    found: set[str] = set()

    def visit(descriptor: Document) -> None:
        if descriptor["mediaType"] in DOCUMENT_TYPES and descriptor["digest"] not in graph.absent:
            found.add(descriptor["digest"])
            document = json.loads(graph.blobs[descriptor["digest"]])
            if document["mediaType"] in INDEX_TYPES:
                for child in document["manifests"]:
                    visit(child)

    for root in graph.roots:
        visit(root)
    return wanted in found


# ---- collecting a store


@settings(max_examples=40)
@given(graph=graphs())
def test_a_collection_leaves_what_can_be_reached_and_nothing_else(graph: Graph) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        graph.write(root)
        store = Store(root, durability="none")
        before = (root / "index.json").read_bytes()
        planned = store.prune(dry_run=True)
        assert read_layout_blobs(root) == graph.present
        report = store.prune()
        kept = {digest: graph.present[digest] for digest in graph.reachable() & set(graph.present)}
        assert read_layout_blobs(root) == kept
        assert (root / "index.json").read_bytes() == before
        assert report.removed == planned.removed
        assert report.blobs_removed == len(graph.present) - len(kept)
        assert report.bytes_freed == sum(map(len, graph.present.values())) - sum(map(len, kept.values()))
        assert report.errors == ()
        assert texts(set(report.absent)) <= graph.absent
        assert store.prune().removed == ()


@settings(max_examples=40)
@given(
    graph=graphs(with_absent=False),
    spoil=st.integers(0, 1000),
    how=st.sampled_from(["missing", "other bytes", "another size", "a link", "a directory"]),
)
def test_sweep_after_an_unreadable_manifest_removes_nothing(graph: Graph, spoil: int, how: str) -> None:
    walked = sorted(digest for digest in graph.reachable() if is_walked(graph, digest))
    roots = sorted({root["digest"] for root in graph.roots if root["mediaType"] in DOCUMENT_TYPES})
    choice = roots if how == "missing" else walked
    if not choice:
        return
    digest = choice[spoil % len(choice)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        graph.write(root)
        store = Store(root, durability="none")
        store.prune(dry_run=True)
        Layout(root, durable=False).prepare()
        path = root / "blobs" / digest.replace(":", "/")
        content = path.read_bytes()
        path.unlink()
        match how:
            case "other bytes":
                path.write_bytes(bytes(len(content)))
            case "another size":
                path.write_bytes(content + b" ")
            case "a link":
                path.symlink_to("/etc/hostname")
            case "a directory":
                path.mkdir()
        before = snapshot(root)
        for dry_run in (True, False):
            with pytest.raises((IncompleteImage, StoreDamaged)) as caught:
                store.prune(dry_run=dry_run)
            assert digest.partition(":")[2] in str(caught.value) or how == "missing"
            assert snapshot(root) == before


# ---- half a mark


class Meanwhile(Layout):
    """A local store in which somebody else does something just before a collection takes the store lock, once."""

    def __init__(self, root: Path, act: Callable[[], None]) -> None:
        super().__init__(root, durable=False)
        self._acts = [act]

    @contextmanager
    def store_lock(self, doing: str, *, most_seconds: float = math.inf) -> Iterator[None]:
        if doing == "collecting" and self._acts:
            self._acts.pop()()
        with super().store_lock(doing, most_seconds=most_seconds):
            yield


def collect(layout: Layout) -> set[str]:
    report = Sweep(layout, build_cache=False, dry_run=False).run()
    return {removal.path for removal in report.removed}


def path_of(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def test_a_mark_that_stopped_half_way_is_never_used(tmp_path: Path) -> None:
    gone, moved, kept = (build_image(salt=salt) for salt in ("gone", "moved", "kept"))
    dead = digest_of(b"dead")
    store = Store(tmp_path, durability="none")

    class Vanishing(Layout):
        """While roots are marked, one is removed, and the next is swept away and pulled again under another name."""

        vanished = False

        def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
            if str(descriptor.digest) == moved.digest and not self.vanished:
                self.vanished = True
                store.remove("gone:1")
                store.tag("moved:1", "again:1")
                store.remove("moved:1")
                raise BlobNotFound(moved.digest)
            return super().open_blob(descriptor, offset)

    write_layout(tmp_path, {"gone:1": gone, "moved:1": moved, "kept:1": kept})
    Path(tmp_path, path_of(dead)).write_bytes(b"dead")
    only_gone = set(gone.blobs) - set(moved.blobs) - set(kept.blobs)
    assert collect(Vanishing(tmp_path, durable=False)) == {path_of(digest) for digest in {dead, *only_gone}}
    assert read_layout_blobs(tmp_path) == {**moved.blobs, **kept.blobs}


def test_a_root_that_stays_missing_ends_the_collection_however_often_it_is_tried(tmp_path: Path) -> None:
    kept, broken = build_image(salt="kept"), build_image(salt="broken")
    write_layout(tmp_path, {"kept:1": kept, "broken:1": broken})
    Path(tmp_path, path_of(broken.digest)).unlink()
    layout = Layout(tmp_path, durable=False)
    layout.prepare()
    before = snapshot(tmp_path)
    for _ in range(2):
        with pytest.raises(IncompleteImage) as caught:
            collect(layout)
        assert str(caught.value) == f"image broken:1 is incomplete: {broken.digest} is missing"
        assert snapshot(tmp_path) == before


def test_a_root_that_comes_while_a_collection_runs_is_marked_before_anything_goes(tmp_path: Path) -> None:
    held, late = build_image(salt="held"), build_image(salt="late")
    write_layout(tmp_path, {"held:1": held})
    for digest, content in {**late.blobs, digest_of(b"dead"): b"dead"}.items():
        Path(tmp_path, path_of(digest)).write_bytes(content)  # a pull has left them, and nobody named them yet
    layout = Meanwhile(tmp_path, lambda: copy_into(Layout(tmp_path, durable=False), late, "late:1"))
    assert collect(layout) == {path_of(digest_of(b"dead"))}
    assert read_layout_blobs(tmp_path) == {**held.blobs, **late.blobs}


@pytest.mark.parametrize("by", ["itself", "the index that had lacked it"])
def test_an_absent_manifest_that_comes_while_a_collection_runs_keeps_what_it_reaches(tmp_path: Path, by: str) -> None:
    fetched, absent = build_image(), build_image(platform="linux/arm64")
    index = build_index([fetched, absent])
    write_layout(tmp_path, {"index:1": index})
    Path(tmp_path, path_of(absent.digest)).unlink()  # a foreign tool fetched one platform; the other's layers are dead
    pulled, name = (absent, "absent:1") if by == "itself" else (index, "index:1")
    layout = Meanwhile(tmp_path, lambda: copy_into(Layout(tmp_path, durable=False), pulled, name))
    assert collect(layout) == set()
    assert read_layout_blobs(tmp_path) == index.blobs


def test_a_transaction_that_begins_while_a_collection_runs_keeps_what_it_found(tmp_path: Path) -> None:
    image = build_image()
    write_layout(tmp_path, {})
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    for digest, content in image.blobs.items():
        Path(tmp_path, path_of(digest)).write_bytes(content)
    other = Layout(tmp_path, durable=False)
    with other.open_writer() as writer:

        def rely() -> None:
            assert all(writer.has_blob(descriptor) for descriptor in descriptors_of(image))

        assert collect(Meanwhile(tmp_path, rely)) == set()
        writer.write_name("app:1", root_of(image))
    assert read_layout_blobs(tmp_path) == image.blobs
