"""Everything is imported at once, where that is asked for, and nothing of it later."""

import subprocess
import sys

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
