"""Laws of unpacking: a tree is that of a simple model, whatever the layers; and a layer put twice is one put once.

The model is a few nested dicts. It knows the rules of whiteouts and links, and nothing of descriptors.
"""

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from minibox_store import InvalidArchive
from minibox_store.tar import Member, MemberKind
from tests.support.layer_trees import Content, apply, file, folder, hard_link, link, listing, tar_of, writing

NAMES = st.sampled_from("abc")
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
# Mostly not where directories are, so that most layers are taken.
FILE_PATHS = st.builds("{}/{}".format, PATHS, st.sampled_from("abdef"))
TARGETS = st.one_of(
    PATHS, PATHS.map("/{}".format), PATHS.map("../{}".format), st.sampled_from(["..", "/", "../..", "."])
)
WHITEOUTS = st.tuples(st.lists(NAMES, max_size=2), NAMES).map(lambda way: "/".join([*way[0], f".wh.{way[1]}"]))
OPAQUE = st.lists(NAMES, max_size=2).map(lambda way: "/".join([*way, ".wh..wh..opq"]))
MODES = st.sampled_from([0o700, 0o755, 0o711])
CONTENTS: st.SearchStrategy[Content] = st.one_of(
    st.builds(file, FILE_PATHS, st.sampled_from([b"", b"1", b"2"])),
    st.builds(folder, PATHS, MODES),
    st.builds(folder, PATHS, MODES),
    st.builds(link, PATHS, TARGETS),
    st.builds(hard_link, FILE_PATHS, FILE_PATHS),
    st.builds(file, WHITEOUTS),
    st.builds(file, OPAQUE),
)
LAYERS = st.lists(st.lists(CONTENTS, max_size=6), min_size=1, max_size=4)


class Refused(Exception):
    """The model takes no such layer."""


@dataclass(eq=False)
class Node:
    """A directory, file or link. Of a directory: what it has, and which layer put something at each name, or below."""

    kind: str
    text: str = ""
    mode: int = 0o755
    named_by: int = 0
    entries: "dict[str, Node]" = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)


class Model:
    """A tree, and layers put into it one after the other."""

    def __init__(self) -> None:
        self.root = Node("d")
        self.layer = 0

    def apply(self, layer: Sequence[Content]) -> None:
        self.layer += 1
        for content in layer:
            member, data = content if isinstance(content, tuple) else (content, b"")
            *way, name = member.name.split("/")
            if not name.startswith(".wh."):
                self.put(member, data.decode(), way, name)
                continue
            found = self.at(way)
            if found is not None and found.kind == "d":
                names = list(found.entries) if name == ".wh..wh..opq" else [name.removeprefix(".wh.")]
                for each in names:
                    self.hide(found, each)

    def put(self, member: Member, text: str, way: list[str], name: str) -> None:
        path = self.follow(way)
        parent = self.make(path)
        there = parent.entries.get(name)
        if member.kind is MemberKind.DIRECTORY:
            node = there if there is not None and there.kind == "d" else Node("d")
            node.mode, node.named_by = member.mode, self.layer
        elif member.kind is MemberKind.SYMLINK:
            node = Node("l", member.link_target)
        elif member.kind is MemberKind.HARDLINK:
            *target_way, target = member.link_target.split("/")
            target_path = [*self.follow(target_way), target]
            found = self.at(target_path)
            if found is None or found.kind == "d" or target_path[:-1][: len(path) + 1] == [*path, name]:
                raise Refused
            node = found
        else:
            node = Node("f", text)
        parent.entries[name] = node
        self.mark(path, name)

    def mark(self, path: list[str], name: str) -> None:
        directory = self.root
        for part in [*path, name]:
            directory.layers[part] = self.layer
            directory = directory.entries[part]

    def make(self, path: list[str]) -> Node:
        directory = self.root
        for position, part in enumerate(path):
            if part not in directory.entries:
                directory.entries[part] = Node("d")
                self.mark(path[:position], part)
            directory = directory.entries[part]
        return directory

    def at(self, path: list[str]) -> Node | None:
        """Return what is at a path, through no link."""
        node = self.root
        for part in path:
            if node.kind != "d" or part not in node.entries:
                return None
            node = node.entries[part]
        return node

    def follow(self, way: list[str]) -> list[str]:
        """Return where a way leads: a path without links, of which the end may not be there yet."""
        path: list[str] = []
        rest = list(way)
        links = 0
        while rest:
            part = rest.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                path = path[:-1]
                continue
            node = self.at([*path, part])
            if node is None or node.kind == "d":
                path.append(part)
            elif node.kind == "l" and links < 40:
                links += 1
                path = [] if node.text.startswith("/") else path
                rest = [*node.text.split("/"), *rest]
            else:
                raise Refused
        return path

    def hide(self, directory: Node, name: str) -> None:
        if name not in directory.entries:
            return
        if directory.layers[name] != self.layer:
            del directory.entries[name]
            return
        own = directory.entries[name]
        if own.kind == "d":
            if own.named_by != self.layer:
                own.mode = 0o755
            for each in list(own.entries):
                self.hide(own, each)

    def listing(self) -> dict[str, str]:
        found: dict[str, str] = {}
        self.list(self.root, "", found)
        return found

    def list(self, directory: Node, prefix: str, found: dict[str, str]) -> None:
        for name, node in directory.entries.items():
            text = {"d": f"d {node.mode:o}", "l": f"-> {node.text}", "f": node.text}[node.kind]
            found[prefix + name] = text
            if node.kind == "d":
                self.list(node, f"{prefix}{name}/", found)


def found_in(root: Path) -> dict[str, str]:
    """Return what the model would tell of a tree."""
    found = listing(root)
    return {
        path: f"d {(root / path).stat().st_mode & 0o777:o}" if text == "d" else text for path, text in found.items()
    }


@settings(max_examples=400, deadline=None)
@given(LAYERS)
def test_the_tree_is_that_of_the_model(layers: list[list[Content]]) -> None:
    model = Model()
    with tempfile.TemporaryDirectory() as folder_name, writing(Path(folder_name, "tree"), most_open=2) as writer:
        for layer in layers:
            try:
                model.apply(layer)
            except Refused:
                with pytest.raises(InvalidArchive):
                    writer.apply_layer(io.BytesIO(tar_of(layer)))
                event("refused")
                return
            writer.apply_layer(io.BytesIO(tar_of(layer)))
        writer.finish()
        assert found_in(Path(folder_name, "tree")) == model.listing()
        event("taken")


@settings(max_examples=100, deadline=None)
@given(st.lists(CONTENTS, max_size=8), st.dictionaries(PATHS, st.sampled_from(["f", "d", "l"]), max_size=6))
def test_a_layer_put_twice_is_a_layer_put_once(lower: list[Content], chosen: dict[str, str]) -> None:
    """Of a layer that says one thing of each path, and makes no path lead through another's link."""
    above = {"/".join(path.split("/")[:length]) for path in chosen for length in (1, 2)} - set(chosen)
    kinds = {**chosen, **dict.fromkeys(above, "d")}
    parents = {path for path in kinds if any(other.startswith(f"{path}/") for other in kinds)}
    layer: list[Content] = [
        folder(path)
        if path in parents or kinds[path] == "d"
        else file(path, b"1")
        if kinds[path] == "f"
        else link(path, "x")
        for path in sorted(kinds)
    ]
    layer.append(file(".wh.c"))
    with tempfile.TemporaryDirectory() as around:
        try:
            apply(Path(around, "once"), lower, layer)
        except InvalidArchive:
            event("refused")
            return
        apply(Path(around, "twice"), lower, layer, layer)
        assert found_in(Path(around, "once")) == found_in(Path(around, "twice"))
