"""What the machine gives without this project: the same system calls in the shortest loop that makes them.

Usage: python -m tests.benchmarks.bare pull HOST REPOSITORY FOLDER
       python -m tests.benchmarks.bare unlink LIST ROOT
"""

import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_BUFFER_BYTES = 1024 * 1024
_THREADS = 3
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def pull(host: str, repository: str, folder: str) -> None:
    """Fetch every layer of ``latest`` by urllib3, each hashed on its way to a file; no store, no sync."""
    import urllib3

    pool = urllib3.PoolManager(maxsize=_THREADS)
    base = f"http://{host}/v2/{repository}"
    manifest = json.loads(pool.request("GET", f"{base}/manifests/latest", headers={"Accept": _MANIFEST_TYPE}).data)

    def fetch(digest: str) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        hasher = hashlib.sha256()
        response = pool.request("GET", f"{base}/blobs/{digest}", preload_content=False, decode_content=False)
        # urllib3's own readinto reads into memory of its own first, and copies; what lies below it does not.
        source = getattr(response, "_fp")  # noqa: B009  # and has no public name
        with open(os.path.join(folder, digest), "wb", buffering=0) as file:
            while count := source.readinto(buffer):
                hasher.update(buffer[:count])
                file.write(buffer[:count])
        response.release_conn()
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise SystemExit(f"{digest} came as something else")

    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(fetch, [layer["digest"] for layer in manifest["layers"]]):
            pass


def unlink(listed: str, root: str) -> None:
    """Remove each listed file (``-``), read each other one (``+``) once, and print the seconds that took."""
    lines = Path(listed).read_text().splitlines()
    folder = os.path.join(root, "blobs", "sha256")
    dead = [os.path.join(folder, line[1:]) for line in lines if line[0] == "-"]
    manifests = [os.path.join(folder, line[1:]) for line in lines if line[0] == "+"]
    begin = time.perf_counter()
    for path in dead:
        os.unlink(path)
    for path in manifests:
        with open(path, "rb") as file:
            file.read()
    print(time.perf_counter() - begin)


if __name__ == "__main__":
    operation, *others = sys.argv[1:]
    if operation == "pull":
        pull(*others)
    else:
        unlink(*others)
