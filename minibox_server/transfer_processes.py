"""Transfers in processes of their own: each is forked for one, and leaves the interpreter of the daemon to its loop.

A transfer has a dozen threads, and a thread that only wants to answer waits for its turn behind each of them. So the
daemon begins, before it has threads, files or sockets, a process that does nothing but fork others (the nursery); it
sends that the end of a new connection, and the process that is forked for it serves it:

    daemon   how a store is opened, and the transfer
    process  lists of events, as they come; of bytes that move, what is true, ten times a second
    daemon   GO, when its listener has returned from ManifestChosen; CANCEL, at any time
    process  how it ended, last

A process whose connection is closed has nobody any more, and is gone at once; the store bears that as it bears a crash.
So none outlives the daemon, however that ends; but one that somebody has stopped (SIGSTOP) is gone when it goes on.
"""

import gc
import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Literal, NoReturn

import attrs

from minibox_server.responses import RequestError
from minibox_server.transfers import Transfer
from minibox_store import (
    BlobAdvanced,
    Cancellation,
    Digest,
    Event,
    EventListener,
    ManifestChosen,
    Store,
    StoreError,
    UnpackAdvanced,
    preload,
)

LOGGER = logging.getLogger("minibox_server")

Opener = Callable[[], Store]
_Word = Literal["go", "cancel"]
_GO: _Word = "go"
_CANCEL: _Word = "cancel"
# How often is told what changes all the time: no more often than the daemon tells it.
_TICK_SECONDS = 0.1
# Bytes that move can wait for a millisecond; who asks for a list should not.
_NICENESS = 5
_RETRY_SECONDS = "5"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@attrs.define(kw_only=True)
class _Ended:
    """How a transfer ended: with a result, an error of the library, or one that nobody expected, as text.

    It has not begun where there was no room for its process.
    """

    result: Mapping[str, object] | None = None
    error: StoreError | None = None
    unexpected: str | None = None
    no_room: str | None = None

    def outcome(self) -> Mapping[str, object]:
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # this is in its traceback, and it would wait for the collector
        if self.unexpected is not None:
            raise RuntimeError(f"in the process of a transfer:\n{self.unexpected}")
        if self.no_room is not None:
            raise _ask_again(f"no process can begin for the transfer: {self.no_room}")
        return self.result or {}


def _ask_again(problem: str) -> RequestError:
    return RequestError(503, f"{problem}; ask again", {"Retry-After": _RETRY_SECONDS})


class Nursery:
    """The process that forks those of transfers. It ends when none holds the other end of its socket any more."""

    def __init__(self, inherited: range = range(0)) -> None:
        """Begin it. Where there is no room for a process, it is as if it had ended.

        Args:
            inherited: descriptors of this process that it is not to keep open; maybe not all of them are there.
        """
        self._asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with asked:
            try:
                is_nursery = not os.fork()
            except OSError as error:
                LOGGER.warning("no process can begin for those of transfers: %s", error.strerror)
                return
            if is_nursery:
                self._asking.close()
                _fork_for_each(asked, inherited)

    def close(self) -> None:
        """Ask for no more processes."""
        self._asking.close()

    def connect(self) -> Connection:
        """Return a connection with a new process.

        Raises:
            OSError: when the nursery is gone.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(self._asking, [b"\0"], [theirs.fileno()])
            return Connection(ours.detach())


@attrs.frozen
class ProcessTransfers:
    """Transfers, each in a process of its own.

    Attributes:
        nursery: what begins the processes.
        opener: what opens the store there.
    """

    nursery: Nursery
    opener: Opener

    def run(self, transfer: Transfer, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        """Do as :meth:`minibox_server.transfers.Transfers.run`."""
        try:
            connection = self.nursery.connect()
        except OSError as error:
            # Those who look wait longer then, and nobody is refused anything.
            LOGGER.warning("no process can begin for a transfer, a thread does it: %s", error.strerror)
            return transfer(self.opener(), on_event, cancellation)
        with closing(_Call(connection, on_event)) as call:
            call.ask(self.opener, transfer)  # a cancel that came first would be taken for what is asked
            with cancellation.interrupting(call):
                return call.run()


class _Call:
    """A transfer in another process, as it is seen from here."""

    def __init__(self, connection: Connection, on_event: EventListener) -> None:
        self._connection = connection
        self._on_event = on_event
        self._sending = threading.Lock()

    def ask(self, opener: Opener, transfer: Transfer) -> None:
        self._send((opener, transfer))

    def run(self) -> Mapping[str, object]:
        # In a list: an error that a frame of its own traceback has a name for waits for the collector.
        failure: list[BaseException] = []
        while not isinstance(message := self._receive(), _Ended):
            for event in () if failure else message:
                try:
                    self._on_event(event)
                except BaseException as error:  # noqa: BLE001  # it is raised as soon as the transfer has ended
                    failure.append(error)
                    self.interrupt()
                    break
                if isinstance(event, ManifestChosen):
                    self._send(_GO)
        if failure:
            raise failure.pop()
        return message.outcome()

    def interrupt(self) -> None:
        self._send(_CANCEL)

    def close(self) -> None:
        with self._sending:  # a cancel that comes late finds it closed, and never another file under its number
            self._connection.close()

    def _send(self, message: object) -> None:
        # Who is gone does not read it, and that is found out where the answer is read.
        with self._sending, suppress(OSError):
            self._connection.send(message)

    def _receive(self) -> list[Event] | _Ended:
        try:
            message: list[Event] | _Ended = self._connection.recv()
        except (EOFError, OSError):
            raise _ask_again("the process of the transfer was ended by something") from None
        return message


# ---- in the nursery, and in the processes that it forks


def _fork_for_each(asked: socket.socket, inherited: range) -> NoReturn:
    """Fork a process for each connection that comes, until nobody can send one any more; never returns."""
    try:
        for descriptor in inherited:
            if descriptor != asked.fileno():
                with suppress(OSError):  # whoever started the daemon promised more than there are
                    os.close(descriptor)
        _settle()
        is_ready = False
        while (received := socket.recv_fds(asked, 1, 1))[0]:
            if not is_ready:
                _read_ahead()
                is_ready = True
            for descriptor in received[1]:
                with Connection(descriptor) as connection:
                    _fork_for(connection, asked)
    except BaseException:
        LOGGER.exception("the process that begins those of transfers failed")
    finally:
        logging.shutdown()
        os._exit(0)


def _fork_for(connection: Connection, asked: socket.socket) -> None:
    try:
        is_child = not os.fork()
    except OSError as error:
        with suppress(OSError):  # nobody is there any more
            connection.send(_Ended(no_room=error.strerror))
        return
    if is_child:
        asked.close()
        _serve(connection)


def _settle() -> None:
    """Make this process, and all that it forks, what only the end of the daemon ends, and no rival of the daemon."""
    # Whoever began the daemon tells all that belong to it to end; how these end, the daemon decides.
    for number in _SIGNALS:
        signal.signal(number, _pass_over)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    with suppress(OSError):
        os.nice(_NICENESS)
        os.setsid()  # a session has its own share of the processors, where the system schedules by those


def _read_ahead() -> None:
    """Import all of the library, once and for all processes that share the memory of this one."""
    preload()
    gc.collect()
    gc.freeze()


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Do nothing. A program that is started, such as a credential helper, ends at the signal, as it would elsewhere."""


def _serve(connection: Connection) -> NoReturn:
    """Do the transfer that the connection asks for, and end this process."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        opener, transfer = connection.recv()
        relay = _Relay(connection)
        threading.Thread(target=relay.listen, daemon=True).start()
        relay.end(_end_of(opener, transfer, relay))
    except EOFError:
        pass  # nobody is there any more
    except Exception:
        LOGGER.exception("the process of a transfer failed")
    finally:
        logging.shutdown()
        os._exit(0)


def _end_of(opener: Opener, transfer: Transfer, relay: "_Relay") -> _Ended:
    try:
        return _Ended(result=transfer(opener(), relay.on_event, relay.cancellation))
    except StoreError as error:
        return _Ended(error=error)
    except Exception:  # noqa: BLE001  # it is logged where the transfer was asked for
        return _Ended(unexpected=traceback.format_exc())


class _Relay:
    """What a transfer tells, sent to the daemon; and what the daemon says to it."""

    def __init__(self, connection: Connection) -> None:
        self.cancellation = Cancellation()
        self._connection = connection
        self._may_go = threading.Semaphore(0)
        self._sending = threading.Lock()
        # How far bytes are, of each blob, and by each way of telling it: what was not sent yet.
        self._advanced: dict[tuple[type[Event], Digest], Event] = {}

    def on_event(self, event: Event) -> None:
        """Take an event; from any thread."""
        with self._sending:
            if isinstance(event, BlobAdvanced | UnpackAdvanced):
                self._advanced.pop((type(event), event.digest), None)  # what is told last is true of the whole
                self._advanced[type(event), event.digest] = event
                return
            self._send([*self._take_advanced(), event])
        if isinstance(event, ManifestChosen):
            self._may_go.acquire()
            self.cancellation.check()

    def end(self, ended: _Ended) -> None:
        """Say how it ended, last of all."""
        with self._sending:
            if advanced := self._take_advanced():
                self._send(advanced)
            try:
                self._send(ended)
            except Exception:  # noqa: BLE001  # what does not pickle is told as what nobody expected
                self._send(_Ended(unexpected=traceback.format_exc()))

    def listen(self) -> NoReturn:
        """Take what the daemon says, and send what has changed; ends the process when the daemon is gone."""
        try:
            while True:
                if self._connection.poll(_TICK_SECONDS):
                    self._obey(self._connection.recv())
                with self._sending:
                    if advanced := self._take_advanced():
                        self._send(advanced)
        finally:
            os._exit(1)

    def _obey(self, word: _Word) -> None:
        if word == _CANCEL:
            self.cancellation.cancel()
        self._may_go.release()

    def _take_advanced(self) -> list[Event]:
        taken = list(self._advanced.values())
        self._advanced.clear()
        return taken

    def _send(self, message: list[Event] | _Ended) -> None:
        try:
            self._connection.send(message)
        except OSError:
            os._exit(1)  # nobody is there any more
