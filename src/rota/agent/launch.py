"""How an attempt becomes a process: its arguments, environment, directory, files, user.

The spawner changes into the directory itself and is in the task's cgroup when it spawns, so that
the ordinary way is `posix_spawn`; for another user it is fork and exec.
"""

import errno
import fcntl
import os
import pwd
import re
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rota.agent import gpus, output
from rota.agent.kept import Keeper, Kept, OutputLost
from rota.agent.obeyed import obeyed
from rota.agent.spawn_frames import Prepare, Setup
from rota.core.node.inputs import Part

PATH_DEFAULT = "/usr/local/bin:/usr/bin:/bin"
# So much of a name that is not found is said.
SHOWN_LENGTH_MAX = 200
# What tasks have of the agent's own environment.
INHERITED = ("PATH", "HOME", "USER", "LANG")

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
# Another user cannot read the agent's home, but may open again what is open.
_SCRIPT_DESCRIPTOR = 3
_PLACE = re.compile(r"\{(index|line)\}")
_ALL_SIGNALS = sorted(set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP})
# What the agent, or all of its machine, has run out of: no fault of the task that was next.
_RUN_OUT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
DEV_NULL = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


class StartFailed(Exception):
    """The attempt cannot be started; the message says what is wrong, and where."""


class NotKept(OSError):
    """The agent can make no file for a task's output."""


@dataclass(slots=True)
class Task:
    """A process that runs. `kept` are its files that Rota keeps; `stdin` the end that feeds it, or -1."""

    pid: int
    kept: list[Kept]
    stdin: int = -1

    def show_output(self) -> None:
        """Its files are there to be read."""
        for kept in self.kept:
            # Tried again while it runs, and at its end.
            with suppress(OSError):
                kept.show()

    def settle_output(self) -> str:
        """It has ended: its empty files go, and what is too much. What of its output is lost, and why."""
        largest = 0
        lost = ""
        for kept in self.kept:
            try:
                largest = max(largest, kept.settle())
            except OutputLost as error:
                lost = lost or str(error)
            except OSError:
                # An empty file stays.
                continue
        if largest > output.STREAM_BYTES_MIN:
            # Where holes cannot be punched, the agent's warnings say so from its start.
            with suppress(OSError):
                output.hold_to_limit([kept.path for kept in self.kept], slack_bytes=0)
        return lost


class Files:
    """The descriptors that a task begins with: 0, 1, 2 and, for a script of another user's, 3."""

    def __init__(self) -> None:
        self.descriptors = [DEV_NULL, DEV_NULL, DEV_NULL]
        # To be opened by the task's user.
        self.wanted: dict[int, str] = {}
        self.kept: list[Kept] = []
        self.feed = -1
        self._opened: list[int] = []

    def add(self, at: int, descriptor: int) -> None:
        """This one is at that place."""
        self.descriptors[at] = descriptor
        self._opened.append(descriptor)

    def close(self) -> None:
        """The task has its own by now."""
        for descriptor in self._opened:
            os.close(descriptor)
        self._opened.clear()

    def give_up(self) -> None:
        """Nothing was started."""
        self.close()
        if self.feed >= 0:
            os.close(self.feed)
        for kept in self.kept:
            with suppress(OSError, OutputLost):
                kept.settle()


@dataclass(slots=True)
class Plan:
    """How the tasks of a part are started, as far as that is the same for all.

    `environment` is of bytes, which the system takes as they are. `program` is empty where each task has its
    own.
    """

    job: Prepare
    part: Part
    account: pwd.struct_passwd | None
    environment: dict[bytes, bytes]
    search: str
    cwd: str
    argv: list[str]
    program: str = ""
    # Whether some argument is another one for each task.
    differs: bool = False


class Launcher:
    """Starts the tasks of one node."""

    def __init__(self, setup: Setup, keeper: Keeper) -> None:
        self._setup = setup
        self._home = Path(setup.home)
        self._where = f"on node {setup.node_name}" if setup.node_name else "on this node"
        self._inherited = {**_of_account(os.geteuid()), **dict(setup.environment)}
        self._programs: dict[tuple[str, str], str] = {}
        self._map_user = dict(setup.map_user)
        self._keeper = keeper

    def plan(self, job: Prepare, part: Part, devices: tuple[str, ...]) -> Plan:
        """How a part's tasks are to be started. Raises StartFailed where none can be; OSError as `start`."""
        account = self._account(job)
        environment = self._environment(job, part, devices, account)
        cwd = job.cwd or environment.get("HOME", "/")
        argv = self._argv(job, own=account is None)
        search = environment.get("PATH", PATH_DEFAULT)
        try:
            encoded = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
        except ValueError as error:
            raise StartFailed(self._trouble(error, job, argv[0], cwd)) from None
        plan = Plan(job, part, account, encoded, search, cwd, argv)
        plan.differs = any("{" in word for word in argv)
        return plan

    def start(self, plan: Plan, index: int, line: str | None) -> Task:
        """Starts a task. Raises StartFailed, and OSError where it is not the task that is to blame."""
        job, cwd, own = plan.job, plan.cwd, plan.account is None
        argv = [_put(word, index, line) for word in plan.argv] if plan.differs else plan.argv
        if own:
            try:
                os.chdir(cwd)
            except (OSError, ValueError) as error:
                raise StartFailed(self._trouble(error, job, "", cwd)) from None
        program = plan.program or self._program(argv[0], cwd, plan.search)
        if not plan.differs:
            plan.program = program
        self._check_scripts_dir(job, argv, program, cwd)
        environment = plan.environment
        environment[b"ROTA_TASK_INDEX"] = b"%d" % index
        environment[b"ROTA_LINE"] = os.fsencode(line) if line else b""
        files = Files()
        try:
            self._open(files, plan, index, line)
            if plan.account is None:
                pid = _spawn(program, argv, environment, files)
            else:
                pid = _fork(program, argv, environment, files, plan.account, cwd)
        except (OSError, ValueError) as error:
            files.give_up()
            if isinstance(error, NotKept) or (isinstance(error, OSError) and error.errno in _RUN_OUT):
                raise
            raise StartFailed(self._trouble(error, job, program, cwd)) from None
        files.close()
        return Task(pid, files.kept, files.feed)

    def _open(self, files: Files, plan: Plan, index: int, line: str | None) -> None:
        """Opens what the task begins with; what another user is to open is named instead. Raises OSError."""
        job, own = plan.job, plan.account is None
        if job.stdin:
            reading, files.feed = os.pipe2(os.O_CLOEXEC)
            files.add(0, reading)
        for stream, asked in ((1, job.stdout), (2, job.stderr)):
            if asked == "none":
                continue
            if not asked:
                kept, descriptor = self._keep(self._path(plan, index, stream), own=own)
                files.kept.append(kept)
                files.add(stream, descriptor)
            elif own:
                files.add(stream, os.open(_put(asked, index, line), _APPEND, 0o666))
            else:
                files.wanted[stream] = _put(asked, index, line)
        if job.script and not own:
            files.descriptors.append(-1)
            files.add(_SCRIPT_DESCRIPTOR, os.open(job.script, os.O_RDONLY | os.O_CLOEXEC))

    def _keep(self, path: str, *, own: bool) -> tuple[Kept, int]:
        try:
            return self._keeper.open(path, own=own)
        except OSError as error:
            raise NotKept(error.errno, f"its output cannot be kept: {error.strerror}") from None

    def _path(self, plan: Plan, index: int, stream: int) -> str:
        part = plan.part
        return str(output.path(self._home, part.job, part.allocation, index, part.number, stream))

    def _trouble(self, error: OSError | ValueError, job: Prepare, program: str, cwd: str) -> str:
        """What is wrong, where, and what mends it."""
        path = Path(cwd, program)
        name = path.name if program and program == job.script else program
        if isinstance(error, ValueError):
            return f"cannot run {name} {self._where}: {error}"
        if error.filename == cwd:
            match error.errno:
                case errno.ENOENT:
                    return f"no directory {cwd} {self._where}"
                case errno.ENOTDIR:
                    return f"{cwd} {self._where} is no directory"
        if error.filename not in (None, program):
            return f"cannot use {error.filename} {self._where}: {error.strerror}"
        match error.errno:
            case errno.ENOENT | errno.EACCES if path.is_dir():
                return f"{name} {self._where} is a directory"
            case errno.ENOENT if path.exists():
                return self._no_interpreter(name, path)
            case errno.ENOENT:
                return f"no program {name} {self._where}{self._from(program, cwd)}"
            case errno.EACCES if path.exists() and not path.stat().st_mode & 0o111:
                return f"{name} {self._where} is not executable; try: chmod +x {path}"
            case errno.ENOEXEC if _begins(path, 4) == b"\x7fELF":
                return f"{name} {self._where} is no program for this machine, or damaged"
            case errno.ENOEXEC:
                return f"{name} {self._where} is no program: it has no #! line"
            case errno.E2BIG:
                return f"arguments and environment are too large for {name} {self._where}"
            case _:
                return f"cannot run {name} {self._where}: {error.strerror}"

    def _no_interpreter(self, name: str, path: Path) -> str:
        line = _begins(path, 256).partition(b"\n")[0]
        if not line.startswith(b"#!"):
            return f"{name} {self._where} needs a loader that is not there: it is built for another system"
        interpreter = os.fsdecode(line[2:].strip(b" \t").split(b" ")[0])
        if line.endswith(b"\r"):
            return (
                f"{name} {self._where} has Windows line ends, so its #! line names no interpreter; "
                "try: sed -i 's/\\r$//'"
            )
        return f"{name} {self._where} names the interpreter {interpreter} in its #! line, which is not there"

    @staticmethod
    def _from(program: str, cwd: str) -> str:
        return "" if program.startswith("/") else f", seen from {cwd}"

    # ------------------------------------------------------------ what to run

    def _argv(self, job: Prepare, *, own: bool) -> list[str]:
        """The arguments as the job has them."""
        words = list(job.command)
        if job.script:
            script = job.script if own else f"/proc/self/fd/{_SCRIPT_DESCRIPTOR}"
            words = [script, *words] if job.executable else ["/bin/sh", script, *words]
        if job.path:
            words.append(job.path)
        if not words:
            raise StartFailed("the job has no command")
        return words

    def _environment(
        self, job: Prepare, part: Part, devices: tuple[str, ...], account: pwd.struct_passwd | None
    ) -> dict[str, str]:
        environment = dict(self._inherited)
        if account is not None:
            environment.update(HOME=account.pw_dir, USER=account.pw_name)
        environment.update(job.environment)
        # Whatever the job says: others run on the devices beside its own.
        environment.update(gpus.environment(devices, has_some=self._setup.has_gpus))
        environment.update(
            ROTA_JOB_ID=str(job.job),
            ROTA_TASK_INDEX="",
            ROTA_TASK_COUNT=str(job.task_count),
            ROTA_ATTEMPT=str(part.number),
            ROTA_NODE_NAME=self._setup.node_name,
            ROTA_NODE_ID=self._setup.node_id,
            ROTA_LINE="",
        )
        return environment

    def _program(self, name: str, cwd: str, search: str) -> str:
        """The file to run, found as a shell would find it."""
        if "/" in name:
            return name
        found = self._programs.get((name, search))
        if found is not None and os.access(found, os.X_OK):
            return found
        for folder in search.split(":"):
            path = os.path.join(cwd, folder, name)  # noqa: PTH118 - an empty folder is the current one
            if os.access(path, os.X_OK) and Path(path).is_file():
                self._programs[name, search] = path
                return path
        here = f"; there is a ./{name} in {cwd}" if Path(cwd, name).is_file() else ""
        shown = name if len(name) <= SHOWN_LENGTH_MAX else f"{name[: SHOWN_LENGTH_MAX - 3]}..."
        raise StartFailed(f"no program {shown!r} {self._where}; looked in {search}{here}")

    def _check_scripts_dir(self, job: Prepare, argv: list[str], program: str, cwd: str) -> None:
        """Where only the scripts of one folder may run: that is `interpreter script`, or the script itself.

        The interpreter is one of the agent's own PATH. What follows it is a file, so that it is taken neither
        for an option nor for a command: `env id`, `python3 -cCODE`.
        """
        if not self._setup.scripts_dir:
            return
        allowed = _real(self._setup.scripts_dir)
        if job.script or (job.path and len(job.command) > 1):
            raise StartFailed(
                f"the agent {self._where} runs scripts in {allowed} alone: one program and a path"
            )
        for name, _ in job.environment:
            if obeyed(name):
                raise StartFailed(
                    f"the agent {self._where} runs what is in {allowed} alone, and takes no {name}: "
                    "programs can run something else because of it; leave that --env out"
                )
        wanted = Path(cwd, argv[-1] if job.path else program)
        if not _real(wanted).is_relative_to(allowed):
            raise StartFailed(f"{wanted} is outside {allowed}, and the agent {self._where} runs nothing else")
        if not os.path.isfile(wanted):  # noqa: PTH113 - Path's own raises where it may not look
            raise StartFailed(
                f"there is no file {wanted} {self._where}, whose agent runs what is in {allowed} alone"
            )
        run = Path(cwd, program)
        folders = {Path(folder) for folder in self._inherited.get("PATH", PATH_DEFAULT).split(":")}
        if run.parent not in folders and not _real(run).is_relative_to(allowed):
            raise StartFailed(
                f"{run} is neither in {allowed} nor in the PATH of the agent {self._where}, "
                "which runs nothing else"
            )

    # ------------------------------------------------------------ where, and as whom

    def _account(self, job: Prepare) -> pwd.struct_passwd | None:
        """The account to run as; None for the agent's own. Raises StartFailed, OSError."""
        if not job.account:
            return None
        name = self._map_user.get(job.account, job.account)
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            # It is said to be missing also where no descriptor is left to look for it.
            os.close(os.dup(DEV_NULL))
            raise StartFailed(
                f"no account {name!r} {self._where}; add it, or start its agent with --map-user {name}=WHOM"
            ) from None
        if account.pw_uid == os.geteuid():
            return None
        if os.geteuid() != 0:
            raise StartFailed(f"the agent {self._where} is not root and cannot run tasks as {name!r}")
        return account


def _put(word: str, index: int, line: str | None) -> str:
    """`{index}` and `{line}` replaced."""
    if "{" not in word:
        return word
    return _PLACE.sub(
        lambda match: str(index) if match[1] == "index" else match[0] if line is None else line, word
    )


def _of_account(uid: int) -> dict[str, str]:
    """HOME and USER of an account, as a login sets them: a container may have been given none."""
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return {}
    return {"HOME": account.pw_dir, "USER": account.pw_name}


def _real(path: str | Path) -> Path:
    """A path with its symbolic links followed, as far as they lead; Path's own raises where they go round."""
    return Path(os.path.realpath(path))


def _begins(path: Path, count: int) -> bytes:
    """The first bytes of a file; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


# ---------------------------------------------------------------- the process itself


def _spawn(program: str, argv: list[str], environment: dict[bytes, bytes], files: Files) -> int:
    """The ordinary way. Raises OSError, and ValueError for what no program can be given."""
    return os.posix_spawn(
        program,
        argv,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, descriptor, at) for at, descriptor in enumerate(files.descriptors)
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=_ALL_SIGNALS,
    )


def _fork(
    program: str,
    argv: list[str],
    environment: dict[bytes, bytes],
    files: Files,
    account: pwd.struct_passwd,
    cwd: str,
) -> int:
    """For another user. Raises OSError, with the name of the file if one is to blame."""
    failed, failing = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(failed)
        os.close(failing)
        raise
    if pid == 0:
        try:
            # Out of the way of the task's own descriptors.
            failing = fcntl.fcntl(failing, fcntl.F_DUPFD_CLOEXEC, _SCRIPT_DESCRIPTOR + 1)
            _become(program, argv, environment, files, account, cwd)
        except OSError as error:
            os.write(failing, f"{error.errno} {error.filename or ''}".encode(errors="replace"))
        except ValueError:
            os.write(failing, b"%d " % errno.EINVAL)
        finally:
            os._exit(127)
    os.close(failing)
    with os.fdopen(failed, "rb") as pipe:
        trouble = pipe.read()
    if not trouble:
        return pid
    os.waitpid(pid, 0)
    number, _, name = trouble.partition(b" ")
    raise OSError(int(number), os.strerror(int(number)), os.fsdecode(name) or None)


def _become(
    program: str,
    argv: list[str],
    environment: dict[bytes, bytes],
    files: Files,
    account: pwd.struct_passwd,
    cwd: str,
) -> NoReturn:
    """The child becomes the task. Raises OSError."""
    os.setsid()
    for number in _ALL_SIGNALS:
        # Python knows no way to set those that the C library keeps for itself.
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.initgroups(account.pw_name, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    os.chdir(cwd)
    for at, descriptor in enumerate(files.descriptors):
        os.dup2(os.open(files.wanted[at], _APPEND, 0o666) if at in files.wanted else descriptor, at)
    try:
        os.execve(program, argv, environment)
    except OSError as error:
        raise OSError(error.errno, error.strerror) from None
