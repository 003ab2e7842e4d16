"""Laws of checking: what is found, why a blob is kept and what it weighs are what hashlib and json find alone."""

import hashlib
import json
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import Digest, Store
from tests.properties.test_collecting_properties import DOCUMENT_TYPES, Graph, graphs
from tests.support.images import Document
from tests.support.layouts import REFERENCE_NAME
from tests.support.snapshots import snapshot

HARMS = ["missing", "other bytes", "short", "long", "a link", "a folder"]


def path_of(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def harm(path: Path, how: str) -> None:
    """Make something else of a blob."""
    content = path.read_bytes()
    path.unlink()
    match how:
        case "other bytes":
            path.write_bytes(bytes(len(content)))
        case "short":
            path.write_bytes(content[:-1])
        case "long":
            path.write_bytes(content + b" ")
        case "a link":
            path.symlink_to("/etc/hostname")
        case "a folder":
            path.mkdir()


def state_of(root: Path, descriptor: Document) -> str:
    """Return what is wrong with a blob, found the simplest way there is."""
    path = root / path_of(descriptor["digest"])
    if not os.path.lexists(path):
        return "missing"
    if not stat.S_ISREG(path.lstat().st_mode):
        return "not a file"
    content = path.read_bytes()
    algorithm, _, encoded = descriptor["digest"].partition(":")
    if len(content) != descriptor["size"]:
        return "wrong size"
    return "well" if hashlib.new(algorithm, content).hexdigest() == encoded else "wrong digest"


def is_document(descriptor: Document) -> bool:
    return descriptor["mediaType"] in DOCUMENT_TYPES


def children_of(root: Path, descriptor: Document) -> list[Document]:
    if not is_document(descriptor) or state_of(root, descriptor) != "well":
        return []
    document = json.loads((root / path_of(descriptor["digest"])).read_bytes())
    config = [document["config"]] if "config" in document else []
    return [*config, *document.get("manifests", []), *document.get("layers", [])]


def paths_from(root: Path, start: Document) -> Iterator[tuple[Document, ...]]:
    """Yield every way down from an entry, itself included."""
    todo: list[tuple[Document, ...]] = [(start,)]
    while todo:
        way = todo.pop()
        yield way
        todo.extend((*way, child) for child in children_of(root, way[-1]))


def entries_of(root: Path) -> list[tuple[str | None, Document]]:
    entries = json.loads((root / "index.json").read_bytes())["manifests"]
    return [(entry.get("annotations", {}).get(REFERENCE_NAME), entry) for entry in entries]


def stored(root: Path) -> Iterator[tuple[str, Path]]:
    for path in (root / "blobs").glob("*/*"):
        yield f"{path.parent.name}:{path.name}", path


def expected_findings(root: Path) -> set[tuple[str, str, tuple[str, ...]]]:
    """Return what a check should find: kind, path and names."""
    entries = entries_of(root)
    roots = {entry["digest"] for _, entry in entries if is_document(entry)}
    names: dict[str, set[str]] = {}
    wrong = set()
    unknown = False
    for name, entry in entries:
        for *_, last in paths_from(root, entry):
            names.setdefault(last["digest"], set()).update([name] if name else [])
            kind = state_of(root, last)
            if kind == "missing" and is_document(last) and last["digest"] not in roots:
                kind = "absent"
            elif is_document(last) and kind != "well":
                unknown = True
            wrong.add((kind, last["digest"]))
    for digest, path in stored(root):
        if digest not in names:
            if not stat.S_ISREG(path.lstat().st_mode):
                wrong.add(("not a file", digest))
            elif not unknown:
                wrong.add(("unreferenced", digest))
    return {(kind, path_of(digest), tuple(sorted(names.get(digest, ())))) for kind, digest in wrong if kind != "well"}


@settings(max_examples=150)
@given(graph=graphs(), data=st.data())
def test_what_a_check_finds_is_what_is_wrong(graph: Graph, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        graph.write(root)
        victims = data.draw(st.dictionaries(st.sampled_from(sorted(graph.present)), st.sampled_from(HARMS), max_size=4))
        for digest, how in victims.items():
            harm(root / path_of(digest), how)
        before = snapshot(root)
        found = Store(root).verify(parallel=data.draw(st.integers(1, 3)))
        assert snapshot(root) == before
        assert {(each.kind, each.path, each.names) for each in found} == expected_findings(root)
        assert len({(each.kind, each.path) for each in found}) == len(found)


@settings(max_examples=60)
@given(graph=graphs())
def test_the_bytes_of_each_entry_are_those_of_the_files_that_it_reaches(graph: Graph) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        graph.write(root)
        store = Store(root)
        usage = store.usage()
        sizes = {digest: path.stat().st_size for digest, path in stored(root)}
        reached = [(name, {way[-1]["digest"] for way in paths_from(root, entry)}) for name, entry in entries_of(root)]
        users = Counter(digest for _, digests in reached for digest in digests)
        assert Counter((each.name, each.own_bytes, each.size_bytes) for each in usage.images) == Counter(
            (
                name,
                sum(sizes.get(digest, 0) for digest in digests if users[digest] == 1),
                sum(sizes.get(digest, 0) for digest in digests),
            )
            for name, digests in reached
        )
        assert usage.total_bytes == sum(sizes.values())
        assert usage.reclaimable_bytes == sum(size for digest, size in sizes.items() if digest not in users)
        assert usage.reclaimable_bytes == store.prune(dry_run=True).bytes_freed


@settings(max_examples=100)
@given(graph=graphs(), most=st.integers(0, 40))
def test_the_largest_files_are_told_with_each_entry_that_reaches_them(graph: Graph, most: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        graph.write(root)
        usage = Store(root).usage(most_blobs=most)
        sizes = {digest: path.stat().st_size for digest, path in stored(root)}
        assert usage.blob_count == len(sizes)
        largest = sorted(sizes.items(), key=lambda each: (-each[1], each[0]))[:most]
        assert [(str(each.digest), each.size_bytes) for each in usage.blobs] == largest
        reached = [(name, [way[-1] for way in paths_from(root, entry)]) for name, entry in entries_of(root)]
        for each in usage.blobs:
            digest = str(each.digest)
            said = {last["mediaType"] for _, lasts in reached for last in lasts if last["digest"] == digest}
            needing = [name for name, lasts in reached if any(last["digest"] == digest for last in lasts)]
            assert each.needed_by == len(needing)
            assert each.names == tuple(sorted({name for name in needing if name}))
            assert each.media_type in (said or {None})
            assert (each.role is None) == (not said)


@settings(max_examples=60)
@given(graph=graphs(), data=st.data())
def test_each_entry_that_needs_a_blob_is_told_with_a_shortest_way_to_it(graph: Graph, data: st.DataObject) -> None:
    digest = data.draw(st.sampled_from(sorted(graph.blobs)))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        graph.write(root)
        needs = Store(root).why(Digest.parse(digest))
        expected = []
        for name, entry in entries_of(root):
            ways = [[each["digest"] for each in way] for way in paths_from(root, entry)]
            if there := [way for way in ways if way[-1] == digest]:
                expected.append((name, min(map(len, there)), there))
        assert [need.name for need in needs] == [name for name, _, _ in expected]
        for need, (_, length, ways) in zip(needs, expected, strict=True):
            assert len(need.path) == length
            assert [str(each.digest) for each in need.path] in ways
