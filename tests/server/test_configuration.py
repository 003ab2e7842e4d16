"""``--check-config``: everything that is wrong at once, or what is set, and no secret in either."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from minibox_server.configuration import parse_all
from tests.server.clients import TOKEN
from tests.support.certificates import make_certificate
from tests.support.daemon import DAEMON_COMMAND, run_daemon_to_its_end
from tests.support.images import build_image
from tests.support.layouts import write_layout
from tests.support.processes import free_port


def check(folder: Path, **variables: str) -> tuple[int, list[str]]:
    """Return the exit status, and the lines, of a check."""
    command = [*DAEMON_COMMAND, "--check-config"]
    status, output = run_daemon_to_its_end(folder, environment=variables, command=command)
    assert "Traceback" not in output
    return status, output.splitlines()


def test_all_that_is_wrong_is_said_at_once_a_sentence_each(tmp_path: Path) -> None:
    certificate, other = make_certificate(tmp_path / "one"), make_certificate(tmp_path / "two")
    (tmp_path / "registries.toml").write_text("[[registry]]\nprefix = 1\n")
    (tmp_path / "data").write_text("no folder")
    status, lines = check(
        tmp_path,
        MINIBOX_ALLOWED_HOSTS="a/b",
        MINIBOX_UNPACK="maybe",
        MINIBOX_API_TOKEN="planted secret",
        MINIBOX_REGISTRIES=str(tmp_path / "registries.toml"),
        MINIBOX_ARCHIVE_PREFIXES=f"{tmp_path}:{tmp_path}/missing",
        MINIBOX_TLS_CERTIFICATE=str(certificate.chain),
        MINIBOX_TLS_KEY=str(other.key),
    )
    assert status == 2
    wrong = [line.removeprefix("wrong: ") for line in lines if line.startswith("wrong: ")]
    named = ("ALLOWED_HOSTS", "API_TOKEN", "ARCHIVE_PREFIXES", "DATA_ROOT", "REGISTRIES", "TLS_CERTIFICATE", "UNPACK")
    assert sorted(sentence.partition(" ")[0].strip(":") for sentence in wrong) == [f"MINIBOX_{each}" for each in named]
    assert not any("planted" in line for line in lines)


def test_an_address_that_nothing_protects_is_one_problem_and_hides_no_other(tmp_path: Path) -> None:
    variables = {"MINIBOX_HTTP_ADDR": ":8080", "MINIBOX_API_TOKEN": "planted", "MINIBOX_UNPACK": "2"}
    settings, problems = parse_all(variables)
    assert settings is not None
    assert [each for each in problems if "every interface" in each and "MINIBOX_API_TOKEN" in each]
    assert [each for each in problems if "MINIBOX_UNPACK" in each]
    assert len(problems) == 2
    assert not any("planted" in each for each in problems)


def test_where_all_is_well_it_says_what_is_set_and_changes_nothing(tmp_path: Path) -> None:
    certificate, port, rules = make_certificate(tmp_path / "tls"), free_port(), tmp_path / "registries.toml"
    rules.touch()
    status, lines = check(
        tmp_path,
        MINIBOX_HTTP_ADDR=f"127.0.0.1:{port}",
        MINIBOX_API_TOKEN=TOKEN,
        MINIBOX_TLS_CERTIFICATE=str(certificate.chain),
        MINIBOX_TLS_KEY=str(certificate.key),
        MINIBOX_REGISTRIES=str(rules),
        MINIBOX_UPSTREAM="registry.example.org",
        MINIBOX_LOG_FORMAT="json",
        MINIBOX_READY_FREE_BYTES="4096",
        MINIBOX_MAX_CONNECTIONS="31",
        MINIBOX_MAX_REQUESTS="32",
        MINIBOX_MAX_PULLS="33",
        MINIBOX_IDLE_SECONDS="34",
    )
    assert status == 0, lines
    assert f"rules for registries: {rules}" in lines
    assert {"upstream of /v2/: registry.example.org", "log: json", "ready with: 4096 bytes free"} <= set(lines)
    limits = "31 connections, 32 requests, 33 pulls, 34 s for a client that keeps still"
    assert f"limits of each process: {limits}" in lines
    assert f"address: 127.0.0.1:{port}" in lines
    assert f"store: {tmp_path / 'data'}" in lines
    assert "token: one is needed" in lines
    assert not any(TOKEN in line or line.startswith(("wrong", "note")) for line in lines)
    assert not (tmp_path / "data").exists()


def test_an_address_that_somebody_has_is_worth_a_note_and_no_fault(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, lines = check(tmp_path, MINIBOX_HTTP_ADDR=address)
    assert status == 0
    assert [line for line in lines if line.startswith("note: ") and "Address already in use" in line]


def test_a_unix_socket_is_neither_made_nor_taken_away_by_a_check(tmp_path: Path) -> None:
    path = tmp_path / "minibox.sock"
    assert check(tmp_path, MINIBOX_HTTP_ADDR=f"unix:{path}")[0] == 0
    assert not path.exists()
    status, lines = check(tmp_path, MINIBOX_HTTP_ADDR=f"unix:{tmp_path}/missing/minibox.sock")
    assert status == 0
    assert lines[-1].startswith(f"note: no socket can be made in {tmp_path}/missing")


def test_a_store_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {"app:1": build_image()})
    assert check(tmp_path)[0] == 0
    (tmp_path / "data" / "index.json").write_text("{")
    status, lines = check(tmp_path)
    assert status == 2
    assert "index.json" in lines[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_s19_a_store_of_another_user_is_a_fault(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {"app:1": build_image()})
    shutil.chown(tmp_path / "data", 12345)
    status, lines = check(tmp_path)
    assert status == 2
    assert lines[0].endswith("belongs to user 12345, and this is user 0")


def test_it_says_which_version_it_is(tmp_path: Path) -> None:
    status, output = run_daemon_to_its_end(tmp_path, environment={}, command=[*DAEMON_COMMAND, "--version"])
    assert status == 0
    assert output.startswith("minibox-server 0.")
