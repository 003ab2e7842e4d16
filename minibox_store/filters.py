"""Which of a store's images are meant: one grammar for listing and for pruning.

A filter is a set of conditions, each written ``key=value``, and an image is chosen when all of them hold::

    reference=GLOB      the name, or its canonical spelling, matches; ``*`` and ``?`` match a ``/`` too, and nothing
                        else is special: an address may stand in brackets
    older_than=TIME     its name was last written in this store longer ago: a number and s, m, h, d or w
    label=KEY[=VALUE]   its config has the label (with this value)
    label!=KEY[=VALUE]  its config has not
    keep_last=N         of those that reference and labels choose, it is not among the N of its repository written last
    max_bytes=SIZE      of those that all others choose, the least recently used, as many as it takes for all blobs
                        that images need to fit: a number of bytes, or one with KiB, MiB, GiB, TiB, kB, MB, GB or TB

An image is used when its name is written (a pull, load, tag or undo does that, also where nothing changes), by a
save, a push or a mount, by whatever unpacks it or opens its files, and by a pull that finds it here. To list, inspect
or verify it is no use, nor is what another store, or a client of the daemon's ``/v2/``, reads of it. A use within an
hour of the last one that is known is not noted: of images that all came within the hour, the one that came first goes
first. What counts are the bytes of blobs, and not the trees that were made of them.

Labels are those of a config: an index has none. ``label`` and ``label!`` may stand several times. Numbers have bounds,
so that each filter can be written down and read again: 18 digits of bytes, 9 of a count, 12 of seconds, which are
counted to the millisecond.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import attrs

from minibox_store.errors import InvalidFilter
from minibox_store.kinds import check_kind, each_of, is_whole
from minibox_store.values import Value

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNITS: dict[str, int] = {unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), 1)}
_UNITS |= {unit: 1000**power for power, unit in enumerate(("kB", "MB", "GB", "TB"), 1)}
_TIME = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)([smhdw])", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,18})([kKMGT]i?B)?", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,9}", re.ASCII)
_SECONDS_BOUND = 10**12
_COUNT_BOUND = 10**9
_BYTES_BOUND = 10**18
_NO_TIME = "it is less than nothing, or longer than all time"


def _rounded(seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidFilter(f"older_than={seconds}", "it is no number of seconds")
    # Nothing is written with a minus before it: what is less than nothing is refused.
    return round(float(seconds), 3) + 0.0


@attrs.frozen(repr=False)
class Label(Value):
    """A label that a config has: with this value, or, where that is None, with any.

    Raises:
        InvalidFilter: on construction, for a key that is empty, or has a ``=``, behind which a value would begin.
        InvalidArgument: on construction, for a key or a value that is no text: no config has such a label.
    """

    key: str
    value: str | None = None

    def __attrs_post_init__(self) -> None:
        check_kind("key", self.key, str)
        if self.value is not None:
            check_kind("value", self.value, str)
        if not self.key:
            raise InvalidFilter(f"label={self}", "the label has no name")
        if "=" in self.key:
            raise InvalidFilter(f"label={self}", f"the name {self.key!r} of the label has a '=' in it")

    def is_on(self, labels: Mapping[str, str]) -> bool:
        """Whether it is among these."""
        return self.key in labels and self.value in (None, labels[self.key])

    def __str__(self) -> str:
        return self.key if self.value is None else f"{self.key}={self.value}"


def _with(labels: Iterable[Label]) -> tuple[Label, ...]:
    return each_of("labels", labels, Label)


def _without(labels: Iterable[Label]) -> tuple[Label, ...]:
    return each_of("without_labels", labels, Label)


@attrs.frozen(kw_only=True, repr=False)
class ImageFilter(Value):
    """Which images are meant: those for which every condition that is given holds. See the grammar of this module.

    Attributes:
        reference: a glob.
        older_than_seconds: since the name was last written in this store; never what the config says of its creation.
            To the millisecond.
        labels: that the config has.
        without_labels: that it has not.
        keep_last: how many of each repository are not chosen.
        max_bytes: which the blobs of the images that are left may take together; what was unpacked does not count.

    Raises:
        InvalidFilter: on construction, for one without a condition (which would mean all), or with an impossible one.
        InvalidArgument: on construction, for a ``reference`` that is no text, and for labels that are none.
    """

    reference: str | None = None
    older_than_seconds: float | None = attrs.field(default=None, converter=_rounded)
    labels: tuple[Label, ...] = attrs.field(default=(), converter=_with)
    without_labels: tuple[Label, ...] = attrs.field(default=(), converter=_without)
    keep_last: int | None = None
    max_bytes: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.reference is not None:
            check_kind("reference", self.reference, str)
        if not self.conditions():
            raise InvalidFilter("", "it has no condition, and would mean every image")
        seconds = self.older_than_seconds
        if seconds is not None and not 0 <= seconds < _SECONDS_BOUND:  # neither is what is no number
            raise InvalidFilter(f"older_than={seconds}s", _NO_TIME)
        for key, number, bound in (
            ("keep_last", self.keep_last, _COUNT_BOUND),
            ("max_bytes", self.max_bytes, _BYTES_BOUND),
        ):
            if number is not None and (not is_whole(number) or not 0 <= number < bound):
                raise InvalidFilter(f"{key}={number}", f"it is no whole number from 0 to {bound - 1}")
        if self.reference == "":
            raise InvalidFilter("reference=", "an empty pattern matches no name")

    @classmethod
    def parse(cls, *conditions: str) -> "ImageFilter":
        """Return the filter that these conditions spell; they are not trusted.

        Raises:
            InvalidFilter: for a condition that is none, one that stands twice where it may not, or none at all.
            InvalidArgument: for a condition that is no text, such as a list of them.

        >>> ImageFilter.parse("older_than=30d", "label!=keep").older_than_seconds
        2592000.0
        """
        found: dict[str, object] = {}
        labels: dict[str, list[Label]] = {"labels": [], "without_labels": []}
        for condition in each_of("conditions", conditions, str):
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
        return " ".join(self.conditions())

    def conditions(self) -> tuple[str, ...]:
        """Return each condition as it is written, so that parsing them gives an equal filter.

        >>> ImageFilter(keep_last=2, labels=(Label("tier", "test"),)).conditions()
        ('label=tier=test', 'keep_last=2')
        """
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


def check_filter(chosen_by: ImageFilter) -> None:
    """Return if an argument is a filter, and not the text of one.

    Raises:
        InvalidArgument: when it is not.
    """
    check_kind("chosen_by", chosen_by, ImageFilter, ": ImageFilter.parse reads one")


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
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds >= _SECONDS_BOUND:
        raise InvalidFilter(condition, _NO_TIME)
    return seconds


def _size(condition: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or (match[2] and match[2] not in _UNITS):
        raise InvalidFilter(condition, "a size is a number of bytes, or one with KiB, MiB, GiB, TiB, kB, MB, GB or TB")
    factor: int = _UNITS.get(match[2], 1)
    size_bytes = int(match[1]) * factor
    if size_bytes >= _BYTES_BOUND:
        raise InvalidFilter(condition, "no store has so many bytes")
    return size_bytes


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
