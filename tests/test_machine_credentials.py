"""The credentials of the machine: which file, which entry, and one clear sentence where something is wrong."""

import contextlib
import json
import os
import pwd
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.errors import CredentialHelperFailed, InvalidDocument, InvalidPath, StoreError
from minibox_store.registry import Credentials, MachineCredentials
from minibox_store.registry.environment import auth_paths, process_environment
from tests.support.forks import not_possible, run_forked
from tests.support.homes import Home, auth, encoded, write_json

SECRET = "planted-secret-81d0"
ALICE = Credentials("alice", "pass-word-1")
BOB = Credentials("bob", "pass-word-2")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


# Where they lie


def test_no_test_of_this_suite_sees_the_credentials_of_the_machine(
    away_from_the_credentials_of_this_machine: Path,
) -> None:
    paths = MachineCredentials().paths.in_order
    assert len(paths) == 3
    assert all(Path(path).is_relative_to(away_from_the_credentials_of_this_machine) for path in paths)


def test_nothing_is_found_where_nothing_is(home: Home) -> None:
    assert home.find("quay.io") is None


def test_the_files_are_where_docker_and_podman_put_them() -> None:
    uid = os.getuid()
    plain = auth_paths({"HOME": "/h"})
    assert plain.docker == "/h/.docker/config.json"
    assert plain.containers == (f"/run/containers/{uid}/auth.json", "/h/.config/containers/auth.json")
    moved = auth_paths({"HOME": "/h", "DOCKER_CONFIG": "/d", "XDG_RUNTIME_DIR": "/r", "XDG_CONFIG_HOME": "/c"})
    assert moved.in_order == ("/d/config.json", "/r/containers/auth.json", "/c/containers/auth.json")
    named = auth_paths({"HOME": "/h", "REGISTRY_AUTH_FILE": "/a/b.json", "XDG_RUNTIME_DIR": "/r"})
    assert named.in_order == ("/a/b.json", "/h/.docker/config.json")
    empty = auth_paths({"HOME": "/h", "DOCKER_CONFIG": "", "XDG_RUNTIME_DIR": "", "REGISTRY_AUTH_FILE": ""})
    assert empty == plain


def test_without_a_home_that_of_the_user_is_taken() -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert auth_paths({}).docker == f"{home}/.docker/config.json"


def test_the_environment_is_read_when_the_credentials_are_made(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write(home.docker, {"quay.io": auth("alice", "pass-word-1")})
    monkeypatch.setenv("DOCKER_CONFIG", str(home.docker.parent))
    assert process_environment()["DOCKER_CONFIG"] == str(home.docker.parent)
    assert MachineCredentials().find("quay.io", "a", lambda: None) == ALICE


# Which goes first


def test_the_sources_are_asked_in_order(home: Home) -> None:
    places = [home.settings, home.podman, home.docker, home.named]
    for number, path in enumerate(places):
        home.write(path, {"quay.io": auth(f"user{number}", "x")})
    named = {"REGISTRY_AUTH_FILE": str(home.named)}
    explicit = {"quay.io": Credentials("me", "x")}
    asked = [home.machine(explicit, **named), home.machine(**named), home.machine()]
    found = [machine.find("quay.io", "a", lambda: None) for machine in asked]
    home.docker.unlink()
    found.append(home.find("quay.io"))
    home.podman.unlink()
    found.append(home.find("quay.io"))
    assert [each and each.username for each in found] == ["me", "user3", "user2", "user1", "user0"]


def test_a_file_that_has_nothing_for_the_registry_leaves_it_to_the_next(home: Home) -> None:
    home.write(home.docker, {"ghcr.io": auth("bob", "pass-word-2"), "quay.io": {}})
    home.write(home.podman, {"quay.io": auth("alice", "pass-word-1")})
    assert home.find("quay.io") == ALICE
    assert home.find("ghcr.io") == BOB


def test_the_file_that_is_named_stands_for_those_of_podman(home: Home) -> None:
    home.write(home.podman, {"quay.io": auth("alice", "pass-word-1")})
    assert home.find("quay.io", REGISTRY_AUTH_FILE=str(home.named)) is None


def test_in_one_file_the_hosts_own_helper_goes_first_then_the_one_for_all_then_what_stands_there(home: Home) -> None:
    home.write(
        home.docker,
        {"quay.io": auth("file", "x")},
        credHelpers={"quay.io": "own", "ghcr.io": "own"},
        credsStore="all",
    )
    own = home.add_helper("own", {"quay.io": ("own", "x")})
    everything = home.add_helper("all", {"quay.io": ("all", "x")})
    found = home.find("quay.io")
    assert found is not None
    assert found.username == "own"
    assert not everything.runs()
    own.kept.write_text("{}")
    found = home.find("quay.io")
    assert found is not None
    assert found.username == "all"
    everything.kept.write_text("{}")
    found = home.find("quay.io")
    assert found is not None
    assert found.username == "file"


def test_a_host_whose_own_helper_has_no_name_asks_none_as_with_docker(home: Home) -> None:
    home.write(home.docker, {"quay.io": auth("alice", "pass-word-1")}, credHelpers={"quay.io": ""}, credsStore="all")
    everything = home.add_helper("all", {"quay.io": ("all", "x"), "ghcr.io": ("bob", "pass-word-2")})
    assert home.find("quay.io") == ALICE
    assert not everything.runs()
    assert home.find("ghcr.io") == BOB


def test_of_several_spellings_the_helper_of_the_hosts_own_name_counts(home: Home) -> None:
    named = home.add_helper("own", {"quay.io": ("alice", "pass-word-1")})
    home.write(home.docker, credHelpers={"https://quay.io": "", "quay.io": "own"})
    assert home.find("quay.io") == ALICE
    home.write(
        home.docker, {"quay.io": auth("bob", "pass-word-2")}, credHelpers={"https://quay.io": "own", "quay.io": ""}
    )
    assert home.find("quay.io") == BOB
    assert len(named.runs()) == 1


def test_the_longest_path_is_found_in_a_file(home: Home) -> None:
    home.write(home.podman, {"quay.io": auth("bob", "pass-word-2"), "quay.io/team": auth("alice", "pass-word-1")})
    assert home.find("quay.io", "team/app") == ALICE
    assert home.find("quay.io", "teams/app") == BOB
    assert home.find("quay.io.example.org", "team/app") is None


def test_docker_hub_is_found_under_its_old_url_and_a_helper_is_asked_by_it(home: Home) -> None:
    home.write(home.docker, {"https://index.docker.io/v1/": auth("alice", "pass-word-1")})
    assert home.find("docker.io", "library/alpine") == ALICE
    helper = home.add_helper("desktop", {"https://index.docker.io/v1/": ("bob", "pass-word-2")})
    home.write(home.docker, {"https://index.docker.io/v1/": {}}, credsStore="desktop")
    assert home.find("docker.io", "library/alpine") == BOB
    assert [given for _, given, _, _ in helper.runs()] == ["https://index.docker.io/v1/"]


def test_a_login_is_seen_without_making_the_credentials_anew(home: Home) -> None:
    machine = home.machine()
    assert machine.find("quay.io", "a", lambda: None) is None
    home.write(home.docker, {"quay.io": auth("alice", "pass-word-1")})
    assert machine.find("quay.io", "a", lambda: None) == ALICE


# What an entry may be


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (auth("alice", "pass-word-1"), ALICE),
        ({"username": "alice", "password": "pass-word-1"}, ALICE),
        ({**auth("alice", "pass-word-1"), "username": "old", "password": "old"}, ALICE),
        ({**auth("alice", "pass-word-1"), "email": "a@example.org", "unknown": [1]}, ALICE),
        ({"auth": encoded("alice", "pass-word-1\0\0")}, ALICE),
        ({"auth": encoded("alice", "with:colon")}, Credentials("alice", "with:colon")),
        ({"auth": encoded("alice", "pass-word-1").replace("G", "G\r\n")}, ALICE),
        ({"auth": encoded("jürgen", "päß")}, Credentials("jürgen", "päß")),
        ({"identitytoken": "it"}, Credentials("", identity_token="it")),
        (auth("0000", "", identitytoken="it"), Credentials("0000", identity_token="it")),
        (auth("<token>", "it"), Credentials("<token>", identity_token="it")),
        ({"auth": None, "username": None, "identitytoken": None}, None),
        ({"auth": ""}, None),
        ({"auth": encoded("", "")}, None),
        ({}, None),
        (None, None),
    ],
)
def test_an_entry_is_read_as_docker_reads_it(home: Home, entry: object, expected: Credentials | None) -> None:
    home.write(home.docker, {"quay.io": entry})
    assert home.find("quay.io") == expected


def test_a_helpers_user_called_token_has_an_identity_token(home: Home) -> None:
    home.write(home.docker, credsStore="x")
    home.add_helper("x", {"quay.io": ("<token>", "it")})
    assert home.find("quay.io") == Credentials("<token>", identity_token="it")


def test_a_link_to_the_file_is_followed_and_a_file_that_others_may_read_is_read(home: Home) -> None:
    elsewhere = home.folder / "dotfiles" / "config.json"
    home.write(elsewhere, {"quay.io": auth("alice", "pass-word-1")})
    elsewhere.chmod(0o644)
    home.docker.parent.mkdir()
    home.docker.symlink_to(elsewhere)
    assert home.find("quay.io") == ALICE


# What is wrong

BAD_FILES = {
    "no JSON": (f'{{"auths": {{"quay.io": {{"auth": "{SECRET}', "it is not JSON"),
    "null": ("null", "expected an object, got null"),
    "an array": (f'["{SECRET}"]', "expected an object, got an array"),
    "auths of another type": (json.dumps({"auths": [SECRET]}), "at auths: expected an object, got an array"),
    "an entry of another type": (
        json.dumps({"auths": {"quay.io": SECRET}}),
        'at auths["quay.io"]: expected an object, got a string',
    ),
    "no base64": (json.dumps({"auths": {"quay.io": {"auth": f"!{SECRET}"}}}), 'at auths["quay.io"].auth: it is not'),
    "base64 with something in it": (json.dumps({"auths": {"quay.io": {"auth": "YWxp!Y2U6cA=="}}}), "it is not base64"),
    "base64 without padding": (json.dumps({"auths": {"quay.io": {"auth": "YTpi" + "Y2M"}}}), "it is not base64"),
    "base64 of no text": (json.dumps({"auths": {"quay.io": {"auth": "//79"}}}), "it is not base64 of user:password"),
    "no colon": (json.dumps({"auths": {"quay.io": {"auth": encoded(SECRET, "")[:16]}}}), "it is not base64 of"),
    "a password that is a number": (
        json.dumps({"auths": {"quay.io": {"username": "a", "password": 1}}}),
        'at auths["quay.io"].password: expected a string, got a number',
    ),
    "a user with a colon": (
        json.dumps({"auths": {"quay.io": {"username": "a:b", "password": SECRET}}}),
        "a user name must have no colon",
    ),
    "a store that is an object": (json.dumps({"credsStore": {"a": SECRET}}), "at credsStore: expected a string"),
    "a helper that is a list": (
        json.dumps({"credHelpers": {"quay.io": [SECRET]}}),
        'at credHelpers["quay.io"]: expected a string, got an array',
    ),
    "a key twice": (f'{{"auths": {{}}, "auths": {{"quay.io": "{SECRET}"}}}}', "a key stands twice"),
    "too large": (json.dumps({"x": SECRET * 100_000}), "it is larger than 1048576 bytes"),
    "too deep": ('{"auths":' * 100_000 + "1" + "}" * 100_000, "deep"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
@pytest.mark.parametrize("place", ["docker", "podman"])
def test_s28_a_bad_file_is_one_sentence_with_its_path_and_key_and_without_the_secret(
    home: Home, bad: str, place: str
) -> None:
    path: Path = getattr(home, place)
    content, problem = BAD_FILES[bad]
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(InvalidDocument) as caught:
        home.find("quay.io")
    shown = "".join([repr(caught.value), *traceback.format_exception(caught.value)])
    assert str(caught.value).startswith(f"invalid {path}")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in shown
    assert encoded(SECRET, "")[:16] not in shown


def test_an_entry_that_is_wrong_keeps_nobody_from_the_others(home: Home) -> None:
    home.write(home.docker, {"bad.example": {"auth": "!"}, "quay.io": auth("alice", "pass-word-1")})
    assert home.find("quay.io") == ALICE
    with pytest.raises(InvalidDocument, match=r"bad\.example"):
        home.find("bad.example")


def test_what_cannot_be_a_file_is_told_of_by_its_path(home: Home) -> None:
    home.docker.mkdir(parents=True)
    with pytest.raises(InvalidPath, match=r"config\.json"):
        home.find("quay.io")
    home.docker.rmdir()
    os.mkfifo(home.docker)
    with pytest.raises(InvalidPath, match=r"config\.json.*not a regular file"):
        home.find("quay.io")


def test_an_empty_file_says_nothing(home: Home) -> None:
    home.docker.parent.mkdir()
    for content in ("", "\n", "{}"):
        home.docker.write_text(content)
        assert home.find("quay.io") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.dictionaries(st.sampled_from(["auth", "username", "password", "identitytoken"]), JSON | st.just("YTpi"))
KEYS = st.sampled_from(["quay.io", "quay.io/team", "https://quay.io/v1/", "quay.io/", "other.example"])


@given(
    auths=JSON | st.dictionaries(KEYS, ENTRIES | JSON),
    helpers=JSON | st.dictionaries(KEYS, st.text(max_size=4)),
    store=JSON,
)
def test_whatever_a_file_holds_gives_credentials_or_one_error_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, auths: object, helpers: object, store: object
) -> None:
    folder = tmp_path_factory.mktemp("any")
    write_json(folder / "config.json", {"auths": auths, "credHelpers": helpers, "credsStore": store})
    environment = {"DOCKER_CONFIG": str(folder), "REGISTRY_AUTH_FILE": str(folder / "none")}
    machine = MachineCredentials(environment=environment, program_path=[str(folder)])
    with contextlib.suppress(InvalidDocument, CredentialHelperFailed):
        found = machine.find("quay.io", "team/app", lambda: None)
        assert found is None or found.basic


@given(st.binary(max_size=64))
def test_any_bytes_are_credentials_nothing_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "config.json").write_bytes(content)
    environment = {"DOCKER_CONFIG": str(folder), "REGISTRY_AUTH_FILE": str(folder / "none")}
    with contextlib.suppress(InvalidDocument):
        assert MachineCredentials(environment=environment).find("quay.io", "a", lambda: None) is None


def test_a_folder_that_is_a_file_holds_no_credentials(home: Home) -> None:
    home.docker.parent.write_text("no folder")
    assert home.find("quay.io") is None


def test_a_helper_that_is_missing_is_told_of_where_it_is_needed_and_only_there(home: Home) -> None:
    home.write(home.docker, {"ghcr.io": auth("bob", "pass-word-2")}, credHelpers={"quay.io": "gone"})
    assert home.find("ghcr.io") == BOB
    with pytest.raises(CredentialHelperFailed, match=r"docker-credential-gone: it is in none of .*programs"):
        home.find("quay.io")


def test_s28_no_value_on_the_way_prints_a_secret(home: Home) -> None:
    home.write(home.docker, {"quay.io": {**auth("a", SECRET), "identitytoken": SECRET}})
    machine = home.machine({"x.example": Credentials("a", SECRET, identity_token=SECRET)})
    found = machine.find("quay.io", "a", lambda: None)
    assert found is not None
    assert SECRET in found.secrets
    shown = repr(found) + str(found) + repr(machine) + repr(machine.find("x.example", "a", lambda: None))
    assert SECRET not in shown
    assert issubclass(CredentialHelperFailed, StoreError)


@pytest.fixture
def open_home() -> Iterator[Home]:
    """A home that other users may look into."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Home(Path(folder) / "home")


def as_a_user(function: Callable[[], None]) -> int:
    """Run a function in a process of a user who is not root, and owns nothing; return its exit status."""
    if os.geteuid() != 0:
        not_possible("only root may become another user")

    def run() -> None:
        os.setgroups([])
        os.setgid(54321)
        os.setuid(54321)
        function()

    return run_forked(run)


@pytest.mark.parametrize("folder", ["run", ".config"])
def test_what_lies_where_a_user_may_not_look_is_none_of_his(open_home: Home, folder: str) -> None:
    closed = open_home.folder / folder
    closed.mkdir(mode=0o700)
    write_json(open_home.docker, {"auths": {"quay.io": auth("alice", "pass-word-1")}})
    machine = open_home.machine()

    def look() -> None:
        with pytest.raises(PermissionError):
            os.listdir(closed)
        assert machine.find("quay.io", "team/app", lambda: None) == ALICE
        assert machine.find("other.example", "team/app", lambda: None) is None

    assert as_a_user(look) == 0


def test_a_file_that_a_user_sees_and_may_not_read_is_told_of_and_so_is_one_that_was_named(open_home: Home) -> None:
    write_json(open_home.podman, {})
    open_home.podman.chmod(0o600)
    closed = open_home.folder / "closed"
    closed.mkdir(mode=0o700)
    machines = {
        str(open_home.podman): open_home.machine(),
        str(closed / "auth.json"): open_home.machine(REGISTRY_AUTH_FILE=str(closed / "auth.json")),
        str(closed / "config.json"): open_home.machine(DOCKER_CONFIG=str(closed)),
    }

    def look() -> None:
        for path, machine in machines.items():
            with pytest.raises(InvalidPath, match=f"{path}.*permission denied"):
                machine.find("quay.io", "team/app", lambda: None)

    assert as_a_user(look) == 0
