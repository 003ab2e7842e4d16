"""Which of a store's images are meant: one grammar for listing and for pruning, and the choice itself. Pure.

A filter is a set of conditions, each written ``key=value``, and an image is chosen when all of them hold::

    reference=GLOB      the name, or its canonical spelling, matches; ``*`` and ``?`` match a ``/`` too
    older_than=TIME     its name was last written in this store longer ago: a number and s, m, h, d or w
    label=KEY[=VALUE]   its config has the label (with this value)
    label!=KEY[=VALUE]  its config has not
    keep_last=N         of those that the others choose, it is not among the N of its repository written last
    max_bytes=SIZE      of those that all others choose, the least recently used, as many as it takes for all blobs
                        that images need to fit: a number of bytes, or one with KiB, MiB, GiB, TiB, kB, MB, GB or TB

Labels are those of a config: an index has none. ``label`` and ``label!`` may stand several times.
"""

import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidFilter
from minibox_store.reference import normalised, repository_of

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNITS: dict[str, int] = {unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), 1)}
_UNITS |= {unit: 1000**power for power, unit in enumerate(("kB", "MB", "GB", "TB"), 1)}
_TIME = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)([smhdw])", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,16})([kKMGT]i?B)?", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,9}", re.ASCII)


@attrs.frozen
class Label:
    """A label that a config has: with this value, or, where that is None, with any."""

    key: str
    value: str | None = None

    def is_on(self, labels: Mapping[str, str]) -> bool:
        """Whether it is among these."""
        return self.key in labels and self.value in (None, labels[self.key])

    def __str__(self) -> str:
        return self.key if self.value is None else f"{self.key}={self.value}"


@attrs.frozen(kw_only=True)
class ImageFilter:
    """Which images are meant: those for which every condition that is given holds. See the grammar of this module.

    Attributes:
        reference: a glob.
        older_than_seconds: since the name was last written in this store; never what the config says of its creation.
        labels: that the config has.
        without_labels: that it has not.
        keep_last: how many of each repository are not chosen.
        max_bytes: which the blobs of the images that are left may take together.

    Raises:
        InvalidFilter: on construction, for one without a condition (which would mean all), or with an impossible one.
    """

    reference: str | None = None
    older_than_seconds: float | None = None
    labels: tuple[Label, ...] = ()
    without_labels: tuple[Label, ...] = ()
    keep_last: int | None = None
    max_bytes: int | None = None

    def __attrs_post_init__(self) -> None:
        if not self.conditions():
            raise InvalidFilter("", "it has no condition, and would mean every image")
        for key, number in (("older_than", self.older_than_seconds), ("keep_last", self.keep_last)):
            if number is not None and not number >= 0:
                raise InvalidFilter(f"{key}={number}", "it is less than nothing")
        if self.max_bytes is not None and self.max_bytes < 0:
            raise InvalidFilter(f"max_bytes={self.max_bytes}", "it is less than nothing")
        if self.reference == "":
            raise InvalidFilter("reference=", "an empty pattern matches no name")

    @classmethod
    def parse(cls, *conditions: str) -> "ImageFilter":
        """Return the filter that these conditions spell; they are not trusted.

        Raises:
            InvalidFilter: for a condition that is none, one that stands twice where it may not, or none at all.

        >>> ImageFilter.parse("older_than=30d", "label!=keep").older_than_seconds
        2592000.0
        """
        found: dict[str, object] = {}
        labels: dict[str, list[Label]] = {"labels": [], "without_labels": []}
        for condition in conditions:
            key, equals, text = condition.partition("=")
            if not equals:
                raise InvalidFilter(condition, "it is not written key=value")
            if key in ("label", "label!"):
                labels["labels" if key == "label" else "without_labels"].append(_label(condition, text))
                continue
            if key not in _FIELDS:
                raise InvalidFilter(condition, f"there is no condition {key!r}; there are {', '.join(_KEYS)}")
            field, read = _FIELDS[key]
            if field in found:
                raise InvalidFilter(condition, f"{key} stands twice")
            found[field] = read(condition, text)
        found |= {field: tuple(values) for field, values in labels.items()}
        return cls(**found)  # type: ignore[arg-type]  # each was read by the reader of its field

    def __str__(self) -> str:
        """Return the conditions, so that parsing each again gives an equal filter."""
        return " ".join(self.conditions())

    def conditions(self) -> tuple[str, ...]:
        """Return each condition as it is written."""
        found = []
        if self.reference is not None:
            found.append(f"reference={self.reference}")
        if self.older_than_seconds is not None:
            found.append(f"older_than={self.older_than_seconds:.3f}s")
        found.extend(f"label={label}" for label in self.labels)
        found.extend(f"label!={label}" for label in self.without_labels)
        if self.keep_last is not None:
            found.append(f"keep_last={self.keep_last}")
        if self.max_bytes is not None:
            found.append(f"max_bytes={self.max_bytes}")
        return tuple(found)


@attrs.frozen(kw_only=True)
class Candidate:
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


@attrs.frozen
class Weights:
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
        candidates: every named image of a store.
        now_seconds: what ages are counted from, in seconds since 1970.
        read_weights: called only where ``max_bytes`` is asked for; the roots include those without a name.
    """
    chosen = [each for each in candidates if _holds(chosen_by, each, now_seconds)]
    if chosen_by.keep_last is not None:
        chosen = _without_last(chosen, chosen_by.keep_last)
    if chosen_by.max_bytes is not None:
        chosen = _least_used(chosen, chosen_by.max_bytes, read_weights())
    return tuple(sorted(chosen, key=lambda each: each.name))


def _holds(chosen_by: ImageFilter, image: Candidate, now_seconds: float) -> bool:
    older_than = chosen_by.older_than_seconds
    if older_than is not None and not now_seconds - image.written_seconds > older_than:
        return False
    if chosen_by.reference is not None:
        spellings = (image.name, normalised(image.name) or image.name)
        if not any(fnmatch.fnmatchcase(spelling, chosen_by.reference) for spelling in spellings):
            return False
    if chosen_by.labels or chosen_by.without_labels:
        labels = image.read_labels()
        if not all(label.is_on(labels) for label in chosen_by.labels):
            return False
        if any(label.is_on(labels) for label in chosen_by.without_labels):
            return False
    return True


def _without_last(chosen: Iterable[Candidate], count: int) -> list[Candidate]:
    groups = defaultdict(list)
    for image in chosen:
        groups[repository_of(image.name)].append(image)
    kept: list[Candidate] = []
    for images in groups.values():
        images.sort(key=lambda each: (-each.written_seconds, each.name))
        kept.extend(images[count:])
    return kept


def _least_used(chosen: Iterable[Candidate], max_bytes: int, weights: Weights) -> list[Candidate]:
    users = Counter(digest for _, digests in weights.blobs_of for digest in digests)
    blobs_of = {name: digests for name, digests in weights.blobs_of if name is not None}
    total_bytes = sum(weights.sizes_bytes.get(digest, 0) for digest in users)
    going = []
    for image in sorted(chosen, key=lambda each: (each.used_seconds, each.name)):
        if total_bytes <= max_bytes:
            break
        going.append(image)
        for digest in blobs_of.get(image.name, ()):
            users[digest] -= 1
            if not users[digest]:
                total_bytes -= weights.sizes_bytes.get(digest, 0)
    return going


def _label(condition: str, text: str) -> Label:
    key, equals, value = text.partition("=")
    if not key:
        raise InvalidFilter(condition, "the label has no name")
    return Label(key, value if equals else None)


def _text(condition: str, text: str) -> str:
    return text


def _time(condition: str, text: str) -> float:
    match = _TIME.fullmatch(text)
    if match is None:
        raise InvalidFilter(condition, "a time is a number and s, m, h, d or w, as in 36h")
    return float(match[1]) * _SECONDS[match[2]]


def _size(condition: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or (match[2] and match[2] not in _UNITS):
        raise InvalidFilter(condition, "a size is a number of bytes, or one with KiB, MiB, GiB, TiB, kB, MB, GB or TB")
    factor: int = _UNITS.get(match[2], 1)
    return int(match[1]) * factor


def _count(condition: str, text: str) -> int:
    if _COUNT.fullmatch(text) is None:
        raise InvalidFilter(condition, "it takes a whole number")
    return int(text)


_FIELDS: dict[str, tuple[str, Callable[[str, str], object]]] = {
    "reference": ("reference", _text),
    "older_than": ("older_than_seconds", _time),
    "keep_last": ("keep_last", _count),
    "max_bytes": ("max_bytes", _size),
}
_KEYS = ("reference", "older_than", "label", "label!", "keep_last", "max_bytes")
