"""One process of a bare loop: `python -S -E bare_loop.py COUNT [FOLDER]`. Waits for a line.

Spawns and reaps COUNT times /bin/true, the next once the last has ended; with a FOLDER each in a session of
its own, with two files for its output, as a task has them. Prints the CPU time that took, its own and theirs.
"""

import os
import sys


def main() -> None:
    count = int(sys.argv[1])
    folder = sys.argv[2] if len(sys.argv) > 2 else ""
    print("ready", flush=True)
    sys.stdin.readline()
    before = os.times()
    if folder:
        with_files(count, folder)
    else:
        plain(count)
    after = os.times()
    print(sum(after[:4]) - sum(before[:4]), flush=True)


def plain(count: int) -> None:
    for _ in range(count):
        os.waitpid(os.posix_spawn("/bin/true", ["/bin/true"], {}), 0)


def with_files(count: int, folder: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number in range(count):
        actions = [
            (os.POSIX_SPAWN_OPEN, 1, f"{folder}/{number}.out", flags, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, f"{folder}/{number}.err", flags, 0o600),
        ]
        pid = os.posix_spawn("/bin/true", ["/bin/true"], {}, file_actions=actions, setsid=True)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
