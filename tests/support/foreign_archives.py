"""Archives as the tools of others write them, each with what a store must have once it has loaded it."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen

from tests.support.builders import opening_builder
from tests.support.engines import Containerd, running_containerd, running_docker
from tests.support.images import BuiltImage, build_image, build_index, build_layer
from tests.support.layouts import read_layout_names, write_layout
from tests.support.peers import run_skopeo, run_umoci
from tests.support.tar_tools import pack

APP = "example.org/team/app:1"
OTHER = "example.org/team/other:2"
# One layer lies twice in it, as that of an empty step does.
_TWICE = build_layer({"etc/release": b"1\n" * 500})
IMAGE = build_image([_TWICE, {"bin/tool": bytes(range(256)) * 300}, _TWICE])
SECOND = build_image([_TWICE, {"bin/other": b"other"}], salt="second")
ARM64 = build_image(platform="linux/arm64")
INDEX = build_index([ARM64, IMAGE])


@frozen(kw_only=True)
class Foreign:
    """One archive.

    Attributes:
        path: Where it lies.
        roots: The digest of what each name stands for, where the archive tells it.
        configs: That of its config, where the manifest is made of the archive.
    """

    path: Path
    roots: Mapping[str, str] = {}
    configs: Mapping[str, str] = {}


def write_archive(kind: str, folder: Path) -> Foreign:
    """Write an archive of one of the :data:`KINDS` into an empty folder; skip the test where its tool is missing."""
    return KINDS[kind](folder)


def _by_skopeo(form: str, names: tuple[str, ...], folder: Path) -> Foreign:
    write_layout(folder / "layout", {APP: IMAGE})
    tags = [word for name in names[1:] for word in ("--additional-tag", name)]
    archive = folder / "archive.tar"
    run_skopeo("copy", *tags, f"oci:{folder / 'layout'}:{APP}", f"{form}:{archive}:{names[0]}")
    if form == "oci-archive":
        return Foreign(path=archive, roots={APP: IMAGE.digest})
    return Foreign(path=archive, configs=dict.fromkeys(names, IMAGE.config_digest))


def _all_by_skopeo(folder: Path) -> Foreign:
    write_layout(folder / "layout", {APP: INDEX})
    archive = folder / "archive.tar"
    run_skopeo("copy", "--all", f"oci:{folder / 'layout'}:{APP}", f"oci-archive:{archive}:{APP}")
    return Foreign(path=archive, roots={APP: INDEX.digest})


def _by_podman(form: str, folder: Path) -> Foreign:
    with opening_builder("vfs") as builder:
        _fill(builder.load, folder)
        builder.save(APP, form, folder / "archive.tar")
    return Foreign(path=folder / "archive.tar", configs={APP: IMAGE.config_digest})


def _several_by_podman(folder: Path) -> Foreign:
    with opening_builder("vfs") as builder:
        _fill(builder.load, folder)
        builder.tag(APP, "localhost/again:3")
        configs = builder.configs()
        builder.save_several([APP, OTHER, "localhost/again:3"], folder / "archive.tar")
    assert sorted(configs) == [APP, OTHER, "localhost/again:3"]
    return Foreign(path=folder / "archive.tar", configs=configs)


def _by_docker(names: tuple[str, ...], folder: Path) -> Foreign:
    with running_docker() as docker:
        _fill(docker.load, folder)
        docker.tag(APP, "again:3")
        configs = docker.configs()
        docker.save(folder / "archive.tar", *names)
    return Foreign(path=folder / "archive.tar", configs={name: configs[name] for name in names})


def _by_containerd(images: Mapping[str, BuiltImage], folder: Path) -> Foreign:
    with running_containerd() as containerd:
        _import(containerd, images, folder)
        containerd.save(folder / "archive.tar", *images)
    return Foreign(path=folder / "archive.tar", roots={name: image.digest for name, image in images.items()})


def _what_docker_gave_containerd(folder: Path) -> Foreign:
    with running_containerd() as containerd:
        for archive in _docker_archives(folder):
            containerd.load(archive)
        roots = containerd.roots()
        containerd.save(folder / "archive.tar", *roots)
    return Foreign(path=folder / "archive.tar", roots=roots)


def _by_umoci(folder: Path) -> Foreign:
    layout = folder / "layout"
    run_umoci("init", "--layout", layout)
    run_umoci("new", "--image", f"{layout}:1")
    (folder / "file").write_bytes(b"content")
    for number in range(2):  # what the first leaves behind is in the archive too
        run_umoci("insert", "--image", f"{layout}:1", folder / "file", f"/file-{number}")
    run_umoci("tag", "--image", f"{layout}:1", "2")
    roots = {name: str(entry["digest"]) for name, entry in read_layout_names(layout).items()}
    assert sorted(roots) == ["1", "2"]
    return Foreign(path=pack("GNU tar", "gnu", layout, ["."], folder / "archive.tar"), roots=roots)


KINDS: Mapping[str, Callable[[Path], Foreign]] = {
    "skopeo, docker-archive": functools.partial(_by_skopeo, "docker-archive", (APP,)),
    "skopeo, docker-archive of three names": functools.partial(
        _by_skopeo, "docker-archive", (APP, "example.org/again:2", "example.org/again:3")
    ),
    "skopeo, oci-archive": functools.partial(_by_skopeo, "oci-archive", (APP,)),
    "skopeo, oci-archive of all platforms": _all_by_skopeo,
    "podman, docker-archive": functools.partial(_by_podman, "docker-archive"),
    "podman, docker-archive of several images": _several_by_podman,
    "podman, oci-archive": functools.partial(_by_podman, "oci-archive"),
    "docker": functools.partial(_by_docker, (APP,)),
    "docker, several images": functools.partial(_by_docker, (APP, OTHER, "again:3")),
    "containerd": functools.partial(_by_containerd, {APP: IMAGE}),
    "containerd, several images": functools.partial(_by_containerd, {APP: IMAGE, OTHER: SECOND}),
    "containerd, all platforms": functools.partial(_by_containerd, {APP: INDEX, OTHER: SECOND}),
    "containerd, what Docker had saved": _what_docker_gave_containerd,
    "umoci, packed by GNU tar": _by_umoci,
}


def write_sparse_archive(folder: Path) -> Path:
    """Write an archive of an index by containerd, with one of its platforms alone."""
    with running_containerd() as containerd:
        _import(containerd, {APP: INDEX}, folder)
        return containerd.save(folder / "archive.tar", APP, options=("--platform", "linux/amd64"))


def write_nameless_archive(kind: str, folder: Path) -> Path:
    """Write an archive that says no name of its image, by ``docker`` or ``skopeo``."""
    if kind == "docker":
        with running_docker() as docker:
            _fill(docker.load, folder)
            return docker.save(folder / "archive.tar", docker.configs()[APP])
    write_layout(folder / "layout", {APP: IMAGE})
    run_skopeo("copy", f"oci:{folder / 'layout'}:{APP}", f"{kind}:{folder / 'archive.tar'}")
    return folder / "archive.tar"


def _docker_archives(folder: Path) -> list[Path]:
    write_layout(folder / "source", {APP: IMAGE, OTHER: SECOND})
    archives = []
    for number, name in enumerate((APP, OTHER)):
        archives.append(folder / f"source-{number}.tar")
        run_skopeo("copy", f"oci:{folder / 'source'}:{name}", f"docker-archive:{archives[-1]}:{name}")
    return archives


def _fill(load: Callable[[Path], None], folder: Path) -> None:
    for archive in _docker_archives(folder):
        load(archive)


def _import(containerd: Containerd, images: Mapping[str, BuiltImage], folder: Path) -> None:
    write_layout(folder / "source", images)
    containerd.load(pack("GNU tar", "gnu", folder / "source", ["."], folder / "source.tar"))
