"""The home of a user who has credentials: the files of Docker and Podman, and a credential helper that is a program."""

import base64
import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibox_store.registry import Credentials, MachineCredentials
from tests.support.processes import plain_environment

# How a program for this Python begins: no path with a space in it can stand behind a #!.
PYTHON_PROGRAM = f"""\
#!/bin/sh
'''exec' {shlex.quote(sys.executable)} -I "$0" "$@"
' '''"""

# What every helper does by the protocol, and what a test wants to know of how it was run.
_HELPER = """\
{python}
import json, os, sys
kept, log, trouble = {kept!r}, {log!r}, {trouble!r}
given = sys.stdin.read()
with open(log, "a") as file:
    file.write(json.dumps([sys.argv[1:], given, dict(os.environ), os.getcwd()]) + "\\n")
exec(trouble)
secrets = json.load(open(kept))
if sys.argv[1] == "get":
    if given not in secrets:
        print("credentials not found in native keychain")
        sys.exit(1)
    user, secret = secrets[given]
    print(json.dumps({{"ServerURL": given, "Username": user, "Secret": secret}}))
elif sys.argv[1] == "store":
    entry = json.loads(given)
    secrets[entry["ServerURL"]] = [entry["Username"], entry["Secret"]]
    json.dump(secrets, open(kept, "w"))
elif sys.argv[1] == "erase":
    del secrets[given]
    json.dump(secrets, open(kept, "w"))
"""


def encoded(user: str, password: str) -> str:
    """Return what stands under ``auth`` in a file of credentials."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def auth(user: str, password: str, **more: str) -> dict[str, str]:
    """Return an entry of ``auths``."""
    return {"auth": encoded(user, password), **more}


@dataclass(frozen=True)
class Helper:
    """A credential helper that a test has written.

    Attributes:
        kept: Its secrets, as user and secret by server.
        log: How it was run, each time.
    """

    kept: Path
    log: Path

    def secrets(self) -> dict[str, list[str]]:
        """Return what it keeps now."""
        found: dict[str, list[str]] = json.loads(self.kept.read_text())
        return found

    def runs(self) -> list[tuple[list[str], str, dict[str, str], str]]:
        """Return arguments, input, environment and working directory of each run."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [tuple(json.loads(line)) for line in lines]


class Home:
    """A user's home in ``folder``, with nothing in it at first.

    Attributes:
        docker: Docker's ``config.json``.
        podman: The ``auth.json`` of a session.
        settings: The ``auth.json`` beside other settings.
        named: What REGISTRY_AUTH_FILE may name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.docker = folder / ".docker" / "config.json"
        self.podman = folder / "run" / "containers" / "auth.json"
        self.settings = folder / ".config" / "containers" / "auth.json"
        self.named = folder / "named.json"
        self.programs = folder / "programs"
        self.programs.mkdir(parents=True)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process of this user."""
        return {**plain_environment(self.folder), "XDG_RUNTIME_DIR": str(self.folder / "run")}

    def machine(self, explicit: Mapping[str, Credentials] | None = None, /, **variables: str) -> MachineCredentials:
        """Return the credentials that the library finds here; ``variables`` go over the environment."""
        environment = {**self.environment, **variables}
        return MachineCredentials(explicit=explicit, environment=environment, program_path=[str(self.programs)])

    def find(self, registry: str, repository: str = "team/app", **variables: str) -> Credentials | None:
        """Return what the library finds for a repository."""
        return self.machine(**variables).find(registry, repository, lambda: None)

    def write(self, path: Path, auths: Mapping[str, object] | None = None, **fields: object) -> None:
        """Write a file of credentials."""
        write_json(path, {**({} if auths is None else {"auths": auths}), **fields})

    def add_helper(
        self, name: str, secrets: Mapping[str, tuple[str, str]] | None = None, *, trouble: str = ""
    ) -> Helper:
        """Write the program ``docker-credential-NAME``; ``trouble`` is Python that it runs before anything else."""
        helper = Helper(self.folder / f"{name}.json", self.folder / f"{name}.log")
        write_json(helper.kept, dict(secrets or {}))
        program = self.programs / f"docker-credential-{name}"
        program.write_text(
            _HELPER.format(python=PYTHON_PROGRAM, kept=str(helper.kept), log=str(helper.log), trouble=trouble)
        )
        os.chmod(program, 0o755)
        return helper


def write_json(path: Path, document: Any) -> None:
    """Write a document; the folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def read_json(path: Path) -> dict[str, Any]:
    """Return the document in a file."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found
