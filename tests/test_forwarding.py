"""Sources before other sources: each can all that the one behind it can, and none is built in a way of its own."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import minibox_store
from minibox_store.cancellation import Cancellation
from minibox_store.copying import ObservedSource, ignore_events
from minibox_store.documents import Descriptor, Node
from minibox_store.face import making_plans, refetching
from minibox_store.forwarding import ForwardingSource
from minibox_store.graph import ContentStream, RememberingSource
from minibox_store.protocols import BlobSource, BlobStream, Distrusting, Interruptible, RangedSource
from tests.support.images import OCI_LAYER
from tests.support.sources import descriptor_for

LAYER = descriptor_for(b"layer", OCI_LAYER)
OTHER = descriptor_for(b"other", OCI_LAYER)

WRAPPERS: dict[type, Callable[[BlobSource], ForwardingSource]] = {
    ForwardingSource: ForwardingSource,
    RememberingSource: RememberingSource,
    ObservedSource: lambda source: ObservedSource(
        source, Node(LAYER, "layer", 1, 1), ignore_events, lambda: False, Cancellation()
    ),
    making_plans._AskedSource: lambda source: making_plans._AskedSource(source, OTHER),
    refetching._AskedSource: refetching._AskedSource,
}
# These read what a store has: no file of it is a range, asks several places, or waits for anybody.
OF_A_STORE = {("face.pulled_trees", "_WatchedSource"), ("layout.summarising", "_WatchedSource")}


class AbleSource:
    """A source that can all that one may, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        self.asked.append(("open_blob", descriptor, offset))
        return ContentStream(b"layer", offset)

    def open_range(self, descriptor: Descriptor, offset: int, size_bytes: int, /) -> BlobStream | None:
        self.asked.append(("open_range", descriptor, offset, size_bytes))
        return ContentStream(b"layer"[offset : offset + size_bytes])

    def distrust(self, descriptor: Descriptor, /) -> bool:
        self.asked.append(("distrust", descriptor))
        return True

    def interrupt(self) -> None:
        self.asked.append(("interrupt",))


class PlainSource:
    """A source that can no more than every one."""

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        return ContentStream(b"layer", offset)


def read(stream: BlobStream | None) -> bytes:
    assert stream is not None
    buffer = bytearray(16)
    count = stream.readinto(memoryview(buffer))
    stream.close()
    return bytes(buffer[:count])


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=[f"{each.__module__}.{each.__name__}" for each in WRAPPERS])
def test_a_source_before_another_can_all_that_the_other_can(wrap: Callable[[BlobSource], ForwardingSource]) -> None:
    behind = AbleSource()
    source = wrap(behind)
    assert read(source.open_blob(LAYER, 1)) == b"ayer"
    assert isinstance(source, RangedSource)
    assert read(source.open_range(LAYER, 1, 2)) == b"ay"
    assert isinstance(source, Distrusting)
    assert source.distrust(LAYER)
    assert isinstance(source, Interruptible)
    source.interrupt()
    assert behind.asked == [
        ("open_blob", LAYER, 1),
        ("open_range", LAYER, 1, 2),
        ("distrust", LAYER),
        ("interrupt",),
    ]


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=[f"{each.__module__}.{each.__name__}" for each in WRAPPERS])
def test_what_the_other_cannot_is_not_promised(wrap: Callable[[BlobSource], ForwardingSource]) -> None:
    source = wrap(PlainSource())
    assert source.open_range(LAYER, 1, 2) is None
    assert not source.distrust(LAYER)
    source.interrupt()


def test_every_source_before_another_is_looked_at_here() -> None:
    root = Path(minibox_store.__file__).parent
    found = {
        (path.relative_to(root).with_suffix("").as_posix().replace("/", "."), each.name)
        for path in root.rglob("*.py")
        for each in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(each, ast.ClassDef) and is_before_another(each)
    }
    assert found == {(each.__module__.removeprefix("minibox_store."), each.__name__) for each in WRAPPERS} | OF_A_STORE


def is_before_another(kind: ast.ClassDef) -> bool:
    methods = [each for each in kind.body if isinstance(each, ast.FunctionDef) and each.name == "open_blob"]
    calls = [ast.unparse(each.func) for method in methods for each in ast.walk(method) if isinstance(each, ast.Call)]
    return "ForwardingSource" in map(ast.unparse, kind.bases) or "self._source.open_blob" in calls
