"""The part of the store's face that tells what a pull would do: it reads documents, and changes nothing."""

from typing import TYPE_CHECKING

from minibox_store._file_errors import file_errors
from minibox_store.cancellation import Cancellation, checked_cancellation
from minibox_store.copying import EventListener, heard, ignore_events
from minibox_store.events import ResolvingName
from minibox_store.face.arguments import known_client
from minibox_store.layout import Layout
from minibox_store.platforms import LINUX_AMD64, PlatformChoice, checked_choice
from minibox_store.reference import Reference

if TYPE_CHECKING:
    from minibox_store.policies import Policy
    from minibox_store.registry import RegistryClient
    from minibox_store.reports.plans import PullPlan


class Planning:
    """How a :class:`minibox_store.Store` tells what a pull would do."""

    _layout: Layout
    _private_addresses: bool

    def plan_pull(
        self,
        reference: str,
        *,
        platform: PlatformChoice = LINUX_AMD64,
        checked_by: "Policy | None" = None,
        client: "RegistryClient | None" = None,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> "PullPlan":
        """Return what a pull would do: which manifests and why, which blobs are there, and what the rest would cost.

        It asks the registry for the manifests and indexes, and for the configs by which platforms become known, as the
        pull does, and for nothing else. A pull by the digest of ``plan.resolved`` is one of what was planned.

        Args:
            reference: what would be pulled.
            platform: as for :meth:`pull`.
            checked_by: as for :meth:`pull`.
            client: as for :meth:`pull`.
            on_event: called for each step of progress.
            cancellation: ends it when it is cancelled.

        Raises:
            InvalidReference, InvalidArgument, PlatformNotFound, PolicyRefused, RegistryBlocked, RegistryError,
                InvalidPath, CredentialHelperFailed, ContentMismatch, InvalidDocument, Cancelled: as :meth:`pull`.
            StoreDamaged, StoreUnavailable: when the store cannot be read.

        Guarantees: nothing is written, and no store is made. What is present is told by the sizes of files; a pull
            looks closer, and fetches again what is wrong.
        """
        from minibox_store.face.admitting import Wish
        from minibox_store.face.making_plans import plan_copy

        parsed, wanted = Reference.parse(reference), checked_choice(platform)
        wish = Wish(name=reference, platforms=wanted, policy=checked_by, reference=parsed, digest=parsed.digest)
        wish.check()
        on_event, cancellation = heard(on_event), checked_cancellation(cancellation)
        with file_errors(self._layout.paths.root):
            self._layout.read_index()  # one that cannot be read stops the pull, too
        client = known_client(client, limits=self._layout.limits, private_addresses=self._private_addresses)
        with (
            file_errors(self._layout.paths.root),
            client.open_repository(parsed, on_event=on_event) as repository,
            cancellation.interrupting(repository),
        ):
            on_event(ResolvingName(name=reference))
            root = repository.resolve(str(parsed.digest or parsed.tag))
            return plan_copy(self._layout, repository, root, wish, on_event=on_event)

    def check_allowed(self, reference: str) -> None:
        """Return if the machine's rules of registries let something be done with an image; nobody is asked.

        Where a registry is, and whether it may be connected to there, turns out when it is.

        Raises:
            InvalidReference: for a text that is no reference.
            RegistryBlocked: when the rules block it, or do not allow it.
            InvalidPath, InvalidDocument: when the file of rules cannot be read.
        """
        from minibox_store.registry.registries import machine_rules

        machine_rules().check(Reference.parse(reference))
