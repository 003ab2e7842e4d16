"""The units under a systemd that has booted: how it starts, guards, reloads, restarts and ends the daemon (S19).

What takes further starts of the daemon is done where MINIBOX_DEEP is 1.
"""

import contextlib
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.clients import TOKEN, RawReply, read_reply
from tests.support.booted import Machine, booted
from tests.support.certificates import make_certificate
from tests.support.hard_layers import CAPABILITY, image_of, member
from tests.support.layouts import write_layout
from tests.support.peers import PeerFailed, require_peer
from tests.support.trials import DEEP

_WHERE_DEEP = pytest.mark.skipif(not DEEP, reason="it starts the daemon more often: only where MINIBOX_DEEP is 1")
_ARCHIVES = "var/lib/minibox-archives"
_JOURNAL = ("journalctl", "--no-pager", "--output=cat", "--unit=minibox.service")
_SHOW = ("systemctl", "show", "--property")
_TREE = "var/lib/minibox/base_layers/127.0.0.1_8080_team_hard_1"
# Does what somebody would who has taken the daemon over, and tells what came of it.
_INTRUDER = """
import ctypes, json, os, socket, stat
def attempt(action):
    try:
        action()
    except OSError as error:
        return os.strerror(error.errno)
    return "done"
def write(path):
    with open(path, "w"):
        pass
def system(name, *arguments):
    if ctypes.CDLL(None, use_errno=True)[name](*arguments):
        raise OSError(ctypes.get_errno(), "")
def open_device():
    os.mknod("/var/lib/minibox-archives/full", 0o600 | stat.S_IFCHR, os.makedev(1, 7))
    os.mknod("/var/lib/minibox-archives/memory", 0o600 | stat.S_IFCHR, os.makedev(1, 1))
    os.close(os.open("/var/lib/minibox-archives/memory", os.O_RDONLY))
found = {
    "write state": attempt(lambda: write("/var/lib/minibox-archives/written")),
    "write run": attempt(lambda: write("/run/minibox/written")),
    "write tmp": attempt(lambda: write("/tmp/of-the-daemon")),
    "write etc": attempt(lambda: write("/etc/written")),
    "write program": attempt(lambda: write("/usr/local/bin/minibox-server")),
    "write home": attempt(lambda: write("/root/written")),
    "write other state": attempt(lambda: write("/var/lib/written")),
    "write kernel": attempt(lambda: write("/proc/sys/kernel/hostname")),
    "open device": attempt(open_device),
    "mount": attempt(lambda: system("mount", b"none", b"/tmp", b"tmpfs", 0, None)),
    "unshare": attempt(lambda: system("unshare", 0x10000000)),
    "packets": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "trace": attempt(lambda: system("ptrace", 16, 1, None, None)),
}
with open("/var/lib/minibox-archives/found.json", "w") as told:
    json.dump(found, told)
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Boot once: each test begins with the units stopped and set to nothing."""
    with booted() as machine:
        yield machine


@pytest.fixture(autouse=True)
def stopped(machine: Machine) -> Iterator[None]:
    yield
    machine.systemctl("disable", "--now", "minibox.socket", "minibox.service")
    machine.systemctl("reset-failed")
    machine.run("sh", "-c", "rm -rf /var/lib/minibox* /var/lib/private/minibox*")


@pytest.fixture
def layout(machine: Machine) -> Path:
    """Write an image with all that takes powers to unpack where the machine sees it, and return its place there."""
    path = Path("/opt/hard")
    members = [
        member("home", "directory", uid=1000, gid=1000, mode=0o700),
        member("home/own", content=b"own", uid=1000, gid=1000, mode=0o600),
        member("su", content=b"su", mode=0o4755, gid=42),
        member("ping", content=b"ping", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        member("null", "character device", device=(1, 3), mode=0o666),
        member("disk", "block device", device=(8, 0), mode=0o660),
        member("queue", "FIFO"),
    ]
    write_layout(machine.root / path.relative_to("/"), {"hard:1": image_of([members])})
    return path


def test_it_is_active_when_it_is_ready_and_stops_in_time(machine: Machine) -> None:
    machine.configure("TimeoutStartSec=30", MINIBOX_API_TOKEN=TOKEN)
    machine.systemctl("start", "minibox.service")
    # Whoever waited for systemctl asks at once.
    assert machine.ask("GET", "/images", Authorization=f"Bearer {TOKEN}") == (200, "[]")
    assert machine.ask("GET", "/images") == (401, "Unauthorized\n")
    assert (machine.show("ActiveState"), machine.show("Type")) == ("active", "notify")
    # The first one, which has told, the one that begins those of transfers, and the two that serve.
    group = machine.root / "sys/fs/cgroup" / machine.show("ControlGroup").lstrip("/")
    assert len((group / "cgroup.procs").read_text().split()) == 4
    # One of them that dies is replaced, and the service is the same.
    first = machine.show("MainPID")
    machine.run("kill", "-KILL", serving(machine, first)[0])
    machine.wait_until_it_says("another begins", *_JOURNAL)
    assert machine.ask("GET", "/ping", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert (machine.show("MainPID"), machine.show("NRestarts")) == (first, "0")
    begun = time.monotonic()
    machine.systemctl("stop", "minibox.service")
    assert time.monotonic() - begun < 12
    assert (machine.show("ActiveState"), machine.show("Result")) == ("inactive", "success")
    log = machine.log()
    assert "token: one is needed" in log
    assert "listening on 127.0.0.1:8080" in log
    assert '"GET /images" 200' in log
    assert TOKEN not in log


def test_what_an_image_says_of_its_files_is_unpacked_and_pruned(machine: Machine, layout: Path) -> None:
    require_peer("skopeo")
    machine.configure()
    machine.systemctl("start", "minibox.service")
    pushed = ["docker://127.0.0.1:8080/team/hard:1", "--dest-tls-verify=false"]
    machine.run("skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}:hard:1", *pushed)
    status, said = machine.ask("POST", "/images/pull?image=127.0.0.1:8080/team/hard:1")
    assert (status, said.splitlines()[-1]) == (200, "[pull] Done"), said
    tree = machine.root / _TREE
    assert [(tree / name).lstat().st_uid for name in ("home", "home/own", "su")] == [1000, 1000, 0]
    assert stat.filemode((tree / "su").lstat().st_mode) == "-rwsr-xr-x"
    assert os.getxattr(tree / "ping", "security.capability") == CAPABILITY
    for name, mode, number in (("null", "crw-rw-rw-", (1, 3)), ("disk", "brw-rw----", (8, 0))):
        found = (tree / name).lstat()
        assert (stat.filemode(found.st_mode), found.st_rdev) == (mode, os.makedev(*number))
    assert stat.S_ISFIFO((tree / "queue").lstat().st_mode)
    saved = f"/images/save?image=team/hard:1&path=/{_ARCHIVES}/hard.tar"
    assert machine.ask("POST", saved)[0] == 200
    assert machine.ask("POST", "/images/save?image=team/hard:1&path=/srv/hard.tar")[0] == 403
    for name in ("team/hard:1", "127.0.0.1:8080/team/hard:1"):
        assert machine.ask("POST", f"/images/remove?image={name}")[0] == 200
    # Somebody has an overlay where nobody else sees it. It is of other folders, which the service can tell.
    overlay = "mount -t overlay overlay -o lowerdir=/etc:/opt /mnt && systemd-notify --ready && exec sleep 60"
    alone = ["--property=PrivateMounts=yes", "--property=Type=notify", "--property=NotifyAccess=all"]
    machine.run("systemd-run", "--quiet", "--unit=other", *alone, "sh", "-c", overlay)
    report = machine.ask_json("POST", "/system/prune")
    machine.systemctl("stop", "other.service")
    assert (report["blobs_removed"], report["kept"], report["errors"]) == (3, [], [])
    assert not tree.exists()
    assert machine.ask("POST", f"/images/load?path=/{_ARCHIVES}/hard.tar")[0] == 200


def test_s19_whoever_takes_it_over_can_write_to_its_state_alone(machine: Machine) -> None:
    intruder = machine.root / "opt/intruder"
    python = (machine.root / "usr/local/bin/minibox-server").read_text().splitlines()[0]
    intruder.write_text(f"{python}\n{_INTRUDER}")
    intruder.chmod(0o755)
    machine.configure("ExecStartPre=/opt/intruder")
    machine.systemctl("start", "minibox.service")
    found = json.loads((machine.root / _ARCHIVES / "found.json").read_text())
    allowed = {name for name, said in found.items() if said == "done"}
    assert allowed == {"write state", "write run", "write tmp"}, found
    assert found["open device"] == "Operation not permitted", "the device could be made, and not opened"
    assert stat.S_ISCHR((machine.root / _ARCHIVES / "memory").lstat().st_mode)
    assert not (machine.root / "tmp/of-the-daemon").exists()


def test_s19_the_first_connection_to_the_socket_starts_it(machine: Machine) -> None:
    machine.configure("RestartSec=100ms")
    machine.systemctl("enable", "--now", "minibox.socket")
    path = machine.root / "run/minibox.sock"
    assert machine.show("ActiveState") == "inactive"
    assert (stat.filemode(path.lstat().st_mode), path.lstat().st_uid) == ("srw-------", 0)
    assert ask(path).body == b"[]"
    assert machine.show("ActiveState") == "active"
    # One that is killed comes back, and nobody is told that nobody listens.
    killed = machine.show("MainPID")
    machine.run("kill", "-KILL", killed)
    assert ask(path).status == 200
    machine.wait_until_it_says("NRestarts=1\nActiveState=active", *_SHOW, "NRestarts,ActiveState", "minibox.service")
    assert machine.show("MainPID") != killed
    assert ask(path).status == 200
    machine.systemctl("stop", "minibox.socket", "minibox.service")
    assert not path.exists()


@_WHERE_DEEP
def test_a_reload_shows_the_new_certificate(machine: Machine, tmp_path: Path) -> None:
    require_peer("openssl")
    shown = machine.root / "etc/minibox"
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        made = make_certificate(tmp_path / str(number))
        (shown / "chain.pem").write_bytes(made.chain.read_bytes())
        (shown / "key.pem").write_bytes(made.key.read_bytes())
        (shown / "key.pem").chmod(0o600)
        if number == 1:
            files = {"CERTIFICATE": "chain", "KEY": "key"}
            machine.configure(**{f"MINIBOX_TLS_{name}": f"/etc/minibox/{file}.pem" for name, file in files.items()})
            machine.systemctl("start", "minibox.service")
            assert serial(machine) == serial_of(machine, "chain.pem")
    before = serial(machine)
    machine.systemctl("reload", "minibox.service")
    # Each of the two processes reads it, and either may answer.
    deadline = time.monotonic() + 20
    while machine.log().count("the certificate was read anew") < 2:
        assert time.monotonic() < deadline, machine.log()
        time.sleep(0.1)
    assert serial(machine) == serial_of(machine, "chain.pem") != before


@_WHERE_DEEP
def test_any_user_will_do_where_nothing_is_unpacked(machine: Machine) -> None:
    document = (Path(__file__).parents[2] / "docs/daemon.md").read_text()
    lines = re.search(r" {4}\[Service\]\n((?: {4}.+\n)+)", document)
    assert lines, "the documentation has a drop-in"
    machine.configure(*(line.strip() for line in lines[1].splitlines()))
    machine.systemctl("start", "minibox.service")
    assert machine.ask("GET", "/images")[0] == 200
    user = Path(f"/proc/{machine.pid}/root/proc/{machine.show('MainPID')}").stat().st_uid
    assert user != 0
    assert (machine.root / "var/lib/minibox").stat().st_uid == user


@_WHERE_DEEP
def test_a_setting_that_is_wrong_is_said_and_does_not_start_it_for_ever(machine: Machine) -> None:
    machine.configure("RestartSec=10ms", "[Unit]", "StartLimitBurst=2", MINIBOX_UNPACK="maybe", MINIBOX_MAX_PULLS="0")
    with pytest.raises(PeerFailed):
        machine.systemctl("start", "minibox.service")
    log = machine.wait_until_it_says("repeated too quickly", *_JOURNAL)
    assert "wrong: MINIBOX_UNPACK is 'maybe', where it must be 1 or 0\nwrong: MINIBOX_MAX_PULLS is '0'" in log
    assert machine.show("ActiveState") == "failed"


def ask(path: Path) -> RawReply:
    """Ask at a unix socket for the images."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        connection.sendall(b"GET /images HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return read_reply(connection)


def serving(machine: Machine, first: str) -> list[str]:
    """Return the processes that serve: of those that the first one has begun the ones that are of its session."""
    begun = (machine.root / f"proc/{first}/task/{first}/children").read_text().split()
    found = {each: (machine.root / f"proc/{each}/stat").read_text() for each in begun}
    return [each for each, told in found.items() if told.rpartition(")")[2].split()[3] == first]


def serial(machine: Machine) -> str:
    """Return the number of the certificate that the daemon shows."""
    command = "openssl s_client -connect 127.0.0.1:8080 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    return machine.run("sh", "-c", command)


def serial_of(machine: Machine, name: str) -> str:
    """Return the number of the certificate that lies in a file."""
    return machine.run("openssl", "x509", "-noout", "-serial", "-in", f"/etc/minibox/{name}")
