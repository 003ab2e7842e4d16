"""Every example runs, as a stranger would run it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.images import build_image
from tests.support.scripted_registry import ScriptedRegistry, serve_image

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
QUICKSTART = next(example for example in EXAMPLES if example.stem == "quickstart")
GOOD_END = "Every step did what it says.\n"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_ends_well_and_says_so(example: Path) -> None:
    assert run(example).endswith(GOOD_END)


def test_an_image_of_a_single_file_travels_too() -> None:
    image = build_image([{"hello": b"hello"}])
    with ScriptedRegistry() as registry:
        serve_image(registry, "hello-world", "latest", image)
        told = run(QUICKSTART, "--image", registry.reference("hello-world", "latest"))
    assert "_hello-world_latest: hello\n" in told
    assert told.endswith(GOOD_END)


def run(example: Path, *arguments: str) -> str:
    """Run an example, which has to say by its exit status that all went well, and return what it tells."""
    command = [sys.executable, str(example), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
