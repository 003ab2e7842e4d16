"""Progress as the daemon prints it: each event is one line, whatever stands in it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Referrer
from minibox_store.errors import InvalidArgument
from minibox_store.events import (
    BlobAdvanced,
    BlobPresent,
    BlobRetried,
    BlobsCounted,
    BlobStarted,
    BlobStored,
    ChoosingPlatform,
    Event,
    ImageCopied,
    ImagePresent,
    IndexMade,
    ManifestChosen,
    MirrorFailed,
    NothingToUnpack,
    Operation,
    PruneAdvanced,
    RateLimitSeen,
    ReferrerFound,
    RegisteringName,
    RegistryWarning,
    ResolvingName,
    UnpackAdvanced,
    UnpackingLayer,
    UsingMirror,
    render_line,
)
from minibox_store.platforms import LINUX_AMD64, Platform
from minibox_store.reports.rate_limits import RateLimit

NAME = "alpine:3.18"


def leaf(start: str) -> Descriptor:
    return Descriptor(media_type="", digest=Digest("sha256", start.ljust(64, "0")), size_bytes=10)


def signature(artifact_type: str | None) -> Referrer:
    return Referrer(descriptor=leaf("8ca4688f4f35"), subject=leaf("48d9183eb12a").digest, artifact_type=artifact_type)


def started(role: str, position: int = 1, total: int = 1, start: str = "8ca4688f4f35") -> BlobStarted:
    return BlobStarted(
        descriptor=leaf(start),
        role=role,  # type: ignore[arg-type]
        position=position,
        total=total,
        offset_bytes=0,
    )


# What POST /images/pull answers, line by line; the daemon adds the last one, "[pull] Done".
LINES: list[tuple[Event, str | None]] = [
    (ResolvingName(name=NAME), "[pull] fetching alpine:3.18 manifest..."),
    (
        ChoosingPlatform(name=NAME, platform=LINUX_AMD64),
        "[pull] alpine:3.18 is a manifest list, resolving amd64/linux...",
    ),
    (
        IndexMade(
            original=leaf("1111111111112"),
            descriptor=leaf("48d9183eb12a"),
            platforms=(LINUX_AMD64, Platform(os="linux", architecture="arm", variant="v7")),
        ),
        "[pull] new index 48d9183eb12a of 111111111111 for linux/amd64, linux/arm/v7",
    ),
    (ManifestChosen(name="alpine", descriptor=leaf("48d9183eb12a")), "[pull] manifest: 48d9183eb12a"),
    (
        ReferrerFound(referrer=signature(artifact_type="a/sbom\n")),
        "[pull] referrer: 8ca4688f4f35 (a/sbom\\x0a)",
    ),
    (ReferrerFound(referrer=signature(artifact_type=None)), "[pull] referrer: 8ca4688f4f35 (unknown)"),
    (started("config"), "[pull] pulling config 8ca4688f4f35..."),
    (started("config", 2, 2), "[pull] pulling config 2/2 8ca4688f4f35..."),
    (started("layer", start="91d30c5bc195"), "[pull] pulling layer 1/1 (91d30c5bc195)..."),
    (started("layer", 2, 8, "91d30c5bc195"), "[pull] pulling layer 2/8 (91d30c5bc195)..."),
    (BlobAdvanced(digest=leaf("a").digest, done_bytes=5, size_bytes=10), None),
    (BlobStored(descriptor=leaf("a"), role="layer", position=1, total=1), None),
    (BlobsCounted(count=2, size_bytes=30), None),
    (BlobRetried(digest=leaf("a").digest, offset_bytes=5), None),
    (
        UnpackAdvanced(digest=leaf("a").digest, done_bytes=5, size_bytes=10, all_done_bytes=25, all_bytes=40),
        None,
    ),
    (PruneAdvanced(phase="removing", done_count=1, total_count=2, done_bytes=10, total_bytes=30), None),
    (
        UnpackingLayer(position=2, total=5, descriptor=leaf("91d30c5bc195")),
        "[pull] extracting layer 2/5...",
    ),
    (UsingMirror(host="mirror.example:5000"), "[pull] using mirror mirror.example:5000..."),
    (
        MirrorFailed(host="mirror.example", problem="404: unknown\n"),
        "[pull] mirror mirror.example failed, others are asked: 404: unknown\\x0a",
    ),
    (NothingToUnpack(name=NAME), "[pull] alpine:3.18 has no root filesystem, nothing is unpacked"),
    (RegisteringName(name=NAME), "[pull] registering alpine:3.18 in index.json..."),
    (ImagePresent(name=NAME, descriptor=leaf("a")), "[pull] alpine:3.18 is already here"),
    (RateLimitSeen(host="registry.example", rate_limit=RateLimit(limit=100, remaining=7)), None),
    (
        RegistryWarning(host="registry.example", text="this tag goes away"),
        "[pull] warning from registry.example: this tag goes away",
    ),
    (ImageCopied(name=NAME), "[pull] successfully pulled alpine:3.18"),
]


@pytest.mark.parametrize(("event", "line"), LINES)
def test_the_lines_of_a_pull_are_those_of_the_contract_byte_for_byte(event: Event, line: str | None) -> None:
    assert render_line(event) == line


@pytest.mark.parametrize(
    ("doing", "lines"),
    [
        ("load", ["loading layer 2/2 (8ca4688f4f35)...", "registering a in index.json...", "successfully loaded a"]),
        ("push", ["pushing layer 2/2 (8ca4688f4f35)...", "writing a...", "successfully pushed a"]),
        ("save", ["saving layer 2/2 (8ca4688f4f35)...", "writing a...", "successfully saved a"]),
    ],
)
def test_a_line_has_the_words_of_what_is_done(doing: Operation, lines: list[str]) -> None:
    events: list[Event] = [started("layer", 2, 2), RegisteringName(name="a"), ImageCopied(name="a")]
    assert [render_line(event, doing=doing) for event in events] == [f"[{doing}] {line}" for line in lines]


@pytest.mark.parametrize(
    ("doing", "where"), [("pull", "here"), ("import", "here"), ("push", "there"), ("save", "there")]
)
def test_a_blob_is_there_where_the_bytes_go(doing: Operation, where: str) -> None:
    event = BlobPresent(descriptor=leaf("8ca4688f4f35"), role="config", position=1, total=1)
    assert render_line(event, doing=doing) == f"[{doing}] config (8ca4688f4f35) is already {where}"


@pytest.mark.parametrize("doing", ["a\n[pull] Done", None, ["pull"]])
def test_what_no_operation_is_called_is_refused(doing: Any) -> None:
    with pytest.raises(InvalidArgument, match="doing"):
        render_line(ImageCopied(name="a"), doing=doing)


def test_an_index_of_thousands_of_platforms_is_told_in_a_short_line() -> None:
    platforms = tuple(Platform(os="linux", architecture=f"{number}" + "x" * 1000) for number in range(1000))
    line = render_line(IndexMade(original=leaf("1"), descriptor=leaf("2"), platforms=platforms))
    assert line is not None
    assert line.endswith(" and 980 more")
    assert len(line) < 3000


def test_an_index_of_twenty_platforms_is_told_whole() -> None:
    platforms = tuple(Platform(os="linux", architecture=f"a{number}") for number in range(20))
    line = render_line(IndexMade(original=leaf("1"), descriptor=leaf("2"), platforms=platforms))
    assert line is not None
    assert line.endswith(", linux/a19")


def test_a_variant_is_told_behind_the_platform() -> None:
    event = ChoosingPlatform(name=NAME, platform=Platform(os="linux", architecture="arm", variant="v7"))
    assert render_line(event) == "[pull] alpine:3.18 is a manifest list, resolving arm/linux/v7..."


@pytest.mark.parametrize(
    ("role", "position", "total", "line"),
    [
        ("layer", 2, 3, "[pull] layer 2/3 (8ca4688f4f35) is already here"),
        ("layer", 1, 1, "[pull] layer 1/1 (8ca4688f4f35) is already here"),
        ("config", 1, 1, "[pull] config (8ca4688f4f35) is already here"),
    ],
)
def test_a_blob_that_is_there_has_a_line_of_its_own(role: str, position: int, total: int, line: str) -> None:
    event = BlobPresent(descriptor=leaf("8ca4688f4f35"), role=role, position=position, total=total)  # type: ignore[arg-type]
    assert render_line(event) == line


def test_a_sha512_is_told_by_its_first_twelve_digits_too() -> None:
    digest = Digest("sha512", "0123456789ab" + "c" * 116)
    event = ManifestChosen(name="a", descriptor=Descriptor(media_type="", digest=digest, size_bytes=1))
    assert render_line(event) == "[pull] manifest: 0123456789ab"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\n[pull] Done", r"a\x0a[pull] Done"),
        ("a\r[pull] Done", r"a\x0d[pull] Done"),
        ("a\x1b[2J", r"a\x1b[2J"),
        ("a\0b\x7f\x85", r"a\x00b\x7f\x85"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("a\u202eb\ufeff", r"a\u202eb\ufeff"),
        ("a\U000e0001", r"a\U000e0001"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_cannot_break_a_line(name: str, shown: str) -> None:
    assert render_line(ImageCopied(name=name)) == f"[pull] successfully pulled {shown}"
    assert render_line(ResolvingName(name=name)) == f"[pull] fetching {shown} manifest..."
    assert render_line(RegisteringName(name=name)) == f"[pull] registering {shown} in index.json..."
    platform = Platform(os=name, architecture=name, variant=name)
    assert render_line(ChoosingPlatform(name=name, platform=platform)) == (
        f"[pull] {shown} is a manifest list, resolving {shown}/{shown}/{shown}..."
    )


@given(name=st.text(st.characters(), max_size=30), variant=st.none() | st.text(st.characters(), max_size=10))
def test_a_line_is_one_printable_line_that_no_name_can_make_the_last(name: str, variant: str | None) -> None:
    platform = Platform(os=name, architecture=name, variant=variant)
    events: list[Event] = [
        ResolvingName(name=name),
        ChoosingPlatform(name=name, platform=platform),
        IndexMade(original=leaf("1"), descriptor=leaf("2"), platforms=(platform,)),
        RegisteringName(name=name),
        ImageCopied(name=name),
        ImagePresent(name=name, descriptor=leaf("a")),
        RegistryWarning(host=name, text=name),
    ]
    for event in events:
        line = render_line(event)
        assert line is not None
        assert line.isprintable()
        assert line.encode()
        assert line.startswith("[pull] ")
        assert line != "[pull] Done"
