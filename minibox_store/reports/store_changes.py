"""What a store's names stood for at one time, and what became of them between two: values, compared by whoever asks.

Spec: OCI image-spec 1.1, image-layout.md, "index.json file".
"""

from collections.abc import Mapping
from typing import Literal

import attrs

from minibox_store.documents import Descriptor
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class StoreState(Value):
    """What the names of a store stand for at one time.

    Attributes:
        position: which content index.json has, and where in its history: a short text of visible ASCII characters, the
            same as long as nothing changes, and another one where a content comes again.
        names: what each name stands for.
        pruned_at: when the last collection that has ended had begun, in seconds since the epoch; None where there was
            none, or nobody can tell.
    """

    position: str
    names: Mapping[str, Descriptor]
    pruned_at: float | None = None


@attrs.frozen(kw_only=True, repr=False)
class NameChange(Value):
    """A name that stands for something else than before.

    Attributes:
        name: as it stands in index.json.
        before: what it stood for; None where there was no such name.
        after: what it stands for now; None where there is no such name any more.
        time: when index.json was written that says so first, in seconds since the epoch.
        position: of that index.json.
    """

    name: str
    before: Descriptor | None
    after: Descriptor | None
    time: float
    position: str

    @property
    def action(self) -> Literal["created", "changed", "removed"]:
        """What happened to the name."""
        return "created" if self.before is None else "removed" if self.after is None else "changed"


@attrs.frozen(kw_only=True, repr=False)
class StoreChanges(Value):
    """What happened to a store since a state of it.

    Attributes:
        state: the present one, by which to ask the next time.
        names: what became of names, in the order in which it happened; of one index.json, sorted by name.
        is_complete: whether each content that index.json has had meanwhile is known. Where not, ``names`` tells how the
            two states differ, and nothing of what was so in between.
    """

    state: StoreState
    names: tuple[NameChange, ...] = ()
    is_complete: bool = True

    def has_pruned(self, since: StoreState) -> bool:
        """Whether a collection has ended since then."""
        return self.state.pruned_at is not None and self.state.pruned_at != since.pruned_at


def compare_names(
    before: Mapping[str, Descriptor], after: Mapping[str, Descriptor], *, time: float, position: str
) -> tuple[NameChange, ...]:
    """Return how two contents of index.json differ in what names stand for, sorted by name; the rest is of the later.

    A name is the same as long as it stands for the same digest, whatever else an entry says.
    """
    changes = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None or old.digest != new.digest:
            changes.append(NameChange(name=name, before=old, after=new, time=time, position=position))
    return tuple(changes)
