"""Unix sockets and inherited ones: whom they let in (S19, S20), and what is left of them."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minibox_server.activation import Activation, parse_activation
from minibox_server.listening import Listening, listen
from minibox_server.settings import Settings, SettingsError, parse_settings, parse_socket_path
from tests.server.clients import TOKEN, RawReply, exchange, read_reply
from tests.support.daemon import DAEMON_COMMAND, daemon_environment, run_daemon_to_its_end
from tests.support.peers import require_peer
from tests.support.processes import end_process, free_port, read_log, running, wait_until

# How often daemons start at the same moment.
ROUNDS = 30
# Opens sockets, and becomes a daemon that has them on descriptor 3 and on, as a service manager does.
_GIVE_SOCKETS = """
import os, socket, sys
given = []
for place in sys.argv[1:]:
    kind, _, where = place.partition(":")
    if kind == "unix":
        each = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        each.bind(where.replace("@", chr(0)))
    else:
        each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        each.bind((where.partition(":")[0], int(where.partition(":")[2])))
    if kind in ("unix", "tcp"):
        each.listen()
    each.set_inheritable(True)
    given.append(each)
assert [each.fileno() for each in given] == [3 + number for number in range(len(given))]
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)))
os.execv(sys.executable, [sys.executable, "-m", "minibox_server"])
"""
# Is told to end in the midst of making its event loop.
_END_EARLY = """
import asyncio, os, signal
from minibox_server.__main__ import main
make = asyncio.SelectorEventLoop._make_self_pipe
def end_and_make(loop):
    os.kill(os.getpid(), signal.SIGTERM)
    make(loop)
asyncio.SelectorEventLoop._make_self_pipe = end_and_make
main()
"""
# Is told all that it can be told while it closes what it listens on, and while the interpreter ends.
_END_AGAIN = """
import os, signal
from minibox_server.__main__ import main
from minibox_server.listening import Listening
class Telling:
    def __del__(self, kill=os.kill, own_pid=os.getpid, told=(signal.SIGHUP, signal.SIGINT, signal.SIGTERM)):
        for number in told:
            kill(own_pid(), number)
last, close = Telling(), Listening.close
def tell_and_close(listening):
    Telling()
    close(listening)
Listening.close = tell_and_close
main()
"""


@contextlib.contextmanager
def listening_daemon(folder: Path, *command: str, **variables: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a daemon that is not asked by a port; give its process, and its log, once it says that it listens."""
    environment = daemon_environment(folder, port=free_port(), data_root=folder / "data", token=None, extra=variables)
    log = folder / "daemon.log"
    started = command or DAEMON_COMMAND
    with running(started, environment=environment, log=log, folder=folder, end_seconds=15) as process:
        wait_until(lambda: "listening on" in read_log(log), process, log=log)
        yield process, log


def ask(path: Path, *headers: str) -> RawReply:
    """Ask at a unix socket for the images, as curl does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall("\r\n".join(["GET /images HTTP/1.1", *(headers or ("Host: localhost",)), "", ""]).encode())
        return read_reply(connection)


def test_s19_a_unix_socket_is_for_its_user_alone_and_is_gone_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "minibox.sock"
    with listening_daemon(tmp_path, MINIBOX_HTTP_ADDR=f"unix:{path}") as (process, log):
        assert stat.filemode(path.lstat().st_mode) == "srw-------"
        reply = ask(path)
        assert (reply.status, reply.body) == (200, b"[]")
        wait_until(lambda: f'user {os.geteuid()} "GET /images" 200' in read_log(log), process, log=log)
        assert end_process(process, timeout_seconds=10)
        assert not path.exists()


def test_s20_at_a_unix_socket_every_host_will_do_and_no_other_page(tmp_path: Path) -> None:
    path = tmp_path / "minibox.sock"
    with listening_daemon(tmp_path, MINIBOX_HTTP_ADDR=f"unix:{path}"):
        assert ask(path, "Host: anything.example:81").status == 200
        assert ask(path, "Host: a/b?x=").status == 403
        assert ask(path, "Host: localhost", "Origin: http://evil.example").status == 403
        assert ask(path, "Host: localhost", "Sec-Fetch-Site: cross-site").status == 403


def test_a_token_that_is_set_is_needed_at_a_unix_socket_too(tmp_path: Path) -> None:
    path = tmp_path / "minibox.sock"
    with listening_daemon(tmp_path, MINIBOX_HTTP_ADDR=f"unix:{path}", MINIBOX_API_TOKEN=TOKEN):
        assert ask(path, "Host: localhost").status == 401
        assert ask(path, "Host: localhost", f"Authorization: Bearer {TOKEN}").status == 200


def test_s19_the_mode_of_a_socket_does_not_depend_on_what_the_process_was_given(tmp_path: Path) -> None:
    path = tmp_path / "minibox.sock"
    before = os.umask(0)
    try:
        with contextlib.closing(listen(Settings(socket_path=str(path)))):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
            assert os.umask(0) == 0, "what others make is made as before"
    finally:
        os.umask(before)


def test_a_socket_that_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "minibox.sock"
    with listening_daemon(tmp_path, MINIBOX_HTTP_ADDR=f"unix:{path}") as (process, _):
        process.kill()
        process.wait(10)
    assert path.exists()
    with listening_daemon(tmp_path, MINIBOX_HTTP_ADDR=f"unix:{path}"):
        assert ask(path).status == 200


def test_a_socket_that_somebody_listens_on_is_left_to_him(tmp_path: Path) -> None:
    path = tmp_path / "minibox.sock"
    with contextlib.closing(listen(Settings(socket_path=str(path)))):
        status, output = run_daemon_to_its_end(tmp_path, environment={"MINIBOX_HTTP_ADDR": f"unix:{path}"})
        assert (status, output.count("\n")) == (2, 1)
        assert "Address already in use" in output
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(path))


def test_nothing_that_is_no_socket_of_ours_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(SettingsError, match="something else than a socket"):
        listen(Settings(socket_path=str(path)))
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(SettingsError, match="something else than a socket"):
        listen(Settings(socket_path=str(tmp_path / "link")))
    assert path.read_text() == "mine"
    with pytest.raises(SettingsError, match="No such file or directory"):
        listen(Settings(socket_path=str(tmp_path / "missing" / "minibox.sock")))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_socket_of_another_user_is_left_to_him(tmp_path: Path) -> None:
    path = tmp_path / "minibox.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    os.chown(path, 12345, 12345)
    with pytest.raises(SettingsError, match="belongs to another user"):
        listen(Settings(socket_path=str(path)))
    assert path.exists()


def test_in_the_end_a_socket_that_has_taken_its_place_stays(tmp_path: Path) -> None:
    path = tmp_path / "minibox.sock"
    listening = listen(Settings(socket_path=str(path)))
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        listening.close()
        assert path.exists()


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a file, or of a folder, as another process does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def made_lock(path: Path, *, mode: int = 0o600) -> Path:
    """Make a lock file as a daemon makes it, but for the mode."""
    path.touch()
    path.chmod(mode)
    return path


def test_s19_who_can_open_the_folder_of_a_socket_cannot_keep_a_daemon_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "minibox.sock"
    with held(tmp_path), contextlib.closing(listen(Settings(socket_path=str(path)))):
        assert [each.name for each in tmp_path.iterdir()] == ["minibox.sock"], "nothing is left of the lock"


def test_who_finds_the_lock_of_a_socket_held_is_told_its_name_and_what_to_do(tmp_path: Path) -> None:
    path, lock = tmp_path / "minibox.sock", made_lock(tmp_path / "minibox.sock.lock")
    with held(lock), pytest.raises(SettingsError, match=f"another process holds its lock {lock}: wait for it, or end"):
        listen(Settings(socket_path=str(path)), lock_seconds=0.1)
    assert not path.exists()
    with contextlib.closing(listen(Settings(socket_path=str(path)))):
        assert not lock.exists(), "what a killed daemon left is taken"


def test_s19_a_lock_of_a_socket_that_others_could_hold_or_that_is_no_file_is_refused_and_named(tmp_path: Path) -> None:
    path, lock = tmp_path / "minibox.sock", tmp_path / "minibox.sock.lock"
    target = made_lock(tmp_path / "target")
    plants: list[tuple[str, Callable[[], object]]] = [
        ("is no file of this user alone: .* remove it", lambda: made_lock(lock, mode=0o644)),
        ("is no file of this user alone: .* remove it", lambda: os.mkfifo(lock, 0o600)),
        ("cannot be opened: Too many levels", lambda: lock.symlink_to(target)),
        ("cannot be opened: Too many levels", lambda: lock.symlink_to(tmp_path / "nowhere")),
    ]
    if os.geteuid() == 0:
        plants.append(("is no file of this user alone", lambda: os.chown(made_lock(lock), 12345, 12345)))
    for sentence, plant in plants:
        plant()
        with pytest.raises(SettingsError, match=f"its lock {lock} {sentence}"):
            listen(Settings(socket_path=str(path)))
        assert not path.exists()
        lock.unlink()
    assert not (tmp_path / "nowhere").exists()


def test_a_lock_that_has_lost_its_name_guards_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lock = tmp_path / "minibox.sock", tmp_path / "minibox.sock.lock"

    def replacing(descriptor: int, operation: int) -> None:
        """Do as the system does when another daemon ends between the opening of the file and the locking of it."""
        monkeypatch.undo()
        lock.unlink()
        stack.enter_context(held(made_lock(lock)))
        fcntl.flock(descriptor, operation)

    with contextlib.ExitStack() as stack:
        monkeypatch.setattr(
            "minibox_server.listening.fcntl", types.SimpleNamespace(**{**vars(fcntl), "flock": replacing})
        )
        with pytest.raises(SettingsError, match="another process holds its lock"):
            listen(Settings(socket_path=str(path)), lock_seconds=0.1)
    assert not path.exists()


def test_of_daemons_that_start_at_once_one_has_the_socket(tmp_path: Path) -> None:
    path, together = tmp_path / "minibox.sock", threading.Barrier(4, timeout=10)

    def start(_: int) -> Listening | str:
        together.wait()
        try:
            return listen(Settings(socket_path=str(path)))
        except SettingsError as error:
            return str(error)

    with ThreadPoolExecutor(together.parties) as threads:
        for _ in range(ROUNDS):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
                left.bind(str(path))  # what a dead daemon left: one replaces it, and the others find a live one
            started = list(threads.map(start, range(together.parties)))
            [winner] = [each for each in started if isinstance(each, Listening)]
            assert all("Address already in use" in each for each in started if isinstance(each, str))
            with contextlib.closing(winner), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(str(path))
            assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_held", [True, False])
def test_it_ends_in_time_though_the_lock_of_its_socket_is_held_or_the_folder_gone(
    tmp_path: Path, is_held: bool
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        process, log = stack.enter_context(listening_daemon(tmp_path, MINIBOX_HTTP_ADDR=f"unix:{folder}/minibox.sock"))
        if is_held:
            stack.enter_context(held(made_lock(folder / "minibox.sock.lock")))
        else:
            shutil.rmtree(folder)
        begin = time.monotonic()
        assert end_process(process, timeout_seconds=10)
        assert time.monotonic() - begin < 5
        assert process.returncode == 0
    assert f"the socket {folder}/minibox.sock cannot be taken away" in read_log(log)
    assert "Traceback" not in read_log(log)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_ends_without_a_word_though_it_is_told_to_while_it_begins(tmp_path: Path, workers: str) -> None:
    path = tmp_path / "minibox.sock"
    command = (sys.executable, "-c", _END_EARLY, "--workers", workers)
    with listening_daemon(tmp_path, *command, MINIBOX_HTTP_ADDR=f"unix:{path}") as (process, log):
        if workers == "2":  # it is the processes that the first one begins which are told so
            wait_until(lambda: read_log(log).count("another begins in") >= 2, process, log=log)
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert "Traceback" not in read_log(log)
    assert not path.exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_ends_in_order_though_it_is_told_to_again(tmp_path: Path, workers: str) -> None:
    path = tmp_path / "minibox.sock"
    command = (sys.executable, "-c", _END_AGAIN, "--workers", workers)
    with listening_daemon(tmp_path, *command, MINIBOX_HTTP_ADDR=f"unix:{path}") as (process, log):
        assert ask(path).status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert "Traceback" not in read_log(log)
    assert not path.exists()
    assert not path.with_name("minibox.sock.lock").exists()


@pytest.mark.parametrize(
    "text", ["unix:@minibox", "unix:", "unix:relative.sock", "unix:/run/", "unix:/a\nb", "unix:/" + "a" * 107]
)
def test_s20_no_other_name_of_a_socket_will_do(text: str) -> None:
    with pytest.raises(SettingsError, match="MINIBOX_HTTP_ADDR"):
        parse_settings({"MINIBOX_HTTP_ADDR": text})


def test_a_path_of_a_socket_is_an_address_and_a_host_of_that_name_another() -> None:
    settings = parse_settings({"MINIBOX_HTTP_ADDR": "unix:/run/minibox.sock"})
    assert (settings.socket_path, settings.address) == ("/run/minibox.sock", "unix:/run/minibox.sock")
    assert parse_socket_path("unix:80") is None
    assert parse_socket_path("127.0.0.1:80") is None


# ---- sockets that were opened by who started the daemon


def given(*places: str) -> tuple[str, ...]:
    """Return the command that runs a daemon with these sockets."""
    return (sys.executable, "-c", _GIVE_SOCKETS, *places)


def test_it_serves_all_sockets_that_it_is_given_and_leaves_them_where_they_are(tmp_path: Path) -> None:
    path, port = tmp_path / "given.sock", free_port()
    with listening_daemon(tmp_path, *given(f"unix:{path}", f"tcp:127.0.0.1:{port}")) as (process, log):
        assert f"listening on unix:{path}, 127.0.0.1:{port}," in read_log(log)
        assert ask(path, "Host: other.example").status == 200
        request = f"GET /images HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        assert exchange(port, request).status == 200
        assert exchange(port, request.replace(b"127.0.0.1", b"evil.example")).status == 403
        started = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"LISTEN_FDS=2" in started
        assert end_process(process, timeout_seconds=10)
    assert path.exists(), "it is the service manager's"


@pytest.mark.parametrize("variables", [{}, {"MINIBOX_API_TOKEN": "planted-secret"}])
def test_s20_it_does_not_start_with_a_given_socket_that_others_reach_and_nothing_protects(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    command = given(f"tcp:127.0.0.1:{free_port()}", f"tcp:0.0.0.0:{free_port()}")
    status, output = run_daemon_to_its_end(tmp_path, environment=variables, command=command)
    assert (status, output.count("\n")) == (2, 1)
    assert "0.0.0.0" in output
    assert "MINIBOX_API_TOKEN" in output
    assert "planted-secret" not in output


@pytest.mark.parametrize("variables", [{"MINIBOX_API_TOKEN": TOKEN}, {"MINIBOX_ALLOW_ANONYMOUS": "1"}])
def test_s20_it_starts_with_one_that_is_protected_or_that_the_operator_vouches_for(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    port = free_port()
    with listening_daemon(tmp_path, *given(f"tcp:0.0.0.0:{port}"), **variables) as (process, _):
        assert process.poll() is None
        pull = f"POST /images/pull?image=127.0.0.1:1/app:1 HTTP/1.1\r\nHost: localhost\r\nX-API-Token: {TOKEN}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(pull.encode())
            told = b""
            while b"[error]" not in told:
                told += connection.recv(65536)
        assert b"refused" not in told, "others do not get to what only this machine reaches"


@pytest.mark.parametrize(
    ("place", "named"), [("udp:127.0.0.1:0", "no socket that listens"), ("bound:127.0.0.1:0", "no socket that listens")]
)
def test_what_is_given_and_does_not_listen_is_named(tmp_path: Path, place: str, named: str) -> None:
    status, output = run_daemon_to_its_end(tmp_path, environment={}, command=given(place))
    assert (status, output.count("\n")) == (2, 1)
    assert f"descriptor 3, of LISTEN_FDS, is {named}" in output


@pytest.mark.parametrize("promised", [2, 3, 9])
def test_of_sockets_that_are_promised_and_not_given_the_first_is_named(promised: int, tmp_path: Path) -> None:
    more = _GIVE_SOCKETS.replace("str(len(given))", repr(str(promised)))
    command = [sys.executable, "-c", more, "tcp:127.0.0.1:0"]
    status, output = run_daemon_to_its_end(tmp_path, environment={}, command=command)
    time.sleep(0.2)  # a process that it has begun would say what it has to say
    assert (status, read_log(tmp_path / "daemon.log")) == (2, output)
    assert output.count("\n") == 1
    assert "descriptor 4, of LISTEN_FDS, is no socket" in output


def test_s20_an_abstract_socket_is_not_served(tmp_path: Path) -> None:
    name = f"minibox-test-{os.getpid()}"
    status, output = run_daemon_to_its_end(tmp_path, environment={}, command=given(f"unix:@{name}"))
    assert status == 2
    assert "abstract" in output


def test_what_was_meant_for_another_process_is_not_taken() -> None:
    variables = {"LISTEN_PID": "7", "LISTEN_FDS": "2", "NOTIFY_SOCKET": "/run/notify"}
    assert parse_activation(variables, 7) == Activation(sockets=2, notified="/run/notify")
    assert parse_activation(variables, 8).sockets == 0
    assert parse_activation({**variables, "LISTEN_FDS": "-1"}, 7).sockets == 0
    assert parse_activation({"LISTEN_FDS": "2"}, 7) == Activation()


def test_systemd_itself_can_start_it(tmp_path: Path) -> None:
    program, port = require_peer("systemd-socket-activate"), free_port()
    passed = [f"--setenv={name}" for name in ("PYTHONPATH", "MINIBOX_DATA_ROOT", "MINIBOX_HTTP_ADDR")]
    command = (program, f"--listen=127.0.0.1:{port}", *passed, *DAEMON_COMMAND)
    environment = daemon_environment(tmp_path, port=port, data_root=tmp_path / "data", token=None)
    log = tmp_path / "daemon.log"
    with running(command, environment=environment, log=log, folder=tmp_path, end_seconds=15) as process:
        wait_until(lambda: f"Listening on 127.0.0.1:{port}" in read_log(log), process, log=log)
        request = f"GET /images HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        assert exchange(port, request, timeout_seconds=20).status == 200
        assert end_process(process, timeout_seconds=10)


@pytest.mark.parametrize("is_abstract", [False, True])
def test_who_started_it_is_told_when_it_is_ready_and_when_it_ends(tmp_path: Path, is_abstract: bool) -> None:
    address = f"\0minibox-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(address)
        told.settimeout(10)
        path = tmp_path / "minibox.sock"
        variables = {"MINIBOX_HTTP_ADDR": f"unix:{path}", "NOTIFY_SOCKET": address.replace("\0", "@")}
        with listening_daemon(tmp_path, **variables) as (process, _):
            assert told.recv(100) == b"READY=1"
            assert ask(path).status == 200
            process.send_signal(signal.SIGTERM)
            assert told.recv(100) == b"STOPPING=1"
            assert process.wait(10) == 0
