"""Layers of a few members, put into a directory by the engine itself, and as images of a store."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.reports.unpacked import DEFAULT_UNPACK_POLICY, UnpackedLayers, UnpackPolicy
from minibox_store.rootfs.directories import MOST_OPEN
from minibox_store.rootfs.tree import Form, TreeWriter, check_nothing
from minibox_store.tar import Member, MemberKind
from tests.support.images import OCI_LAYER, Layer, digest_of
from tests.support.members import write_tar

# A member with its data; of a file without data a member alone will do.
Content = Member | tuple[Member, bytes]


def file(name: str, content: bytes = b"", *, mode: int = 0o644, uid: int = 0, mtime: int = 0) -> tuple[Member, bytes]:
    """Return a file; its time is in nanoseconds."""
    return Member(name, size_bytes=len(content), mode=mode, uid=uid, gid=uid, mtime_nanoseconds=mtime), content


def folder(name: str, mode: int = 0o755, *, uid: int = 0, mtime: int = 0) -> Member:
    """Return a directory."""
    return Member(name, MemberKind.DIRECTORY, mode=mode, uid=uid, gid=uid, mtime_nanoseconds=mtime)


def link(name: str, target: str) -> Member:
    """Return a symbolic link."""
    return Member(name, MemberKind.SYMLINK, link_target=target, mode=0o777)


def hard_link(name: str, target: str) -> Member:
    """Return a hard link."""
    return Member(name, MemberKind.HARDLINK, link_target=target)


def device(name: str, major: int = 1, minor: int = 3, *, mode: int = 0o666) -> Member:
    """Return a character device."""
    return Member(name, MemberKind.CHARACTER_DEVICE, mode=mode, device_major=major, device_minor=minor)


def tar_of(layer: Sequence[Content]) -> bytes:
    """Return a layer's tar."""
    return write_tar(*(each if isinstance(each, tuple) else (each, b"") for each in layer))


def layer_of(*contents: Content) -> Layer:
    """Return a layer for an image, not compressed."""
    tar = tar_of(contents)
    return Layer(content=tar, media_type=OCI_LAYER, diff_id=digest_of(tar))


@contextmanager
def writing(
    root: Path,
    *,
    policy: UnpackPolicy = DEFAULT_UNPACK_POLICY,
    form: Form = "flat",
    limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
    check: Callable[[], None] = check_nothing,
    most_open: int = MOST_OPEN,
) -> Iterator[TreeWriter]:
    """Make a directory, and yield what puts layers into it."""
    root.mkdir()
    opened = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    writer = TreeWriter(opened, policy=policy, form=form, limits=limits, check=check, most_open=most_open)
    try:
        yield writer
    finally:
        writer.close()
        os.close(opened)


def apply(
    root: Path, *layers: Sequence[Content], policy: UnpackPolicy = DEFAULT_UNPACK_POLICY, form: Form = "flat"
) -> UnpackedLayers:
    """Make a directory of these layers, and return what came of them."""
    with writing(root, policy=policy, form=form) as writer:
        for layer in layers:
            writer.apply_layer(io.BytesIO(tar_of(layer)))
        return writer.finish()


def listing(root: Path) -> dict[str, str]:
    """Return what is in a tree, by path: a letter for the kind, and the content, or where a link leads."""
    found = {}
    for directory, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(directory, name)
            found[path.relative_to(root).as_posix()] = _described(path)
    return found


def _described(path: Path) -> str:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    if path.is_dir():
        return "d"
    if path.is_file():
        return path.read_bytes().decode()
    return "special"
