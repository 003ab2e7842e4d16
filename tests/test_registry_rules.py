"""Rules for registries: which one counts for a name, where it leads, and the file that they stand in."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store import Mirror, RegistryClient, RegistryRule, RegistryRules, read_registries_file
from minibox_store.codec.registries_file import REGISTRIES_FILE_BYTES, decode_registries_file
from minibox_store.errors import InvalidArgument, InvalidDocument, InvalidPath, InvalidReference, RegistryBlocked
from minibox_store.reference import Reference
from minibox_store.registry.hosts import Schemes, token_origins
from minibox_store.registry.registries import machine_rules
from minibox_store.registry.urls import InvalidUrl

DOCUMENT = Path(__file__).parent.parent / "docs" / "registries.md"


def rules(*prefixes: str) -> RegistryRules:
    return RegistryRules(tuple(RegistryRule(prefix=prefix) for prefix in prefixes))


def chosen(name: str, *prefixes: str) -> str | None:
    reference = Reference.parse(name)
    rule = rules(*prefixes).find(reference.domain, reference.repository)
    return None if rule is None else rule.prefix


def led(name: str, rule: RegistryRule) -> list[str]:
    return [str(place.reference) for place in RegistryRules((rule,)).places(Reference.parse(name))]


@pytest.mark.parametrize(
    ("name", "prefixes", "expected"),
    [
        ("quay.io/team/app", ["quay.io"], "quay.io"),
        ("quay.io/team/app", ["quay.io", "quay.io/team", "quay.io/team/app"], "quay.io/team/app"),
        ("quay.io/team/app", ["quay.io/team/app/more", "quay.io/team"], "quay.io/team"),
        ("quay.io/teams/app", ["quay.io/team"], None),
        ("quay.io.example.org/team/app", ["quay.io"], None),
        ("quay.io:5000/team/app", ["quay.io"], None),
        ("quay.io:5000/team/app", ["quay.io", "quay.io:5000"], "quay.io:5000"),
        ("QUAY.io/team/app", ["quay.IO/team"], "quay.IO/team"),
        ("alpine", ["docker.io"], "docker.io"),
        ("alpine", ["docker.io/library"], "docker.io/library"),
        ("team/app", ["docker.io/library"], None),
        ("registry-1.docker.io/library/alpine", ["docker.io"], "docker.io"),
        ("registry-1.docker.io/team/app", ["docker.io/team"], "docker.io/team"),
        ("registry-1.docker.io/team/app", ["docker.io", "registry-1.docker.io"], "registry-1.docker.io"),
        ("team/app", ["registry-1.docker.io"], None),
        ("a.example.com/app", ["*.example.com"], "*.example.com"),
        ("a.b.example.com:5000/app", ["*.example.com"], "*.example.com"),
        ("example.com/app", ["*.example.com"], None),
        ("badexample.com/app", ["*.example.com"], None),
        ("a.example.com/app", ["*.example.com", "*.com", "*.a.example.com"], "*.example.com"),
        ("a.example.com/app", ["*.example.com", "a.example.com"], "a.example.com"),
        ("[2001:db8::1]:5000/app", ["[2001:db8::1]:5000"], "[2001:db8::1]:5000"),
        ("quay.io/team/app", [], None),
    ],
)
def test_the_longest_prefix_by_whole_segments_counts(name: str, prefixes: list[str], expected: str | None) -> None:
    assert chosen(name, *prefixes) == expected
    assert chosen(name, *reversed(prefixes)) == expected


PATHS = st.lists(st.sampled_from(["a", "aa", "b"]), min_size=1, max_size=3).map("/".join)
HOSTS = st.sampled_from(["x.io", "a.x.io", "x.io:1", "ax.io"])


@given(host=HOSTS, path=PATHS, prefixes=st.sets(st.tuples(HOSTS, PATHS | st.just("")), max_size=6))
def test_the_choice_is_that_of_comparing_segment_by_segment(
    host: str, path: str, prefixes: set[tuple[str, str]]
) -> None:
    written = ["/".join(each).rstrip("/") for each in sorted(prefixes)]
    name = [host, *path.split("/")]
    fitting = [each for each in written if name[: len(each.split("/"))] == each.split("/")]
    assert chosen(f"{host}/{path}", *written) == max(fitting, key=len, default=None)


@pytest.mark.parametrize(
    ("name", "prefix", "location", "expected"),
    [
        ("alpine:3", "docker.io", "mirror.io:5000", "mirror.io:5000/library/alpine:3"),
        ("alpine:3", "docker.io", "mirror.io/hub", "mirror.io/hub/library/alpine:3"),
        ("alpine:3", "docker.io/library", "mirror.io/hub", "mirror.io/hub/alpine:3"),
        ("quay.io/team/app", "quay.io/team/app", "mirror.io/other", "mirror.io/other:latest"),
        ("quay.io/team/app:1", "quay.io/team", "docker.io", "docker.io/library/app:1"),
        ("quay.io/team/app:1", "quay.io", "localhost:5000", "localhost:5000/team/app:1"),
        ("a.x.io:80/team/app:1", "*.x.io", "mirror.io/x", "mirror.io/x/team/app:1"),
        (
            f"quay.io/team/app:1@sha256:{'a' * 64}",
            "quay.io",
            "mirror.io",
            f"mirror.io/team/app:1@sha256:{'a' * 64}",
        ),
    ],
)
def test_what_follows_the_prefix_follows_the_location(name: str, prefix: str, location: str, expected: str) -> None:
    assert led(name, RegistryRule(prefix=prefix, location=location)) == [expected]
    mirrored = RegistryRule(prefix=prefix, mirrors=[Mirror(location=location)])
    assert led(name, mirrored) == [expected, str(Reference.parse(name))]


def test_mirrors_come_in_their_order_and_then_what_they_stand_for() -> None:
    rule = RegistryRule(location="quay.io", mirrors=[Mirror(location="b.io"), Mirror(location="a.io")])
    assert led("quay.io/app:1", rule) == ["b.io/app:1", "a.io/app:1", "quay.io/app:1"]


def test_what_is_said_of_a_place_is_said_of_it_alone() -> None:
    known = RegistryRules(
        (
            RegistryRule(
                prefix="quay.io",
                location="real.io",
                insecure=True,
                realms=["login.io"],
                mirrors=[Mirror(location="a.io"), Mirror(location="b.io", insecure=True), Mirror(location="c.io/x")],
            ),
            RegistryRule(prefix="c.io", insecure=True, realms=["login.c.io"]),
        )
    )
    places = known.places(Reference.parse("quay.io/app:1"))
    assert [(place.insecure, place.realms) for place in places] == [
        (False, ()),
        (True, ()),
        (True, ("login.c.io",)),
        (True, ("login.io",)),
    ]
    # What is changed is changed where the name says, of which this rule says nothing.
    named = known.named_place(Reference.parse("quay.io/app:1"))
    assert (str(named.reference), named.insecure, named.realms) == ("quay.io/app:1", False, ())
    assert known.named_place(Reference.parse("c.io/app:1")).insecure


def test_a_blocked_name_leads_nowhere() -> None:
    known = RegistryRules((RegistryRule(prefix="quay.io/bad", blocked=True, mirrors=[Mirror(location="a.io")]),))
    for ask in (known.places, known.named_place):
        with pytest.raises(RegistryBlocked, match=r"^quay\.io/bad/app:1 is blocked by the rule for quay\.io/bad$"):
            ask(Reference.parse("quay.io/bad/app:1"))
    assert led("quay.io/bad/app:1", RegistryRule(prefix="quay.io")) == ["quay.io/bad/app:1"]
    assert known.places(Reference.parse("quay.io/good/app:1"))


def test_a_location_that_leaves_no_repository_is_refused() -> None:
    rule = RegistryRule(prefix="quay.io/team/app", location="mirror.io")
    with pytest.raises(InvalidReference, match=r"leads to mirror\.io, which is no repository"):
        led("quay.io/team/app:1", rule)
    long = RegistryRule(prefix="quay.io", location="mirror.io/" + "/".join(["long"] * 48))
    with pytest.raises(InvalidReference, match="longer than 255"):
        led("quay.io/team/application:1", long)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("prefix", "alpine", "would be read as a part of the repository"),
        ("prefix", "quay.io/", "empty"),
        ("prefix", "/app", "no domain"),
        ("prefix", "quay.io/Team", "lower case"),
        ("prefix", "quay.io/team:1", "must be lower-case letters"),
        ("prefix", "https://quay.io", "no domain name|read as a part"),
        ("prefix", "index.docker.io", "is written docker.io"),
        ("prefix", "quay.io:0", "port"),
        ("prefix", "quay.io:99999999999", "port"),
        ("prefix", "*.example.com/app", "behind"),
        ("prefix", "*.example.com:5000", "behind"),
        ("prefix", "a.*.example.com", "no domain"),
        ("prefix", "*.", "no domain"),
        ("prefix", "*", "no domain|read as a part"),
        ("location", "mirror", "would be read as a part of the repository"),
        ("location", "*.example.com", "no domain"),
        ("location", "", "no domain"),
        ("location", "[::1::2]:5000", "no address"),
        ("realms", "a b", "neither a host"),
        ("realms", "user@login.io", "neither a host"),
        ("realms", "ftp://login.io", "neither a host"),
        ("realms", "https://", "neither a host"),
        ("realms", "https://login.io/a\nb", "neither a host"),
    ],
)
def test_what_no_registry_is_called_is_refused(field: str, value: str, problem: str) -> None:
    fields: dict[str, Any] = {"prefix": "quay.io", field: [value] if field == "realms" else value}
    with pytest.raises(InvalidArgument, match=problem) as caught:
        RegistryRule(**fields)
    assert (caught.value.name, caught.value.value) == (field, value)


@pytest.mark.parametrize("value", ["false", 0, 1, ""])
def test_a_switch_that_is_neither_on_nor_off_is_refused(value: Any) -> None:
    for name, make in (
        ("private_addresses", lambda: RegistryRules(private_addresses=value)),
        ("private_addresses", lambda: RegistryClient.for_machine(private_addresses=value)),
        ("insecure", lambda: RegistryRule(prefix="quay.io", insecure=value)),
        ("insecure", lambda: Mirror(location="quay.io", insecure=value)),
        ("blocked", lambda: RegistryRule(prefix="quay.io", blocked=value)),
    ):
        with pytest.raises(InvalidArgument, match="neither True nor False") as caught:
            make()
        assert caught.value.name == name


@pytest.mark.parametrize("name", ["insecure", "plain_http", "https"])
def test_a_host_that_stands_for_a_collection_of_hosts_is_refused(name: str) -> None:
    options: dict[str, Any] = {name: "registry.example.org"}
    with pytest.raises(InvalidArgument, match=f"invalid {name} 'registry.example.org': it is a text"):
        RegistryClient(**options)


def test_rules_that_say_nothing_or_the_same_twice_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="needs a prefix or a location"):
        RegistryRule()
    with pytest.raises(InvalidArgument, match=r"'Quay\.io': another rule has it too"):
        RegistryRules((RegistryRule(prefix="quay.io"), RegistryRule(location="Quay.io")))
    for field, value in (("credentials", "theirs"), ("pull", "never")):
        with pytest.raises(InvalidArgument, match=f"invalid {field} '{value}': it is none of"):
            Mirror(**{"location": "a.io", field: value})  # type: ignore[arg-type]


def test_the_example_of_the_document_is_read_as_it_says() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    known = decode_registries_file(example.encode(), "registries.toml")
    assert known.rules == (
        RegistryRule(
            prefix="docker.io",
            mirrors=[
                Mirror(location="mirror.example.org:5000/hub", insecure=True),
                Mirror(location="mirror.example.net", credentials="shared", pull="digest-only"),
            ],
        ),
        RegistryRule(
            prefix="registry.example.com/team", location="registry.example.net/moved/team", realms=["login.example.net"]
        ),
        RegistryRule(prefix="*.example.edu", blocked=True),
    )
    assert known.allowed == ("docker.io/library", "registry.example.com", "*.example.org")
    assert known.private_addresses is False
    assert [str(place.reference) for place in known.places(Reference.parse("alpine:3.20"))] == [
        "mirror.example.org:5000/hub/library/alpine:3.20",
        "mirror.example.net/library/alpine:3.20",
        "docker.io/library/alpine:3.20",
    ]


@pytest.mark.parametrize(
    ("content", "where", "problem"),
    [
        (b"registry = 5", "registry", "expected an array"),
        (b"registry = [5]", "registry[0]", "expected a table"),
        (b'[registry]\nprefix = "quay.io"', "registry", "expected an array, got a table"),
        (b"[[registry]]", "registry[0].prefix", "needs a prefix"),
        (b'[[registry]]\nprefix = "quay.io"\nmirors = []', "registry[0].mirors", "there is no such setting"),
        (b'[[registry]]\nprefix = "quay.io"\n[[registry.mirror]]', "registry[0].mirror", "here it is mirrors"),
        (b'[[registry]]\nprefix = "quay.io"\n[[registry.mirrors]]', "registry[0].mirrors[0].location", "missing"),
        (
            b'[[registry]]\nprefix="a.io"\n[[registry]]\nprefix="b.io"\nmirrors=[{location="c.io"},{location="d"}]',
            "registry[1].mirrors[1].location",
            "'d': the domain",
        ),
        (
            b'[[registry]]\nprefix = "a.io"\nmirrors = [{location = "b.io", pull-from-mirror = "all"}]',
            "registry[0].mirrors[0].pull-from-mirror",
            "here it is pull",
        ),
        (
            b'[[registry]]\nprefix = "a.io"\nmirrors = [{location = "b.io", pull = ""}]',
            "registry[0].mirrors[0].pull",
            "none of all, digest-only, tag-only",
        ),
        (b'[[registry]]\nprefix = "quay.io"\nblocked = "yes"', "registry[0].blocked", "expected true or false"),
        (
            b'[[registry]]\nprefix = "quay.io"\ninsecure = 1',
            "registry[0].insecure",
            "expected true or false, got a num",
        ),
        (b'[[registry]]\nprefix = "quay.io"\nrealms = "x.io"', "registry[0].realms", "expected an array"),
        (b'[[registry]]\nprefix = "quay.io"\nrealms = ["x.io", 1]', "registry[0].realms[1]", "expected a string"),
        (b'[[registry]]\nprefix = "quay.io"\nlocation = ""', "registry[0].location", "no domain"),
        (b'[[registry]]\nprefix="a.io"\n[[registry]]\nprefix="a.io"', "registry.prefix", "another rule has it too"),
        (b'allowed = "quay.io"', "allowed", "expected an array"),
        (b'allowed = ["quay.io", 5]', "allowed[1]", "expected a string"),
        (b'allowed = ["quay.io/"]', "allowed", "'quay.io/'"),
        (b'allowed = ["*.a.io/team"]', "allowed", "behind"),
        (b'allowed = [""]', "allowed", "no domain"),
        (b'private_addresses = "no"', "private_addresses", "expected true or false"),
        (b'unqualified-search-registries = ["quay.io"]', "unqualified-search-registries", "no such setting"),
        (b"[[registry]\n", "", "not TOML"),
        (b'prefix = "a"\nprefix = "b"', "", "not TOML"),
        (b"\xff", "", "not UTF-8"),
        (b"a = " + b"[" * 100_000, "", "not TOML"),
        (b"a = 1" + b"0" * 10_000, "", "not TOML"),
        (b"#" * (REGISTRIES_FILE_BYTES + 1), "", "larger than"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(content: bytes, where: str, problem: str) -> None:
    with pytest.raises(InvalidDocument, match=problem) as caught:
        decode_registries_file(content, "/etc/registries.toml")
    assert (caught.value.document, caught.value.where) == ("/etc/registries.toml", where)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_decoding_is_total(content: bytes) -> None:
    with contextlib.suppress(InvalidDocument):
        assert isinstance(decode_registries_file(content, "registries.toml"), RegistryRules)


def test_an_empty_file_has_no_rules() -> None:
    assert decode_registries_file(b"", "registries.toml") == RegistryRules()


def test_the_environment_names_the_file_and_nothing_else_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "registries.toml"
    file.write_text('[[registry]]\nprefix = "quay.io"\nblocked = true\n')
    expected = RegistryRules((RegistryRule(prefix="quay.io", blocked=True),))
    (tmp_path / "link").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    for named in (str(file), "registries.toml", str(tmp_path / "link")):
        assert machine_rules({"MINIBOX_REGISTRIES": named}) == expected
    assert read_registries_file(file) == expected
    for unset in ({}, {"MINIBOX_REGISTRIES": ""}, {"CONTAINERS_REGISTRIES_CONF": str(file)}):
        assert machine_rules(unset) == RegistryRules()
    monkeypatch.setenv("MINIBOX_REGISTRIES", str(file))
    assert machine_rules() == expected


def test_a_file_that_is_named_and_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"#" * (REGISTRIES_FILE_BYTES + 1))
    with pytest.raises(InvalidDocument, match="larger than"):
        read_registries_file(large)
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InvalidPath, match=re.escape(str(path))):
            machine_rules({"MINIBOX_REGISTRIES": str(path)})


REALMS: tuple[str, ...] = (
    "keycloak",
    "keycloak:8080",
    "https://keycloak/auth",
    "http://auth_server:5001/token",
    "login.io.",
)
REALMS += ("[::1]:5001", "https://[fd00::1]/token", "10.0.0.1", f"{'a' * 63}.io")
NO_REALMS: tuple[str, ...] = (
    f"{'a' * 64}.io",
    f"{'a.' * 127}io",
    "keycloak:0",
    "keycloak:65536",
    "[::g]",
    "[::1",
    "a..b",
    ".io",
    "é.io",
)
NO_REALMS += ("", "a/b", "a:b", "https:///x", "https://u@keycloak")


@pytest.mark.parametrize("realm", REALMS)
def test_a_realm_is_whatever_a_registry_may_name_as_its_token_server(realm: str) -> None:
    (place,) = RegistryRules((RegistryRule(prefix="quay.io", realms=[realm]),)).places(Reference.parse("quay.io/app"))
    assert token_origins("quay.io", place.realms, Schemes())


@pytest.mark.parametrize("realm", NO_REALMS)
def test_what_no_registry_may_name_is_no_realm(realm: str) -> None:
    with pytest.raises(InvalidArgument, match="neither a host"):
        RegistryRule(prefix="quay.io", realms=[realm])
    with pytest.raises(InvalidUrl):
        token_origins("quay.io", [realm], Schemes())
