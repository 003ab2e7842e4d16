"""The README's programs run as they stand, against a registry of this machine, and its table of variables is whole."""

import random
import re
from pathlib import Path

import pytest

from minibox_store import Store
from tests.support.archives import unpack
from tests.support.images import build_image
from tests.support.scripted_registry import ScriptedRegistry, basic_credentials, serve_image
from tests.support.served_trees import mount_point, require_fuse
from tests.support.stores import put, require_root

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run_block(source: str, folder: Path, registry: ScriptedRegistry) -> None:
    """Run a program of the README with its folders and registries changed to ones that are there."""
    for written, real in (
        ("/var/lib/images", str(folder / "store")),
        ("/srv/other", str(folder / "other")),
        ("/srv/there", str(folder / "other")),
        ("/tmp/alpine.tar", str(folder / "alpine.tar")),
        ("/tmp/both.tar", str(folder / "both.tar")),
        ("/tmp/thin.tar", str(folder / "thin.tar")),
        ("/srv/alpine", str(folder / "tree")),
        ("/mnt/alpine", str(folder / "mounted")),
        ('"alpine:3.20"', f'"{registry.reference("library/alpine", "3.20")}"'),
        ("registry.example.org", registry.host),
    ):
        source = source.replace(written, real)
    exec(compile(source, "README.md", "exec"), {})  # the program is the project's own


def test_the_first_program_of_the_readme_runs(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry:
        serve_image(registry, "library/alpine", "3.20", build_image())
        run_block(BLOCKS[0], tmp_path, registry)
    assert [image.name for image in Store(tmp_path / "store").images()] == ["base:current"]
    assert len(Store(tmp_path / "other").images()) == 1
    assert {member.name for member, _ in unpack((tmp_path / "both.tar").read_bytes())} > {"index.json", "manifest.json"}


def test_the_program_that_sends_only_what_is_missing_runs(tmp_path: Path) -> None:
    layer = {"shared": random.Random(1).randbytes(100_000)}  # no compression makes less of it
    put(tmp_path / "other", build_image([layer]), "app:1")
    put(tmp_path / "store", build_image([layer, {"new": b"n"}]), "app:2")
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "archives.md").read_text(), re.DOTALL)
    with ScriptedRegistry() as registry:
        run_block(program, tmp_path, registry)
    assert [image.name for image in Store(tmp_path / "other").images()] == ["app:1", "app:2"]
    assert (tmp_path / "thin.tar").stat().st_size < 100_000


def test_the_program_of_the_readme_that_keeps_order_runs(tmp_path: Path) -> None:
    put(tmp_path / "store", build_image(), "base:current")
    with ScriptedRegistry() as registry:
        run_block(BLOCKS[1], tmp_path, registry)
    assert [image.name for image in Store(tmp_path / "store").images()] == ["base:current"]


def test_the_program_of_the_readme_that_looks_into_images_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_root()
    require_fuse()
    before = build_image([{"etc/os-release": b"ID=old\n", "bin/sh": b"#!"}], salt="before")
    after = build_image([{"etc/os-release": b"ID=new\n", "bin/sh": b"#!"}], salt="after")
    with ScriptedRegistry() as registry, mount_point(tmp_path / "mounted"):
        put(tmp_path / "store", before, "alpine:3.19")
        put(tmp_path / "store", after, registry.reference("library/alpine", "3.20"))
        run_block(BLOCKS[2], tmp_path, registry)
    assert (tmp_path / "tree" / "etc" / "os-release").read_bytes() == b"ID=new\n"
    said = capsys.readouterr().out
    assert "ID=new" in said
    assert "/etc/os-release ('content'," in said
    assert str(tmp_path / "mounted") in said
    assert "/extracted/" in said


def test_the_fourth_program_of_the_readme_sends_its_credentials_and_runs(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry:
        serve_image(
            registry,
            "team/app",
            "1",
            build_image(),
            authorization=basic_credentials("ci", "…"),
            challenge='Basic realm="r"',
        )
        run_block(BLOCKS[3], tmp_path, registry)
    assert len(Store(tmp_path / "store").images()) == 1


def test_every_variable_that_the_daemon_reads_stands_in_the_readme() -> None:
    read = set(re.findall(r"MINIBOX_[A-Z_]*[A-Z]\b", (ROOT / "minibox_server" / "settings.py").read_text()))
    assert read
    assert read <= set(re.findall(r"MINIBOX_[A-Z_]*[A-Z]\b", README))
