"""Archives of images, packed and unpacked by the standard library: the oracle of what this project writes and reads.

Nothing here knows ``minibox_store``. The members are those that ``docs/archives.md`` names.
"""

import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from tests.support.images import DOCUMENT_TYPES, INDEX_TYPES, BuiltImage

Members = list[tuple[str, bytes]]


def blob_name(digest: str) -> str:
    """Return what a blob is called in an archive."""
    return "blobs/" + digest.replace(":", "/")


def metadata(name: str, digest: str) -> bytes:
    """Return ``meta.json``, compact."""
    return json.dumps({"image": name, "manifest_digest": digest}, separators=(",", ":"), ensure_ascii=False).encode()


def members_of(image: BuiltImage, name: str) -> Members:
    """Return the members that an archive of an image has, in their order."""
    order = list(_depth_first(image, image.digest, image.media_type))
    return [
        ("meta.json", metadata(name, image.digest)),
        *((blob_name(digest), image.blobs[digest]) for digest in dict.fromkeys(order)),
    ]


def go_members_of(image: BuiltImage, name: str) -> Members:
    """Return the members as the older daemon writes them: a bare digest, and sidecars beside the layers."""
    found: Members = [("meta.json", metadata(name, image.digest.partition(":")[2]))]
    for member, content in members_of(image, name)[1:]:
        found.append((member, content))
        if "layer" in image.media_types[member.removeprefix("blobs/").replace("/", ":")]:
            found.append((f"{member}.index.json", b'{"entries": []}'))
    return found


def _depth_first(image: BuiltImage, digest: str, media_type: str) -> Iterator[str]:
    yield digest
    if media_type not in DOCUMENT_TYPES:
        return
    document = json.loads(image.blobs[digest])
    children = document["manifests"] if media_type in INDEX_TYPES else [document["config"], *document["layers"]]
    for child in children:
        yield from _depth_first(image, child["digest"], child["mediaType"])


def pack(members: Sequence[tuple[str | tarfile.TarInfo, bytes]], *, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of these members; a name stands for a plain file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            if isinstance(name, str) or name.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Return a member that is no plain file."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member


def unpack(content: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Return the members of a tar, and their data."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            found.append((member, b"" if file is None else file.read()))
    return found


def read_archive(content: bytes) -> tuple[str, str, dict[str, bytes]]:
    """Return an archive's name, its manifest's digest, and its blobs by digest."""
    contents = {member.name: data for member, data in unpack(content)}
    said = json.loads(contents.pop("meta.json"))
    blobs = {name.removeprefix("blobs/").replace("/", ":"): data for name, data in contents.items()}
    return said["image"], said["manifest_digest"], blobs


@contextmanager
def piped(content: bytes) -> Iterator[BinaryIO]:
    """Give the reading end of a pipe into which a thread writes ``content``."""
    reading, writing = os.pipe()

    def write() -> None:
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(writing, rest) :]
        except BrokenPipeError:
            return  # whoever read has seen enough
        finally:
            os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with open(reading, "rb") as file:
            yield file
    finally:
        thread.join(10)
