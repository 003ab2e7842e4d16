"""The PyPI client ``oras`` in a process of its own, which may log, warn and change its folder as it likes.

Run with the name of a step, a reference, a folder and, where the registry wants one, a token; :func:`run_oras` does.
"""

import json
import os
import sys
from pathlib import Path

from tests.support.processes import plain_environment

_PROJECT = Path(__file__).parents[2]


def run_oras(home: Path, step: str, reference: str, folder: Path, token: str | None, subject: str = "") -> list[str]:
    """Push every file of a folder, attach them to a subject, or pull into it; return the names of the files there.

    Args:
        home: its home.
        step: ``push``, ``attach``, ``pull`` or ``chunks``, which is a push in small chunks.
        reference: what is pushed or pulled, with a tag.
        folder: of the files.
        token: the password to log in with.
        subject: the descriptor of what is attached to, as JSON.

    Raises:
        PeerFailed: with its stderr.
    """
    from tests.support.peers import run_peer  # of no use to the process that is started, and slow to load

    command = [sys.executable, "-m", "tests.support.oras_client", step, reference, str(folder), token or "", subject]
    run_peer(command, {**plain_environment(home), "PYTHONPATH": str(_PROJECT)})
    return sorted(each.name for each in folder.iterdir())


def _main(step: str, reference: str, folder: str, token: str, subject: str) -> None:
    import oras.oci  # type: ignore[import-untyped]  # it has no types
    from oras.client import OrasClient  # type: ignore[import-untyped]  # the same

    host = reference.partition("/")[0]
    client = OrasClient(hostname=host, insecure=True, auth_backend="basic" if token else "token")
    if token:
        client.auth.set_basic_auth("anybody", token)
    if step == "pull":
        client.pull(reference, outdir=folder)
        return
    os.chdir(folder)
    files = [f"{name}:application/vnd.example.file" for name in sorted(os.listdir())]
    chunks = {"do_chunked": True, "chunk_size": 1000} if step == "chunks" else {}
    attached = oras.oci.Subject(**json.loads(subject)) if step == "attach" else None
    client.push(reference, files=files, subject=attached, **chunks)


if __name__ == "__main__":
    _main(*sys.argv[1:])
