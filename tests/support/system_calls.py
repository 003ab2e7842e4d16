"""The ``os`` module with some of its functions replaced, to stand in for that of one module: another kernel."""

import os
from typing import Any


class OtherOs:
    """All of ``os``, but for the functions given here."""

    def __init__(self, **functions: Any) -> None:
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class Failing:
    """A function that fails with an errno; it counts its calls."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.calls = 0

    def __call__(self, *_: object, **__: object) -> int:
        self.calls += 1
        raise OSError(self._number, os.strerror(self._number))
