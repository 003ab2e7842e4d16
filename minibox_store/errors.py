"""Every way this library says no.

One root, :class:`StoreError`, and branches where a caller acts differently. Callers pass data; each class
owns its sentence. The sentences name the thing that was wrong, and never show credentials or a URL's query.
"""

from collections.abc import Iterable

import attrs

from minibox_store.reports.rate_limits import RateLimit
from minibox_store.sentences import SHOWN_CHARACTERS as _SHOWN_CHARACTERS
from minibox_store.sentences import SHOWN_ITEMS as _SHOWN_ITEMS
from minibox_store.sentences import and_more as _and_more
from minibox_store.sentences import beginning as _beginning
from minibox_store.sentences import one_sentence
from minibox_store.sentences import shown as _shown
from minibox_store.sentences import since as _since
from minibox_store.sentences import without_user as _without_user


class StoreError(Exception):
    """The root of all errors that this library raises on purpose.

    Guarantees: each subclass has fields, pickles, and gives one sentence of less than 1,000 characters as
        ``str(error)``. Its ``repr`` is that of every exception, from ``args``, which are the fields.
    """

    @property
    def asked_before(self) -> tuple[str, ...]:
        """The other places that were asked for the same in vain, each with what was wrong with it."""
        asked: tuple[str, ...] = self.__dict__.get("_asked_before", ())
        return asked

    def after(self, asked: Iterable[str]) -> "StoreError":
        """Return this error, of the same class, as one that came after other places had been asked in vain."""
        error = type(self)(*self._arguments())
        error.__setstate__({"_asked_before": tuple(asked)})
        return error

    def __reduce__(self) -> tuple[object, ...]:
        said = {"_asked_before": self.asked_before} if self.asked_before else None
        return type(self), self._arguments(), said

    def __setstate__(self, state: dict[str, object] | None) -> None:
        # No field: those of each class are its own, and an error is frozen once it is made.
        self.__dict__.update(state or {})

    def _arguments(self) -> tuple[object, ...]:
        fields: tuple[attrs.Attribute[object], ...] = getattr(type(self), "__attrs_attrs__", ())
        return tuple(getattr(self, field.name) for field in fields) if fields else self.args

    def _sentence(self) -> str:
        return " ".join(str(each) for each in self.args) or type(self).__name__

    def __str__(self) -> str:
        before = f"; before it: {'; '.join(self.asked_before[:_SHOWN_ITEMS])}" if self.asked_before else ""
        return one_sentence(self._sentence() + before)


class InvalidInput(StoreError, ValueError):
    """What was handed in has the wrong form; the same call fails again until the input is changed."""


@attrs.frozen(slots=False, repr=False)
class InvalidArgument(InvalidInput):
    """A value that an argument of a call may not have."""

    name: str
    value: object
    problem: str

    def _sentence(self) -> str:
        return f"invalid {self.name} {_beginning(repr(self.value))}: {self.problem}"


@attrs.frozen(slots=False, repr=False)
class InvalidReference(InvalidInput):
    """A text that is no image reference, or no name that an image may have in a store."""

    text: str
    problem: str

    def _sentence(self) -> str:
        return f"invalid image reference {_shown(self.text)}: {self.problem}"


@attrs.frozen(slots=False, repr=False)
class InvalidFilter(InvalidInput):
    """A text that is no condition of a filter, or a filter that has none."""

    text: str
    problem: str

    def _sentence(self) -> str:
        return f"invalid filter {_shown(self.text)}: {self.problem}" if self.text else f"invalid filter: {self.problem}"


@attrs.frozen(slots=False, repr=False)
class InvalidDigest(InvalidInput):
    """A text that is no digest of a registered algorithm."""

    text: str
    problem: str

    def _sentence(self) -> str:
        return f"invalid digest {_shown(self.text)}: {self.problem}"


@attrs.frozen(slots=False, repr=False)
class InvalidPlatform(InvalidInput):
    """A text that names no platform."""

    text: str
    problem: str

    def _sentence(self) -> str:
        return f"invalid platform {_shown(self.text)}: {self.problem}"


@attrs.frozen(slots=False, repr=False)
class InvalidPath(InvalidInput):
    """A path given by the caller that cannot be read or written as was asked."""

    path: str
    problem: str

    def _sentence(self) -> str:
        return f"cannot use path {self.path!r}: {self.problem}"


@attrs.frozen(slots=False, repr=False)
class InvalidDocument(InvalidInput):
    """Bytes that are not the document they should be.

    ``where`` is a path inside the document such as ``layers[0].size``, empty for the whole of it.
    """

    where: str
    problem: str
    document: str = "document"

    def _sentence(self) -> str:
        place = f" at {self.where}" if self.where else ""
        return f"invalid {self.document}{place}: {_beginning(self.problem)}"


@attrs.frozen(slots=False, repr=False)
class InvalidArchive(InvalidInput):
    """A tar, at ``path`` if it has one, that is no image archive, breaks the format, or lacks what is ``missing``."""

    problem: str
    member: str | None = None
    missing: tuple[str, ...] = ()
    path: str | None = None

    def _sentence(self) -> str:
        archive = f" {self.path!r}" if self.path is not None else ""
        place = f" at member {_shown(self.member)}" if self.member is not None else ""
        return f"invalid archive{archive}{place}: {self.problem}"


class NotFound(StoreError, LookupError):
    """What was asked for is not there."""


@attrs.frozen(slots=False, repr=False)
class ImageNotFound(NotFound):
    """No entry of the index has this name."""

    name: str

    def _sentence(self) -> str:
        return f"image {_without_user(repr(self.name))} not found"


@attrs.frozen(slots=False, repr=False)
class BlobNotFound(NotFound):
    """The source does not hold this blob."""

    digest: str

    def _sentence(self) -> str:
        return f"blob {self.digest} not found"


@attrs.frozen(slots=False, repr=False)
class PathNotFound(NotFound):
    """An image has no file at this path."""

    image: str
    path: str

    def _sentence(self) -> str:
        return f"image {self.image!r} has no file {_shown(self.path)}"


@attrs.frozen(slots=False, repr=False)
class PlatformNotFound(NotFound):
    """An index offers no manifest for the platform; ``available`` lists what it does offer."""

    name: str
    wanted: str
    available: tuple[str, ...]

    def _sentence(self) -> str:
        offered = ", ".join(each[:_SHOWN_CHARACTERS] for each in self.available[:_SHOWN_ITEMS]) or "none"
        rest = _and_more(self.available, _SHOWN_ITEMS)
        return f"{self.name} has no image for platform {self.wanted}; on offer: {offered}{rest}"


@attrs.frozen(slots=False, repr=False)
class ContentMismatch(StoreError):
    """Bytes that are not what their descriptor says. ``what`` names the blob."""

    what: str
    expected: str
    actual: str

    def _sentence(self) -> str:
        return f"content of {self.what} does not match: expected {self.expected}, got {self.actual}"


@attrs.frozen(slots=False, repr=False)
class IncompleteImage(StoreError):
    """The graph below ``root`` names blobs that are not there."""

    root: str
    missing: tuple[str, ...]

    def _sentence(self) -> str:
        first = self.missing[0] if self.missing else "a blob"
        return f"image {self.root} is incomplete: {first} is missing{_and_more(self.missing)}"


@attrs.frozen(slots=False, repr=False)
class PolicyRefused(StoreError):
    """The program's own policy lets an image not in; ``rule`` is the field of the policy that says so."""

    name: str
    rule: str
    problem: str

    def _sentence(self) -> str:
        return f"image {_shown(self.name)} is refused by {self.rule}: {_beginning(self.problem)}"


@attrs.frozen(slots=False, repr=False)
class RegistryError(StoreError):
    """A registry that failed, answered wrongly, or was not reached (``status`` is None then).

    ``url`` has neither query nor user; ``codes`` are those of the registry's own error document.
    """

    method: str
    url: str
    status: int | None
    codes: tuple[str, ...]
    problem: str

    def _sentence(self) -> str:
        answer = f" ({self.status})" if self.status is not None else ""
        codes = f" [{', '.join(self.codes)}]" if self.codes else ""
        return f"{self.method} {self.url}{answer}: {self.problem}{codes}"


class ManifestUnknown(RegistryError, NotFound):
    """The registry does not know the repository, tag or digest."""


class AuthenticationRefused(RegistryError):
    """The registry, or its token server, refuses these credentials, or their absence, which the sentence tells."""


@attrs.frozen(slots=False, repr=False)
class RegistryBlocked(StoreError):
    """A rule of registries forbids what a reference, or a host, would lead to; nobody was asked there."""

    reference: str
    prefix: str
    problem: str = ""

    def _sentence(self) -> str:
        return f"{_beginning(self.reference)} {self.problem or f'is blocked by the rule for {_beginning(self.prefix)}'}"


@attrs.frozen(slots=False, repr=False)
class CredentialHelperFailed(StoreError):
    """A program that keeps credentials is not there, or failed. Nothing of what it said is shown."""

    program: str
    problem: str

    def _sentence(self) -> str:
        return f"credential helper {self.program}: {self.problem}"


@attrs.frozen(slots=False, repr=False)
class RateLimited(RegistryError):
    """The registry limits the rate. ``retry_after_seconds`` and ``rate_limit`` are None where it did not say."""

    retry_after_seconds: float | None = None
    rate_limit: RateLimit | None = None

    def _sentence(self) -> str:
        wait = "" if self.retry_after_seconds is None else f"; try again in {self.retry_after_seconds:.0f} s"
        return super()._sentence() + wait + self._count()

    def _count(self) -> str:
        said = self.rate_limit
        if said is None or said.limit is None or said.remaining is None:
            return ""
        return f"; {said.remaining} of {said.limit} requests are left"


@attrs.frozen(slots=False, repr=False)
class StoreDamaged(StoreError):
    """A file of the store cannot be read as what it is. Nothing was changed."""

    path: str
    problem: str

    def _sentence(self) -> str:
        return f"store damaged: {self.path}: {self.problem}"


@attrs.frozen(slots=False, repr=False)
class NothingToDo(StoreError):
    """What was asked for has nothing to act on: no change to undo, no damage to mend. Nothing was changed."""

    path: str
    problem: str

    def _sentence(self) -> str:
        return f"nothing to do for {self.path}: {self.problem}"


@attrs.frozen(slots=False, repr=False)
class MissingLibrary(StoreError):
    """What was asked for needs a library that is not installed; ``extra`` of this distribution brings it."""

    what: str
    extra: str

    def _sentence(self) -> str:
        return f"{self.what} needs a library that is not installed: pip install 'minibox-store[{self.extra}]'"


@attrs.frozen(slots=False, repr=False)
class StoreUnavailable(StoreError):
    """The file system refuses an operation of the store (permission, read-only, input/output error)."""

    path: str
    problem: str

    def _sentence(self) -> str:
        return f"cannot use {self.path}: {self.problem}"


@attrs.frozen(slots=False, repr=False)
class StoreFull(StoreError):
    """No space, or no quota, is left where ``path`` lies; or less is free than is needed, and nothing was begun."""

    path: str
    needed_bytes: int | None = None
    free_bytes: int | None = None

    def _sentence(self) -> str:
        if self.needed_bytes is None:
            return f"no space left for {self.path}"
        return f"not enough space for {self.path}: {self.needed_bytes} bytes are needed, and {self.free_bytes} are free"


@attrs.frozen(slots=False, repr=False)
class StoreBusy(StoreError):
    """Somebody else holds a lock for longer than the caller would wait.

    ``since`` is a time in seconds since the epoch; both it and ``holder_pid`` are None where the holder left no note.
    """

    path: str
    holder_pid: int | None
    since: float | None
    doing: str

    def _sentence(self) -> str:
        holder = f"process {self.holder_pid}" if self.holder_pid is not None else "another process"
        since = "" if self.since is None else _since(self.since)
        return f"store busy: {holder} holds {self.path} ({self.doing or 'working'}){since}"


@attrs.frozen(slots=False, repr=False)
class Cancelled(StoreError):
    """The caller cancelled the operation; nothing was registered."""

    doing: str = "operation"

    def _sentence(self) -> str:
        return f"{self.doing} was cancelled"
