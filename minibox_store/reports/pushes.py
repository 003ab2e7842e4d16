"""What is pushed to a repository of a store: an upload, a manifest that was taken, how they are refused."""

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidInput, NotFound, StoreError
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class Upload(Value):
    """A blob that comes piece by piece.

    Attributes:
        id: 32 hexadecimal digits that nobody can guess.
        repository: which it belongs to; in any other there is no such upload.
        size_bytes: how much of it has come: at this offset it goes on.
    """

    id: str
    repository: str
    size_bytes: int


@attrs.frozen(kw_only=True, repr=False)
class PushedManifest(Value):
    """A manifest or index that was taken.

    Attributes:
        descriptor: of it.
        subject: what it says that it refers to; None where it says nothing.
    """

    descriptor: Descriptor
    subject: Digest | None


@attrs.frozen(slots=False, repr=False)
class UploadNotFound(NotFound):
    """The repository has no such upload: it was finished or cancelled, did not grow for too long, or never was."""

    upload: str

    def _sentence(self) -> str:
        return f"upload {self.upload[:32]!r} not found"


@attrs.frozen(slots=False, repr=False)
class UploadOutOfOrder(InvalidInput):
    """A piece of an upload that does not begin where the upload ends; it goes on at ``size_bytes``."""

    upload: str
    size_bytes: int
    offset: int

    def _sentence(self) -> str:
        return f"upload {self.upload} has {self.size_bytes} bytes, and the piece begins at {self.offset}"


@attrs.frozen(slots=False, repr=False)
class StillNeeded(StoreError):
    """What is to be deleted from a repository is a part of an image that stays in it."""

    what: str
    needed_by: str

    def _sentence(self) -> str:
        return f"{self.what} is a part of {self.needed_by}, which is to go before it"
