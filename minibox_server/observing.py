"""What is noted of each operation: it is counted, and has a line in the log, however it ends."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import attrs

from minibox_server.logs import OperationRecord, Outcome
from minibox_server.metrics import Metrics
from minibox_server.responses import RequestError
from minibox_store import Cancelled, EventListener, StoreError


@attrs.frozen
class Observer:
    """Notes operations; it may be called from any thread."""

    metrics: Metrics

    def __call__(self, doing: str) -> AbstractContextManager[EventListener]:
        """Note an operation while the block runs, which is given the listener that its events go to as well.

        Args:
            doing: what it is, in a word of this program, such as ``pull``.
        """
        return self._observe(doing)

    @contextmanager
    def _observe(self, doing: str) -> Iterator[EventListener]:
        started = time.monotonic()
        outcome: Outcome = "done"
        wrong: str | None = None
        try:
            yield self.metrics.operation_began(doing)
        except Cancelled:
            outcome = "cancelled"
            raise
        except BaseException as error:
            outcome, wrong = "failed", _name_of(error)
            raise
        finally:
            record = OperationRecord(doing=doing, outcome=outcome, error=wrong, seconds=time.monotonic() - started)
            record.log()
            self.metrics.operation_ended(record)


def _name_of(error: BaseException) -> str:
    """Return the class of an error, where it is one of this program's: those are so many and no more."""
    if isinstance(error, RequestError):
        return f"RequestError{error.status}"
    return type(error).__name__ if isinstance(error, StoreError) else "unexpected"
