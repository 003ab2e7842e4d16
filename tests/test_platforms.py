"""Platforms: their spellings, and which of many fits the one that is wanted."""

import pytest

from minibox_store.errors import InvalidPlatform
from minibox_store.platforms import LINUX_AMD64, Platform, choose_platform


def parsed(texts: list[str]) -> list[Platform]:
    return [Platform.parse(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform(os="linux", architecture="amd64")),
        ("linux/arm/v7", Platform(os="linux", architecture="arm", variant="v7")),
        ("Linux/X86-64", Platform(os="Linux", architecture="X86-64")),
        ("windows(10.0.17763)/amd64", Platform(os="windows", architecture="amd64", os_version="10.0.17763")),
        (
            "windows(10.0+win32k+a)/amd64",
            Platform(os="windows", architecture="amd64", os_version="10.0", os_features=("win32k", "a")),
        ),
        (
            "windows(+win32k)/arm64/v8",
            Platform(os="windows", architecture="arm64", variant="v8", os_features=("win32k",)),
        ),
    ],
)
def test_a_platform_is_read_in_its_own_words_and_written_as_it_was_read(text: str, platform: Platform) -> None:
    assert Platform.parse(text) == platform
    assert str(platform) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "linux",
        "/",
        "linux/",
        "/amd64",
        "linux//v7",
        "linux/arm/v7/x",
        "linux/arm/",
        "linux/*",
        "linux/amd 64",
        "linux/amd64\n",
        "linux/ämd64",
        "linux\x00/amd64",
        "li(nux/amd64",
        "linux(1)x/amd64",
        "linux(+)/amd64",
        "../..",
    ],
)
def test_what_names_no_platform_is_refused_with_the_form_that_is_expected(text: str) -> None:
    with pytest.raises(InvalidPlatform, match="os/architecture") as caught:
        Platform.parse(text)
    assert caught.value.text == text


def test_a_very_long_text_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidPlatform, match="longer than 256") as caught:
        Platform.parse("linux/" + "a" * 1_000_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/AMD64/V2", "linux/amd64/v2"),
        ("LINUX/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/aarch64/v8.0", "linux/arm64"),
        ("linux/arm64/v8.2", "linux/arm64/v8.2"),
        ("linux/arm64/9", "linux/arm64/v9"),
        ("linux/arm64/v9.0", "linux/arm64/v9"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/arm/v8", "linux/arm/v8"),
        ("linux/i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/riscv64", "linux/riscv64"),
        ("windows(10.0+b+a+b)/amd64", "windows(10.0+a+b)/amd64"),
    ],
)
def test_a_platform_is_normalised_to_the_words_of_image_indexes(text: str, usual: str) -> None:
    assert str(Platform.parse(text).normalised()) == usual


ARM = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8"]
AMD64 = ["linux/amd64/v4", "linux/amd64/v2", "linux/amd64", "linux/amd64/v3"]
ARM64 = ["linux/arm64", "linux/arm64/v8.5", "linux/arm64/v8.6", "linux/arm64/v9", "linux/arm64/v9.1"]


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        (["linux/arm64", "linux/amd64", "linux/386"], "linux/amd64", "linux/amd64"),
        (["linux/arm64/v8", "linux/amd64"], "linux/aarch64", "linux/arm64/v8"),
        (["windows/amd64", "linux/arm64"], "linux/amd64", None),
        ([], "linux/amd64", None),
        # 32-bit ARM: itself, then older ones, the newest first
        (ARM, "linux/arm/v7", "linux/arm/v7"),
        (ARM, "linux/arm", "linux/arm/v7"),
        (ARM, "linux/armel", "linux/arm/v6"),
        (["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", "linux/arm/v6"),
        (["linux/arm/v5"], "linux/arm/v8", "linux/arm/v5"),
        (["linux/arm/v7"], "linux/arm/v6", None),
        (["linux/arm/v4"], "linux/arm/v7", None),
        (["linux/arm"], "linux/arm/v8", "linux/arm"),
        # x86-64 levels: none is v1
        (AMD64, "linux/amd64", "linux/amd64"),
        (AMD64, "linux/amd64/v1", "linux/amd64"),
        (AMD64, "linux/amd64/v3", "linux/amd64/v3"),
        (["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v3", "linux/amd64/v2"),
        (["linux/amd64"], "linux/amd64/v3", "linux/amd64"),
        (["linux/amd64/v2", "linux/amd64/v3"], "linux/amd64", None),
        (["linux/386"], "linux/amd64", None),
        # 64-bit ARM: none is v8.0, and 9.x is 8.(x+5) with more
        (ARM64, "linux/arm64", "linux/arm64"),
        (ARM64, "linux/arm64/v9", "linux/arm64/v9"),
        (ARM64, "linux/arm64/v9.2", "linux/arm64/v9.1"),
        (ARM64[:3], "linux/arm64/v9", "linux/arm64/v8.5"),
        (ARM64[:3], "linux/arm64/v9.1", "linux/arm64/v8.6"),
        (ARM64[:1], "linux/arm64/v9", "linux/arm64"),
        (ARM64[3:], "linux/arm64/v8.9", None),
        (ARM64[1:], "linux/arm64", None),
        (["linux/arm/v7"], "linux/arm64", None),
        # elsewhere, and for variants that are no number, only equal ones
        (["linux/ppc64le/power8"], "linux/ppc64le/power9", None),
        (["linux/riscv64/rva20u64"], "linux/riscv64", None),
        (["linux/amd64/fast"], "linux/amd64/v3", None),
        (["linux/amd64/fast"], "linux/amd64/fast", "linux/amd64/fast"),
        (["linux/amd64/v99999999999999999999"], "linux/amd64/v3", None),
        # versions and features of the operating system
        (
            ["windows(10.0.1)/amd64", "windows(10.0.17763.5)/amd64"],
            "windows(10.0.17763)/amd64",
            "windows(10.0.17763.5)/amd64",
        ),
        (["windows(10.0.177631)/amd64", "windows/amd64"], "windows(10.0.17763)/amd64", None),
        (["windows(10.0.1)/amd64"], "windows/amd64", "windows(10.0.1)/amd64"),
        (["windows(+win32k)/amd64", "windows/amd64"], "windows/amd64", "windows/amd64"),
        (["windows(+win32k)/amd64"], "windows(+win32k+other)/amd64", "windows(+win32k)/amd64"),
        # attestations call their platform unknown
        (["unknown/unknown"], "unknown/unknown", None),
        (["unknown/unknown", "linux/amd64"], "linux/amd64", "linux/amd64"),
    ],
)
def test_the_platform_that_fits_best_is_chosen_and_none_where_none_fits(
    offered: list[str], wanted: str, chosen: str | None
) -> None:
    position = choose_platform(parsed(offered), Platform.parse(wanted))
    assert (None if position is None else offered[position]) == chosen


def test_the_first_of_equals_is_chosen() -> None:
    offered = parsed(["linux/arm64", "linux/x86_64", "linux/amd64/v1", "linux/amd64"])
    assert choose_platform(offered, LINUX_AMD64) == 1


def test_silent_first_platform_is_no_answer_when_nothing_fits() -> None:
    assert choose_platform(parsed(["linux/arm64", "linux/s390x"]), LINUX_AMD64) is None


def test_an_entry_without_a_platform_is_never_chosen() -> None:
    assert choose_platform([None, None], LINUX_AMD64) is None
    assert choose_platform([None, LINUX_AMD64], LINUX_AMD64) == 1
