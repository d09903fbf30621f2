"""What this machine is and has, and how busy it is: from /proc, /sys and the agent's file system."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import rota
from rota.agent import gpus
from rota.core.model.protocol import Device, Inventory, Pool, Utilisation
from rota.core.model.resources import Resources

# Kept for the system and the agent: of memory the larger of the two, of free disk a twentieth. Of cpu
# nothing, since what the system needs of it it takes anyway.
SYSTEM_MEMORY_BYTES_MIN = 256 * 1024 * 1024
SYSTEM_SHARE = 20


@dataclass(frozen=True, slots=True)
class Declared:
    """What the user says instead of what was found: thousandths, bytes; None leaves what was found."""

    cpu: int | None = None
    memory: int | None = None
    gpu: int | None = None
    disk: int | None = None
    named: tuple[tuple[str, int], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    # Which of how many agents of this machine: what was found is for all of them.
    share: tuple[int, int] = (0, 1)


def inventory(home: Path, declared: Declared, warnings: tuple[str, ...]) -> Inventory:
    """What the node tells of itself: one pool of one unit, the whole machine less the system's share.

    Of several agents each tells of an equal part, but of one core at least, so that any job finds room.
    GPUs are whole: each belongs to one of the agents.
    """
    devices = offered_gpus(declared)
    memory = memory_bytes()
    count = declared.share[1]
    found = Resources(
        cpu=max(cores() * 1000 // count, 1000),
        memory=max(memory - max(SYSTEM_MEMORY_BYTES_MIN, memory // SYSTEM_SHARE), 0) // count,
        gpu=len(devices) * 1000,
        disk=disk_free_bytes(home) * (SYSTEM_SHARE - 1) // SYSTEM_SHARE // count,
        named=tuple(sorted((name, amount) for name, amount in declared.named if amount)),
    )
    said = {name: getattr(declared, name) for name in ("cpu", "memory", "gpu", "disk")}
    resources = replace(found, **{name: amount for name, amount in said.items() if amount is not None})
    return Inventory(
        pools=(Pool(resources=resources, devices=tuple(Device("gpu", name) for name in devices)),),
        facts=tuple(sorted(_facts().items())),
        agent_version=rota.__version__,
        warnings=warnings,
        labels=tuple(sorted(declared.labels)),
    )


def offered_gpus(declared: Declared) -> tuple[str, ...]:
    """The GPUs that tasks are told of by name: none where more are declared than there are."""
    number, count = declared.share
    found = gpus.find()[number::count]
    if declared.gpu is None:
        return found
    wanted = -(-declared.gpu // 1000)
    return found[:wanted] if wanted <= len(found) else ()


def _facts() -> dict[str, str]:
    kernel = os.uname()
    found = {
        "hostname": kernel.nodename,
        "os": kernel.sysname.lower(),
        "kernel": kernel.release,
        "arch": kernel.machine,
        "cpu.cores": str(cores()),
        "memory.bytes": str(memory_bytes()),
    }
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "flags", "Features"):
            key = "cpu.model" if name.strip() == "model name" else "cpu.flags"
            found.setdefault(key, value.strip())
    for line in _lines("/etc/os-release"):
        if line.startswith("PRETTY_NAME="):
            found["os.name"] = line.partition("=")[2].strip("\"'")
    return {name: value for name, value in found.items() if value}


def cores() -> int:
    """How many this process may use, and its cgroups let it."""
    count = len(os.sched_getaffinity(0))
    quota = _first("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        count = min(count, max(int(quota[0]) // int(quota[1]), 1))
    return count


def memory_bytes() -> int:
    """How much there is, or its cgroups let it have."""
    total = _meminfo().get("MemTotal", 0)
    limit = _first("/sys/fs/cgroup/memory.max") or _first("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    return min(total, int(limit)) if limit.isdecimal() else total


def disk_free_bytes(home: Path) -> int:
    """Free for whoever is not root; nothing where the file system does not say."""
    try:
        found = os.statvfs(home)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


class Meter:
    """How busy the machine is, measured from one call to the next."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._cpu = _cpu_ticks()

    def measure(self) -> Utilisation:
        """Cpu since the last call; the rest now."""
        busy, total = _cpu_ticks()
        passed = total - self._cpu[1]
        busy_thousandths = (busy - self._cpu[0]) * 1000 // passed if passed > 0 else 0
        self._cpu = (busy, total)
        memory = _meminfo()
        received, sent = _network_bytes()
        return Utilisation(
            cpu_busy_thousandths=min(max(busy_thousandths, 0), 1000),
            memory_used_bytes=memory.get("MemTotal", 0) - memory.get("MemAvailable", 0),
            disk_free_bytes=disk_free_bytes(self._home),
            network_received_bytes=received,
            network_sent_bytes=sent,
        )


def _cpu_ticks() -> tuple[int, int]:
    """Busy, and all."""
    fields = [int(field) for field in _first("/proc/stat").split()[1:9]]
    idle = sum(fields[3:5])
    return sum(fields) - idle, sum(fields)


def _network_bytes() -> tuple[int, int]:
    received = sent = 0
    for line in _lines("/proc/net/dev"):
        name, found, counters = line.partition(":")
        if found and name.strip() != "lo":
            fields = counters.split()
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent


def _meminfo() -> dict[str, int]:
    pairs = (line.split() for line in _lines("/proc/meminfo"))
    return {fields[0].rstrip(":"): int(fields[1]) * 1024 for fields in pairs if len(fields) == 3}


def _lines(name: str) -> list[str]:
    try:
        return Path(name).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _first(name: str) -> str:
    return next(iter(_lines(name)), "")


def boot_ms() -> int:
    """Milliseconds since boot, suspension included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def boot_id() -> str:
    """Another one after each boot."""
    return _first("/proc/sys/kernel/random/boot_id")
