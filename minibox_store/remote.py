"""What is done with registries without a store: copying from one to another, listing, deleting.

Each function is one session. The client says as whom; where it is None, as whoever the machine is set up for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from minibox_store import media_types
from minibox_store.cancellation import Cancellation, checked_cancellation
from minibox_store.copying import DEFAULT_PARALLEL, EventListener, copy_image, heard, ignore_events
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Referrer
from minibox_store.events import ChoosingPlatform, ManifestChosen, ReferrerFound, ResolvingName
from minibox_store.face.arguments import known_client
from minibox_store.face.sending import check_sending, naming, tags_to_write
from minibox_store.graph import RememberingSource
from minibox_store.kinds import check_kind
from minibox_store.manifest_choice import select_manifest
from minibox_store.platforms import Platform
from minibox_store.reference import Reference
from minibox_store.referring import find_referrers, gather_referrers

if TYPE_CHECKING:
    from minibox_store.registry import RegistryClient
    from minibox_store.registry.repository import WritableRepository


def copy(
    source: str,
    target: str,
    *,
    platform: Platform | None = None,
    client: "RegistryClient | None" = None,
    parallel: int = DEFAULT_PARALLEL,
    chunk_bytes: int | None = None,
    referrers: bool = False,
    on_event: EventListener = ignore_events,
    cancellation: Cancellation | None = None,
) -> Descriptor:
    """Copy an image from one repository to another, and return what ``target`` stands for now.

    Nothing is kept on the way: bytes are hashed and sent on as they come. Where both are of one registry, it is asked
    to take the blobs over itself.

    Args:
        source: what to copy; the registry is Docker Hub where it names none.
        target: where it goes; one with a digest must have the image's; with a digest alone no tag is written.
        platform: which manifest of an index; None copies the index, and every manifest in it.
        client: how both registries are spoken to.
        parallel: how many layers move at once.
        chunk_bytes: as for :meth:`minibox_store.Store.push`.
        referrers: whether what refers to the image goes along, as for :meth:`minibox_store.Store.pull`; it is there
            before the tag is.
        on_event: called for each step of progress, from several threads.
        cancellation: ends the copy when it is cancelled.

    Raises:
        InvalidReference: for a text that is no reference, or a target with the digest of something else.
        InvalidArgument: for a platform, or anything else, that none may be.
        PlatformNotFound: when the image is not offered for the platform.
        ContentMismatch, InvalidDocument: when the source sends something else than it announced.
        RegistryBlocked: when a rule of the client blocks one of them; it is sent nothing then.
        RegistryError: when either registry refuses, fails, or cannot be reached.
        InvalidPath, CredentialHelperFailed: when credentials are asked for and cannot be read, or rules cannot.
        Cancelled: when ``cancellation`` was cancelled.

    Guarantees: the tag is written last, in one step. A copy that fails leaves it as it was, unless only the answer to
        that step was lost.
    """
    from minibox_store.registry import RepositoryTarget

    check_sending(platform, parallel, chunk_bytes, referrers=referrers)
    origin, place = Reference.parse(source), Reference.parse(target)
    on_event, cancellation = heard(on_event), checked_cancellation(cancellation)
    client = known_client(client)

    def find_mounts(digest: Digest) -> Sequence[str]:
        return (origin.repository,) if origin.domain == place.domain else ()

    def open_target() -> "WritableRepository":
        return client.open_origin(place, access="pull,push", on_event=on_event)

    with client.open_repository(origin, on_event=on_event) as repository, cancellation.interrupting(repository):
        on_event(ResolvingName(name=str(origin)))
        root = repository.resolve(str(origin.digest or origin.tag))
        remembering = RememberingSource(repository, client.limits)
        if platform is not None:
            if media_types.is_index(root.media_type):
                on_event(ChoosingPlatform(name=str(origin), platform=platform))
            root = select_manifest(remembering, root, platform, str(origin), client.limits)
        tags = tags_to_write(place, root)
        on_event(ManifestChosen(name=str(origin), descriptor=root))
        along = gather_referrers(remembering, repository, root, limits=client.limits) if referrers else ()
        for each in along:
            on_event(ReferrerFound(referrer=each))
        copy_image(
            remembering,
            RepositoryTarget(open_target, find_mounts=find_mounts, chunk_bytes=chunk_bytes),
            root,
            tags,
            limits=client.limits,
            parallel=parallel,
            on_event=naming(on_event, place),
            cancellation=cancellation,
            referrers=[each.descriptor for each in along],
        )
    return root


def referrers(
    reference: str,
    *,
    artifact_type: str | None = None,
    client: "RegistryClient | None" = None,
    cancellation: Cancellation | None = None,
) -> tuple[Referrer, ...]:
    """Return what refers to a manifest or index, in the registry's order: its signatures, SBOMs and the like.

    Each was read, and refers to it; whether it is true what it says, nobody has looked. What refers to these in turn,
    or to the manifests of an index, is asked for by their digests.

    Args:
        reference: of the manifest or index.
        artifact_type: which ones alone.
        client: how the registry is spoken to.
        cancellation: ends it when it is cancelled.

    Raises:
        InvalidReference: for a text that is no reference.
        ManifestUnknown: when the registry has no such manifest.
        ContentMismatch, InvalidDocument: when the registry sends something else than it announced, or too much.
        RegistryError: when it refuses, fails, or cannot be reached.
        RegistryBlocked, InvalidPath, CredentialHelperFailed: as :func:`copy`.
        Cancelled: when ``cancellation`` was cancelled.

    Spec: OCI distribution-spec 1.1, "Listing Referrers".
    """
    parsed = Reference.parse(reference)
    if artifact_type is not None:
        check_kind("artifact_type", artifact_type, str)
    cancellation = checked_cancellation(cancellation)
    client = known_client(client)
    with client.open_repository(parsed) as opened, cancellation.interrupting(opened):
        subject = opened.resolve(str(parsed.digest or parsed.tag))
        source = RememberingSource(opened, client.limits)
        return tuple(find_referrers(source, opened, subject, artifact_type=artifact_type, limits=client.limits))


def tags(
    repository: str, *, client: "RegistryClient | None" = None, cancellation: Cancellation | None = None
) -> tuple[str, ...]:
    """Return the tags of a repository, in the registry's order.

    Args:
        repository: a reference; its tag and digest do not matter.
        client: how the registry is spoken to.
        cancellation: ends it when it is cancelled.

    Raises:
        InvalidReference: for a text that is no reference.
        ManifestUnknown: when there is no such repository.
        InvalidDocument: when what comes is no list of names.
        RegistryError: when the registry refuses, fails, or cannot be reached, or lists more than a million.
        RegistryBlocked, InvalidPath, CredentialHelperFailed: as :func:`copy`.
        Cancelled: when ``cancellation`` was cancelled.
    """
    from minibox_store.registry.catalog import iter_tags

    parsed = Reference.parse(repository)
    with _session(known_client(client).open_origin(parsed), cancellation) as opened:
        return tuple(iter_tags(opened.transport, parsed.repository))


def catalog(
    registry: str, *, client: "RegistryClient | None" = None, cancellation: Cancellation | None = None
) -> tuple[str, ...]:
    """Return the repositories of a registry, in its order. Many registries tell nobody.

    Args:
        registry: as references name it.
        client: how it is spoken to.
        cancellation: ends it when it is cancelled.

    Raises:
        InvalidReference: when ``registry`` is none.
        InvalidDocument, RegistryError, RegistryBlocked, InvalidPath, CredentialHelperFailed, Cancelled: as
            :func:`tags`.
    """
    from minibox_store.registry.catalog import iter_repositories

    with _session(known_client(client).open_registry(registry), cancellation) as opened:
        return tuple(iter_repositories(opened.transport))


def delete(reference: str, *, client: "RegistryClient | None" = None, cancellation: Cancellation | None = None) -> None:
    """Delete at a registry: a tag alone, or by a digest the manifest, and with it every tag that stands for it.

    What nothing needs any more is the registry's to collect.

    Args:
        reference: what goes; with a digest that decides.
        client: how the registry is spoken to.
        cancellation: ends it when it is cancelled.

    Raises:
        InvalidReference: for a text that is no reference.
        ManifestUnknown: when the registry has no such tag or manifest.
        RegistryError: when it refuses, fails, or cannot be reached. To many a tag alone cannot be deleted: then nothing
            is, and the error says the digest.
        RegistryBlocked, InvalidPath, CredentialHelperFailed: as :func:`copy`.
        Cancelled: when ``cancellation`` was cancelled.
    """
    parsed = Reference.parse(reference)
    with _session(known_client(client).open_origin(parsed, access="pull,delete"), cancellation) as opened:
        opened.delete(str(parsed.digest or parsed.tag))


@contextmanager
def _session(repository: "WritableRepository", cancellation: Cancellation | None) -> Iterator["WritableRepository"]:
    with repository, checked_cancellation(cancellation).interrupting(repository):
        repository.settle()
        yield repository
