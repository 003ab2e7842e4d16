"""How much something compressed may become: a bomb is refused by its ratio, and whatever it is by its size.

A ratio is asked of the whole where its size is known, since files begin with zeros that are no bombs; and small things
may have any.
"""

from minibox_store.errors import InvalidArchive

# A frame or member of a few bytes takes some 50 µs to begin with: whoever sends little can ask for much time that way.
_FREE_STEPS = 1 << 16
_BYTES_PER_STEP = 512


class OutputBounds:
    """How much something compressed may become, and what it has become so far.

    Args:
        what: what an error calls it.
        most_bytes: it may become.
        ratio: how many bytes one byte of it may become, over the whole of it, once ``ratio_floor_bytes`` have come.
        ratio_floor_bytes: up to here any ratio will do.
        compressed_bytes: how many it is; where nobody knows, those count that were read of it so far.
        idle_bytes: how many of its bytes may be read with nothing to come of them. Where it is None, the caller has
            bounds of his own on the size of what is read and on the time; else the steps are bounded too.
    """

    def __init__(
        self,
        what: str,
        *,
        most_bytes: int,
        ratio: int,
        ratio_floor_bytes: int,
        compressed_bytes: int | None = None,
        idle_bytes: int | None = None,
    ) -> None:
        self._what = what
        self._most_bytes = most_bytes
        self._ratio = ratio
        self._ratio_floor_bytes = ratio_floor_bytes
        self._compressed_bytes = compressed_bytes
        self._idle_bytes = idle_bytes
        self._input_bytes = self._output_bytes = 0
        self._idle_since = 0
        self._steps = 0

    def count_input(self, count: int) -> None:
        """Take note of bytes that were read of it."""
        self._input_bytes += count

    def count_output(self, count: int) -> None:
        """Take note of the bytes that one step of decompressing gave, none perhaps."""
        if self._idle_bytes is not None:
            self._count_step(count, self._idle_bytes)
        self._output_bytes += count
        if self._output_bytes > self._most_bytes:
            raise InvalidArchive(f"{self._what} is larger than {self._most_bytes} bytes, which is the limit")
        if self._output_bytes <= self._ratio_floor_bytes:
            return
        size_bytes = self._input_bytes if self._compressed_bytes is None else self._compressed_bytes
        most_bytes = max(self._ratio_floor_bytes, self._ratio * size_bytes)
        if self._output_bytes > most_bytes:
            raise InvalidArchive(
                f"{self._what} becomes more than {most_bytes} bytes, which is the limit for one of {size_bytes} bytes "
                "compressed"
            )

    def _count_step(self, count: int, idle_bytes: int) -> None:
        if count:
            self._idle_since = self._input_bytes
        elif self._input_bytes - self._idle_since > idle_bytes:
            raise InvalidArchive(f"nothing comes of more than {idle_bytes} bytes of {self._what}")
        self._steps += 1
        if self._steps > _FREE_STEPS + self._output_bytes // _BYTES_PER_STEP:
            raise InvalidArchive(f"{self._what} is compressed in {self._steps} parts, too many for what comes of them")
