"""Threads that use names for the first time at once: none of them fails because another one imports the same."""

import subprocess
import sys

# While one thread is about to execute urllib3, which it holds for itself, another one comes to a name that needs it.
PROGRAM = """
import importlib.machinery, sys, threading
import minibox_store
failed = []
def use():
    try:
        minibox_store.RegistryClient
    except BaseException as error:
        failed.append(repr(error))
other = threading.Thread(target=use)
class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        other.start()
        other.join(2.0)  # so long it has to come to where it waits
        super().exec_module(module)
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = super().find_spec(name, path, target) if name == "urllib3" else None
        if found is not None:
            found.loader = Loader(name, found.origin)
        return found
sys.meta_path.insert(0, Finder)
try:
    import urllib3
except BaseException as error:
    failed.append(repr(error))
other.join(20)
assert other.ident
print(failed)
"""


def test_a_name_that_needs_urllib3_is_found_while_another_thread_imports_that() -> None:
    command = [sys.executable, "-c", PROGRAM]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout == "[]\n"
