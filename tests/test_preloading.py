"""Everything is imported at once, where that is asked for, and nothing of it later."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from tests.support.images import build_image, random_layer
from tests.support.scripted_registry import ScriptedRegistry, serve_image
from minibox_store import Store, preload
preload()
before = set(sys.modules)
with ScriptedRegistry() as registry:
    serve_image(registry, "app", "1", build_image([random_layer(10_240)]))
    store = Store(sys.argv[1])
    store.pull(registry.reference("app", "1"), unpack=True)
    store.prune()
print(sorted(name for name in set(sys.modules) - before if name.startswith(("minibox_store", "urllib3", "cattrs"))))
"""


def test_what_was_preloaded_is_not_imported_by_a_pull_or_a_prune(tmp_path: object) -> None:
    command = [sys.executable, "-c", PROGRAM, f"{tmp_path}/data"]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout == "[]\n"


@pytest.mark.parametrize("error", ["OSError('Unable to find libfuse')", "ImportError('of another build')"])
def test_an_optional_library_that_does_not_load_keeps_nothing_else_from_being_preloaded(
    error: str, tmp_path: Path
) -> None:
    (tmp_path / "mfusepy.py").write_text(f"raise {error}\n")
    program = "from minibox_store import preload; preload(); print('minibox_store.wholeness' in sys.modules)"
    path = f"sys.path.insert(0, {str(tmp_path)!r})"
    command = [sys.executable, "-c", f"import sys; {path}; {program}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n"
