"""What registries name as addresses is parsed once, strictly; which names mean what is a table."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.errors import InvalidReference
from minibox_store.reference import Reference
from minibox_store.registry import RegistryClient
from minibox_store.registry.addresses import restricted_class
from minibox_store.registry.credential_keys import hosts_of, place_of
from minibox_store.registry.credentials import Credentials
from minibox_store.registry.hosts import Schemes, api_origin, is_loopback_host, token_origins
from minibox_store.registry.urls import InvalidUrl, Origin, Url
from tests.support.strategies import references

# URLs


@pytest.mark.parametrize(
    ("text", "origin", "target"),
    [
        ("https://a.example/b?c=d", Origin("https", "a.example", 443), "/b?c=d"),
        ("HTTP://A.Example", Origin("http", "a.example", 80), "/"),
        ("https://a.example:8443?x#fragment", Origin("https", "a.example", 8443), "/?x"),
        ("http://[::1]:5000/v2/", Origin("http", "::1", 5000), "/v2/"),
        ("https://[2001:DB8:0::1]/", Origin("https", "2001:db8::1", 443), "/"),
        ("  https://a/ü b  ", Origin("https", "a", 443), "/%FC%20b"),
        (f"https://{'a' * 63}.example./", Origin("https", f"{'a' * 63}.example.", 443), "/"),
    ],
)
def test_a_url_is_an_origin_and_a_target(text: str, origin: Origin, target: str) -> None:
    assert Url.parse(text) == Url(origin, target)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/relative",
        "//host/path",
        "ftp://host/",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "https://user@host/",
        "https://user:password@host/",
        "https://good.example\\@evil.example/",
        "https://good.example\\.evil.example/",
        f"https://{'a' * 64}.example/",
        f"https://{'.'.join(['a' * 63] * 4)}/",
        "https://host:0/",
        "https://host:65536/",
        "https://host:-1/",
        "https://host:1x/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://[v1.x]/",
        "https://.host/",
        "https://a..b/",
        "https://host/\r\nX: y",
        "https://ho\tst/",
        "https://h\u00f6st/",
        "https://host%2eexample/",
        "https://a/" + "b" * 20_000,
    ],
)
def test_what_is_no_plain_url_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        Url.parse(text)
    assert "password" not in str(caught.value)


@given(st.text() | st.text("htps:/@\\[]?#%.a0:").map("https://".__add__))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        url = Url.parse(text)
    except InvalidUrl:
        return
    assert Url.parse(str(url)) == url
    assert str(url).isascii()
    assert "@" not in url.origin.authority


@given(st.text() | st.text("/.?#:@\\[]a"))
def test_any_location_is_joined_or_refused(location: str) -> None:
    base = Url.parse("https://a.example/b/c?d")
    try:
        joined = base.join(location)
    except InvalidUrl:
        return
    assert joined.origin.scheme in ("http", "https")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/e", "https://a.example/e"),
        ("e?f", "https://a.example/b/e?f"),
        ("//other.example/e", "https://other.example/e"),
        ("http://a.example/e", "http://a.example/e"),
        ("?f", "https://a.example/b/c?f"),
    ],
)
def test_a_location_is_taken_from_where_it_was_met(location: str, expected: str) -> None:
    assert str(Url.parse("https://a.example/b/c?d").join(location)) == expected


def test_a_url_is_shown_without_its_query() -> None:
    url = Url.parse("https://a.example/b?X-Amz-Signature=secret")
    assert url.shown == "https://a.example/b"
    assert "secret" not in repr(url)


def test_a_query_is_added_to_the_one_there_is_and_encoded() -> None:
    url = Url.parse("https://a.example/token?tenant=1").with_query([("service", "a b&c"), ("scope", "r:x/y:pull")])
    assert url.target == "/token?tenant=1&service=a%20b%26c&scope=r%3Ax%2Fy%3Apull"


# Hosts


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("quay.io", "https://quay.io"),
        ("Registry.Example:5000", "https://registry.example:5000"),
        ("localhost", "http://localhost"),
        ("localhost:5000", "http://localhost:5000"),
        ("localhost:443", "https://localhost"),
        ("a.localhost:5000", "http://a.localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("127.8.9.1", "http://127.8.9.1"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("127.0.0.1.example.com", "https://127.0.0.1.example.com"),
        ("localhost.example.com", "https://localhost.example.com"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
        ("plain.example:5000", "http://plain.example:5000"),
        ("plain.example:5001", "https://plain.example:5001"),
        ("127.0.0.1:7000", "https://127.0.0.1:7000"),
    ],
)
def test_plain_http_is_for_this_machine_and_for_what_was_named(domain: str, expected: str) -> None:
    schemes = Schemes.of(["Plain.Example:5000"], ["127.0.0.1:7000"])
    assert str(api_origin(domain, schemes)) == expected


@given(references())
def test_every_reference_has_an_api_host_or_an_invalid_port(reference: Reference) -> None:
    try:
        origin = api_origin(reference.domain, Schemes())
    except InvalidReference:
        assert ":" in reference.domain
        return
    assert origin.scheme == "https" or is_loopback_host(origin.host)


@pytest.mark.parametrize("is_insecure", [False, True])
@pytest.mark.parametrize("domain", ["registry.example:99999", "127.0.0.1:0", "[::1]:70000", f"{'a' * 64}.example"])
def test_who_opens_a_registry_that_cannot_be_contacted_is_told_that_the_reference_is_none(
    domain: str, *, is_insecure: bool
) -> None:
    client = RegistryClient(insecure=[domain] if is_insecure else [])
    reference = Reference.parse(f"{domain}/team/app:1")
    for refused in (
        lambda: client.open_repository(reference),
        lambda: client.open_origin(reference),
        lambda: client.open_registry(domain),
        lambda: client.check_credentials(domain, Credentials("alice", "wonderland")),
    ):
        with pytest.raises(InvalidReference, match=re.escape(domain)):
            refused()


def test_the_credentials_of_docker_hub_go_by_many_names() -> None:
    assert hosts_of("docker.io")[0] == "docker.io"
    assert place_of("https://index.docker.io/v1/") in hosts_of("docker.io")
    assert hosts_of("registry-1.docker.io") == hosts_of("docker.io")
    assert hosts_of("ghcr.io") == ("ghcr.io",)


def test_token_servers_elsewhere_are_the_known_and_the_configured_ones() -> None:
    assert token_origins("docker.io", (), Schemes()) == {Origin("https", "auth.docker.io", 443)}
    assert token_origins("quay.io", (), Schemes()) == frozenset()
    configured = token_origins("gitlab.example", ["auth.example:8443", "http://127.0.0.1:1/x"], Schemes())
    assert configured == {Origin("https", "auth.example", 8443), Origin("http", "127.0.0.1", 1)}


# Addresses


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", "loopback"),
        ("127.1.2.3", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("169.254.169.254", "metadata"),
        ("::ffff:169.254.169.254", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("fd00:ec2::23", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("fd00:42::42", "metadata"),
        ("100.100.100.200", "metadata"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("240.0.0.1", "reserved"),
        ("nonsense", "unknown"),
        ("203.0.113.7", None),
        ("8.8.8.8", None),
        ("10.0.0.1", None),
        ("192.168.1.1", None),
        ("2606:4700::1", None),
        ("fd12:3456::1", None),
        ("::ffff:8.8.8.8", None),
    ],
)
def test_s2_addresses_of_this_machine_and_of_what_answers_nearby_are_told_apart(
    address: str, expected: str | None
) -> None:
    assert restricted_class(address) == expected


# Credentials


def test_s28_credentials_never_show_their_password() -> None:
    credentials = Credentials("alice", "pass-word-1")
    assert "pass-word-1" not in f"{credentials!r} {credentials} {[credentials]}"
    assert "alice" in repr(credentials)
    assert credentials.basic == "Basic YWxpY2U6cGFzcy13b3JkLTE="


def test_a_user_name_with_a_colon_is_refused_without_showing_anything() -> None:
    with pytest.raises(ValueError, match="no colon") as caught:
        Credentials("alice:bob", "pass-word-1")
    assert "pass-word-1" not in str(caught.value)
