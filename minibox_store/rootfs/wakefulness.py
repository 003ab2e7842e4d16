"""Processors that stay awake while a mount is asked one thing after another.

Whoever lists a tree waits for each answer before the next question, and the server waits for that one: each of them
sleeps while the other works, and so do their processors. To wake one takes longer than an answer does, on a virtual
machine above all. The kernel lets root say how late a processor may come out of its sleep, for as long as a file is
open. It holds for the whole machine and takes power: so the file is open during a run of questions alone.

The folder that it lies in is open before there is a mount. Whoever makes the mount the root of his namespace makes it
that of the server too: a path would lead through the mount then, and the one who has to answer ask himself.

Spec: Linux, Documentation/power/pm_qos_interface.rst.
"""

import os
import struct
import threading
import time
from contextlib import suppress

_FOLDER, _LATENCY_FILE = "/dev", "cpu_dma_latency"
_NOT_AT_ALL = struct.pack("=i", 0)  # microseconds
_RUN = 8
_SOON_SECONDS = 0.02
_IDLE_SECONDS = 0.1


class Wakefulness:
    """Keeps the processors awake during runs of questions, where this process may.

    Where it may not (a user, a container without the device), nothing is tried again, and nothing else is different.

    Guarantees: the processors sleep as they like from the ``_IDLE_SECONDS`` after the last question on, and from the
        end of this process on, however it ends. Where it is stopped, or frozen, during a run, they do once it goes on.
    """

    def __init__(self) -> None:
        self._folder = -1
        with suppress(OSError):
            self._folder = os.open(_FOLDER, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._may = self._folder >= 0
        self._holds = False
        self._run = 0
        self._last = 0.0

    def note_question(self) -> None:
        """Take notice of a question; called by the one thread that answers."""
        now = time.monotonic()
        self._run = self._run + 1 if now - self._last < _SOON_SECONDS else 0
        self._last = now
        if self._run >= _RUN and self._may and not self._holds:
            self._begin()

    def _begin(self) -> None:
        try:
            file = os.open(_LATENCY_FILE, os.O_WRONLY, dir_fd=self._folder)
        except OSError:
            self._may = False
            return
        self._holds = True
        try:
            os.write(file, _NOT_AT_ALL)
            threading.Thread(target=self._hold, args=(file,), daemon=True).start()
        except (OSError, RuntimeError):  # no thread can be had
            os.close(file)
            self._holds = self._may = False

    def _hold(self, file: int) -> None:
        while (rest := self._last + _IDLE_SECONDS - time.monotonic()) > 0:
            time.sleep(rest)
        os.close(file)
        self._holds = False
