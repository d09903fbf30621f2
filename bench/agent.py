"""What an agent costs idle and with 500 tasks that run: proportional memory, and CPU.

Supervisor and link, and all processes of the agent: the mother of the spawners and the spawners, too. What
they share is shared out between them. Tasks do not count.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from bench.harness import TICKS_A_SECOND, Bar, Cluster, Row, Size, cluster, descendants, memory_kib

TASKS = 500
# Published figures of others' agents, MiB.
K3S_MIB, NOMAD_MIB = 275, 100


def rows(size: Size) -> Iterator[Row]:
    """Idle first, then with the tasks, but where it is small."""
    watched_s = size.of(300, 5)
    with cluster("--cpu", str(TASKS)) as rota:
        rota("run", "--", "true")
        yield from told(rota, "idle", watched_s, memory=Bar(at_most=40), cpu=Bar(at_most=0.5))
        if size.small:
            return
        rota("submit", "--array", f"0-{TASKS - 1}", "--", "sleep", "1000")
        until_running(rota)
        yield from told(rota, f"{TASKS} tasks run", watched_s)


def told(
    rota: Cluster, when: str, watched_s: int, memory: Bar | None = None, cpu: Bar | None = None
) -> Iterator[Row]:
    """Memory of each process and of all together, and their CPU over a time."""
    pids = processes(rota)
    began_s, before_s = time.monotonic(), sum(times_s(pid) for pid in pids.values())
    time.sleep(watched_s)
    spent = (sum(times_s(pid) for pid in pids.values()) - before_s) / (time.monotonic() - began_s)
    sizes = {name: memory_kib(pid)[1] / 1024 for name, pid in pids.items()}
    both = sizes["supervisor"] + sizes["link"]
    yield Row("agent", f"PSS, {when}, supervisor and link", both, "MiB", bar=memory)
    total = sum(sizes.values())
    ratio = {"k3s agent": total / K3S_MIB, "Nomad client": total / NOMAD_MIB}
    yield Row("agent", f"PSS, {when}, all processes of the agent", total, "MiB", ratio)
    for name, mib in sizes.items():
        yield Row("agent", f"PSS, {when}, {name}", mib, "MiB")
    yield Row("agent", f"CPU, {when}, over {watched_s} s", spent * 100, "% of a core", bar=cpu)


def processes(rota: Cluster) -> dict[str, int]:
    """The agent's own processes, by what they are."""
    supervisor, link = rota.pid("agent-0"), rota.pid("link-0")
    found = {"supervisor": supervisor, "link": link}
    for pid in descendants(supervisor):
        if is_spawner(pid, supervisor):
            found["mother" if "mother" not in found else f"spawner {len(found) - 2}"] = pid
    return found


def times_s(pid: int) -> float:
    """CPU seconds of a process itself, without what it has reaped."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS_A_SECOND


def is_spawner(pid: int, supervisor: int) -> bool:
    """Whether it is a spawner, or their mother: forks of the supervisor, whose arguments they have."""
    return Path(f"/proc/{pid}/cmdline").read_bytes() == Path(f"/proc/{supervisor}/cmdline").read_bytes()


def until_running(rota: Cluster) -> None:
    """Waits for all tasks to run."""
    while f"{TASKS} running" not in rota("show", "2"):
        time.sleep(0.5)
    # What was told last is taken.
    time.sleep(2)
