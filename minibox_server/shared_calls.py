"""Calls that all who want the same at once share, so that a hundred questions cost little more than one.

Nobody is given what was found before he asked: whoever comes while a call runs shares the next one.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio

from minibox_server.workers import Workers

T = TypeVar("T")


class SharedCall(Generic[T]):
    """One call of the store, which many may ask for.

    Args:
        workers: where it runs.
        limiter: whose place it takes.
        call: what is done; one at a time, each in a thread.
    """

    def __init__(self, workers: Workers, limiter: anyio.CapacityLimiter, call: Callable[[], T]) -> None:
        self._workers = workers
        self._limiter = limiter
        self._call = call
        self._awaited: asyncio.Future[T] | None = None
        self._running: asyncio.Task[None] | None = None

    async def result(self) -> T:
        """Return what a call that begins from now on returns, or raise what it raises."""
        if self._running is None or self._running.done():
            # What another event loop has left behind, nobody ends any more.
            self._awaited = None
            self._running = asyncio.create_task(self._run())
        if self._awaited is None:
            self._awaited = asyncio.get_running_loop().create_future()
        # One that goes away takes the answer from nobody else.
        return await asyncio.shield(self._awaited)

    async def _run(self) -> None:
        while (awaited := self._awaited) is not None:
            self._awaited = None
            try:
                found = await self._workers.run(self._limiter, self._call)
            except asyncio.CancelledError:
                awaited.cancel()
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, it is for those who asked
                awaited.set_exception(error)
                awaited.exception()  # all of them may have gone
            else:
                awaited.set_result(found)
