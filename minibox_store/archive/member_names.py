"""What members of an archive may be called. A name becomes a parsed digest or a key in a dict, never a path. Pure.

In it, behind a leading ``./``, which is dropped::

    control   := "meta.json" | "oci-layout" | "index.json" | "manifest.json" | "repositories"
    blob      := "blobs/" algorithm "/" hex                           its digest is promised
    config    := hex64 ".json" | "sha256:" hex64                      so is the sha256 of this
    layer     := hex64 "/layer.tar" | hex64 ".tar" | hex64 ".tar.gz"  of this nothing is
    passed    := hex64 "/VERSION" | hex64 "/json" | "blobs/" algorithm "/" hex ".index.json"

The blobs are those of every form, config and layer are docker's, and of go-containerregistry's the last spelling of
each. What is passed over is written by other tools, and nothing is read from it. Every other name is refused.

Spec: OCI image-spec 1.1, image-layout.md; Docker Image Specification 1.2.
"""

import enum
import re
from sys import intern

import attrs

from minibox_store.digest import Digest
from minibox_store.errors import InvalidArchive, InvalidDigest
from minibox_store.tar import Member, MemberKind
from minibox_store.values import Value

META_JSON = "meta.json"
OCI_LAYOUT = "oci-layout"
INDEX_JSON = "index.json"
MANIFEST_JSON = "manifest.json"
REPOSITORIES = "repositories"
CONTROLS = frozenset({META_JSON, OCI_LAYOUT, INDEX_JSON, MANIFEST_JSON, REPOSITORIES})

_HEX64 = "[0-9a-f]{64}"
_PASSED_OVER = re.compile(rf"{_HEX64}/(?:VERSION|json)|blobs/(?:sha256|sha512)/[0-9a-f]+\.index\.json")
_BLOB = re.compile(r"blobs/([a-z0-9]+)/([^/]+)")
_CONFIG = re.compile(rf"({_HEX64})\.json|sha256:({_HEX64})")
_LAYER = re.compile(rf"({_HEX64})(?:/layer\.tar|\.tar|\.tar\.gz)")
# Docker's own layers are the only members that may be links; how far up the target of each begins.
_STEPS_UP = {"/layer.tar": "../", ".tar": ""}


class MemberRole(enum.Enum):
    """What a member is for."""

    CONTROL = "control"
    BLOB = "blob"
    CONFIG = "config"
    LAYER = "layer"
    PASSED_OVER = "passed over"


@attrs.frozen(kw_only=True, repr=False)
class MemberName(Value):
    """A name that a member may have.

    Attributes:
        role: what the member is for.
        key: the name, without a leading ``./``.
        digest: of a blob or config what its bytes must have. Of a layer what its name looks like, which is promised by
            nobody. None for all others.
    """

    role: MemberRole
    key: str
    digest: Digest | None = None


def parse_member_name(name: str) -> MemberName:
    """Return what a name says; the text is not trusted.

    Raises:
        InvalidArchive: when no member may have it.

    >>> parse_member_name("./index.json").role.value, parse_member_name("ab" * 32 + "/layer.tar").role.value
    ('control', 'layer')
    """
    key = name.removeprefix("./")
    if key in CONTROLS:
        return MemberName(role=MemberRole.CONTROL, key=key)
    if _PASSED_OVER.fullmatch(key):
        return MemberName(role=MemberRole.PASSED_OVER, key=key)
    if match := _BLOB.fullmatch(key):
        try:
            return MemberName(role=MemberRole.BLOB, key=key, digest=Digest(intern(match[1]), match[2]))
        except InvalidDigest as error:
            raise InvalidArchive(str(error), name) from error
    if match := _CONFIG.fullmatch(key):
        return MemberName(role=MemberRole.CONFIG, key=key, digest=Digest("sha256", match[1] or match[2]))
    if match := _LAYER.fullmatch(key):
        return MemberName(role=MemberRole.LAYER, key=key, digest=Digest("sha256", match[1]))
    raise InvalidArchive("an image archive has no such member", name)


def check_directory(name: str) -> None:
    """Return if a directory may be called so: nothing is made of it, and it must not lead out of the archive.

    Raises:
        InvalidArchive: when it does.
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise InvalidArchive("its name leads out of the archive", name)


def parse_link(member: Member) -> tuple[str, str]:
    """Return the keys of a link and of what it stands for, by their texts alone: whether that is there is not known.

    Raises:
        InvalidArchive: for a link that docker would not write: of another member than ``hex64/layer.tar`` or
            ``hex64.tar``, or to another than those and blobs.
    """
    key = member.name.removeprefix("./")
    suffix = key[64:]
    if _LAYER.fullmatch(key) is None or suffix not in _STEPS_UP:
        raise InvalidArchive("an image archive holds no links and no devices", member.name)
    target = member.link_target
    if member.kind is MemberKind.SYMLINK:  # a hard link counts from where the archive begins
        steps_up = _STEPS_UP[suffix]
        if not target.startswith(steps_up):
            raise InvalidArchive("it links to what is no layer of the archive", member.name)
        target = target.removeprefix(steps_up)
    target = target.removeprefix("./")
    if (_LAYER.fullmatch(target) is None or target[64:] not in _STEPS_UP) and not _is_blob(target):
        raise InvalidArchive("it links to what is no layer of the archive", member.name)
    return key, target


def _is_blob(key: str) -> bool:
    match = _BLOB.fullmatch(key)
    try:
        return match is not None and bool(Digest(match[1], match[2]))
    except InvalidDigest:
        return False
