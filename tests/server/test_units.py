"""The files that start the daemon on a machine, as their own tools read them."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.peers import require_peer

FOLDER = Path(__file__).parents[2] / "examples" / "daemon"
# What is installed elsewhere on each machine.
PROGRAM = "/usr/local/bin/minibox-server"


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, with a program that is there."""
    for name in ("minibox.service", "minibox.socket"):
        text = (FOLDER / name).read_text()
        (tmp_path / name).write_text(text.replace(PROGRAM, sys.executable).replace("Documentation=", "#"))
    return [tmp_path / "minibox.service", tmp_path / "minibox.socket"]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_finds_nothing_wrong_with_the_units(units: list[Path]) -> None:
    assert run(require_peer("systemd-analyze"), "verify", "--man=no", *units) == ""
    text = units[0].read_text().replace("NoNewPrivileges=yes", "NoNewPrivileges=maybe")
    units[0].write_text(text)
    told = run(require_peer("systemd-analyze"), "verify", "--man=no", *units)
    assert "Failed to parse boolean value" in told, "it would say so"


def test_systemd_calls_the_protection_of_the_service_ok(units: list[Path]) -> None:
    told = run(require_peer("systemd-analyze"), "security", "--offline=yes", "--no-pager", units[0])
    assert re.search(r"exposure level for minibox.service: \d\.\d OK", told), told


def test_s19_the_socket_unit_is_for_root_alone() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.read(FOLDER / "minibox.socket")
    assert unit["Socket"]["SocketMode"] == "0600"
    assert unit["Socket"]["ListenStream"] == "/run/minibox.sock"
