"""Starts one program and prints what it took: exit status, seconds, seconds of processor, peak memory in KiB.

It is a process of its own because a program inherits the peak of the process that started it: Linux keeps the peak of
the memory before an exec in the same counter, and so the figures of whoever starts a program from a large process are
those of the large process. This one is small (8 to 10 MiB), and imports next to nothing to stay so.

Usage: python -I -S launcher.py STDOUT STDERR FOLDER PROGRAM ARGUMENT...
"""

import os
import sys
import time


def launch(stdout: str, stderr: str, folder: str, command: list[str]) -> tuple[int, float, float, int]:
    """Run ``command`` in ``folder``; return its status (negative for a signal), and what it took."""
    os.chdir(folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, stdout, flags, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, stderr, flags, 0o600),
    ]
    begin = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - begin
    return os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


if __name__ == "__main__":
    print(*launch(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
