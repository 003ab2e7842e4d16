"""Whose turn it is, of several places that have the same repository.

Mirrors come in their order, then what they stand for. A mirror that failed comes after all others, and one that gave
wrong bytes not at all, as long as this operation lasts. What is told when nobody serves is the error of the place that
the mirrors stand for, and in the same sentence what was wrong with each of the others.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, ContentMismatch, InvalidDocument, RegistryError, StoreError
from minibox_store.events import Event, MirrorFailed, UsingMirror
from minibox_store.listeners import is_of_listener
from minibox_store.registry.repository import RegistryRepository
from minibox_store.registry_rules import RegistryPlace
from minibox_store.values import Value

_T = TypeVar("_T")


@attrs.define(eq=False)
class OpenPlace:
    """A place that is open, and what has come of it so far, which is changed under the lock of whose turn it is.

    Attributes:
        place: where it is.
        repository: what is asked there.
        is_behind: whether it is a mirror that failed, and is asked after the others.
        distrusted_for: what a mirror gave that was wrong; empty where nothing was.
        told: which events there have been of it.
    """

    place: RegistryPlace
    repository: RegistryRepository
    is_behind: bool = False
    distrusted_for: str = ""
    told: set[type] = attrs.field(factory=set)

    @property
    def host(self) -> str:
        """The host and port that are contacted, as references name them."""
        return self.place.reference.domain

    @property
    def is_mirror(self) -> bool:
        """Whether it stands for another place."""
        return self.place.mirror is not None


@attrs.frozen(repr=False)
class Failed(Value):
    """A place that was asked in vain."""

    place: OpenPlace
    error: StoreError


class Turns:
    """The places of one operation. Its methods may be called from several threads.

    Args:
        places: in their order; the last one is what the others stand for.
        on_event: told which mirror serves, and which failed; once each.
    """

    def __init__(self, places: Sequence[OpenPlace], on_event: Callable[[Event], None]) -> None:
        self.places = tuple(places)
        self.home = self.places[-1]
        self._on_event = on_event
        self._lock = threading.Lock()
        self._is_over = False
        self._is_by_tag = False
        self._holder: tuple[Digest, OpenPlace] | None = None
        self._givers: dict[Digest, set[OpenPlace]] = {}
        self._wrong_at_home: set[Digest] = set()

    def ask(
        self, question: Callable[[OpenPlace], _T], digest: Digest | None, failed: list[Failed]
    ) -> tuple[_T, OpenPlace]:
        """Return the first answer, and whose it is.

        Args:
            question: is put to one place after the other, while it raises.
            digest: of what it is about; None where it asks what a tag stands for.
            failed: who is not asked, since he was in vain; whoever fails is added.

        Raises:
            StoreError: that of the place that counts, when nobody is left to be asked.
        """
        for place in self.in_turn(digest) or [self.home]:
            if all(each.place is not place for each in failed):
                try:
                    return question(place), place
                except StoreError as error:
                    self.note_failure(place, error, failed)
        raise self.error_of_all(failed)

    def error_of_all(self, failed: Sequence[Failed]) -> StoreError:
        """Return the error of the place that counts, which tells of the others too, also of who was not asked again."""
        decisive = next((each for each in failed if not each.place.is_mirror), failed[-1])
        asked = {each.place: _problem_of(each.error) for each in failed if each is not decisive}
        with self._lock:
            distrusted = [place for place in self.places if place.distrusted_for and place is not decisive.place]
        others = {**{place: place.distrusted_for for place in distrusted}, **asked}
        if not others:
            return decisive.error
        told = decisive.error.after(f"{self._name_of(place)} ({problem})" for place, problem in others.items())
        told.__cause__ = decisive.error.__cause__
        return told

    def _name_of(self, place: OpenPlace) -> str:
        """Return the host of a place, and the repository there where another place is on the same host."""
        is_alone = all(each is place or each.host != place.host for each in self.places)
        return place.host if is_alone else f"{place.host}/{place.place.reference.repository}"

    def in_turn(self, digest: Digest | None) -> list[OpenPlace]:
        """Return whom to ask: who has it in memory, the mirrors, what they stand for, and the mirrors that failed."""
        with self._lock:
            found = [place for place in self.places if self._is_usable(place, digest)]
            holder = self._holder[1] if self._holder is not None and self._holder[0] == digest else None
            return sorted(found, key=lambda place: (place is not holder, place.is_behind))

    def begin_tag(self) -> None:
        """Take note that it is a tag that this operation is about."""
        with self._lock:
            self._is_by_tag = True

    def note_holder(self, place: OpenPlace, digest: Digest) -> None:
        """Take note that a place has answered with a document, and so has it in memory."""
        with self._lock:
            self._holder = digest, place
        self.tell_use(place)

    def begin_anew(self, descriptor: Descriptor) -> None:
        """Take note that a blob is read from its beginning: what was given of it before counts no more."""
        with self._lock:
            self._givers.pop(descriptor.digest, None)

    def note_giver(self, place: OpenPlace, descriptor: Descriptor) -> None:
        """Take note that bytes of a blob come from a place."""
        with self._lock:
            self._givers.setdefault(descriptor.digest, set()).add(place)
        self.tell_use(place)

    def tell_use(self, place: OpenPlace) -> None:
        """Tell that a place serves, if it is a mirror of which that has not been told."""
        if place.is_mirror:
            self._tell(place, UsingMirror(host=place.host))

    def note_failure(self, place: OpenPlace, error: StoreError, failed: list[Failed]) -> None:
        """Take note that a place failed; raise the error where all is over, and others would do no better."""
        if self._is_over or is_of_listener(error):
            raise error
        failed.append(Failed(place, error))
        if place.is_mirror:
            with self._lock:
                if isinstance(error, ContentMismatch | InvalidDocument):
                    place.distrusted_for = str(error)
                place.is_behind |= not isinstance(error, BlobNotFound)
            if place.is_behind:
                self._tell(place, MirrorFailed(host=place.host, problem=_problem_of(error)))

    def distrust(self, descriptor: Descriptor) -> bool:
        """Take note that the bytes given for a blob were wrong; return whether there is still somebody to ask for it.

        Where mirrors gave some of them it is these that are asked for nothing any more; a place that is no mirror is
        not asked for this one blob.
        """
        with self._lock:
            givers = self._givers.pop(descriptor.digest, set())
            wrong = [place for place in givers if place.is_mirror]
            for place in wrong:
                place.distrusted_for = f"it gave wrong bytes for {descriptor.digest}"
            if givers and not wrong:
                self._wrong_at_home.add(descriptor.digest)
        for place in wrong:
            self._tell(place, MirrorFailed(host=place.host, problem=place.distrusted_for))
        return bool(givers) and bool(self.in_turn(descriptor.digest))

    def end(self) -> None:
        """Take note that all is over: whatever fails now does so because of that."""
        self._is_over = True

    def tell(self, event: Event) -> None:
        """Tell whoever listens to the operation."""
        self._on_event(event)

    def _is_usable(self, place: OpenPlace, digest: Digest | None) -> bool:
        mirror = place.place.mirror
        if mirror is None:
            return digest not in self._wrong_at_home
        if place.distrusted_for or (mirror.pull == "digest-only" and digest is None):
            return False
        return mirror.pull != "tag-only" or self._is_by_tag

    def _tell(self, place: OpenPlace, event: UsingMirror | MirrorFailed) -> None:
        with self._lock:
            is_new = type(event) not in place.told
            place.told.add(type(event))
        if is_new:
            self._on_event(event)


def _problem_of(error: StoreError) -> str:
    if not isinstance(error, RegistryError):
        return str(error)
    return error.problem if error.status is None else f"{error.status}: {error.problem}"
