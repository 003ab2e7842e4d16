"""The settings: their forms, and who may start (S20)."""

from pathlib import Path

import pytest

from minibox_server.settings import Settings, SettingsError, parse_address, parse_settings
from tests.server.clients import TOKEN


def test_without_any_variable_it_listens_on_loopback_and_needs_no_token() -> None:
    settings = parse_settings({})
    assert (settings.host, settings.port, settings.token) == ("127.0.0.1", 8080, None)
    assert settings.data_root == "/var/lib/minibox"
    assert settings.archive_prefixes == ("/home", "/root", "/tmp", "/srv", "/opt", "/var/lib/minibox")


def test_an_empty_variable_counts_as_not_set() -> None:
    names = ["HTTP_ADDR", "DATA_ROOT", "API_TOKEN", "ALLOW_ANONYMOUS", "ALLOWED_HOSTS", "ARCHIVE_PREFIXES", "UNPACK"]
    assert parse_settings({f"MINIBOX_{name}": "" for name in names}) == parse_settings({})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        (":8080", ("", 8080)),
        ("[::1]:8080", ("::1", 8080)),
        ("[0:0::1]:1", ("::1", 1)),
        ("localhost:65535", ("localhost", 65535)),
        ("Server.Example:80", ("server.example", 80)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("8080", "127.0.0.1", "127.0.0.1:", ":0", ":65536", ":-1", ":http", "::1:8080", "[::1]", "[127.0.0.1]:80"),
        *("[]:80", "a b:80", "a/b:80", "http://a:80", "unix:/run/minibox.sock", "a:80:90", ":\u0661"),
    ],
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(SettingsError, match="MINIBOX_HTTP_ADDR"):
        parse_address(text)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1", "[::ffff:127.0.0.1]:1"])
def test_s20_on_a_loopback_address_any_token_or_none_will_do(address: str) -> None:
    assert parse_settings({"MINIBOX_HTTP_ADDR": address}).token is None
    assert parse_settings({"MINIBOX_HTTP_ADDR": address, "MINIBOX_API_TOKEN": "short"}).token == "short"


@pytest.mark.parametrize("address", [":1", "0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.example:1", "127.1:1"])
def test_s20_on_any_other_address_a_token_of_128_bits_is_needed(address: str) -> None:
    for variables in ({}, {"MINIBOX_API_TOKEN": TOKEN[:21]}, {"MINIBOX_ALLOW_ANONYMOUS": "0"}):
        with pytest.raises(SettingsError, match="MINIBOX_API_TOKEN"):
            parse_settings({"MINIBOX_HTTP_ADDR": address, **variables})
    assert parse_settings({"MINIBOX_HTTP_ADDR": address, "MINIBOX_API_TOKEN": TOKEN}).token == TOKEN
    assert parse_settings({"MINIBOX_HTTP_ADDR": address, "MINIBOX_ALLOW_ANONYMOUS": "1"}).token is None


@pytest.mark.parametrize("token", ["with space", "line\nbreak", "ünicode", "\t"])
def test_a_token_that_no_header_could_carry_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"MINIBOX_API_TOKEN": token})
    assert token not in str(caught.value)


def test_s28_the_token_is_not_in_the_representation_of_the_settings() -> None:
    assert TOKEN not in repr(Settings(token=TOKEN))
    assert TOKEN not in str(Settings(token=TOKEN))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MINIBOX_ALLOW_ANONYMOUS", "yes"),
        ("MINIBOX_UNPACK", "no"),
        ("MINIBOX_UNPACK", "2"),
        ("MINIBOX_ALLOWED_HOSTS", "good.example,bad/host"),
        ("MINIBOX_ALLOWED_HOSTS", "a:99999"),
        ("MINIBOX_ARCHIVE_PREFIXES", "/home:relative"),
    ],
)
def test_a_variable_that_is_not_of_its_form_is_named(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=name):
        parse_settings({name: text})


def test_hosts_are_separated_by_commas_and_prefixes_by_colons() -> None:
    settings = parse_settings(
        {"MINIBOX_ALLOWED_HOSTS": "A.example, b.example:81,[::2]", "MINIBOX_ARCHIVE_PREFIXES": "/a::/b/"}
    )
    assert settings.allowed_hosts == (("a.example", None), ("b.example", 81), ("::2", None))
    assert settings.archive_prefixes == ("/a", "/b/")


@pytest.mark.parametrize(("text", "unpack"), [("", True), ("1", True), ("0", False)])
def test_what_is_pulled_is_unpacked_unless_the_operator_says_no(text: str, unpack: bool) -> None:
    assert parse_settings({"MINIBOX_UNPACK": text}).unpack is unpack
    assert parse_settings({}).unpack


def test_the_root_of_the_store_becomes_absolute() -> None:
    assert parse_settings({"MINIBOX_DATA_ROOT": "/a/../b"}).data_root == "/b"


@pytest.mark.parametrize(
    ("name", "field", "usual"),
    [
        ("MINIBOX_MAX_CONNECTIONS", "max_connections", 1024),
        ("MINIBOX_MAX_REQUESTS", "max_requests", 768),
        ("MINIBOX_IDLE_SECONDS", "idle_seconds", 60),
    ],
)
def test_a_limit_is_a_whole_number_and_has_a_usual_value(name: str, field: str, usual: int) -> None:
    assert getattr(parse_settings({}), field) == getattr(parse_settings({name: ""}), field) == usual
    assert getattr(parse_settings({name: "7"}), field) == 7
    for text in ("0", "-1", "1.5", "1e3", " 7", "9" * 8, "9" * 5000, "many", "٣"):
        with pytest.raises(SettingsError, match=name):
            parse_settings({name: text})


@pytest.mark.parametrize("name", ["MINIBOX_DATA_ROOT", "MINIBOX_TLS_CERTIFICATE", "MINIBOX_TLS_KEY"])
def test_a_relative_path_is_refused_where_the_working_directory_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    paths = {"MINIBOX_TLS_CERTIFICATE": "/certificate", "MINIBOX_TLS_KEY": "/key", name: "relative"}
    with pytest.raises(SettingsError, match=f"{name} is 'relative', and the working directory is gone"):
        parse_settings(paths)
