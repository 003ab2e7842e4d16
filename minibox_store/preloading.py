"""Reading all of the library at once, for programs that fork: what is read before is read for all of their children."""

import importlib
import pkgutil
from contextlib import suppress


def preload() -> None:
    """Import every module of the library, which are otherwise imported when they are first needed.

    For a program that forks processes, which share the memory of what it has imported, and for one that would rather
    wait at its start. Optional libraries are imported as far as they are installed, and load: what one raises, such as
    OSError for want of a library of the system, is raised again where it is needed.
    """
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        with suppress(Exception):  # of an optional library, which is named where it is needed
            importlib.import_module(module.name)
