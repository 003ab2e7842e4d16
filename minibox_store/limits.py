"""How much untrusted input may ask for: every bound on what is read, in one place.

Spec: OCI distribution-spec 1.1 asks registries to accept manifests of at least 4 MiB; nobody needs more.
"""

import attrs

MEBIBYTE = 1024 * 1024
MAX_SIZE_BYTES = 2**53 - 1  # the largest integer that every JSON implementation keeps exactly
MAX_LISTING_BYTES = 64 * MEBIBYTE  # what is kept of some 300,000 images between two listings


@attrs.frozen(kw_only=True)
class Limits:
    """The bounds within which one image, and one store, is read.

    Sizes are bytes. What passes a bound is refused with an error that names it, never cut short. Each may be lowered
    and raised; a store whose limits are not the usual ones leaves ``listing.cache`` alone.
    """

    document_bytes: int = 4 * MEBIBYTE
    documents: int = 1024
    depth: int = 8
    layers: int = 512
    history: int = 4096
    index_bytes: int = 256 * MEBIBYTE
    archive_metadata_bytes: int = MEBIBYTE
    token_bytes: int = MEBIBYTE
    error_bytes: int = 64 * 1024


DEFAULT_LIMITS = Limits()
