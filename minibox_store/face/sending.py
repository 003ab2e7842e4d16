"""What a push and a copy between registries have in common: what they may be asked for, and how they tell of it."""

import attrs

from minibox_store.copying import EventListener
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidArgument, InvalidReference
from minibox_store.events import Event, ImageCopied, RegisteringName
from minibox_store.platforms import Platform
from minibox_store.reference import Reference


def check_sending(platform: Platform | None, parallel: int, chunk_bytes: int | None) -> None:
    """Return if blobs can be sent so.

    Raises:
        InvalidArgument: when they cannot.
    """
    if platform is not None and not isinstance(platform, Platform):
        raise InvalidArgument("platform", platform, "it is no Platform; None sends all that there is")
    if parallel < 1:
        raise InvalidArgument("parallel", parallel, "at least one layer has to move")
    if chunk_bytes is not None and chunk_bytes < 1:
        raise InvalidArgument("chunk_bytes", chunk_bytes, "at least one byte has to go in a request")


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
