"""The names of the package: whoever writes down a type that a public method takes or returns, can import it."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import minibox_store

# What a method returns under a wider name that is public: an ImageWriter, a RegistryRepository.
UNDER_ANOTHER_NAME = {"MemoryWriter", "WritableRepository"}


def defined_types() -> set[str]:
    """Return the names of the classes, and of the names for types, that the modules of the library define."""
    found = set()
    for file in Path(minibox_store.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found.add(node.targets[0].id)
    return {name for name in found if re.fullmatch(r"[A-Z]\w*[a-z]\w*", name)}


def annotations_of(thing: type) -> Iterator[object]:
    """Yield the annotations of a class, its public methods and its properties."""
    yield from getattr(thing, "__annotations__", {}).values()
    for name, member in inspect.getmembers(thing):
        if not name.startswith("_"):
            function = member.fget if isinstance(member, property) else member
            yield from getattr(function, "__annotations__", {}).values()


def test_each_type_that_a_public_method_names_is_public() -> None:
    public = {name: getattr(minibox_store, name) for name in minibox_store.__all__}
    named: set[str] = set()
    for thing in public.values():
        for annotation in annotations_of(thing) if inspect.isclass(thing) else ():
            named.update(re.findall(r"\w+", annotation if isinstance(annotation, str) else repr(annotation)))
    assert "Descriptor" in named
    assert not (named & defined_types()) - public.keys() - UNDER_ANOTHER_NAME


def test_a_signature_names_its_listener_and_not_each_event() -> None:
    for method in (minibox_store.Store.pull, minibox_store.Store.load, minibox_store.Store.prune):
        assert "EventListener" in str(inspect.signature(method))
        assert "BlobStarted" not in str(inspect.signature(method))


def test_the_names_that_a_type_checker_sees_are_those_that_there_are() -> None:
    source = ast.parse(Path(minibox_store.__file__).read_text())
    checked = next(node for node in source.body if isinstance(node, ast.If))
    seen = [alias.asname for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(map(str, seen)) == minibox_store.__all__
    assert all(getattr(minibox_store, name) is not None for name in minibox_store.__all__)


@pytest.mark.parametrize("name", ["minibox_store", "minibox_store.codec", "minibox_store.registry"])
def test_who_lists_the_names_of_a_package_sees_those_that_are_not_loaded_yet(name: str) -> None:
    program = f"import {name} as package; print(sorted(set(package.__all__) - set(dir(package))))"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout == "[]\n"
