"""The ends that the contract suites run over: each with a way to see what it holds that is not its own."""

import errno
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from minibox_store import _files
from minibox_store.archive import ArchiveFile
from minibox_store.copying import copy_graph
from minibox_store.documents import Descriptor
from minibox_store.errors import IncompleteImage, StoreBusy
from minibox_store.graph import RememberingSource
from minibox_store.layout import Layout, opening_image
from minibox_store.layout.sweeping import Sweep
from minibox_store.memory import MemoryImages
from minibox_store.protocols import BlobSource, BlobStage, ImageSource, ImageTarget, ImageWriter
from minibox_store.reference import Reference
from minibox_store.registry import RepositoryTarget
from tests.support.archives import read_archive
from tests.support.images import BuiltImage
from tests.support.layouts import read_layout_blobs, read_layout_names
from tests.support.registries import quick_client
from tests.support.sources import memory_of, root_of
from tests.support.system_calls import Failing, OtherOs
from tests.support.upload_registry import UploadRegistry

Blobs = dict[str, bytes]


@dataclass(frozen=True)
class TargetEnd:
    """A target, and how a test sees what it holds.

    ``holds_many`` is whether it holds more than one image. ``close`` ends what it runs on.
    """

    target: ImageTarget
    read_names: Callable[[], dict[str, str]]
    read_blobs: Callable[[], Blobs]
    forget: Callable[[str], None]
    holds_many: bool = True
    close: Callable[[], None] = lambda: None


def memory_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TargetEnd:
    """Return images in memory as a target."""
    images = MemoryImages()
    return TargetEnd(
        images,
        lambda: {name: str(descriptor.digest) for name, descriptor in images.names.items()},
        lambda: {str(digest): content for digest, content in images.blobs.items()},
        images.names.__delitem__,
    )


def layout_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TargetEnd:
    """Return the local store as a target."""
    root = folder / "store"
    layout = Layout(root, durable=False, lock_timeout_seconds=0.2)
    layout.prepare()

    def forget(name: str) -> None:
        from minibox_store import Store

        Store(root, durability="none", lock_timeout_seconds=0.2).remove(name)
        try:
            Sweep(layout, build_cache=False, dry_run=False).run()
        except StoreBusy:
            assert not layout.has_hard_links()  # a collection waits for the transactions there

    return TargetEnd(
        layout,
        lambda: {name: str(entry["digest"]) for name, entry in read_layout_names(root).items()},
        lambda: read_layout_blobs(root),
        forget,
    )


def layout_without_links_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TargetEnd:
    """Return the local store on a file system that has no hard links."""
    monkeypatch.setattr(_files, "os", OtherOs(link=Failing(errno.EPERM)))
    return layout_target(folder, monkeypatch)


def archive_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TargetEnd:
    """Return an archive as a target."""
    path = folder / "image.tar"

    def read_names() -> dict[str, str]:
        if not path.exists():
            return {}
        name, digest, _ = read_archive(path.read_bytes())
        return {name: digest}

    return TargetEnd(
        ArchiveFile(str(path), durable=False),
        read_names,
        lambda: read_archive(path.read_bytes())[2] if path.exists() else {},
        lambda name: path.unlink(),
        holds_many=False,
    )


class _Tagged:
    """A repository whose tags stand for names that are no tags."""

    def __init__(self, target: RepositoryTarget) -> None:
        self._target = target
        self.names: dict[str, str] = {}

    @contextmanager
    def open_writer(self) -> Iterator["_TaggedWriter"]:
        with self._target.open_writer() as writer:
            yield _TaggedWriter(writer, self.names)


class _TaggedWriter:
    def __init__(self, writer: ImageWriter, names: dict[str, str]) -> None:
        self._writer = writer
        self._names = names
        self.has_blob = writer.has_blob
        self.write_blob = writer.write_blob

    def write_name(self, name: str, descriptor: Descriptor) -> None:
        tag = re.sub(r"[:/]", "_", name)
        self._names[tag] = name
        try:
            self._writer.write_name(tag, descriptor)
        except IncompleteImage as error:
            raise IncompleteImage(name, error.missing) from error


def repository_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TargetEnd:
    """Return a repository of a registry."""
    stack = ExitStack()
    registry = stack.enter_context(UploadRegistry())
    reference = Reference.parse(registry.reference("team/app"))
    tagged = _Tagged(RepositoryTarget(partial(quick_client().open_origin, reference, access="pull,push")))

    def read_blobs() -> Blobs:
        named = {digest for digest in tagged_digests().values() if not digest.startswith("sha256:")}
        documents = {name: content for (_, name), (_, content) in registry.manifests.items() if ":" in name}
        # What goes by another digest is known by the usual one as well.
        usual = {digest_text(documents[digest]) for digest in named}
        kept = {digest: content for digest, content in documents.items() if digest not in usual}
        return {digest: content for (_, digest), content in registry.blobs.items()} | kept

    def tagged_digests() -> dict[str, str]:
        contents = {content: name for (_, name), (_, content) in sorted(registry.manifests.items()) if ":" in name}
        return {name: contents[content] for (_, name), (_, content) in registry.manifests.items() if ":" not in name}

    def read_names() -> dict[str, str]:
        return {tagged.names[tag]: digest for tag, digest in tagged_digests().items()}

    def forget(name: str) -> None:
        del registry.manifests["team/app", re.sub(r"[:/]", "_", name)]

    return TargetEnd(tagged, read_names, read_blobs, forget, close=stack.close)


TARGETS = {
    "memory": memory_target,
    "layout": layout_target,
    "layout without hard links": layout_without_links_target,
    "archive": archive_target,
    "repository": repository_target,
}

MakeSource = Callable[[Path, Mapping[str, BuiltImage], str], AbstractContextManager[BlobSource]]


def _stored(folder: Path, images: Mapping[str, BuiltImage]) -> Layout:
    layout = Layout(folder / "source", durable=False)
    memory = memory_of(images)
    for name, root in memory.names.items():
        with layout.open_writer() as writer:
            copy_graph(memory, writer, root)
            writer.write_name(name, root)
    return layout


def memory_source(folder: Path, images: Mapping[str, BuiltImage], name: str) -> AbstractContextManager[MemoryImages]:
    """Give images in memory."""
    return nullcontext(memory_of(images))


def layout_source(folder: Path, images: Mapping[str, BuiltImage], name: str) -> AbstractContextManager[Layout]:
    """Give a local store."""
    return nullcontext(_stored(folder, images))


@contextmanager
def opened_source(folder: Path, images: Mapping[str, BuiltImage], name: str) -> Iterator[BlobSource]:
    """Give one opened image of a local store."""
    with opening_image(_stored(folder, images), name) as image:
        yield image


@contextmanager
def remembering_source(folder: Path, images: Mapping[str, BuiltImage], name: str) -> Iterator[BlobSource]:
    """Give a source that has read each document once already, and so has it in memory."""
    source = RememberingSource(memory_of(images))
    source.read(root_of(images[name]))
    yield source


@contextmanager
def memory_stage_source(folder: Path, images: Mapping[str, BuiltImage], name: str) -> Iterator[BlobSource]:
    """Give a transaction in memory, in which everything was staged."""
    with MemoryImages().open_writer() as writer:
        _stage_all(writer, images)
        yield writer


@contextmanager
def layout_stage_source(folder: Path, images: Mapping[str, BuiltImage], name: str) -> Iterator[BlobSource]:
    """Give a transaction of a local store, in which everything was staged."""
    with Layout(folder / "stage", durable=False).open_writer() as writer:
        _stage_all(writer, images)
        yield writer


def _stage_all(stage: BlobStage, images: Mapping[str, BuiltImage]) -> None:
    memory = memory_of(images)
    for digest, content in memory.blobs.items():
        descriptor = Descriptor(media_type="", digest=digest, size_bytes=len(content))
        stage.stage_blob(memory.open_blob(descriptor), len(content), digest)


SOURCES: dict[str, MakeSource] = {
    "memory": memory_source,
    "layout": layout_source,
    "opened image": opened_source,
    "remembering": remembering_source,
    "memory stage": memory_stage_source,
    "layout stage": layout_stage_source,
}

NAMED_SOURCES: dict[str, Callable[[Path, Mapping[str, BuiltImage], str], AbstractContextManager[ImageSource]]] = {
    "memory": memory_source,
    "layout": layout_source,
}


@dataclass(frozen=True)
class StageEnd:
    """An open stage, how many bytes it keeps now, and the target that it writes to."""

    stage: BlobStage
    writer: ImageWriter
    kept_bytes: Callable[[], int]
    end: TargetEnd
    leave: Callable[[], None]


def open_stage(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> StageEnd:
    """Return an open stage of one kind, which ``stack`` closes."""
    end = TARGETS[kind](folder, monkeypatch)
    opened = stack.enter_context(ExitStack())
    if isinstance(end.target, MemoryImages):
        memory = opened.enter_context(end.target.open_writer())
        kept = lambda: sum(map(len, memory.staged.values()))  # noqa: E731
        return StageEnd(memory, memory, kept, end, opened.close)
    assert isinstance(end.target, Layout)
    ingest = Path(end.target.paths.ingest)
    transaction = opened.enter_context(end.target.open_writer())

    def kept_bytes() -> int:
        files = [path for path in ingest.rglob("*") if path.is_file() and "lock" not in path.name]
        return sum(path.stat().st_size for path in files if path.name != "store.turn")

    return StageEnd(transaction, transaction, kept_bytes, end, opened.close)


STAGES = [kind for kind in TARGETS if kind not in ("archive", "repository")]


def digest_text(content: bytes, algorithm: str = "sha256") -> str:
    """Return a digest, as text, by the standard library."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
