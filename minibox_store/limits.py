"""How much untrusted input may ask for: every bound on what is read, in one place.

Spec: OCI distribution-spec 1.1 asks registries to accept manifests of at least 4 MiB; nobody needs more.
"""

import attrs

from minibox_store.kinds import check_count, check_kind, check_seconds
from minibox_store.values import Value

KIBIBYTE = 1024
MEBIBYTE = 1024 * 1024
MAX_SIZE_BYTES = 2**53 - 1  # the largest integer that every JSON implementation keeps exactly
MAX_BASE_LAYER_BYTES = 64 * 1024  # what stands beside a root filesystem
MAX_LISTING_BYTES = 64 * MEBIBYTE  # what is kept of some 300,000 images, without outlines, between two listings


class _Bounds(Value):
    """What has bounds alone: whole numbers and times of 0 and more, and bounds within them."""

    __slots__ = ()

    def __attrs_post_init__(self) -> None:
        # Found here, and not as the first thing is held against it, which is in the midst of a pull.
        fields: tuple[attrs.Attribute[object], ...] = getattr(type(self), "__attrs_attrs__", ())
        for field in fields:
            value = getattr(self, field.name)
            if field.name == "tar":
                check_kind("tar", value, TarLimits)
            elif isinstance(field.default, float):
                check_seconds(field.name, value)
            else:
                check_count(field.name, value, "it is less than nothing", least=0)


@attrs.frozen(kw_only=True, repr=False)
class TarLimits(_Bounds):
    """How much a reader of a tar takes from an archive that nobody vouches for.

    How many members are too many is for who reads them to say.

    Attributes:
        member_bytes: of one member's data.
        extension_bytes: of one PAX header or long name.
        extension_headers: how many of them may precede one member.
        padding_bytes: of the zeros behind the end; and of those bytes of a compressed archive of which nothing comes.
        sparse_segments: in the map of one sparse file.
    """

    member_bytes: int = 1 << 43
    extension_bytes: int = 1 << 20
    extension_headers: int = 8
    padding_bytes: int = 1 << 24
    sparse_segments: int = 1 << 16


DEFAULT_TAR_LIMITS = TarLimits()


@attrs.frozen(kw_only=True, repr=False)
class Limits(_Bounds):
    """The bounds within which one image, and one store, is read.

    Sizes are bytes. What passes a bound is refused with an error that names it, never cut short. Each may be lowered
    and raised; a store whose limits are not the usual ones leaves ``listing.cache`` alone. What a store has already is
    no exception: whatever reads an image that passes a bound stops at it, a prune too, until it is removed by its name,
    or the bound is raised. It is whole, and stays so.

    Attributes:
        document_bytes: a manifest, index or config.
        document_values: how many values such a one may have, each text, number, list and object in it; an empty list or
            object counts twice. Small ones would take forty times their bytes. It holds for meta.json too.
        documents: how many manifests and indexes an image may have.
        depth: how deep indexes may lie in one another.
        layers: how many a manifest may have.
        history: how many steps a config may tell.
        described_bytes: all documents and configs of an image that are told at once, each once.
        index_bytes: index.json.
        archive_metadata_bytes: meta.json of an archive; what else says there which images it has is a document.
        archive_document_bytes: the manifests and indexes of all images of an archive together, each as often as one of
            them has it: so much is decoded.
        archive_members: how many members an archive may have, of whatever kind.
        archive_bytes: what a compressed archive may become.
        archive_ratio: how many bytes one byte of a compressed archive may become, over the whole of it; asked once
            ``archive_ratio_floor_bytes`` have come.
        archive_ratio_floor_bytes: up to here any ratio will do.
        archive_window_log: the logarithm of the largest window that a compressed archive may ask for.
        tar: the bounds on the tar itself.
        token_bytes: the answer of a token server.
        error_bytes: an error that a registry tells.
        pushed_seconds: how long an upload that does not grow is kept, and a blob that was pushed to a repository and
            that no manifest there needs.
        asked_seconds: how long a blob is kept that a client of a repository asked for, and was told is there, once
            nothing is pushed to that repository any more; never longer than ``pushed_seconds``.

    Raises:
        InvalidArgument: on construction, for what is no number, and for less than nothing.
    """

    document_bytes: int = 4 * MEBIBYTE
    document_values: int = 1 << 16
    documents: int = 1024
    depth: int = 8
    layers: int = 512
    history: int = 4096
    described_bytes: int = 16 * MEBIBYTE
    index_bytes: int = 256 * MEBIBYTE
    archive_metadata_bytes: int = MEBIBYTE
    archive_document_bytes: int = 64 * MEBIBYTE
    archive_members: int = 1 << 17
    archive_bytes: int = 1 << 40
    archive_ratio: int = 250
    archive_ratio_floor_bytes: int = 1 << 30
    archive_window_log: int = 27
    tar: TarLimits = DEFAULT_TAR_LIMITS
    token_bytes: int = MEBIBYTE
    error_bytes: int = 64 * 1024
    pushed_seconds: float = 24 * 3600.0
    asked_seconds: float = 3600.0


DEFAULT_LIMITS = Limits()


@attrs.frozen(kw_only=True, repr=False)
class UnpackLimits(_Bounds):
    """The bounds within which one layer is decompressed and unpacked, whoever made it.

    Attributes:
        output_bytes: of one layer's tar.
        ratio: how many bytes of tar one byte of a compressed layer may become, over the whole of it; asked once
            ``ratio_floor_bytes`` have come.
        ratio_floor_bytes: up to here any ratio will do. By no more do sparse files take more room on a disk than their
            bytes would, for each piece of one takes a whole block there.
        window_log: the logarithm of the largest window that a zstd frame may ask for.
        seconds: how long the decompressing and unpacking of one layer may take; where an image is looked into, so long
            may making the layer's index take, and so long may putting it over the layers below it.
        entries: how many members all layers of an image may have together.
        directory_attribute_bytes: of the extended attributes that all directories have together: they are kept in
            memory until the end.
        extra_bytes: what the extended attributes, the targets of symbolic links and the maps of sparse files in an
            image that is looked into may take together. A run of a map counts as 128 bytes.
        tree_bytes: about what is kept in memory of an image's files together: of all files where it is looked into, and
            of directories where it is unpacked. Each counts as 1,024 bytes and as the characters of its path, a
            directory that no member names too; what is unpacked over other layers as 128 and those of its name. What
            has the place of another file of its name counts no more than that did, what a whiteout takes counts still.
    """

    output_bytes: int = 1 << 36
    ratio: int = 250
    ratio_floor_bytes: int = 1 << 30
    window_log: int = 27
    seconds: float = 3600.0
    entries: int = 10_000_000
    directory_attribute_bytes: int = 64 * MEBIBYTE
    extra_bytes: int = 128 * MEBIBYTE
    tree_bytes: int = 1 << 31


DEFAULT_UNPACK_LIMITS = UnpackLimits()
