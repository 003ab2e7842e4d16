"""What is wanted of an unpacking, and what came of it, as values."""

from typing import Literal

import attrs

from minibox_store.errors import InvalidArgument
from minibox_store.values import Value

Owners = Literal["set", "record", "omit"]
Privileges = Literal["keep", "drop"]


@attrs.frozen(kw_only=True, repr=False)
class UnpackPolicy(Value):
    """What becomes of owners, devices and privileges when an image is unpacked.

    Attributes:
        owners: ``"set"``: every file has the owner that the image says, and a refusal is an error; only root can do
            that. ``"record"``: owners are noted in the attribute ``user.rootlesscontainers`` of files and directories,
            as umoci does, and a device is an empty file with ``user.containers.override_stat``, as Podman's storage
            has it. ``"omit"``: owners are forgotten and devices left out. None is ``"set"`` for root, else
            ``"record"``.
        privileges: whether a file keeps its setuid and setgid bits, and its capabilities, or loses them all.

    Raises:
        InvalidArgument: for anything else.
    """

    owners: Owners | None = None
    privileges: Privileges = "keep"

    def __attrs_post_init__(self) -> None:
        if self.owners not in ("set", "record", "omit", None):
            raise InvalidArgument("owners", self.owners, "it is neither 'set', 'record', 'omit' nor None")
        if self.privileges not in ("keep", "drop"):
            raise InvalidArgument("privileges", self.privileges, "it is neither 'keep' nor 'drop'")


DEFAULT_UNPACK_POLICY = UnpackPolicy()


@attrs.frozen(kw_only=True, repr=False)
class UnpackedLayers(Value):
    """How much came of layers.

    Attributes:
        layers: how many there were.
        entries: how many members they had together, whiteouts too.
        size_bytes: of the content of all files that were written, also of those that a later layer took away.
        left_out: what the image has and the tree has not, a sentence each; of many, the first ones.
        left_out_count: how many there were.
    """

    layers: int
    entries: int
    size_bytes: int
    left_out: tuple[str, ...] = ()
    left_out_count: int = 0


@attrs.frozen(kw_only=True, repr=False)
class UnpackReport(UnpackedLayers):
    """What an unpacked image is.

    Attributes:
        directory: where its tree is, an absolute path.
        manifest_digest: of the manifest that was unpacked.
        config_digest: of its config.
    """

    directory: str
    manifest_digest: str
    config_digest: str
