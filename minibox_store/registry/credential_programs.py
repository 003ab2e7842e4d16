"""Credential helpers: programs that keep secrets for Docker and Podman, asked by their protocol.

A helper is a program of the machine: its name is checked, it is looked for in fixed folders alone (never in the
working directory, and in nothing that an image brought), and it is started without a shell. Secrets go through its
stdin and stdout; what it says otherwise is never shown, since nobody knows what it repeats. It has 30 seconds.

Spec: docker-credential-helpers, "Development".
"""

import contextlib
import os
import re
import selectors
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from minibox_store.codec.auth_files import HELPER_ANSWER_BYTES, AuthEntry, decode_helper_answer, encode_helper_entry
from minibox_store.errors import CredentialHelperFailed, InvalidDocument
from minibox_store.registry.environment import helper_environment

Action = Literal["get", "store", "erase"]

PROGRAM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/snap/bin")
HELPER_SECONDS = 30.0

_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_POLL_SECONDS = 0.1
_END_SECONDS = 5.0
# What helpers say of what they do not have, by the protocol's own library.
_NOT_FOUND = b"credentials not found in native keychain"


class CredentialPrograms:
    """The helpers of a machine. Its methods may be called from several threads.

    Args:
        environment: of who asks; helpers find the user's keys by it.
        program_path: the absolute folders in which they lie.
        timeout_seconds: how long one may take.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        program_path: Sequence[str] = PROGRAM_PATH,
        timeout_seconds: float = HELPER_SECONDS,
    ) -> None:
        self._environment = helper_environment(environment, program_path)
        self._program_path = tuple(program_path)
        self._timeout_seconds = timeout_seconds
        self._found: dict[str, str] = {}

    def read(self, helper: str, servers: Iterable[str], check_interrupted: Callable[[], None]) -> AuthEntry | None:
        """Return what a helper has for the first of these servers that it knows, None where it knows none.

        Raises:
            CredentialHelperFailed: when there is no such helper, or it fails.
        """
        for server in servers:
            status, answer = self._run(helper, "get", server.encode(), check_interrupted)
            # A process that ignores SIGCHLD is told no status of its children: then what was said is all there is.
            if status != 0 or _NOT_FOUND in answer:
                self._check(helper, "get", status, answer)
                continue
            try:
                entry = decode_helper_answer(answer, f"answer of {_program(helper)}")
            except InvalidDocument as error:
                raise CredentialHelperFailed(_program(helper), f"its answer cannot be used: {error}") from None
            if entry is not None:
                return entry
        return None

    def write(self, helper: str, server: str, entry: AuthEntry) -> None:
        """Let a helper store credentials; raises as :meth:`read`."""
        self._check(helper, "store", *self._run(helper, "store", encode_helper_entry(server, entry), _never))

    def erase(self, helper: str, server: str) -> bool:
        """Let a helper forget credentials, and return whether it had some; raises as :meth:`read`."""
        if self.read(helper, (server,), _never) is None:
            return False
        self._check(helper, "erase", *self._run(helper, "erase", server.encode(), _never))
        return True

    def _check(self, helper: str, action: Action, status: int, answer: bytes) -> None:
        has_none = action != "store" and _NOT_FOUND in answer
        if status != 0 and not has_none:
            raise CredentialHelperFailed(
                _program(helper), f"{action} ended with status {status}; what it says is shown to who runs it by hand"
            )

    def _run(
        self, helper: str, action: Action, given: bytes, check_interrupted: Callable[[], None]
    ) -> tuple[int, bytes]:
        path = self._find(helper)
        deadline = time.monotonic() + self._timeout_seconds
        try:
            process = subprocess.Popen(
                [path, action],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=self._environment,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise CredentialHelperFailed(_program(helper), f"it cannot be run: {error.strerror}") from None
        with _ended(process):
            try:
                answer = _exchange(process, given, deadline, check_interrupted)
                return _status_of(process, deadline, check_interrupted), answer
            except TimeoutError:
                problem = f"{action} did not end within {self._timeout_seconds:g} s"
            except OverflowError:
                problem = f"its answer is larger than {HELPER_ANSWER_BYTES} bytes"
            raise CredentialHelperFailed(_program(helper), problem)

    def _find(self, helper: str) -> str:
        if _NAME.fullmatch(helper) is None:
            raise CredentialHelperFailed(
                repr(helper[:80]), "a helper's name has letters, digits, '.', '_' and '-' only"
            )
        if helper not in self._found:
            self._found[helper] = self._look_up(_program(helper))
        return self._found[helper]

    def _look_up(self, program: str) -> str:
        for folder in self._program_path:
            path = os.path.join(folder, program)
            with contextlib.suppress(OSError):
                if os.path.isabs(folder) and stat.S_ISREG(os.stat(path).st_mode) and os.access(path, os.X_OK):
                    return path
        raise CredentialHelperFailed(program, f"it is in none of {', '.join(self._program_path)}")


def _program(helper: str) -> str:
    return f"docker-credential-{helper}"


def _never() -> None:
    """Nobody interrupts this."""


@contextmanager
def _ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Leave no process of a helper behind that has not ended by itself."""
    try:
        yield
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait(_END_SECONDS)


def _exchange(
    process: "subprocess.Popen[bytes]", given: bytes, deadline: float, check_interrupted: Callable[[], None]
) -> bytes:
    """Write to a program and read what it answers, until it has closed its output or ended.

    Raises:
        TimeoutError: when the deadline comes first.
        OverflowError: when the answer is too large.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    answer = bytearray()
    rest: memoryview | None = memoryview(given)
    with selectors.DefaultSelector() as selector:
        for pipe, event in ((process.stdin, selectors.EVENT_WRITE), (process.stdout, selectors.EVENT_READ)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, event)
        while True:
            check_interrupted()
            if time.monotonic() > deadline:
                raise TimeoutError
            # Asked before the pipes are: what an ended program has written is there by now.
            has_ended = process.poll() is not None
            ready = {key.fileobj for key, _ in selector.select(0 if has_ended else _POLL_SECONDS)}
            if process.stdin in ready and (rest := _written(process.stdin.fileno(), rest)) is None:
                selector.unregister(process.stdin)
                process.stdin.close()
            if process.stdout in ready:
                piece = os.read(process.stdout.fileno(), HELPER_ANSWER_BYTES)
                answer += piece
                if len(answer) > HELPER_ANSWER_BYTES:
                    raise OverflowError
                if not piece:
                    return bytes(answer)
            elif has_ended:
                return bytes(answer)


def _status_of(process: "subprocess.Popen[bytes]", deadline: float, check_interrupted: Callable[[], None]) -> int:
    """Return how a program ends that has closed its output, or has ended.

    Raises:
        TimeoutError: when the deadline comes first.
    """
    while True:
        check_interrupted()
        left = max(0.0, deadline - time.monotonic())
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(left, _POLL_SECONDS))
        if not left:
            raise TimeoutError


def _written(pipe: int, rest: memoryview | None) -> memoryview | None:
    """Write what the pipe takes; return what is left, None where nothing is or nobody reads it."""
    if not rest:
        return None
    try:
        return rest[os.write(pipe, rest) :] or None
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return None
