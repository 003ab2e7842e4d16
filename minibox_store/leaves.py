"""How the leaves of a graph are moved: one after the other, or several at once, in threads that a copy has to itself.

The threads, and what Python imports for them, are there for who moves something at once, and for nobody else.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from minibox_store.documents import Node

if TYPE_CHECKING:
    from concurrent.futures import Future


class LeavesInTurn:
    """Moves one leaf after the other, in the thread of whoever copies."""

    def __init__(self, copy_leaf: Callable[[Node], None]) -> None:
        self._copy_leaf = copy_leaf

    def move(self, node: Node) -> None:
        """Move it now."""
        self._copy_leaf(node)

    def settle(self) -> None:
        """Return: all has moved."""

    def close(self) -> None:
        """Return: nothing moves."""


class LeavesAtOnce:
    """Moves several leaves at once.

    Args:
        copy_leaf: moves one; called in several threads.
        parallel: how many move at once.
    """

    def __init__(self, copy_leaf: Callable[[Node], None], parallel: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._copy_leaf = copy_leaf
        self._pool = ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="minibox-copy")
        self._moving: list[Future[None]] = []

    def move(self, node: Node) -> None:
        """Move it as soon as there is a thread for it."""
        self._moving.append(self._pool.submit(self._copy_leaf, node))

    def settle(self) -> None:
        """Return when all has moved.

        Raises:
            BaseException: the first thing that went wrong, while others may still move.
        """
        from concurrent.futures import FIRST_EXCEPTION, wait

        done, _ = wait(self._moving, return_when=FIRST_EXCEPTION)
        for each in self._moving:
            if each in done:
                each.result()
        self._moving.clear()

    def close(self) -> None:
        """Return when nothing moves any more; what has not begun never does."""
        self._pool.shutdown(wait=True, cancel_futures=True)
