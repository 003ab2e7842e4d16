"""The choice itself: which of a store's images a filter means. Pure.

An image is like a filter by its name and its labels. Of those that are, the last of each repository are kept; of the
rest those go that are old enough; and of these, where there is a bound on bytes, as many as it takes.
"""

import fnmatch
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.filters import ImageFilter
from minibox_store.reference import normalised, repository_of
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class Candidate(Value):
    """One named image, and what a filter may want to know of it.

    Attributes:
        name: as it stands in index.json.
        descriptor: of its manifest or index.
        written_seconds: when its name was last written, in seconds since 1970.
        used_seconds: when it was last used.
        read_labels: returns the labels of its config; called only where a condition asks for them.
    """

    name: str
    descriptor: Descriptor
    written_seconds: float
    used_seconds: float
    read_labels: Callable[[], Mapping[str, str]] = attrs.field(eq=False)


@attrs.frozen(repr=False)
class Weights(Value):
    """What the roots of a store weigh: of each the blobs that it reaches, and of each blob its size in bytes."""

    blobs_of: Sequence[tuple[str | None, frozenset[Digest]]]
    sizes_bytes: Mapping[Digest, int]


def choose_images(
    chosen_by: ImageFilter,
    candidates: Iterable[Candidate],
    *,
    now_seconds: float,
    read_weights: Callable[[], Weights],
) -> tuple[Candidate, ...]:
    """Return the candidates that a filter chooses, sorted by name.

    Args:
        chosen_by: the filter.
        candidates: every named image of a store, in the order of the index: of two that were written, or used, at the
            same time, the one that stands later there is taken for younger.
        now_seconds: what ages are counted from, in seconds since 1970.
        read_weights: called only where ``max_bytes`` is asked for; the roots include those without a name.
    """

    def is_old(image: Candidate) -> bool:
        older_than = chosen_by.older_than_seconds
        return older_than is None or now_seconds - image.written_seconds > older_than

    if chosen_by.keep_last is None:  # then no labels are read of what is not old enough
        chosen = [each for each in candidates if is_old(each) and _is_like(chosen_by, each)]
    else:
        # What was written lately is among what is kept, and does not make more to keep.
        alike = [each for each in candidates if _is_like(chosen_by, each)]
        chosen = [each for each in _without_last(alike, chosen_by.keep_last) if is_old(each)]
    if chosen_by.max_bytes is not None:
        chosen = _least_used(chosen, chosen_by.max_bytes, read_weights())
    return tuple(sorted(chosen, key=lambda each: each.name))


def _is_like(chosen_by: ImageFilter, image: Candidate) -> bool:
    if chosen_by.reference is not None:
        spellings = (image.name, normalised(image.name) or image.name)
        pattern = chosen_by.reference.replace("[", "[[]")
        if not any(fnmatch.fnmatchcase(spelling, pattern) for spelling in spellings):
            return False
    if chosen_by.labels or chosen_by.without_labels:
        labels = image.read_labels()
        if not all(label.is_on(labels) for label in chosen_by.labels):
            return False
        if any(label.is_on(labels) for label in chosen_by.without_labels):
            return False
    return True


def _without_last(chosen: Sequence[Candidate], count: int) -> list[Candidate]:
    groups = defaultdict(list)
    for image in chosen:
        groups[repository_of(image.name)].append(image)
    found: list[Candidate] = []
    for images in groups.values():
        images.sort(key=lambda each: each.written_seconds)
        found.extend(images[: max(0, len(images) - count)])
    # In the order of the index again.
    going = {image.name for image in found}
    return [image for image in chosen if image.name in going]


def _least_used(chosen: Iterable[Candidate], max_bytes: int, weights: Weights) -> list[Candidate]:
    users = Counter(digest for _, digests in weights.blobs_of for digest in digests)
    entries_of = defaultdict(list)  # a foreign tool may have written two of one name; both go with it
    for name, digests in weights.blobs_of:
        entries_of[name].append(digests)
    total_bytes = sum(weights.sizes_bytes.get(digest, 0) for digest in users)
    going = []
    for image in sorted(chosen, key=lambda each: each.used_seconds):
        if total_bytes <= max_bytes:
            break
        going.append(image)
        for digest in (each for digests in entries_of[image.name] for each in digests):
            users[digest] -= 1
            if not users[digest]:
                total_bytes -= weights.sizes_bytes.get(digest, 0)
    return going
