"""Hypothesis strategies for values: each draws only values that exist, and reaches the edges of their grammars."""

import string

from hypothesis import strategies as st

from minibox_store.digest import Digest
from minibox_store.platforms import Platform
from minibox_store.reference import DOCKER_HUB, Reference

_LOWER_ALPHANUMERIC = string.ascii_lowercase + string.digits
_ALPHANUMERIC = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"
_NAME_LENGTH = 255


def digests() -> st.SearchStrategy[Digest]:
    """Digests of both algorithms."""
    sha256 = st.text(_HEX, min_size=64, max_size=64).map(lambda value: Digest("sha256", value))
    sha512 = st.text(_HEX, min_size=128, max_size=128).map(lambda value: Digest("sha512", value))
    return sha256 | sha512


def _joined(
    parts: st.SearchStrategy[str], separators: st.SearchStrategy[str], *, max_parts: int
) -> st.SearchStrategy[str]:
    tails = st.lists(st.tuples(separators, parts).map("".join), max_size=max_parts - 1).map("".join)
    return st.tuples(parts, tails).map("".join)


def _domains() -> st.SearchStrategy[str]:
    words = st.text(_ALPHANUMERIC, min_size=1, max_size=6)
    part = _joined(words, st.sampled_from(["-", "--"]), max_parts=3)
    names = _joined(part, st.just("."), max_parts=4)
    addresses = st.sampled_from(["[::1]", "[2001:db8::1]", "[fc00:1:2:3:4:5:6:7]", "127.0.0.1", "localhost"])
    ports = st.just("") | st.integers(min_value=0, max_value=65535).map(lambda port: f":{port}")
    return st.tuples(names | addresses, ports).map("".join).filter(_reads_as_domain)


def _reads_as_domain(domain: str) -> bool:
    dotted = "." in domain or ":" in domain
    return (dotted or domain == "localhost" or domain != domain.lower()) and domain != "index.docker.io"


def _repositories() -> st.SearchStrategy[str]:
    words = st.text(_LOWER_ALPHANUMERIC, min_size=1, max_size=8) | st.sampled_from(["library", "localhost", "app"])
    component = _joined(words, st.sampled_from([".", "_", "__", "-", "---"]), max_parts=4)
    return _joined(component, st.just("/"), max_parts=5)


def tags() -> st.SearchStrategy[str]:
    """Tags, up to the longest."""
    start = st.sampled_from(_ALPHANUMERIC + "_")
    return st.tuples(start, st.text(_ALPHANUMERIC + "_.-", max_size=127)).map("".join)


@st.composite
def references(draw: st.DrawFn) -> Reference:
    """References of Docker Hub and elsewhere, with a tag, a digest, or both."""
    domain = draw(st.just(DOCKER_HUB) | _domains())
    repository = draw(
        _repositories().filter(lambda path: len(domain) + 1 + len(path) <= _NAME_LENGTH - len("library/"))
    )
    if domain == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    digest = draw(st.none() | digests())
    tag = draw(tags() if digest is None else st.none() | tags())
    return Reference(domain=domain, repository=repository, tag=tag, digest=digest)


def platforms() -> st.SearchStrategy[Platform]:
    """Platforms as people and documents spell them: usual, odd, and unknown ones."""
    words = st.text(_ALPHANUMERIC + "_-", min_size=1, max_size=8)
    dotted = st.text(_ALPHANUMERIC + "_.-", min_size=1, max_size=8)
    architectures = ["amd64", "x86_64", "x86-64", "arm64", "aarch64", "arm", "armhf", "armel", "386", "i386", "ARM64"]
    variants = ["v1", "v2", "v3", "v5", "v6", "v7", "v8", "v8.0", "v8.6", "v9", "v9.0", "v9.1", "7", "8", "V7"]
    return st.builds(
        Platform,
        os=st.sampled_from(["linux", "windows", "darwin", "macos", "Linux", "unknown"]) | words,
        architecture=st.sampled_from([*architectures, "unknown"]) | dotted,
        variant=st.none() | st.sampled_from(variants) | dotted,
        os_version=st.none() | st.sampled_from(["10.0.17763", "10.0.17763.1"]) | dotted,
        os_features=st.lists(st.just("win32k") | dotted, max_size=2).map(tuple),
    )
