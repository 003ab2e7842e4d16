"""Platforms: what an image runs on, under one spelling, and which of many images fits one.

An image for an older variant of an architecture runs on a newer one, never the other way round. Nothing else stands
in for what is wanted: neither another architecture (386 for amd64), nor the first image on offer.

Spec: OCI image-spec 1.1, image-index.md, "Platform Variants"; containerd/platforms 1.0 for spellings and for what
runs on what.
"""

import re
from collections.abc import Sequence
from typing import Literal, TypeVar

import attrs

from minibox_store.errors import InvalidArgument, InvalidPlatform
from minibox_store.kinds import check_kind, each_of
from minibox_store.values import Value

_TEXT_LENGTH = 256
_UNKNOWN = "unknown"

# text := os [ "(" [ version ] *( "+" feature ) ")" ] "/" architecture [ "/" variant ]
_PLATFORM = re.compile(
    r"""
    (?P<os> [A-Za-z0-9_-]+ )
    (?: \( (?P<version> [A-Za-z0-9_.-]* ) (?P<features> (?: \+ [A-Za-z0-9_.-]+ )* ) \) )?
    / (?P<architecture> [A-Za-z0-9_.-]+ )
    (?: / (?P<variant> [A-Za-z0-9_.-]+ ) )?
    """,
    re.VERBOSE,
)
_SYSTEMS = {"macos": "darwin"}
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}
# Words that say the variant too, whatever stands beside them.
_ARCHITECTURES_WITH_VARIANT = {"armhf": ("arm", "v7"), "armel": ("arm", "v6"), "i386": ("386", None)}
_VARIANTS = {
    ("amd64", "v1"): None,
    ("arm64", "8"): None,
    ("arm64", "v8"): None,
    ("arm64", "v8.0"): None,
    ("arm64", "9"): "v9",
    ("arm64", "9.0"): "v9",
    ("arm64", "v9.0"): "v9",
    ("arm", None): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
}
# The architectures whose variants are numbers, of which a newer one runs what was built for an older.
_NUMBERED_VARIANTS = {
    "amd64": re.compile(r"v([1-9])"),
    "arm": re.compile(r"v([5-9])"),
    "arm64": re.compile(r"v([89])(?:\.([0-9]{1,2}))?"),
}
_BASE_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
# 64-bit ARM 9.0 is 8.5 with more, 9.1 is 8.6 with more, and so on.
_ARM64_MINORS_BEFORE_9 = 5


@attrs.frozen(kw_only=True, repr=False)
class Platform(Value):
    """What an image runs on, in the words in which it was given; :meth:`normalised` gives the usual ones.

    ``os_features`` are those that an image needs, or, of a platform that is wanted, those that it has.
    """

    os: str
    architecture: str
    variant: str | None = None
    os_version: str | None = None
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Platform":
        """Return the platform that ``text`` spells, in its own words; the text is not trusted.

        The form is ``os/architecture[/variant]``, where the system may carry its version and features, as in
        ``windows(10.0.17763+win32k)/amd64``. Guarantees that ``parse(str(platform)) == platform``.

        Raises:
            InvalidPlatform: for any other form.

        >>> Platform.parse("linux/arm/v7").variant
        'v7'
        """
        if not isinstance(text, str):
            raise InvalidPlatform(repr(text), "it is no text")
        if len(text) > _TEXT_LENGTH:
            raise InvalidPlatform(text[:80] + "...", f"it is longer than {_TEXT_LENGTH} characters")
        match = _PLATFORM.fullmatch(text)
        if match is None:
            raise InvalidPlatform(text, "it is not of the form os/architecture or os/architecture/variant")
        return cls(
            os=match["os"],
            architecture=match["architecture"],
            variant=match["variant"],
            os_version=match["version"] or None,
            os_features=tuple((match["features"] or "").split("+")[1:]),
        )

    def normalised(self) -> "Platform":
        """Return the same platform in the words that image indexes use, in lower case; idempotent.

        >>> str(Platform.parse("Linux/aarch64/v8").normalised())
        'linux/arm64'
        """
        os = self.os.lower()
        architecture = self.architecture.lower()
        variant = self.variant.lower() if self.variant else None
        if architecture in _ARCHITECTURES_WITH_VARIANT:
            architecture, variant = _ARCHITECTURES_WITH_VARIANT[architecture]
        else:
            architecture = _ARCHITECTURES.get(architecture, architecture)
            variant = _VARIANTS.get((architecture, variant), variant)
        return attrs.evolve(
            self,
            os=_SYSTEMS.get(os, os),
            architecture=architecture,
            variant=variant,
            os_version=self.os_version or None,
            os_features=tuple(sorted(set(self.os_features))),
        )

    @property
    def is_unknown(self) -> bool:
        """Whether it says that there is none, as attestations do: nothing runs on it, and it is never chosen."""
        return _UNKNOWN in (self.os.lower(), self.architecture.lower())

    def __str__(self) -> str:
        details = "".join([self.os_version or "", *(f"+{feature}" for feature in self.os_features)])
        system = f"{self.os}({details})" if details else self.os
        return "/".join([system, self.architecture, *([self.variant] if self.variant else [])])


LINUX_AMD64 = Platform(os="linux", architecture="amd64")

# What may be wanted of an image: the manifest for one platform; those for several, in an index; those for all that it
# has; or, where it is None, the image as it is, attestations included.
PlatformChoice = Platform | Sequence[Platform] | Literal["all"] | None
WantedPlatforms = Platform | tuple[Platform, ...] | Literal["all"] | None
# Of an archive, also those that it has, whatever else its index names.
ArchivePlatformChoice = PlatformChoice | Literal["present"]
ArchivedPlatforms = WantedPlatforms | Literal["present"]
_Platform = TypeVar("_Platform", Platform, Platform | None)


def checked_choice(platform: PlatformChoice) -> WantedPlatforms:
    """Return what is wanted of an image, if it may be.

    Raises:
        InvalidArgument: for a sequence that is empty, or has anything but platforms, and for a text but ``"all"``.

    >>> checked_choice([LINUX_AMD64]) == (LINUX_AMD64,)
    True
    """
    if platform is None or isinstance(platform, Platform):
        return checked_platform(platform)
    if isinstance(platform, str):
        if platform == "all":
            return "all"
        problem = "the only text that is a choice is 'all', and for a load 'present': Platform.parse reads a platform"
        raise InvalidArgument("platform", platform, problem)
    wanted = tuple([each for each in platform if isinstance(each, Platform)]) if isinstance(platform, Sequence) else ()
    if not wanted or len(wanted) != len(platform):
        raise InvalidArgument("platform", platform, "it is no Platform, and no sequence of one or more of them")
    return tuple(map(checked_platform, wanted))


def checked_platform(platform: _Platform) -> _Platform:
    """Return the one platform that is wanted of an image, or None, if it is one.

    Raises:
        InvalidArgument: for anything else, such as the text of one, and for one whose fields are no texts.
    """
    if platform is not None:
        check_kind("platform", platform, Platform, ": Platform.parse reads one")
        texts = (platform.os, platform.architecture, platform.variant or "", platform.os_version or "")
        each_of("platform", texts, str)
        each_of("os_features", platform.os_features, str)
    return platform


def describe_choice(platform: WantedPlatforms) -> str:
    """Return a choice as a text: equal choices, in whatever words and order, give equal texts; none is an empty one.

    >>> describe_choice((Platform.parse("linux/aarch64"), LINUX_AMD64))
    'linux/amd64,linux/arm64'
    """
    if platform is None or platform == "all":
        return platform or ""
    wanted = (platform,) if isinstance(platform, Platform) else platform
    return ",".join(sorted({str(each.normalised()) for each in wanted}))


def choose_platform(offered: Sequence[Platform | None], wanted: Platform) -> int | None:
    """Return the position of the platform in ``offered`` that fits ``wanted`` best, the first of equals, or None.

    Both sides are normalised. The operating system and the architecture must be equal. The variant must be equal, or
    an older one of the same line, of which the newest fits best: arm v5 to v8; amd64 v1 (which is none) and on; arm64
    v8 (which is none) and v9, with their minor versions. Where ``wanted`` has a version of the operating system, the
    offered one must be it or go into more detail, as 10.0.17763.1 does of 10.0.17763. What features are offered, an
    image needs, so ``wanted`` must have them. An entry that is None, or of an unknown platform, never fits.

    >>> offered = [Platform.parse("linux/arm/v5"), Platform.parse("linux/arm/v6"), Platform.parse("linux/arm/v8")]
    >>> choose_platform(offered, Platform.parse("linux/arm/v7"))
    1
    """
    goal = wanted.normalised()
    best: tuple[tuple[int, int], int] | None = None
    for position, platform in enumerate(offered):
        rank = None if platform is None else _rank(platform.normalised(), goal)
        if rank is not None and (best is None or (rank, position) < best):
            best = (rank, position)
    return None if best is None else best[1]


def _rank(offered: Platform, wanted: Platform) -> tuple[int, int] | None:
    """Return how far ``offered`` lies below ``wanted``, (0, 0) being equal, or None when it does not fit."""
    same = (offered.os, offered.architecture) == (wanted.os, wanted.architecture)
    if not same or offered.is_unknown:
        return None
    if not set(offered.os_features) <= set(wanted.os_features) or not _fits_version(offered, wanted):
        return None
    return (0, 0) if offered.variant == wanted.variant else _steps_below(offered, wanted)


def _fits_version(offered: Platform, wanted: Platform) -> bool:
    if wanted.os_version is None:
        return True
    return f"{offered.os_version or ''}.".startswith(f"{wanted.os_version}.")


def _steps_below(offered: Platform, wanted: Platform) -> tuple[int, int] | None:
    """Return by how many major and minor steps ``offered`` has the older variant, or None when it has not."""
    have, need = _variant_number(offered), _variant_number(wanted)
    if have is None or need is None:
        return None
    majors, minors = need[0] - have[0], need[1] - have[1]
    if majors < 0:
        return None
    if wanted.architecture == "arm64":
        minors += majors * _ARM64_MINORS_BEFORE_9
        return (majors, minors) if minors >= 0 else None
    return (majors, minors)


def _variant_number(platform: Platform) -> tuple[int, int] | None:
    pattern = _NUMBERED_VARIANTS.get(platform.architecture)
    if pattern is None:
        return None
    match = pattern.fullmatch(platform.variant or _BASE_VARIANTS[platform.architecture])
    return None if match is None else (int(match[1]), int(match[2] or 0) if pattern.groups > 1 else 0)
