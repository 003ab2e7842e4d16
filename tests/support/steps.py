"""The steps of the interpreter in some modules: at each of them a handler of signals may run."""

import sys
from collections.abc import Callable
from types import FrameType

OnStep = Callable[[int, FrameType], None]


class Steps:
    """Runs something in this thread, and acts at steps of it, in the midst of whatever is done there.

    Args:
        modules: where; of a module it may be one function: ``/uploads.py:append``.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules

    def run(self, work: Callable[[], object], on_step: OnStep = lambda number, frame: None) -> int:
        """Do it, and call ``on_step`` before each step, with its number from 1 on; return how many there were."""
        count = 0

        def trace(frame: FrameType, event: str, _: object) -> object:
            nonlocal count
            where = f"{frame.f_code.co_filename}:{frame.f_code.co_name}"
            if event == "call" and (not any(each in where for each in self._modules) or _is_last_of(frame)):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                count += 1
                on_step(count, frame)
            return trace

        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # CPython 3.12 tells of opcodes only if one was asked for by then
        try:
            sys.settrace(trace)  # type: ignore[arg-type]  # it takes any callable of three
            work()
        finally:
            sys.settrace(before)
        return count


def _is_last_of(frame: FrameType) -> bool:
    """Whether an object is being thrown away: what a handler raises then, Python itself passes over."""
    back = frame.f_back
    return "__del__" in (frame.f_code.co_name, back and back.f_code.co_name)
