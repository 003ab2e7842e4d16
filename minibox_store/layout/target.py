"""A store as a target of copies, with what each of its transactions has to know."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import attrs

from minibox_store.layout.transaction import Transaction
from minibox_store.layout_index import Provenance
from minibox_store.values import Value

if TYPE_CHECKING:
    from minibox_store.layout.layout import Layout


@attrs.frozen(repr=False)
class TransactionTarget(Value):
    """A store as an ImageTarget whose transactions know more: see :class:`Transaction`."""

    layout: "Layout"
    origin: str | None = attrs.field(default=None, kw_only=True)
    verify_content: bool = attrs.field(default=False, kw_only=True)
    provenance: Provenance | None = attrs.field(default=None, kw_only=True)
    ranges: int | None = attrs.field(default=None, kw_only=True)

    def open_writer(self) -> AbstractContextManager[Transaction]:
        """Begin a transaction; leaving it without an error commits it, with one aborts it."""
        return self.layout.open_writer(
            origin=self.origin, verify_content=self.verify_content, provenance=self.provenance, ranges=self.ranges
        )
