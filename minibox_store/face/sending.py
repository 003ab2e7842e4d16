"""What a push and a copy between registries have in common: what they may be asked for, and how they tell of it."""

import attrs

from minibox_store.copying import EventListener
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidReference
from minibox_store.events import Event, ImageCopied, RegisteringName
from minibox_store.kinds import check_count, check_switches
from minibox_store.platforms import Platform, checked_platform
from minibox_store.reference import Reference


def check_sending(platform: Platform | None, parallel: int, chunk_bytes: int | None, *, referrers: bool) -> None:
    """Return if blobs can be sent so.

    Raises:
        InvalidArgument: when they cannot.
    """
    checked_platform(platform)
    check_count("parallel", parallel, "at least one layer has to move")
    if chunk_bytes is not None:
        check_count("chunk_bytes", chunk_bytes, "at least one byte has to go in a request")
    check_switches(referrers=referrers)


def tags_to_write(target: Reference, root: Descriptor) -> tuple[str, ...]:
    """Return the tags that are to stand for ``root``: one, or none where the target is named by its digest alone.

    Raises:
        InvalidReference: when the target has another digest, which it can never have.
    """
    if target.digest is not None and target.digest != root.digest:
        raise InvalidReference(str(target), f"what goes there has the digest {root.digest}")
    return () if target.tag is None else (target.tag,)


def naming(on_event: EventListener, target: Reference) -> EventListener:
    """Return what tells of a tag by the whole reference."""

    def tell(event: Event) -> None:
        if isinstance(event, RegisteringName | ImageCopied):
            event = attrs.evolve(event, name=str(target))
        on_event(event)

    return tell
