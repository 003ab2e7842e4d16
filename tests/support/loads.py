"""What a load leaves in a store that held something before: all of the new, or nothing at all."""

import io
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from minibox_store import Image, Store
from minibox_store.errors import InvalidArchive, StoreError
from tests.support.archives import piped
from tests.support.images import BuiltImage, build_image
from tests.support.layouts import read_layout_blobs, read_layout_names, write_layout
from tests.support.snapshots import snapshot

HELD = build_image(salt="held before")


def store_with_something(folder: Path) -> Store:
    """Return a store that holds an image already, and the folders of a transaction that came and went."""
    write_layout(folder, {"held:1": HELD})
    store = Store(folder, durability="none")
    store.tag("held:1", "held:2")
    return store


def holds(store: Store, images: dict[str, BuiltImage]) -> bool:
    """Whether the store has what it had, these images with all of their blobs, and nothing else."""
    root = Path(store.root)
    named = {key: entry["digest"] for key, entry in read_layout_names(root).items()}
    wanted = {"held:1": HELD, "held:2": HELD, **images}
    blobs = {digest: content for image in wanted.values() for digest, content in image.blobs.items()}
    return (
        named == {name: image.digest for name, image in wanted.items()}
        and read_layout_blobs(root) == blobs
        and not list((root / "ingest").glob("[0-9a-f]*[0-9a-f]"))
    )


def refusal_of(
    store: Store, archive: bytes | str | BinaryIO, kind: type[StoreError] = InvalidArchive, **options: Any
) -> StoreError:
    """Return the error with which a load is refused, after seeing that the store is as it was."""
    before = snapshot(Path(store.root))
    with pytest.raises(kind) as caught:
        store.load(io.BytesIO(archive) if isinstance(archive, bytes) else archive, **options)
    assert snapshot(Path(store.root)) == before
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < 1000
    return caught.value


def refused(
    store: Store, archive: bytes | str | BinaryIO, kind: type[StoreError] = InvalidArchive, **options: Any
) -> str:
    """Return the sentence with which a load is refused, after seeing that the store is as it was."""
    return str(refusal_of(store, archive, kind, **options))


def load_in_a_way(way: str, archive: bytes, store: Store, folder: Path) -> tuple[Image, ...]:
    """Load an archive as a ``file``, by its path; through a ``pipe``; or as ``bytes`` in memory."""
    match way:
        case "file":
            (folder / "a.tar").write_bytes(archive)
            return store.load(folder / "a.tar")
        case "pipe":
            with piped(archive) as pipe:
                return store.load(pipe)
        case _:
            return store.load(io.BytesIO(archive))
