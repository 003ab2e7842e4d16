"""What a process did to the world, as the kernel saw it: whom it connected to, and which paths it changed.

The process that is started is the program itself, and strace a grandchild beside it, so that whoever ends the program
by its pid ends the right one.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.forks import not_possible

_CHANGES = (
    *("creat", "open", "openat", "openat2", "mkdir", "mkdirat", "mknod", "mknodat", "link", "linkat", "symlink"),
    *("symlinkat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "truncate", "chmod", "fchmodat"),
    *("chown", "lchown", "fchownat", "setxattr", "lsetxattr", "mount", "umount2"),
)
_CALL = re.compile(r"(?:\d+ +)?(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)(?P<rest>.*)")
_ADDRESS = re.compile(r"sin6?_port=htons\((\d+)\).*?(?:inet_addr\(\"([^\"]+)\"\)|inet_pton\(AF_INET6, \"([^\"]+)\")")
# A name, after the folder that it is taken from where the call says one.
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<((?:[^>\\]|\\.)*)>, )?"((?:[^"\\]|\\.)*)"')
_WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND|O_TMPFILE")


def traced(command: Sequence[str], log: Path) -> list[str]:
    """Return a command that runs another one, and writes the calls that matter to a file.

    Where strace is not there, or may not trace, the test is skipped.
    """
    calls = ",".join(f"?{name}" for name in ("connect", "sendto", *_CHANGES))
    strace = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-y", "-s", "8192", "-e", f"trace={calls}"]
    strace += ["-e", "signal=none", "-o", str(log)]
    if shutil.which("strace") is None:
        not_possible("strace is not installed")
    tried = subprocess.run([*strace, "true"], capture_output=True, text=True, timeout=30, check=False)
    if tried.returncode or not log.exists():
        not_possible(f"tracing is not permitted: {tried.stderr.strip()}")
    return [*strace, *command]


def connections(log: Path) -> set[tuple[str, int]]:
    """Return each address and port that was connected to, or sent something to, over the Internet's protocols."""
    found = set()
    for name, arguments, _, _ in _calls(log):
        if name in ("connect", "sendto") and "sa_family=AF_INET" in arguments:
            match = _ADDRESS.search(arguments)
            assert match is not None, arguments
            found.add((match[2] or match[3], int(match[1])))
    return found


def changed_paths(log: Path) -> set[str]:
    """Return each path that was opened to be written, made, moved, removed or changed, successfully or not."""
    found: set[str] = set()
    for name, arguments, result, rest in _calls(log):
        if name not in _CHANGES or (name in ("open", "openat", "openat2") and not _WRITING.search(arguments)):
            continue
        opened = re.match(r"<((?:[^>\\]|\\.)*)>", rest)
        if opened is not None and int(result) >= 0:
            # As it was resolved, whatever links and folders the name led through.
            found.add(opened[1].removesuffix("(deleted)"))
            continue
        # What a link is made of is not changed.
        paths = _PATH.findall(arguments)
        for folder, path in paths[-1:] if "link" in name and not name.startswith("unlink") else paths:
            found.add(os.path.normpath(os.path.join(folder or "/", path)))
    return found


def _calls(log: Path) -> Iterator[tuple[str, str, str, str]]:
    for line in _whole_lines(log):
        match = _CALL.match(line)
        if match is not None:
            yield match["name"], match["arguments"], match["result"], match["rest"]


def _whole_lines(log: Path) -> Iterator[str]:
    """Yield each call, put together again where those of another thread came between."""
    begun: dict[str, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        pid = line.split(" ", 1)[0]
        if line.endswith(" <unfinished ...>"):
            begun[pid] = line.removesuffix(" <unfinished ...>")
        elif (resumed := re.match(r"\d+ +<\.\.\. \w+ resumed>(.*)", line)) is not None:
            yield begun.pop(pid, "") + resumed[1]
        else:
            yield line
