"""What the root filesystem of an image is called: by its tag, or by something that no other image is called by."""

import hashlib
from collections.abc import Iterator

_LONGEST_PLACE = 228  # a file name has 255 bytes; two dots, .json, 16 digits and .tmp are added to it


def image_tag(name: str) -> str:
    """Return what the tree of an image is called, unless another one's is called so: each ``/`` and ``:`` is a ``_``.

    >>> image_tag("docker.io/library/alpine:3.18")
    'docker.io_library_alpine_3.18'
    """
    return name.replace("/", "_").replace(":", "_")


def iter_places(name: str) -> Iterator[str]:
    """Yield what the tree of an image may be called, the first that is no other image's first.

    Its tag is none where no file can be called so, where it would be hidden, or be what stands beside another tree.
    """
    tag = image_tag(name)
    if len(tag) <= _LONGEST_PLACE and not tag.startswith(".") and not tag.endswith(".json"):
        yield tag
    digest = hashlib.sha256(name.encode()).hexdigest()
    for suffix in (digest[:12], digest):
        yield f"{tag.lstrip('.')[: _LONGEST_PLACE - 1 - len(suffix)]}-{suffix}"
