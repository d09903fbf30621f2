"""A spawner's cgroups, its rooms: one for each attempt at a time, used again.

Any writable cgroup2 mount serves to end a tree (`cgroup.kill`), the hybrid one of machines with
cgroup v1 too. Limits need controllers, which whoever started the agent must have delegated.
"""

import contextlib
import os
import re
import signal
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from rota.agent.tree import send
from rota.core.model.resources import Resources

CPU_PERIOD_US = 100_000
CPU_QUOTA_US_MIN = 1_000
PIDS_MAX = 32_768
# How long what was killed is waited for, and how often it is looked.
REMOVE_S_MAX = 1.0
REMOVE_PAUSE_S = 0.002
# Unused rooms that a spawner keeps.
FREE_COUNT_MAX = 16

_RECORD = "cgroup"
_NAME_BYTES_MAX = 100
_CONTROLLERS = ("memory", "cpu", "pids")
_LIMITED_BY = {"memory": "memory", "cpu": "cpu"}


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where this agent's cgroups are.

    `group` holds those of the spawners, `rest` is where the agent's other processes are.
    `controllers` are those that limit tasks.
    """

    group: Path
    rest: Path
    controllers: frozenset[str]

    def clear(self) -> None:
        """Kills what is in any of them, spawners too, and removes those that are empty."""
        for path in _below(self.group):
            kill(path)
        for path in _below(self.group):
            remove(path)

    def remove(self) -> None:
        """Kills all, and removes all: it waits a little until what was killed is gone."""
        self.clear()
        until_s = time.monotonic() + REMOVE_S_MAX
        while not empty(self.group) and time.monotonic() < until_s:
            time.sleep(REMOVE_PAUSE_S)
        remove(self.group)


def prepare(home: Path) -> tuple[Cgroups | None, list[str]]:
    """The cgroups of the agent with this home, and a warning for each thing that cannot be enforced."""
    found = _own()
    if found is None or not writable():
        return None, ["no cgroup can be used here: limits of memory and cpu are not enforced"]
    mount, own = found
    group = own / group_name(home)
    group.mkdir(exist_ok=True)
    (home / _RECORD).write_text(str(group))
    rest = _make_room(mount, own)
    controllers = frozenset(name for name in _CONTROLLERS if _enable(own, name) and _enable(group, name))
    missing = sorted(set(_LIMITED_BY) - controllers)
    warnings = [
        f"limits of {' and '.join(missing)} are not enforced: their cgroup controllers are not delegated"
    ]
    return Cgroups(group, rest, controllers), warnings if missing else []


def writable() -> bool:
    """Whether cgroups can be made below this process's own, and processes be moved into them and back."""
    found = _own()
    if found is None:
        return False
    probe = found[1] / f"rota-probe-{os.getpid()}"
    try:
        probe.mkdir()
        # To move a process takes this right of where it goes, and of what both places are below.
        moves = all(os.access(group / "cgroup.procs", os.W_OK) for group in (probe, probe.parent))
        probe.rmdir()
    except OSError:
        return False
    return moves


def recorded(home: Path) -> Path | None:
    """The group that the last agent with this home had."""
    try:
        return Path((home / _RECORD).read_text())
    except OSError:
        return None


def group_name(home: Path) -> str:
    """Another one for each home: its path, as far as that makes a name."""
    path = os.fsencode(home.resolve())
    plain = re.sub(rb"[^A-Za-z0-9.]+", b"-", path)[-_NAME_BYTES_MAX:].decode()
    # Paths of one name are told apart by two sums of different kinds.
    return f"rota{plain}.{zlib.crc32(path):08x}{zlib.adler32(path):08x}"


def _own() -> tuple[Path, Path] | None:
    """The cgroup2 mount and this process's cgroup in it."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    inside = next((line[3:] for line in lines if line.startswith("0::")), None)
    if inside is None:
        return None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            mount, root = Path(fields[4]), fields[3]
            if root != "/" and (inside == root or inside.startswith(root + "/")):
                inside = inside[len(root) :]
            return mount, mount / inside.lstrip("/")
    return None


def _make_room(mount: Path, own: Path) -> Path:
    """Moves this process out of its cgroup where that must be empty for its controllers to be passed on."""
    if own == mount or not (own / "cgroup.controllers").read_text().split():
        return own
    if set(_pids(own)) != {os.getpid()}:
        return own
    rest = own / "agent"
    try:
        rest.mkdir(exist_ok=True)
        (rest / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return own
    return rest


def _enable(group: Path, controller: str) -> bool:
    try:
        (group / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError:
        return False
    return True


def _below(group: Path) -> list[Path]:
    try:
        return [path for path in group.iterdir() if path.is_dir()]
    except OSError:
        return []


# ---------------------------------------------------------------- a spawner's


class Room:
    """A cgroup for one attempt's tree, kept open for the next one."""

    def __init__(self, path: Path, shape: Resources, controllers: frozenset[str]) -> None:
        """Makes it, with the limits of a shape. Raises OSError."""
        self.path = path
        self.shape = shape
        self.used = False
        self._counts_oom = "memory" in controllers
        path.mkdir()
        try:
            _limit(path, shape, controllers)
            self._procs = os.open(path / "cgroup.procs", os.O_RDWR | os.O_CLOEXEC)
            try:
                self._events = os.open(path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                os.close(self._procs)
                raise
        except OSError:
            remove(path)
            raise

    def enter(self) -> None:
        """Moves this process into it. Raises OSError."""
        os.write(self._procs, b"0")

    def empty(self) -> bool:
        """Whether no process is in it or below."""
        try:
            return b"populated 0" in os.pread(self._events, 256, 0)
        except OSError:
            return True

    def only(self, pid: int) -> bool:
        """Whether this process is in it, and for certain no other, nor any below."""
        try:
            if os.pread(self._procs, 64, 0) != b"%d\n" % pid:
                return False
            return self._has_none_below()
        except OSError:
            return False

    def as_new(self) -> bool:
        """Whether the next attempt may have it: it is not frozen, and has no cgroups below."""
        try:
            return b"frozen 1" not in os.pread(self._events, 256, 0) and self._has_none_below()
        except OSError:
            return False

    def _has_none_below(self) -> bool:
        # A directory has two links, and one more from each directory in it.
        return os.stat(self.path).st_nlink == 2  # noqa: PTH116 - after each task

    def oom_kills(self) -> int:
        """How many processes in it were killed for want of memory, ever; 0 where nobody counts."""
        if not self._counts_oom:
            return 0
        for line in (self.path / "memory.events").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
        return 0

    def remove(self) -> None:
        """It is not used again."""
        os.close(self._procs)
        os.close(self._events)
        remove(self.path)


class Rooms:
    """All rooms of a spawner, and in which of them it is itself, so that what it starts begins there.

    Whoever enters a cgroup after a quiet while waits for a grace period of the kernel (RCU), ten times as
    long as a process takes to start. So, where no controller would hold it up or count what it uses, the
    spawner is always ahead in a room that nobody else is in, and starts the next task from there; once that
    lasts, or before anything is done to its tree, the spawner goes on to the next room.
    """

    def __init__(self, folder: Path, rest: Path, controllers: frozenset[str]) -> None:
        """`folder` is this spawner's own. Raises OSError."""
        self._folder = folder
        self._controllers = controllers
        self._count = 0
        self._free: list[Room] = []
        # The room that this process is in.
        self._inside: Room | None = None
        self._rest = os.open(rest / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            os.close(self._rest)
            raise
        for name in controllers:
            _enable(folder, name)

    def enter(self, shape: Resources) -> Room:
        """Has the next process begin in an unused room with the limits of a shape. Raises OSError."""
        room = self._inside
        if room is None or room.used or room.shape != self._limits(shape):
            room = self._go_to_unused(shape)
        room.used = True
        return room

    def started(self) -> None:
        """The process has begun, or cannot. Raises OSError: it would be killed with the room."""
        if self._controllers:
            self.leave()

    def leave(self) -> None:
        """Goes out of the room where a process was started, if it is still there. Raises OSError."""
        if self._inside is None or not self._inside.used:
            return
        if not self._controllers:
            # Else where all other processes of the agent are, and the next one is entered when it is needed.
            with contextlib.suppress(OSError):
                self._go_to_unused(Resources())
                return
        self._inside = None
        os.write(self._rest, b"0")

    def leave_this(self, room: Room) -> None:
        """As `leave`, if this process is in that room. Raises OSError."""
        if self._inside is room:
            self.leave()

    def empty(self, room: Room) -> bool:
        """Whether no process but perhaps this one is in it. Raises OSError."""
        if self._inside is room:
            if room.only(os.getpid()):
                return True
            self.leave()
        return room.empty()

    def give_back(self, room: Room) -> None:
        """Nothing is in it any more, except perhaps this process."""
        room.used = False
        if room is self._inside:
            return
        if not room.as_new():
            room.remove()
            return
        self._free.append(room)
        if len(self._free) > FREE_COUNT_MAX:
            # Perhaps of a shape that is not asked for any more.
            self._free.pop(0).remove()

    def _limits(self, shape: Resources) -> Resources:
        """What of a shape rooms differ in."""
        return shape if self._controllers else Resources()

    def _go_to_unused(self, shape: Resources) -> Room:
        wanted = self._limits(shape)
        for room in [room for room in reversed(self._free) if room.shape == wanted]:
            self._free.remove(room)
            # Whoever may write there can have made it unfit meanwhile.
            with contextlib.suppress(OSError):
                return self._go_to(room)
        self._count += 1
        return self._go_to(Room(self._folder / str(self._count), wanted, self._controllers))

    def _go_to(self, room: Room) -> Room:
        try:
            room.enter()
        except OSError:
            room.remove()
            raise
        self._inside = room
        return room


def _limit(path: Path, shape: Resources, controllers: frozenset[str]) -> None:
    if "memory" in controllers and shape.memory:
        (path / "memory.max").write_text(str(shape.memory))
        for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            with contextlib.suppress(OSError):
                (path / name).write_text(value)
    if "cpu" in controllers and shape.cpu:
        quota_us = max(shape.cpu * CPU_PERIOD_US // 1000, CPU_QUOTA_US_MIN)
        (path / "cpu.max").write_text(f"{quota_us} {CPU_PERIOD_US}")
    if "pids" in controllers:
        (path / "pids.max").write_text(str(PIDS_MAX))


def remove(path: Path) -> None:
    """Removes a cgroup and those within it; one that is still in use stays."""
    for inner in _below(path):
        remove(inner)
    with contextlib.suppress(OSError):
        path.rmdir()


def kill(path: Path) -> None:
    """Kills every process in it and below; it is empty a little later."""
    try:
        # Not by a way that would make the file: that is refused otherwise than what is not there.
        descriptor = os.open(path / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"1")
        finally:
            os.close(descriptor)
    except OSError:
        # Before Linux 5.14, or gone.
        signal_all(path, signal.SIGKILL)


def signal_all(path: Path, number: int) -> None:
    """Signals every process in it and below."""
    for pid in pids(path):
        send(pid, number)


def empty(path: Path) -> bool:
    """Whether no process is in it or below."""
    try:
        return "populated 0" in (path / "cgroup.events").read_text()
    except OSError:
        return True


def pids(path: Path) -> list[int]:
    """The processes in it and below."""
    return [*_pids(path), *(pid for inner in _below(path) for pid in pids(inner))]


def _pids(path: Path) -> list[int]:
    try:
        return [int(pid) for pid in (path / "cgroup.procs").read_text().split()]
    except OSError:
        return []
