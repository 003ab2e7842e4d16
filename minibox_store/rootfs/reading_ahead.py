"""An iterator that runs ahead of whoever reads it, in a thread of its own: order, errors and the end as without one.

It is for pieces whose making leaves the interpreter's lock alone, as decompressing and hashing do.
"""

import threading
from collections.abc import Generator
from queue import Empty, Queue

_END = b""


class ReadingAhead:
    """The pieces of a generator, made before they are asked for.

    The thread begins with the first call of :meth:`next_piece`. Who has called that calls :meth:`close` too. Where the
    system gives no thread, each piece is made when it is asked for.

    Args:
        pieces: yields no empty one. From the first call on nobody else may touch it; it is closed in the thread.
        depth: how many may be made, and not asked for yet.
    """

    def __init__(self, pieces: Generator[bytes, None, None], depth: int) -> None:
        self._pieces = pieces
        self._ready: Queue[bytes | BaseException] = Queue(depth)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_alone = False

    def next_piece(self, timeout_seconds: float) -> bytes | None:
        """Return the next piece, none of it at the end, and None if there is none in time.

        What the generator raised is raised here, after all pieces that it had yielded before. After that, and after
        the end, there is nothing more to ask for.
        """
        if self._thread is None and not self._is_alone:
            self._start()
        if self._is_alone:
            return next(self._pieces, _END)
        try:
            piece = self._ready.get(timeout=min(max(timeout_seconds, 0), threading.TIMEOUT_MAX))
        except Empty:
            return None
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def _start(self) -> None:
        # Nobody waits at the end of a program for a source that sends nothing.
        thread = threading.Thread(target=self._run, name="minibox-decode", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has as many as it allows
            self._is_alone = True
        else:
            self._thread = thread

    def close(self) -> None:
        """End the thread, and return when it is gone: after the step at which it is. A second call does nothing."""
        self._stopped.set()
        if self._thread is None:
            self._pieces.close()
            return
        while True:
            # The thread puts at most one more, for which there is room then.
            try:
                self._ready.get_nowait()
            except Empty:
                break
        self._thread.join()

    def _run(self) -> None:
        last: bytes | BaseException = _END
        try:
            for piece in self._pieces:
                if self._stopped.is_set():
                    break
                self._ready.put(piece)
                if self._stopped.is_set():
                    break
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised where the pieces are read
            last = error
        finally:
            self._pieces.close()
        if not self._stopped.is_set():
            self._ready.put(last)
