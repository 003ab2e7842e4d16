"""S23: helpers are programs of fixed folders, run without a shell, for a bounded time, and never quoted."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from minibox_store.codec.auth_files import AuthEntry
from minibox_store.errors import CredentialHelperFailed, StoreError
from minibox_store.registry.credential_programs import HELPER_SECONDS, PROGRAM_PATH, CredentialPrograms
from tests.support.homes import PYTHON_PROGRAM, Home
from tests.support.waiting import SOON_SECONDS

SECRET = "planted-secret-3e77"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def programs(home: Home, *, seconds: float = HELPER_SECONDS) -> CredentialPrograms:
    return CredentialPrograms({**home.environment, "MINIBOX_API_TOKEN": SECRET}, [str(home.programs)], seconds)


def read(home: Home, helper: str = "x", *, seconds: float = HELPER_SECONDS) -> AuthEntry | None:
    return programs(home, seconds=seconds).read(helper, ["quay.io"], lambda: None)


def test_secrets_go_in_and_out_by_the_protocol(home: Home) -> None:
    helper = home.add_helper("x")
    kept = programs(home)
    entry = AuthEntry(username="alice", password=SECRET)
    token = AuthEntry(username="0000", identity_token=SECRET)
    assert kept.read("x", ["quay.io"], lambda: None) is None
    kept.write("x", "quay.io", entry)
    kept.write("x", "acr.example", token)
    assert helper.secrets() == {"quay.io": ["alice", SECRET], "acr.example": ["<token>", SECRET]}
    assert kept.read("x", ["other.example", "quay.io"], lambda: None) == entry
    assert kept.read("x", ["acr.example"], lambda: None) == AuthEntry(username="<token>", identity_token=SECRET)
    assert [kept.erase("x", "quay.io"), kept.erase("x", "quay.io")] == [True, False]
    assert helper.secrets() == {"acr.example": ["<token>", SECRET]}


def test_S23_a_helper_sees_no_secret_in_its_arguments_nor_this_projects_settings(home: Home) -> None:
    helper = home.add_helper("x")
    programs(home).write("x", "quay.io", AuthEntry(username="alice", password=SECRET))
    ((arguments, given, environment, folder),) = helper.runs()
    assert arguments == ["store"]
    assert SECRET in given
    assert folder == "/"
    assert environment["HOME"] == str(home.folder)
    assert environment["PATH"] == str(home.programs)
    assert not [value for value in environment.values() if SECRET in value]


@pytest.mark.parametrize(
    "name", ["", "a/b", "../x", "x;id", "x y", "x\n", "$(id)", "x\0", "é", "/usr/bin/env", "x" * 201]
)
def test_S23_a_name_that_could_be_more_than_a_name_runs_nothing(home: Home, name: str) -> None:
    with pytest.raises(CredentialHelperFailed, match="name has letters"):
        read(home, name)


def test_S23_a_helper_is_found_in_the_fixed_folders_alone(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = home.add_helper("x", {"quay.io": ("alice", SECRET)})
    monkeypatch.chdir(home.programs)
    monkeypatch.setenv("PATH", f"{home.programs}:.:")
    for path in (PROGRAM_PATH, (".",), ("",), ("programs",)):
        with pytest.raises(CredentialHelperFailed, match="it is in none of"):
            CredentialPrograms(dict(os.environ), path).read("x", ["quay.io"], lambda: None)
    assert not helper.runs()
    assert all(os.path.isabs(folder) for folder in PROGRAM_PATH)


def test_S23_what_is_no_program_is_no_helper(home: Home) -> None:
    (home.programs / "docker-credential-folder").mkdir()
    (home.programs / "docker-credential-text").write_text("#!/bin/sh\n")
    for name in ("folder", "text"):
        with pytest.raises(CredentialHelperFailed, match="it is in none of"):
            read(home, name)
    broken = home.programs / "docker-credential-broken"
    broken.write_text("#!/nowhere/at/all\n")
    broken.chmod(0o755)
    with pytest.raises(CredentialHelperFailed, match="it cannot be run"):
        read(home, "broken")


def test_S23_a_helper_is_looked_up_once(home: Home, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    home.add_helper("x", {"quay.io": ("alice", SECRET)})
    kept = CredentialPrograms(home.environment, [str(other), str(home.programs)])
    assert kept.read("x", ["quay.io"], lambda: None) is not None
    planted = other / "docker-credential-x"
    planted.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    planted.chmod(0o755)
    assert kept.read("x", ["quay.io"], lambda: None) is not None
    assert not (tmp_path / "ran").exists()


def test_a_helper_without_an_answer_is_understood_where_the_ends_of_children_are_ignored(home: Home) -> None:
    home.add_helper("x", {"quay.io": ("alice", SECRET)})
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        kept = programs(home)
        assert kept.read("x", ["other.example"], lambda: None) is None
        assert kept.read("x", ["other.example", "quay.io"], lambda: None) is not None
        assert not kept.erase("x", "other.example")
    finally:
        signal.signal(signal.SIGCHLD, before)


TROUBLES: dict[str, tuple[str, str]] = {
    "a status": (f"print({SECRET!r}); print({SECRET!r}, file=sys.stderr); sys.exit(3)", "get ended with status 3"),
    "a signal": ("os.kill(os.getpid(), 9)", "get ended with status -9"),
    "no JSON": (f"print({SECRET!r}); sys.exit()", "its answer cannot be used: .*it is not JSON"),
    "JSON of another type": (f"print(json.dumps([{SECRET!r}])); sys.exit()", "expected an object, got an array"),
    "a secret of another type": (
        f"print(json.dumps(dict(Username='a', Secret=[{SECRET!r}]))); sys.exit()",
        "at Secret: expected a string, got an array",
    ),
    "a user with a colon": (
        f"print(json.dumps(dict(Username='a:b', Secret={SECRET!r}))); sys.exit()",
        "a user name must have no colon",
    ),
    "an endless answer": (f"while True: print({SECRET!r} * 1000)", "its answer is larger than 65536 bytes"),
    "a large answer": (f"print(json.dumps(dict(Secret={SECRET!r} * 9999))); sys.exit()", "larger than 65536 bytes"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_S23_S28_a_helper_that_fails_is_one_sentence_that_quotes_nothing_of_it(
    home: Home, trouble: str, capfd: pytest.CaptureFixture[str]
) -> None:
    script, problem = TROUBLES[trouble]
    home.add_helper("x", trouble=script)
    with pytest.raises(CredentialHelperFailed, match=f"^credential helper docker-credential-x: .*{problem}") as caught:
        read(home)
    written = capfd.readouterr()
    assert SECRET not in str(caught.value) + repr(caught.value) + written.out + written.err


def test_what_a_helper_did_not_store_is_not_taken_for_stored(home: Home) -> None:
    home.add_helper("x", trouble="print('credentials not found in native keychain'); sys.exit(1)")
    with pytest.raises(CredentialHelperFailed, match="store ended with status 1"):
        programs(home).write("x", "quay.io", AuthEntry(username="alice", password=SECRET))


def test_an_answer_with_nobody_in_it_is_none(home: Home) -> None:
    home.add_helper("x", trouble='print(\'{"ServerURL": "", "Username": "", "Secret": ""}\'); sys.exit()')
    assert read(home) is None


def test_S23_a_helper_that_does_not_end_is_ended_with_all_that_it_has_started(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    pids.touch()

    def monotonic() -> float:
        """The time is over as soon as both run."""
        return time.monotonic() + 1000 * (len(pids.read_text().split()) == 2)

    monkeypatch.setattr("minibox_store.registry.credential_programs.time", SimpleNamespace(monotonic=monotonic))
    script = f"pid = os.fork(); open({str(pids)!r}, 'a').write(f'{{os.getpid()}} '); import time; time.sleep(100)"
    home.add_helper("x", trouble=script)
    begun = time.monotonic()
    with pytest.raises(CredentialHelperFailed, match=r"get did not end within 60\.5 s"):
        read(home, seconds=60.5)
    assert time.monotonic() - begun < SOON_SECONDS
    wait_for(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()))
    assert len(pids.read_text().split()) == 2


def test_S23_helpers_have_thirty_seconds() -> None:
    assert HELPER_SECONDS == 30


def test_a_helper_that_leaves_somebody_with_its_output_is_not_waited_for(home: Home, tmp_path: Path) -> None:
    over = tmp_path / "over"
    stay = (
        f"import time\n    for _ in range(600): time.sleep(0.1 * (not os.path.exists({str(over)!r})))\n    os._exit(0)"
    )
    script = f"pid = os.fork()\nif pid == 0:\n    {stay}"
    home.add_helper("x", {"quay.io": ("alice", SECRET)}, trouble=script)
    begun = time.monotonic()
    assert read(home) == AuthEntry(username="alice", password=SECRET)
    assert time.monotonic() - begun < SOON_SECONDS
    over.touch()


def test_a_helper_that_reads_nothing_and_one_that_takes_a_large_secret_are_no_trouble(home: Home) -> None:
    (home.programs / "docker-credential-deaf").write_text(f"{PYTHON_PROGRAM}\nimport sys; sys.exit(0)\n")
    (home.programs / "docker-credential-deaf").chmod(0o755)
    programs(home).write("deaf", "quay.io", AuthEntry(username="a", password="p" * 1_000_000))
    helper = home.add_helper("x")
    programs(home).write("x", "quay.io", AuthEntry(username="a", password="p" * 1_000_000))
    assert helper.secrets()["quay.io"] == ["a", "p" * 1_000_000]


@pytest.mark.parametrize("closing", ["", "os.close(1); "], ids=["silent", "without-output"])
def test_who_waits_for_a_helper_can_be_called_away_within_a_second(home: Home, closing: str) -> None:
    class CalledAway(StoreError):
        pass

    home.add_helper("x", trouble=f"{closing}import time; time.sleep(100)")
    over = threading.Event()
    timer = threading.Timer(0.5, over.set)
    timer.start()

    def check() -> None:
        if over.is_set():
            raise CalledAway

    begun = time.monotonic()
    with pytest.raises(CalledAway):
        programs(home).read("x", ["quay.io"], check)
    timer.join()
    assert time.monotonic() - begun < SOON_SECONDS


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(is_true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
