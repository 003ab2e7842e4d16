"""How far a collection is, as its listener is told: seldom, and never while the store lock is held.

So whoever listens slowly keeps other collections waiting, and no pull. What a listener raises ends the collection,
also where the system's errors are only told of.
"""

import time

from minibox_store.cancellation import Cancellation
from minibox_store.collecting import Ledger
from minibox_store.copying import EventListener
from minibox_store.events import PruneAdvanced

# A thing goes in some microseconds; nobody wants to be told of each.
_PACE_SECONDS = 0.1


class WatchedCollection:
    """Tells a listener, and heeds a cancel; it is :class:`minibox_store.collecting.Watch`.

    Args:
        on_event: is told that marking, and removing, begins and is done, and each tenth of a second how far it is.
        cancellation: ends the collection.
    """

    def __init__(self, on_event: EventListener, cancellation: Cancellation) -> None:
        self._on_event = on_event
        self._cancellation = cancellation
        self._refusal: BaseException | None = None
        self._told: PruneAdvanced | None = None
        self._due_seconds = 0.0
        self._counted = 0
        self._counted_bytes = 0

    def check(self) -> None:
        """Raise Cancelled once there is a cancel; what the listener has raised, if it ever has."""
        if self._refusal is not None:
            raise self._refusal
        self._cancellation.check()

    def marking(self, done_count: int, total_count: int) -> None:
        """Take note of how many roots are marked."""
        self.check()
        if self._is_due("marking") or done_count == total_count:
            self._tell(PruneAdvanced(phase="marking", done_count=done_count, total_count=total_count))
            self.check()  # a listener may have cancelled

    def removing(self, ledger: Ledger) -> None:
        """Take note of what is gone."""
        self.check()
        if self._is_due("removing"):
            self._tell_removed(ledger)
            self.check()

    def ended(self, ledger: Ledger) -> None:
        """Take note of what is gone in the end; of a collection that an error has ended, too."""
        if self._refusal is not None:
            raise self._refusal
        self._tell_removed(ledger)

    def _is_due(self, phase: str) -> bool:
        return self._told is None or self._told.phase != phase or time.monotonic() >= self._due_seconds

    def _tell_removed(self, ledger: Ledger) -> None:
        self._counted_bytes += sum(each.size_bytes for each in ledger.removed[self._counted :])
        self._counted = len(ledger.removed)
        self._tell(
            PruneAdvanced(
                phase="removing",
                done_count=0 if ledger.dry_run else self._counted,
                total_count=self._counted + ledger.pending_count,
                done_bytes=0 if ledger.dry_run else self._counted_bytes,
                total_bytes=self._counted_bytes + ledger.pending_bytes,
            )
        )

    def _tell(self, event: PruneAdvanced) -> None:
        if event == self._told:
            return
        self._told = event
        try:
            self._on_event(event)
        except BaseException as error:
            self._refusal = error
            raise
        # Counted from here: a listener that takes long is not asked again at once.
        self._due_seconds = time.monotonic() + _PACE_SECONDS
