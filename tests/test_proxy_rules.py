"""Which hosts are reached through which proxy, how proxies are named, and what is an address by its spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.errors import InvalidArgument
from minibox_store.registry import Proxies
from minibox_store.registry.addresses import literal_address
from minibox_store.registry.environment import proxy_settings
from minibox_store.registry.proxies import Proxy, ProxyRules
from minibox_store.registry.urls import Origin
from tests.support.answers import basic_credentials

LOGIN = ("proxy-user", "proxy-secret")


RULES = [
    ("", "https://registry.test", True),
    ("*", "https://registry.test", False),
    ("other.test, *", "https://registry.test", False),
    ("registry.test", "https://registry.test", False),
    ("REGISTRY.test.", "https://registry.test", False),
    ("registry.test", "https://a.registry.test", False),
    ("registry.test", "https://a.b.registry.test:5000", False),
    ("registry.test", "https://myregistry.test", True),
    ("registry.test", "https://registry.test.evil", True),
    (".registry.test", "https://registry.test", True),
    (".registry.test", "https://a.registry.test", False),
    ("*.registry.test", "https://a.registry.test", False),
    ("*.registry.test", "https://registry.test", True),
    ("registry.test:5000", "https://registry.test:5000", False),
    ("registry.test:5000", "https://registry.test", True),
    ("registry.test:443", "https://registry.test", False),
    (".test:5000", "https://registry.test:5000", False),
    ("a.test b.test,c.test", "https://b.test", False),
    ("a.test b.test,c.test", "https://d.test", True),
    ("10.0.0.0/8", "https://10.1.2.3:5000", False),
    ("10.0.0.0/8", "https://11.1.2.3", True),
    ("10.0.0.7/8", "https://10.1.2.3", False),
    ("10.0.0.0/8", "https://10.test", True),
    ("10.1.2.3", "https://10.1.2.3", False),
    ("10.1.2.3:5000", "https://10.1.2.3:5000", False),
    ("10.1.2.3:5000", "https://10.1.2.3", True),
    (".2.3", "https://10.1.2.3", True),
    ("fd00::/8", "https://[fd00::1]", False),
    ("fd00::/8", "https://[fe00::1]", True),
    ("fd00::1", "https://[fd00:0::1]:5000", False),
    ("[fd00::1]", "https://[fd00::1]", False),
    ("[fd00::1]:5000", "https://[fd00::1]:5000", False),
    ("[fd00::1]:5000", "https://[fd00::1]", True),
    ("10.0.0.0/8", "https://[::ffff:10.1.2.3]", False),
    ("https://registry.test", "https://registry.test", True),
    ("10.0.0.0/99,,:5000,[x", "https://registry.test:5000", True),
    ("", "https://localhost", False),
    ("", "https://localhost.", False),
    ("", "https://a.localhost:5000", False),
    ("", "https://127.0.0.1", False),
    ("", "https://127.8.9.1", False),
    ("", "https://[::1]:5000", False),
    ("", "https://[::ffff:127.0.0.1]", False),
    ("", "https://2130706433", False),
    ("", "https://127.0.0.1.example.com", True),
    ("", "https://10.0.0.1", True),
]


def origin_of(url: str) -> Origin:
    scheme, _, authority = url.partition("://")
    return Origin.parse(scheme, authority)


@pytest.mark.parametrize(("no_proxy", "url", "expected"), RULES)
def test_which_hosts_are_behind_a_proxy(no_proxy: str, url: str, *, expected: bool) -> None:
    rules = ProxyRules(Proxies(https="proxy.test:3128", no_proxy=no_proxy))
    assert (rules.proxy_for(origin_of(url)) is not None) == expected


def test_each_scheme_has_its_own_proxy() -> None:
    rules = ProxyRules(Proxies(http="proxy.test", https="https://proxy.test"))
    found = [rules.proxy_for(origin_of(f"{scheme}://registry.test")) for scheme in ("http", "https")]
    assert [each and str(each.origin) for each in found] == ["http://proxy.test", "https://proxy.test"]
    assert ProxyRules(Proxies(http="proxy.test")).proxy_for(origin_of("https://registry.test")) is None
    assert ProxyRules(Proxies(http="", https="")).proxy_for(origin_of("https://registry.test")) is None


@given(
    st.text()
    | st.lists(st.sampled_from(["a.test", ".", "*", "/", ":", "[", "]", ",", " ", "1", "::", "%"])).map("".join)
)
def test_whatever_no_proxy_says_a_host_is_behind_a_proxy_or_not(no_proxy: str) -> None:
    rules = ProxyRules(Proxies(https="proxy.test", no_proxy=no_proxy))
    for url in ("https://a.test", "https://10.0.0.1:5000", "https://[fd00::1]"):
        assert rules.proxy_for(origin_of(url)) in (None, Proxy(Origin("http", "proxy.test", 80)))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("socks5://secret@proxy.test", "its scheme is neither http nor https"),
        ("http://secret@proxy.test:99999", "its port"),
        ("http://secret@pro xy", "no valid host"),
        ("http://secret@", "no valid host"),
        ("secret@proxy.test\r\nX: y", "no valid host|no URL"),
        ("http://a%3Ab:secret@proxy.test", "its user has a colon"),
        ("http://user:12/secret@proxy.test", "it is no URL"),
    ],
)
def test_a_proxy_that_is_none_is_told_of_without_a_word_of_what_it_says(text: str, problem: str) -> None:
    for options in ({"http": text}, {"https": text}):
        with pytest.raises(InvalidArgument, match=f"invalid proxy for {next(iter(options))}.*({problem})") as caught:
            Proxies(**options)
        assert "secret" not in f"{caught.value!r} {caught.value}"


def test_no_password_of_a_proxy_is_shown() -> None:
    proxies = Proxies(http="http://proxy-user:proxy-secret@proxy.test/x", https="proxy-user:proxy%2Dsecret@proxy.test")
    rules = ProxyRules(proxies)
    assert "http://proxy.test" in repr(proxies)
    for scheme in ("http", "https"):
        proxy = rules.proxy_for(Origin(scheme, "registry.test", 1))
        assert proxy is not None
        assert proxy.headers == {"Proxy-Authorization": basic_credentials(*LOGIN)}
        for shown in (repr(proxies), str(proxies), repr(proxy)):
            assert "secret" not in shown
            assert "proxy-user" not in shown
            assert proxy.secrets[0] not in shown


def test_the_environment_names_proxies_in_either_case() -> None:
    lower = {"http_proxy": "a.test", "https_proxy": "b.test", "no_proxy": "c.test"}
    upper = {"HTTP_PROXY": "A.test", "HTTPS_PROXY": "B.test", "NO_PROXY": "C.test"}
    assert proxy_settings(lower) == {"http": "a.test", "https": "b.test", "no_proxy": "c.test"}
    assert proxy_settings({**lower, **upper}) == {"http": "A.test", "https": "B.test", "no_proxy": "C.test"}
    assert proxy_settings({**lower, "HTTP_PROXY": "", "HTTPS_PROXY": ""})["http"] == "a.test"
    assert proxy_settings({}) == {"http": "", "https": "", "no_proxy": ""}


def test_what_a_request_to_a_cgi_program_may_set_names_no_proxy() -> None:
    environment = {"HTTP_PROXY": "evil.test", "HTTPS_PROXY": "b.test", "REQUEST_METHOD": "GET"}
    assert proxy_settings(environment) == {"http": "", "https": "b.test", "no_proxy": ""}
    assert proxy_settings({**environment, "http_proxy": "a.test"})["http"] == "a.test"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0X7F.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("169.254.43518", "169.254.169.254"),
        ("::1", "::1"),
        ("1.2.3.4.5", "1.2.3.4.5"),
        ("99999999999", "99999999999"),
        ("a.1", "a.1"),
        ("registry.test", None),
        ("0xyz", None),
        ("1.test", None),
        ("localhost", None),
    ],
)
def test_a_host_is_an_address_in_every_spelling_that_resolvers_take(host: str, expected: str | None) -> None:
    assert literal_address(host) == expected
