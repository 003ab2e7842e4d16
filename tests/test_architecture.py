"""The shape of the program, held by walking its sources: who may import what, and what stands in one place only."""

import ast
import builtins
import fnmatch
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import minibox_store

ROOT = Path(__file__).parent.parent
PACKAGES = ("minibox_store", "minibox_server")
TOP_LEVEL = {
    *PACKAGES,
    *("tests", "examples", "docs", ".ci", "pyproject.toml", "Makefile"),
    *("CHANGELOG.md", "README.md", "LICENSE", ".git", ".gitignore"),
}
MOST_LINES = 400

# The parts of minibox_store, by layer. A new module is not part of the program until it has its place here.
VALUES = {
    *("errors", "digest", "media_types", "reference", "platforms", "documents", "events", "reports", "values"),
    *("limits", "outlines", "registry_rules", "listeners", "sentences", "lazy", "kinds"),
}
CORE = {
    *("codec", "tar", "protocols", "layout_index", "graph", "copying", "collecting", "checking", "inspecting"),
    *("filters", "selection", "selecting", "manifest_choice", "policies", "offers", "referring", "repositories"),
    *("image_map", "blob_sizes", "weighing", "wholeness", "staging", "leaves", "cancellation", "latch"),
    *("decompressing", "output_bounds", "forwarding"),
}
ENDS = {"memory", "layout", "registry", "archive", "rootfs"}
FILE_PARTS = {
    *("_files", "_locks", "_file_errors", "_signatures", "_room", "_moving", "_extents", "_trees", "_unnamed"),
    *("mounts", "_mount_views"),
}
FACE = {"store", "remote", "face", "__init__"}

# What each part may import of minibox_store, beside itself.
MAY_IMPORT = {
    **dict.fromkeys(VALUES, VALUES),
    **dict.fromkeys(CORE, VALUES | CORE),
    **dict.fromkeys(FILE_PARTS, VALUES | FILE_PARTS | {"protocols"}),
    # An end may walk what it holds; of the copy, and so of progress and cancelling, no end knows.
    **dict.fromkeys(ENDS, VALUES | FILE_PARTS | CORE - {"copying", "staging"}),
    **dict.fromkeys(FACE, VALUES | CORE | ENDS | FACE | FILE_PARTS),
}

# What each package may import from outside the standard library.
MAY_DEPEND_ON = {
    "minibox_store": {"attrs", "cattrs", "urllib3", "backports", "compression", "indexed_gzip", "mfusepy"},
    "minibox_server": {"anyio", "attrs", "h11", "prometheus_client", "starlette", "uvicorn"},
}

# Where a module, function or attribute may be used: in these files and folders and nowhere else.
FILES = ("minibox_store/_files.py",)
LOCKS = ("minibox_store/_locks.py",)
ENVIRONMENT = (
    *("minibox_server/settings.py", "minibox_store/registry/environment.py"),
    "minibox_store/rootfs/libfuse.py",  # a library is told by it which libfuse to take
)
VALUE_FILES = tuple(f"minibox_store/{part}{end}" for part in VALUES for end in (".py", "/"))
# Who starts threads, and why; locks and events are for everybody.
THREADS = {
    "minibox_store/leaves.py": "blobs move at once, because hashing and reading release the interpreter's lock",
    "minibox_store/staging.py": "blobs of one file are staged at once, for the same reason",
    "minibox_store/face/pulled_trees.py": "layers are unpacked while later ones are still downloaded",
    "minibox_store/checking.py": "blobs are hashed at once, for the same reason: as fast as openssl on all cores",
    "minibox_store/layout/pieces.py": "a registry that gives each connection a rate gives several of them more",
    "minibox_store/registry/dialling.py": "nothing ends a look-up of a name that the system does: it is left to itself",
    "minibox_store/rootfs/reading_ahead.py": "a layer is decompressed and hashed while its files are written",
    "minibox_server/transfer_processes.py": "a transfer is a process of its own, and hears the daemon while it works",
    "minibox_store/rootfs/serving.py": "one waits for the end of who mounted, while the other waits in libfuse",
    "minibox_store/rootfs/wakefulness.py": "one sees that no question comes, the other waits for it",
}
ONLY_IN: dict[str, tuple[str, ...]] = {
    "json": ("minibox_store/codec/", "minibox_server/logs.py"),  # a line of the log is written, and never read
    "cattrs": ("minibox_store/codec/",),
    "tomllib": ("minibox_store/codec/",),
    "urllib3": ("minibox_store/registry/",),
    "tarfile": (),
    # The last one holds a lock beside a socket while that is made.
    "fcntl": (*LOCKS, "minibox_store/_extents.py", "minibox_server/listening.py"),
    "mmap": (),  # what others may shorten ends the process that has it mapped
    "subprocess": (
        *("minibox_store/rootfs/mounting.py", "minibox_store/rootfs/unmounting.py"),
        "minibox_store/registry/credential_programs.py",
    ),
    "pickle": ("minibox_store/rootfs/mount_talk.py",),
    **dict.fromkeys(["indexed_gzip", "mfusepy"], ("minibox_store/rootfs/",)),
    **dict.fromkeys(
        ["backports", "compression"],
        ("minibox_store/archive/sinks.py", "minibox_store/decompressing.py", "minibox_store/rootfs/"),
    ),
    **dict.fromkeys(["os.replace", "os.rename", "os.renames", "os.fsync", "os.fdatasync", "os.sync"], FILES),
    **dict.fromkeys(["os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv"], ENVIRONMENT),
    **dict.fromkeys(["threading.Thread", "threading.Timer", "_thread"], tuple(THREADS)),
    **dict.fromkeys(["concurrent.futures", "multiprocessing", "asyncio.to_thread"], tuple(THREADS)),
    **dict.fromkeys(["print", "breakpoint", "eval", "exec"], ()),
    **dict.fromkeys([f"logging.{name}" for name in ("root", "basicConfig", "log", "exception", "critical")], ()),
    **dict.fromkeys([f"logging.{name}" for name in ("debug", "info", "warn", "warning", "error")], ()),
}
# Values know nothing of files or sockets.
NEVER_IN_VALUES = {"os", "pathlib", "io", "shutil", "tempfile", "mmap", "socket", "ssl", "select", "http", "subprocess"}

MUTABLE_CALLS = {"dict", "list", "set", "bytearray", "deque", "defaultdict", "OrderedDict", "Counter"}
MUTATORS = {"append", "add", "update", "clear", "pop", "popitem", "setdefault", "extend", "insert", "remove", "discard"}
CONSTANT = re.compile(r"_*[A-Z][A-Z0-9_]*|__[a-z]+__")


def sources() -> list[tuple[str, ast.Module]]:
    """Return the path below the root, and the syntax tree, of each module of the packages."""
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return [(file.relative_to(ROOT).as_posix(), ast.parse(file.read_text())) for file in files]


def part_of(path: str) -> str:
    """Return which part of its package a file, or a dotted module, belongs to."""
    return path.removesuffix(".py").replace("/", ".").split(".")[1]


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line, and the dotted name, of each thing imported, wherever in the module that is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names)


def dotted(node: ast.expr) -> str | None:
    """Return ``a.b.c`` for a chain of plain names, and None for any other expression."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return None if before is None else f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def names_used_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the full dotted name of every import, builtin and imported thing that is used."""
    known = {name: name for name in dir(builtins)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                known[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            known.update((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
    yield from imports_of(tree)
    for node in ast.walk(tree):
        name = dotted(node) if isinstance(node, ast.Name | ast.Attribute) else None
        first, dot, rest = (name or "").partition(".")
        if first in known and isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, known[first] + dot + rest


def is_inside(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)


def breaches_of_layers(path: str, tree: ast.Module) -> Iterator[str]:
    package, part = path.partition("/")[0], part_of(path)
    if package == "minibox_store" and part not in MAY_IMPORT:
        yield f"{path}: has no layer in MAY_IMPORT"
        return
    for line, name in imports_of(tree):
        top = name.split(".")[0]
        if name.startswith("."):
            yield f"{path}:{line}: a relative import"
        elif top == "minibox_store" and package == top:
            wanted = part_of(name) if "." in name else "__init__"
            if wanted != part and wanted not in MAY_IMPORT[part]:
                yield f"{path}:{line}: {part} may not import {wanted}"
        elif top == "minibox_server" and package != top:
            yield f"{path}:{line}: the library may not import the server"
        elif top not in {*sys.stdlib_module_names, *PACKAGES, *MAY_DEPEND_ON[package]}:
            yield f"{path}:{line}: {package} does not depend on {top}"


def breaches_of_places(path: str, tree: ast.Module) -> Iterator[str]:
    for line, name in names_used_in(tree):
        for restricted, places in ONLY_IN.items():
            if (name == restricted or name.startswith(f"{restricted}.")) and not is_inside(path, places):
                yield f"{path}:{line}: {restricted} belongs to {', '.join(places) or 'no module'}"
        if is_inside(path, VALUE_FILES) and name.split(".")[0] in NEVER_IN_VALUES:
            yield f"{path}:{line}: a value knows nothing of {name}"


def breaches_of_calls(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # str.replace takes two arguments, and datetime.replace only named ones: with one it is Path.replace.
            renames = node.func.attr in ("replace", "rename") and len(node.args) == 1 and not node.keywords
            if renames and not is_inside(path, FILES):
                yield f"{path}:{node.lineno}: {node.func.attr} of a path belongs to {FILES[0]}"
            if dotted(node.func) == "logging.getLogger" and not node.args:
                yield f"{path}:{node.lineno}: the root logger"


def breaches_of_public_names(path: str, tree: ast.Module) -> Iterator[str]:
    if not path.startswith("minibox_server/"):
        return
    for line, name in imports_of(tree):
        package, _, rest = name.partition(".")
        if package == "minibox_store" and rest not in (*minibox_store.__all__, "__version__"):
            yield f"{path}:{line}: {name} is no public name of minibox_store"


def is_mutable(value: ast.expr | None) -> bool:
    literals = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1] in MUTABLE_CALLS
    return isinstance(value, literals)


def breaches_of_statelessness(path: str, tree: ast.Module) -> Iterator[str]:
    constants = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and CONSTANT.fullmatch(target.id):
                    constants.add(target.id)
                elif is_mutable(node.value):
                    yield f"{path}:{node.lineno}: {ast.unparse(target)} is module state"
    for inner in ast.walk(tree):
        changed: ast.expr | None = None
        if isinstance(inner, ast.Global):
            yield f"{path}:{inner.lineno}: global {', '.join(inner.names)}"
        elif isinstance(inner, ast.Subscript) and not isinstance(inner.ctx, ast.Load):
            changed = inner.value
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr in MUTATORS:
            changed = inner.func.value
        if isinstance(changed, ast.Name) and changed.id in constants:
            yield f"{path}:{changed.lineno}: the constant {changed.id} is changed"


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public_definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            if not any(name.endswith((".setter", ".deleter", "overload")) for name in decorators):
                yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{prefix}{node.name}.")


def breaches_of_docstrings(path: str, tree: ast.Module) -> Iterator[str]:
    if ast.get_docstring(tree) is None:
        yield f"{path}: the module has no docstring"
    for name, node in public_definitions(tree.body):
        if ast.get_docstring(node) is None:
            yield f"{path}:{node.lineno}: {name} has no docstring"


def breaches_of_values(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if path.startswith("minibox_store/") and isinstance(node, ast.ClassDef):
            own = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
            frozen = [each for each in map(ast.unparse, node.decorator_list) if each.startswith("attrs.frozen")]
            if frozen and "repr=False" not in frozen[0] and "__repr__" not in own:
                yield f"{path}:{node.lineno}: {node.name} is a Value, and says repr=False"
            if frozen and "repr=False" in frozen[0] and not node.bases:
                yield f"{path}:{node.lineno}: {node.name} says repr=False, and is no Value"


Rule = Callable[[str, ast.Module], Iterator[str]]
RULES: list[Rule] = [
    breaches_of_layers,
    breaches_of_places,
    breaches_of_calls,
    breaches_of_public_names,
    breaches_of_statelessness,
    breaches_of_docstrings,
    breaches_of_values,
]


@pytest.mark.parametrize("rule", RULES)
def test_no_module_has(rule: Rule) -> None:
    breaches = sorted({breach for path, tree in sources() for breach in rule(path, tree)})
    assert not breaches, "\n".join(["", *breaches])


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path, _ in sources()}
    assert not {path: length for path, length in lengths.items() if length > MOST_LINES}


def test_the_description_of_the_tree_names_each_part_of_the_library_and_no_other() -> None:
    described = {name.rstrip("/") for name in re.findall(r"`(\w+/?)`", (ROOT / "docs" / "tree.md").read_text())}
    inside = {path.stem for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in ("", ".py")}
    assert set(MAY_IMPORT) - {"__init__"} - described == set()
    assert described - inside - {"minibox_server"} == set()


def test_the_top_level_holds_nothing_else() -> None:
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    found = {path.name for path in ROOT.iterdir()}
    assert not {name for name in found - TOP_LEVEL if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}


@pytest.mark.parametrize(
    ("path", "source", "breach"),
    [
        ("minibox_store/digest.py", "from minibox_store.codec import decode_document", "digest may not import codec"),
        ("minibox_store/digest.py", "from minibox_store import codec", "digest may not import codec"),
        ("minibox_store/memory.py", "import minibox_store.layout.paths", "memory may not import layout"),
        ("minibox_store/graph.py", "from minibox_store import Store", "graph may not import Store"),
        ("minibox_store/graph.py", "def f():\n    import minibox_store", "graph may not import __init__"),
        ("minibox_store/layout/paths.py", "from .layout import Layout", "relative import"),
        ("minibox_store/store.py", "import minibox_server", "may not import the server"),
        ("minibox_store/store.py", "import requests", "does not depend on requests"),
        ("minibox_store/oddities.py", "", "no layer"),
        ("minibox_store/store.py", "import urllib3", "urllib3 belongs to minibox_store/registry/"),
        ("minibox_store/tar.py", "import tarfile", "tarfile belongs to no module"),
        ("minibox_store/_moving.py", "from mmap import mmap", "mmap belongs to no module"),
        ("minibox_store/_moving.py", "import fcntl", "fcntl belongs to"),
        ("minibox_store/store.py", "from json import loads as read", "json belongs to minibox_store/codec/"),
        ("minibox_store/store.py", "import os as o\no.replace(a, b)", "os.replace belongs to"),
        ("minibox_store/store.py", "from os import fsync", "os.fsync belongs to"),
        ("minibox_store/store.py", "import os\nos.environ.get('HOME')", "os.environ belongs to"),
        ("minibox_store/store.py", "import threading\nthreading.Thread(target=f)", "threading.Thread belongs to"),
        ("minibox_store/store.py", "from concurrent.futures import Future", "concurrent.futures belongs to"),
        ("minibox_store/store.py", "print(1)", "print belongs to no module"),
        ("minibox_store/store.py", "import logging\nlogging.info('x')", "logging.info belongs to no module"),
        ("minibox_store/store.py", "import logging\nlogging.getLogger()", "root logger"),
        ("minibox_store/store.py", "from pathlib import Path\nPath(a).replace(b)", "replace of a path belongs to"),
        ("minibox_store/reference.py", "from pathlib import Path", "a value knows nothing of pathlib"),
        ("minibox_server/app.py", "import minibox_store", "no public name"),
        ("minibox_server/app.py", "from minibox_store.store import Store", "no public name"),
        ("minibox_server/app.py", "from minibox_store import no_such_name", "no public name"),
        ("minibox_store/store.py", "cache = {}", "cache is module state"),
        ("minibox_store/store.py", "seen: set[str] = set()", "seen is module state"),
        ("minibox_store/store.py", "SEEN = []\ndef f():\n    SEEN.append(1)", "constant SEEN is changed"),
        ("minibox_store/store.py", "SEEN = {}\ndef f():\n    SEEN[1] = 2", "constant SEEN is changed"),
        ("minibox_store/store.py", "def f():\n    global x\n    x = 1", "global x"),
        ("minibox_store/store.py", "", "the module has no docstring"),
        ("minibox_store/store.py", '"""x."""\nclass A:\n    """x."""\n    def b(self): ...', "A.b has no docstring"),
        (
            "minibox_store/store.py",
            "@attrs.frozen(kw_only=True)\nclass A(Value): ...",
            "A is a Value, and says repr=False",
        ),
        ("minibox_store/store.py", "@attrs.frozen(repr=False)\nclass A: ...", "A says repr=False, and is no Value"),
    ],
)
def test_the_rules_see_what_breaks_them(path: str, source: str, breach: str) -> None:
    assert any(breach in found for rule in RULES for found in rule(path, ast.parse(source)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("minibox_store/layout/layout.py", "from minibox_store.layout.paths import LayoutPaths"),
        ("minibox_store/registry/pool.py", "import urllib3\nimport threading\nlock = threading.Lock()"),
        ("minibox_store/_files.py", "import os\nos.replace(a, b)\nos.fsync(c)"),
        ("minibox_store/store.py", "import logging\nlogger = logging.getLogger(__name__)\nlogger.info('x')"),
        ("minibox_store/store.py", "text = 'a'.replace('a', 'b')\nNAMES = ['a']\n__all__ = ['text']"),
        ("minibox_store/store.py", "def f(print, json):\n    return json.loads"),
        ("minibox_server/settings.py", "import os\nfrom minibox_store import Store\nhome = os.environ['HOME']"),
    ],
)
def test_the_rules_let_pass_what_keeps_them(path: str, source: str) -> None:
    documented = ast.parse(f'"""x."""\n{source}'.replace("def f", "def _f"))
    assert not [found for rule in RULES for found in rule(path, documented)]
