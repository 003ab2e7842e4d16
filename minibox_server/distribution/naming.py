"""What the path of a request names, and the codes of the specification for what is wrong with it.

Spec: OCI distribution-spec 1.1, "Error Codes".
"""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from minibox_server.responses import RequestError
from minibox_store import (
    BlobNotFound,
    ContentMismatch,
    Digest,
    ImageNotFound,
    IncompleteImage,
    InvalidDigest,
    InvalidDocument,
    InvalidReference,
    LocalRepository,
    StillNeeded,
    Store,
    UploadNotFound,
    UploadOutOfOrder,
)


def open_repository(store: Store, request: Request) -> LocalRepository:
    """Return the repository that a request names, whether it has anything or not.

    Raises:
        RequestError: 400, when none may be called so.
    """
    name = request.path_params["name"]
    try:
        return store.repository(name)
    except InvalidReference as error:
        raise RequestError(400, f"{name} is no name of a repository", code="NAME_INVALID") from error


def path_digest(request: Request) -> Digest:
    """Return the digest in the path of a request.

    Raises:
        RequestError: 400, when it is none.
    """
    found = parse_digest(request.path_params["digest"])
    if found is None:
        raise RequestError(400, "it is asked for by its digest", code="DIGEST_INVALID")
    return found


def parse_digest(text: str) -> Digest | None:
    """Return the digest that ``text`` is, None where it has not even the form of one: a tag has no colon.

    Raises:
        RequestError: 400, when it has a colon and is no digest all the same.
    """
    try:
        return Digest.parse(text) if ":" in text else None
    except InvalidDigest as error:
        raise RequestError(400, str(error), code="DIGEST_INVALID") from error


@contextmanager
def naming_errors(repository: LocalRepository) -> Iterator[None]:
    """Turn what the library says of the content of a repository into the answers of the specification."""
    try:
        yield
    except (ImageNotFound, BlobNotFound, UploadNotFound) as error:
        raise _not_found(repository, error) from error
    except UploadOutOfOrder as error:
        headers = {"Content-Range": f"bytes */{error.size_bytes}"}  # so much has come
        raise RequestError(416, str(error), headers, "RANGE_INVALID") from error
    except StillNeeded as error:
        raise RequestError(405, str(error), {"Allow": "GET, HEAD"}, "UNSUPPORTED") from error
    except IncompleteImage as error:
        raise RequestError(400, str(error), code="MANIFEST_BLOB_UNKNOWN") from error
    except InvalidDocument as error:
        raise RequestError(400, str(error), code="MANIFEST_INVALID") from error
    except InvalidReference as error:
        raise RequestError(400, str(error), code="TAG_INVALID") from error


@contextmanager
def naming_mismatch(code: str) -> Iterator[None]:
    """Turn bytes that are not what was announced into the answer for that: ``code`` says in which respect."""
    try:
        yield
    except ContentMismatch as error:
        raise RequestError(400, str(error), code=code) from error


def come_so_far(size_bytes: int) -> str:
    """Return the Range header of an upload. Of an empty one nothing can be said but what clients know for it.

    >>> come_so_far(0), come_so_far(10)
    ('0-0', '0-9')
    """
    return f"0-{max(0, size_bytes - 1)}"


def _not_found(repository: LocalRepository, error: ImageNotFound | BlobNotFound | UploadNotFound) -> RequestError:
    if isinstance(error, UploadNotFound):
        return RequestError(404, str(error), code="BLOB_UPLOAD_UNKNOWN")
    if not repository.is_known():
        return RequestError(404, f"there is no repository {repository.name}", code="NAME_UNKNOWN")
    code = "MANIFEST_UNKNOWN" if isinstance(error, ImageNotFound) else "BLOB_UNKNOWN"
    return RequestError(404, str(error), code=code)
