"""A systemd that has booted, as process 1 of namespaces of its own, with this daemon installed.

It sees the files of this machine, and what it writes over them is in memory and gone with it. It has a network of its
own, with loopback alone, and a control group of its own; of the machine's units it starts the journal, and no other.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.forks import not_possible
from tests.support.peers import PeerFailed, require_peer, run_peer
from tests.support.processes import plain_environment, read_log
from tests.support.stores import require_root

_PROJECT = Path(__file__).parents[2]
_UNITS = _PROJECT / "examples" / "daemon"
_BOOT_SECONDS = 30.0
_COMMAND_SECONDS = 60.0

# $1 is a folder, $2 the name of a control group, $3 where libraries lie, and the rest is shown from other file systems.
_BOOT = r"""
set -eu
folder="$1" group="$2" libraries="$3" root="$1/root"
shift 3
mount --make-rprivate /
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/groups" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"
for shown in "$@"; do mkdir -p "$root$shown"; mount --rbind "$shown" "$root$shown"; done
mkdir -p "$root/opt/site-packages"
mount --bind "$libraries" "$root/opt/site-packages"
mount -t cgroup2 none "$folder/groups"
mkdir "$folder/groups/$group"
echo $$ > "$folder/groups/$group/cgroup.procs"
exec unshare --cgroup sh -euc '
    root="$1"
    mount -t proc proc "$root/proc"
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 none "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero full random urandom tty; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    rm -rf "$root/etc/systemd/system" "$root/var/log/journal" "$root/var/lib/minibox" "$root/etc/minibox"
    mkdir -p "$root/etc/systemd/system" "$root/mnt"
    units="$root/lib/systemd/system"
    for target in sysinit local-fs sockets timers multi-user basic; do
        find "$units/$target.target.wants" -mindepth 1 -not -name "systemd-journald*" -delete || true
    done
    cd "$root"
    pivot_root . mnt
    umount -l /mnt
    exec env -i container=minibox-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --unit=basic.target --show-status=no
' boot "$root"
"""
_PROGRAM = """#!{python}
import sys
sys.path[:0] = ["/opt/minibox", "/opt/site-packages"]
from minibox_server.__main__ import main
main()
"""
# Asks from inside, since its network is its own; says the status and the body.
ASKING = """
import http.client, json, sys
method, target, headers = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=30)
connection.request(method, target, headers=json.loads(headers))
answer = connection.getresponse()
print(answer.status, answer.read().decode(), end="")
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A booted system.

    Attributes:
        pid: its process 1, as others see it.
    """

    pid: int

    @property
    def root(self) -> Path:
        """Its files."""
        return Path(f"/proc/{self.pid}/root")

    def run(self, *command: str, timeout_seconds: float = _COMMAND_SECONDS) -> str:
        """Run a program in it as root, and return its stdout.

        Raises:
            PeerFailed: with its stderr.
        """
        entering = [require_peer("nsenter"), "--target", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        # "--wd=/" would be the root outside: a program that asks for its working folder finds none there.
        return run_peer([*entering, "--cgroup", "--root", "--wd", *command], environment, timeout_seconds)

    def systemctl(self, *arguments: str) -> str:
        """Run systemctl, and return what it says."""
        return self.run("systemctl", *arguments).strip()

    def show(self, name: str, unit: str = "minibox.service") -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit)

    def log(self) -> str:
        """Return what the journal has of the service."""
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit=minibox.service")

    def ask(self, method: str, target: str, **headers: str) -> tuple[int, str]:
        """Return status and body of what is asked at port 8080 of its loopback."""
        told = self.run(_python(), "-c", ASKING, method, target, json.dumps(headers))
        status, _, body = told.partition(" ")
        return int(status), body

    def ask_json(self, method: str, target: str) -> Any:
        """Return what :meth:`ask` is answered with, decoded; its status must be 200."""
        status, body = self.ask(method, target)
        assert status == 200, body
        return json.loads(body)

    def configure(self, *lines: str, **variables: str) -> None:
        """Set the daemon's variables, and further lines of its unit's section ``Service``; earlier ones are gone."""
        settings, further = self.root / "etc/minibox/daemon.env", self.root / "etc/systemd/system/minibox.service.d"
        settings.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        further.mkdir(exist_ok=True)
        (further / "test.conf").write_text("\n".join(["[Service]", *lines, ""]))
        self.systemctl("daemon-reload")

    def wait_until_it_says(self, words: str, *command: str, timeout_seconds: float = 20.0) -> str:
        """Return what a command says once the words are in it."""
        deadline = time.monotonic() + timeout_seconds
        while words not in (said := self.run(*command)):
            assert time.monotonic() < deadline, f"{words!r} is not in what {command} says: {said}"
            time.sleep(0.05)
        return said


@contextmanager
def booted() -> Iterator[Machine]:
    """Boot systemd for the block. Where there is none, or it does not boot, the test is skipped, or fails."""
    require_root()
    for program in ("systemctl", "journalctl", "unshare", "nsenter", "setpriv", "pivot_root"):
        require_peer(program)
    with tempfile.TemporaryDirectory(prefix="booted-") as name:
        folder, log = Path(name), Path(f"{name}.log")
        group = f"minibox-test-{os.getpid()}-{time.monotonic_ns()}"
        # Whatever ends the test ends unshare, and with it all that is in there.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child"]
        command += ["--mount", "--pid", "--ipc", "--uts", "--net", "sh", "-c", _BOOT, "boot", name, group]
        command += [sysconfig.get_path("purelib"), *map(str, _on_other_file_systems())]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=plain_environment(folder), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            machine = _wait_for_boot(process, log)
            _install(machine)
            yield machine
        finally:
            _end(process)
            _remove_group(folder, group)
            log.unlink()


def _python() -> str:
    """The interpreter itself, of which the programs of a virtual environment are links."""
    return os.path.realpath(sys.executable)


def _on_other_file_systems() -> Iterator[Path]:
    shown = Path(sys.base_prefix)
    if shown.stat().st_dev != os.stat("/").st_dev:
        yield shown


def _wait_for_boot(process: subprocess.Popen[bytes], log: Path) -> Machine:
    """Return the system once it is up; the only child of unshare is its process 1."""
    deadline = time.monotonic() + _BOOT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        try:
            if children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n":
                machine = Machine(pid=int(children[0]))
                machine.run("systemctl", "is-system-running", "--wait")
                return machine
        except (OSError, PeerFailed):
            pass  # it is not there yet, or not so far
        time.sleep(0.05)
    not_possible(f"systemd does not boot here: {read_log(log)}")
    raise AssertionError("not_possible has returned")


def _install(machine: Machine) -> None:
    """Install the daemon and its units, as the documentation says."""
    for package in ("minibox_store", "minibox_server"):
        shutil.copytree(_PROJECT / package, machine.root / "opt" / "minibox" / package)
    program = machine.root / "usr/local/bin/minibox-server"
    program.write_text(_PROGRAM.format(python=_python()))
    program.chmod(0o755)
    for unit in _UNITS.glob("minibox.s*"):
        shutil.copy(unit, machine.root / "etc/systemd/system" / unit.name)
    (machine.root / "etc/minibox").mkdir(mode=0o755)
    # The service may be another user's, and the interpreter lie where none but root comes.
    for folder in list(Path(_python()).parents)[:-1]:
        seen = machine.root / folder.relative_to("/")
        seen.chmod(seen.stat().st_mode | 0o055)
    # The service cannot write beside its modules, and every start would compile them anew.
    machine.run(_python(), "-m", "compileall", "-q", "/opt/minibox")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(10)


def _remove_group(folder: Path, group: str) -> None:
    """Take the control group away, once all that was in it is gone."""
    script = (
        'mount -t cgroup2 none "$1"; for attempt in $(seq 100); do '
        'find "$1/$2" -depth -type d -exec rmdir {} + 2>/dev/null && exit; sleep 0.05; done'
    )
    groups = folder / "groups"
    groups.mkdir(exist_ok=True)
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "clean", str(groups), group],
        check=False,
        timeout=20,
        capture_output=True,
    )
