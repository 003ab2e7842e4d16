"""Watch an image travel: out of a registry over HTTP, into a store, out to an archive, back in, away, and collected.

Builds a small image for two platforms, serves it from one daemon, pulls it into a second, which unpacks it, and then
lists, saves, loads into a third, removes and prunes, printing each request and its answer. Every step is checked; the
exit status is 0 only if each did what it says. Needs no network: everything happens on 127.0.0.1 and in a temporary
folder.

    python examples/quickstart.py
    python examples/quickstart.py --image alpine:3.20    # pulls that image from its registry instead
"""

import argparse
import gzip
import hashlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlencode

from minibox_store import Descriptor, Index, Manifest, MemoryImages, Platform, Store, encode_document

OCI = "application/vnd.oci.image"
START_SECONDS = 20.0


# ---- a small real image ------------------------------------------------------------------------------------------


def build_layer(files: dict[str, bytes]) -> tuple[bytes, str]:
    """Return a gzipped layer with these files, and the digest of what is inside the gzip."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(content), 0o755 if path.startswith("bin/") else 0o644
            tar.addfile(member, io.BytesIO(content))
    diff_id = f"sha256:{hashlib.sha256(raw.getvalue()).hexdigest()}"
    return gzip.compress(raw.getvalue(), mtime=0), diff_id


def build_manifest(images: MemoryImages, platform: Platform) -> Descriptor:
    """Put an image of two layers for one platform into ``images``, and return its manifest's descriptor."""
    base = build_layer({"etc/os-release": b'NAME="minibox demo"\n', "etc/passwd": b"root:x:0:0:root:/:/bin/hello\n"})
    program = build_layer({"bin/hello": f"#!/bin/sh\necho hello from {platform}\n".encode()})
    config = {
        "created": "2024-01-01T00:00:00Z",
        "os": platform.os,
        "architecture": platform.architecture,
        "config": {"Cmd": ["/bin/hello"]},
        "rootfs": {"type": "layers", "diff_ids": [base[1], program[1]]},
    }
    manifest = Manifest(
        media_type=f"{OCI}.manifest.v1+json",
        config=images.add_blob(json.dumps(config).encode(), f"{OCI}.config.v1+json"),
        layers=tuple(images.add_blob(layer, f"{OCI}.layer.v1.tar+gzip") for layer, _ in (base, program)),
    )
    found = images.add_blob(encode_document(manifest), manifest.media_type)
    return Descriptor(media_type=found.media_type, digest=found.digest, size_bytes=found.size_bytes, platform=platform)


def build_image(name: str) -> MemoryImages:
    """Return one image for two platforms, in memory."""
    images = MemoryImages()
    platforms = (Platform(os="linux", architecture="arm64"), Platform(os="linux", architecture="amd64"))
    manifests = tuple(build_manifest(images, platform) for platform in platforms)
    index = Index(media_type=f"{OCI}.index.v1+json", manifests=manifests)
    images.names[name] = images.add_blob(encode_document(index), index.media_type)
    return images


# ---- daemons -----------------------------------------------------------------------------------------------------


class Daemon:
    """A running daemon, and what is said to it, printed as it goes."""

    def __init__(self, title: str, port: int, process: "subprocess.Popen[bytes]") -> None:
        self.title, self.port, self.process = title, port, process

    def ask(self, method: str, target_path: str, /, **parameters: str) -> tuple[int, str]:
        """Send a request, print it and every line of the answer as it comes, and return status and body."""
        target = f"{target_path}?{urlencode(parameters)}" if parameters else target_path
        shown = "".join(f"  {key}={value}" for key, value in parameters.items())
        print(f"\n  {self.title}  {method} {target_path}{shown}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request(method, target)
        answer = connection.getresponse()
        lines = []
        while line := answer.readline():
            lines.append(line.decode())
            print(f"    {answer.status}  {lines[-1].rstrip()}")
        connection.close()
        return answer.status, "".join(lines)

    def images(self) -> list[dict[str, Any]]:
        """Return what the daemon lists."""
        found: list[dict[str, Any]] = json.loads(self.ask("GET", "/images")[1])
        return found


@contextmanager
def running_daemon(title: str, data_root: str, archives: str) -> Iterator[Daemon]:
    """Start a daemon on a free loopback port, wait until it answers, and end it behind the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("MINIBOX_")},
        "MINIBOX_HTTP_ADDR": f"127.0.0.1:{port}",
        "MINIBOX_DATA_ROOT": data_root,
        "MINIBOX_ARCHIVE_PREFIXES": archives,
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", "minibox_server"], env=environment, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=1):
                        break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise SystemExit(f"{title} did not start:\n{log.read().decode(errors='replace')}") from None
                    time.sleep(0.05)
            yield Daemon(title, port, process)
        finally:
            process.terminate()
            process.wait(timeout=15)


# ---- the journey -------------------------------------------------------------------------------------------------


def check(holds: bool, sentence: str) -> None:
    """Print what was checked, or end the program."""
    print(f"    {'ok ' if holds else 'NOT'}  {sentence}")
    if not holds:
        raise SystemExit(f"failed: {sentence}")


def travel(folder: str, image: str | None) -> None:
    """Do the whole journey."""
    names = ("registry", "store", "other")
    roots = {name: os.path.join(folder, name) for name in names}
    archive = os.path.join(folder, "image.tar")
    print("Building an image of two layers for linux/arm64 and linux/amd64")
    index = Store(roots["registry"]).import_image(build_image("demo/hello:1.0"), "demo/hello:1.0")
    print(f"  {index.name}  {index.digest}  {', '.join(map(str, index.platforms))}")
    with ExitStack() as stack:
        daemons = [stack.enter_context(running_daemon(f"[{name:8}]", roots[name], folder)) for name in names]
        registry, store, other = daemons
        reference = image or f"127.0.0.1:{registry.port}/demo/hello:1.0"

        status, text = store.ask("POST", "/images/pull", image=reference)
        check(status == 200 and text.endswith("[pull] Done\n"), f"pulled {reference}")
        (pulled,) = store.images()
        check(pulled["name"] == reference and pulled["platform"] == "linux/amd64", "it is there, for linux/amd64")

        tree = os.path.join(roots["store"], "base_layers", reference.replace("/", "_").replace(":", "_"))
        found = sorted(os.listdir(tree))
        is_whole = found == ["bin", "etc"] if image is None else found != []
        check(is_whole, f"its root filesystem is in {os.path.relpath(tree, folder)}: {', '.join(found)}")

        status, _ = store.ask("POST", "/images/save", image=reference, path=archive)
        check(status == 200 and tarfile.is_tarfile(archive), f"saved {os.path.getsize(archive)} bytes")

        status, _ = other.ask("POST", "/images/load", path=archive)
        (loaded,) = other.images()
        check(status == 200 and loaded["digest"] == pulled["digest"], "loaded, with the very same digest")

        status, _ = store.ask("POST", "/images/remove", image=reference)
        check(status == 200 and store.images() == [], "the name is gone")

        status, text = store.ask("POST", "/system/prune")
        report = json.loads(text)
        check(status == 200 and report["blobs_removed"] > 0, f"collected {report['bytes_freed']} bytes")
        left = [name for part in ("blobs/sha256", "base_layers") for name in os.listdir(f"{roots['store']}/{part}")]
        check(left == [], "nothing is left behind")
        check(other.images() == [loaded], "and the other store is as it was")


def main() -> None:
    """Read the arguments and travel."""
    parser = argparse.ArgumentParser(description="An image travels through three daemons.")
    parser.add_argument("--image", help="pull this image from its registry, instead of the one built here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="minibox-") as folder:
        travel(folder, arguments.image)
    print("\nEvery step did what it says.")


if __name__ == "__main__":
    main()
