"""The small files of an agent's home: pid files, scripts, and input that waits."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def write_pid(path: Path | None, pid: int | None = None) -> None:
    """Writes a pid file, whole or not at all; this process's without `pid`."""
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(f"{os.getpid() if pid is None else pid}\n")
        draft.replace(path)


def remove_pid(path: Path | None, pid: int | None = None) -> None:
    """Removes a pid file, unless it is another's; where it cannot be, it names a process that has ended."""
    if path is not None:
        with suppress(OSError, ValueError):
            if int(path.read_text()) == (os.getpid() if pid is None else pid):
                path.unlink()


def replaced(descriptor: int, path: Path) -> bool:
    """Whether an open file is not the one at its path any more: that was removed, or is another."""
    try:
        there, ours = path.stat(), os.fstat(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        # A file server that is away, or has lost the file's handle, say: nobody knows.
        return False
    return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)


# ---------------------------------------------------------------- scripts


def script_path(home: Path, job: int, version: int, name: str) -> Path:
    """Where a job's script is, for its tasks to run; they see it under the job's name, if it has one."""
    return home / "scripts" / f"{job}.{version}" / (name or "script")


def script_folders(home: Path, job: str = "*") -> Iterator[Path]:
    """What there is of a job's scripts, or of all."""
    return (home / "scripts").glob(f"{job}.*")


def clear_scripts(home: Path) -> None:
    """Removes all scripts: before any task runs."""
    for folder in script_folders(home):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def write_script(path: Path, text: str) -> None:
    """Writes a script, whole or not at all. Raises OSError."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}")
        draft.write_text(text)
        draft.chmod(0o755)
        draft.replace(path)


# ---------------------------------------------------------------- standard input


def spool(path: Path, offset: int, data: bytes, *, end: bool) -> bool:
    """Adds a piece of a task's standard input; whether there was anything new in it.

    Pieces may come twice. One that would leave a gap is not taken: what is in between is lost, and
    whoever sends it sends it again. Raises OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("ab") as file:
        size = file.tell()
        if offset > size:
            return False
        fresh = data[size - offset :]
        file.write(fresh)
    if end:
        _end_mark(path).touch()
    return bool(fresh) or end


def spooled(path: Path) -> tuple[int, bool]:
    """How many bytes there are, and whether that is all."""
    try:
        return path.stat().st_size, _end_mark(path).exists()
    except OSError:
        return 0, False


def unspool(path: Path) -> None:
    """Removes what a task has read, or never will."""
    path.unlink(missing_ok=True)
    _end_mark(path).unlink(missing_ok=True)


def _end_mark(path: Path) -> Path:
    return path.with_name(path.name + ".end")
