"""What moves between registries and the store, and where that runs: in the thread that asks, or in another process.

A transfer is a value, so that it can be sent to where it runs, and is done by calling it.
"""

from collections.abc import Mapping
from functools import partial
from typing import Protocol

import attrs

from minibox_server.responses import RequestError
from minibox_server.settings import Settings, SettingsError, check_registries
from minibox_store import Cancellation, EventListener, InvalidDocument, InvalidPath, Store

# Waiting for another process's lock cannot be cancelled, and must be over before the daemon has to be.
_LOCK_SECONDS = 5.0


class Transfer(Protocol):
    """What is done with a store. It pickles, and so does what it returns."""

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        """Do it, and return the fields of its result."""
        ...


class Transfers(Protocol):
    """Where transfers run."""

    def run(self, transfer: Transfer, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        """Return what a transfer returns, once it has ended.

        Args:
            transfer: what is done.
            on_event: told each event, in its order; of how far the bytes of a blob are, maybe only what was true last.
                Nothing moves before it has returned from ``ManifestChosen``. What it raises ends the transfer.
            cancellation: ends it.

        Raises:
            StoreError: what the transfer raises.
            RequestError: when the process in which it ran is gone, or the operator's rules cannot be read.
        """
        ...


@attrs.frozen
class ThreadTransfers:
    """Transfers in the thread that asks for them."""

    store: Store

    def run(self, transfer: Transfer, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        """Do as :meth:`Transfers.run`."""
        return transfer(self.store, on_event, cancellation)


@attrs.frozen
class RuledTransfers:
    """Transfers by the rules for registries that the operator has named: what is wrong with those is no client's."""

    transfers: Transfers

    def run(self, transfer: Transfer, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        """Do as :meth:`Transfers.run`."""
        try:
            return self.transfers.run(transfer, on_event, cancellation)
        except (InvalidPath, InvalidDocument):
            try:
                check_registries()
            except SettingsError as error:
                raise RequestError(500, str(error)) from error
            raise


def store_opener(settings: Settings) -> "partial[Store]":
    """Return what opens the daemon's store, in this process or in another one."""
    return partial(
        Store,
        settings.data_root,
        lock_timeout_seconds=_LOCK_SECONDS,
        private_addresses=not settings.is_reached_by_others,
    )
