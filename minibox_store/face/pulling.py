"""The part of the store's face that brings images in: from registries, and from any other source."""

from functools import partial
from typing import TYPE_CHECKING

import attrs

from minibox_store._file_errors import file_errors
from minibox_store.cancellation import Cancellation, checked_cancellation
from minibox_store.copying import DEFAULT_PARALLEL, EventListener, copy_image, heard, ignore_events
from minibox_store.documents import Descriptor, Referrer
from minibox_store.events import ImagePresent, NothingToUnpack, ReferrerFound, ResolvingName
from minibox_store.face.arguments import PullPolicy, Verify, check_pull_policy, is_content, known_client
from minibox_store.graph import RememberingSource
from minibox_store.kinds import check_count, check_method, check_switches
from minibox_store.layout import Layout, Listing, TransactionTarget
from minibox_store.layout_index import Provenance, find_name
from minibox_store.platforms import LINUX_AMD64, PlatformChoice, checked_choice, describe_choice
from minibox_store.protocols import BlobSource, ImageSource, Referrers
from minibox_store.reference import Reference, check_image_name
from minibox_store.referring import gather_referrers
from minibox_store.reports.images import Image
from minibox_store.values import Value

if TYPE_CHECKING:
    from minibox_store.face.admitting import Wish
    from minibox_store.face.pull_policies import HeldImage
    from minibox_store.face.pulled_trees import TreeTarget
    from minibox_store.policies import Policy
    from minibox_store.registry import RegistryClient
    from minibox_store.selecting import ChosenImage


class Pulling:
    """How images come into a :class:`minibox_store.Store`."""

    _layout: Layout
    _listing: Listing
    _private_addresses: bool

    def pull(
        self,
        reference: str,
        *,
        name: str | None = None,
        platform: PlatformChoice = LINUX_AMD64,
        checked_by: "Policy | None" = None,
        client: "RegistryClient | None" = None,
        policy: PullPolicy = "always",
        parallel: int = DEFAULT_PARALLEL,
        ranges: int | None = None,
        referrers: bool = False,
        verify: Verify = "size",
        unpack: bool = False,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> Image:
        """Copy an image from a registry into the store, and return it.

        Args:
            reference: what to pull; the registry is Docker Hub where it names none.
            name: what the image is called in the store; the reference as it was given, where it is None.
            platform: which manifest of an index. Several platforms, or ``"all"``, keep an index of the manifests for
                these, or for all that are known, and of nothing else: a new one, whose digest the image has, where the
                registry's names more. None keeps the registry's index, and every manifest in it, attestations too.
            checked_by: what must hold of an image for it to come in: asked about the reference before anything is sent,
                and about the image before a config or layer is fetched.
            client: how registries are spoken to; where it is None, over TLS, with the credentials that Docker and
                Podman keep on this machine (``MachineCredentials``), and by way of the mirrors of the file that
                ``MINIBOX_REGISTRIES`` names.
            policy: ``"always"`` asks the registry, and brings what it has. ``"if-newer"`` asks by one HEAD for the
                digest, and brings nothing where the store has what that stands for. ``"if-missing"`` does not ask where
                the store has the name, whatever the tag stands for by now. Only an image that is whole, for the
                platform that is asked for, and of the digest that the reference names, counts as had.
            parallel: how many layers move at once.
            ranges: how many ranges of a layer of at least 64 MiB are fetched at once, from a registry that gives them;
                as many as make it come sooner, by what is measured on the way, where it is None.
            referrers: whether what refers to the image comes along: signatures, SBOMs and the like, and what refers to
                those in turn. What refers to each manifest and index that is stored does: where one platform is taken
                of an index, not what refers to the index, of which nobody could verify anything here. It has no name,
                and stays as long as what it refers to; :meth:`referrers` says what there is. ``policy="if-newer"``
                looks for it though the image is had, and ``"if-missing"`` does not.
            verify: how a layer that the store holds already is looked at before it is relied on: its ``"size"``, or its
                ``"content"``, which reads it whole. One that is wrong is replaced, and kept in ``quarantine/``. What is
                to be unpacked is read whole in any case.
            unpack: whether the image's root filesystem is unpacked too, under ``base_layers/``, while its layers come;
                where it is, says :meth:`base_layer`. Of an artifact, or an index that is kept whole, nothing is.
            on_event: called for each step of progress, from several threads.
            cancellation: ends the pull when it is cancelled.

        Raises:
            InvalidReference: for a text that is no reference, or a name that an image may not have.
            InvalidArgument: for a platform, or anything else, that none may be.
            PlatformNotFound: when the image is not offered for a platform.
            PolicyRefused: when ``checked_by`` does not let it in.
            RegistryBlocked: when a rule of the client blocks it; nothing is sent then.
            RegistryError: when the registry does not know the image, refuses, fails, or cannot be reached. Where it has
                mirrors, ``asked_before`` says what was wrong with each of them.
            InvalidPath, CredentialHelperFailed: when credentials are asked for and cannot be read, or rules cannot.
            ContentMismatch, InvalidDocument: when it sends something else than it announced.
            InvalidArchive: when a layer cannot be unpacked, or not within the bounds.
            MissingLibrary: when a layer is compressed by what nothing installed reads.
            StoreFull: when what is missing does not fit; nothing has been fetched then. What the layers become once
                they are unpacked is not known beforehand.
            Cancelled: when ``cancellation`` was cancelled.

        Guarantees: the name changes in one step, after everything that it reaches is in the store and verified. A pull
            that fails changes no name and no tree; what it has fetched is used by the next one, or pruned. A tree is
            replaced in one step too, just before the name; one that is current stays as it is. An old tree that
            something has mounted stays aside until a prune finds it free.
        """
        from minibox_store.face.admitting import Wish
        from minibox_store.face.pull_policies import find_held, resolve_newer

        check_count("parallel", parallel, "at least one layer has to move")
        if ranges is not None:
            check_count("ranges", ranges, "at least one has to be fetched")
        check_switches(referrers=referrers, unpack=unpack)
        check_pull_policy(policy)
        verify_content, wanted = is_content(verify), checked_choice(platform)
        parsed = Reference.parse(reference)
        name = check_image_name(reference if name is None else name)
        wish = Wish(name=name, platforms=wanted, policy=checked_by, reference=parsed, digest=parsed.digest)
        wish.check()
        on_event, cancellation = heard(on_event), checked_cancellation(cancellation)
        client = known_client(client, limits=self._layout.limits, private_addresses=self._private_addresses)
        with (
            file_errors(self._layout.paths.root),
            client.open_repository(parsed, on_event=on_event) as repository,
            cancellation.interrupting(repository),
        ):
            origin = f"{parsed.domain}/{parsed.repository}"
            target = TransactionTarget(self._layout, origin=origin, verify_content=verify_content, ranges=ranges)
            copy = _Incoming(target=target, wish=wish, parallel=parallel, unpack=unpack)
            if referrers:
                copy = attrs.evolve(copy, listing=repository)
            held = None if policy == "always" else find_held(self._layout, wish)
            if held is None or policy == "if-newer":
                on_event(ResolvingName(name=name))
                root = resolve_newer(repository, parsed, held)
                if root is not None:
                    asked = describe_choice(wanted) or None
                    pulled_as = Provenance(reference=str(parsed), digest=root.digest, platform=asked)
                    copy = attrs.evolve(copy, target=attrs.evolve(target, provenance=pulled_as))
                    return self._copy_in(repository, root, copy, on_event, cancellation)
            assert held is not None
            if policy == "if-missing":
                copy = attrs.evolve(copy, listing=None)
            return self._keep(repository, held, copy, on_event, cancellation)

    def base_layer(self, name: str) -> str | None:
        """Return the path of the image's root filesystem, as it was unpacked by a pull; None where there is none.

        Raises:
            ImageNotFound: when there is no such image.
        """
        from minibox_store.face.pulled_trees import base_layers_of

        with file_errors(self._layout.paths.root):
            name, root = find_name(self._layout.read_index(), name)
            return base_layers_of(self._layout).find(name, root.digest)

    def import_image(
        self,
        source: ImageSource,
        name: str,
        *,
        as_name: str | None = None,
        platform: PlatformChoice = None,
        checked_by: "Policy | None" = None,
        verify: Verify = "size",
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> Image:
        """Copy an image from any source into the store, and return it.

        Args:
            source: where it is; its bytes are not trusted.
            name: what it is called there.
            as_name: what it is called here; ``name`` where it is None.
            platform: which manifests of an index, as for :meth:`pull`; None keeps the whole.
            checked_by: as for :meth:`pull`; but from where an image is nobody can tell here, so that a policy with
                ``allow_registries`` lets none in, and one with ``require_digest`` those whose name is a reference with
                the digest that they have.
            verify: as for :meth:`pull`.
            on_event: called for each step of progress, from several threads.
            cancellation: ends the copy when it is cancelled.

        Raises:
            NotFound: when the source has no such image, not for a platform, or lacks a part of it.
            ContentMismatch, InvalidDocument: when its bytes are not what they should be.
            InvalidReference: when an image may not have this name.
            InvalidArgument: for a source, a platform, or anything else, that none may be.
            PolicyRefused: when ``checked_by`` does not let it in.
            StoreFull: when what is missing does not fit; nothing has been read but documents then.
            Cancelled: when ``cancellation`` was cancelled.
        """
        from minibox_store.face.admitting import Wish, digest_in

        verify_content, wanted = is_content(verify), checked_choice(platform)
        as_name = check_image_name(name if as_name is None else as_name)
        wish = Wish(name=as_name, platforms=wanted, policy=checked_by, digest=digest_in(name))
        wish.check()
        on_event, cancellation = heard(on_event), checked_cancellation(cancellation)
        check_method("source", source, "open_blob")
        with file_errors(self._layout.paths.root), cancellation.interrupting(source):
            root = source.resolve(name)
            target = TransactionTarget(self._layout, verify_content=verify_content)
            copy = _Incoming(target=target, wish=wish)
            return self._copy_in(source, root, copy, on_event, cancellation)

    def _keep(
        self,
        source: BlobSource,
        held: "HeldImage",
        copy: "_Incoming",
        on_event: EventListener,
        cancellation: Cancellation,
    ) -> Image:
        """Return an image that the store has, once it has its tree, and is read, where that is wanted."""
        from minibox_store.face.admitting import choose_incoming
        from minibox_store.face.pull_policies import recalled
        from minibox_store.face.pulled_trees import base_layers_of

        lacks_tree = copy.unpack and base_layers_of(self._layout).find(held.name, held.root.digest) is None
        recalling = recalled(source, self._layout, held.root)
        # It was chosen already, and is of the digest that was asked for; the program's policy may have changed.
        wish = attrs.evolve(copy.wish, name=held.name, platforms=None, digest=held.root.digest)
        if lacks_tree or copy.target.verify_content or copy.listing is not None:
            return self._copy_in(recalling, held.root, attrs.evolve(copy, wish=wish), on_event, cancellation)
        if wish.policy is not None:
            choose_incoming(recalling, held.root, wish, limits=self._layout.limits, on_event=on_event)
        self._layout.activity.note_used(held.name)
        on_event(ImagePresent(name=held.name, descriptor=held.root))
        return self._listing.image(held.name, held.root)

    def _copy_in(
        self,
        source: BlobSource,
        root: Descriptor,
        copy: "_Incoming",
        on_event: EventListener,
        cancellation: Cancellation,
    ) -> Image:
        from minibox_store.face.admitting import choose_incoming

        source = source if isinstance(source, RememberingSource) else RememberingSource(source, self._layout.limits)
        name = copy.wish.name
        chosen = choose_incoming(source, root, copy.wish, limits=self._layout.limits, on_event=on_event)
        root = chosen.root
        along = self._referrers_of(source, chosen, copy, on_event)
        found: list[Image] = []
        run = partial(
            copy_image,
            source,
            root=root,
            names=[name],
            limits=self._layout.limits,
            parallel=copy.parallel,
            referrers=[each.descriptor for each in along],
        )
        tree = self._tree_of(source, root, copy, on_event) if copy.unpack else None

        def finish() -> None:
            found.append(self._listing.image(name, root))
            if tree is not None:
                tree.put_in_place()

        if tree is None:
            run(target=copy.target, on_event=on_event, cancellation=cancellation, when_whole=finish)
        else:
            with cancellation.interrupting(tree), tree.telling_failures():
                run(target=tree, on_event=tree.on_event, cancellation=tree.cancellation, when_whole=finish)
        return found[0]

    def _referrers_of(
        self, source: RememberingSource, chosen: "ChosenImage", copy: "_Incoming", on_event: EventListener
    ) -> tuple[Referrer, ...]:
        from minibox_store.face.admitting import check_referrers

        if copy.listing is None:
            return ()
        made = () if chosen.made_from is None else (chosen.root.digest,)
        found = gather_referrers(source, copy.listing, chosen.root, limits=self._layout.limits, without=made)
        check_referrers(source, found, copy.wish, self._layout.limits)
        for each in found:
            on_event(ReferrerFound(referrer=each))
        return found

    def _tree_of(
        self, source: RememberingSource, root: Descriptor, copy: "_Incoming", on_event: EventListener
    ) -> "TreeTarget | None":
        """Return the store as a target that unpacks too; None where there is nothing to unpack."""
        from minibox_store.face.pulled_trees import TreeTarget, base_layers_of, read_filesystem

        plan = read_filesystem(source, root, self._layout.limits)
        if plan is None:
            on_event(NothingToUnpack(name=copy.wish.name))
            return None
        return TreeTarget(copy.target, base_layers_of(self._layout), copy.wish.name, plan, on_event)


@attrs.frozen(kw_only=True, repr=False)
class _Incoming(Value):
    """What is copied in, to where, and how; where there is a ``listing``, with what that says refers to it."""

    target: TransactionTarget
    wish: "Wish"
    parallel: int = DEFAULT_PARALLEL
    unpack: bool = False
    listing: Referrers | None = None
