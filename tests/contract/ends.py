"""The ends that the contract suites run over: each with a way to see what it holds that is not its own."""

import errno
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from minibox_store import _files
from minibox_store.archive import ArchiveFile
from minibox_store.copying import copy_graph
from minibox_store.documents import Descriptor
from minibox_store.errors import StoreBusy
from minibox_store.graph import RememberingSource
from minibox_store.layout import Layout, opening_image
from minibox_store.layout.sweeping import Sweep
from minibox_store.memory import MemoryImages
from minibox_store.protocols import BlobSource, BlobStage, ImageSource, ImageTarget, ImageWriter
from tests.support.archives import read_archive
from tests.support.images import BuiltImage
from tests.support.layouts import read_layout_blobs, read_layout_names
from tests.support.sources import memory_of, root_of
from tests.support.system_calls import Failing, OtherOs

Blobs = dict[str, bytes]


@dataclass(frozen=True)
class TargetEnd:
    """A target, and how a test sees what it holds.

    ``collect`` takes away all that no name needs. ``holds_many`` is whether it holds more than one image.
    """

    target: ImageTarget
    read_names: Callable[[], dict[str, str]]
    read_blobs: Callable[[], Blobs]
    forget: Callable[[str], None]
    holds_many: bool = True


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


TARGETS = {
    "memory": memory_target,
    "layout": layout_target,
    "layout without hard links": layout_without_links_target,
    "archive": archive_target,
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


STAGES = [kind for kind in TARGETS if kind != "archive"]


def digest_text(content: bytes, algorithm: str = "sha256") -> str:
    """Return a digest, as text, by the standard library."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
