"""Why tasks wait: what a job may start now, and for one that may not or cannot, what keeps it.

Placing asks the same functions for the limits, so that what is said is what is done.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pyroaring import BitMap

from rota.core.cluster.leases import devices_free, devices_room, units_of
from rota.core.cluster.nodes import takes_work
from rota.core.cluster.settling import waits_for
from rota.core.cluster.soft import Soft
from rota.core.cluster.state import Allocation, Cluster, Job, Node
from rota.core.model import indexset
from rota.core.model.resources import NOTHING, Resources, amount_text
from rota.core.model.states import DependencyWhen, NodeState, PendingReason

NAMED_MAX = 3
"""How many jobs or nodes a reason names; of more it says how many."""

_TO = {
    DependencyWhen.SUCCEEDED: "to succeed",
    DependencyWhen.FINISHED: "to end",
    DependencyWhen.FAILED: "to fail",
}


# ---------------------------------------------------------------- what a job may start


def ready_count(job: Job) -> int:
    """Pending tasks that wait for nothing of their own: no back-off, no hold."""
    if not (job.delayed or job.held):
        return len(job.pending)
    return len(job.pending) - job.pending.intersection_cardinality(job.delayed | job.held)


def on_nodes_count(job: Job) -> int:
    """Tasks that nodes have and that have not ended: what counts towards `max_running`."""
    return len(job.owned) - (job.count_ended - len(job.finals))


def grantable_count(job: Job) -> int:
    """Tasks that may be granted now."""
    ready = ready_count(job)
    if job.spec.max_running:
        ready = min(ready, job.spec.max_running - on_nodes_count(job))
    return max(ready, 0)


def quota_slots(cluster: Cluster, job: Job, count: int) -> int:
    """How many slots more, of `count`, the quota of the job's queue allows."""
    queue = cluster.queue(job.spec.queue)
    if queue is None or queue.quota is None:
        return count
    charged = cluster.queue_charged.get(job.spec.queue, NOTHING)
    for name, amount in job.spec.resources.items():
        limit = queue.quota.get(name)
        if limit:
            count = min(count, (limit - charged.get(name)) // amount)
    return max(count, 0)


# ---------------------------------------------------------------- why


@dataclass(frozen=True, slots=True)
class Waiting:
    """The type of a reason, and a sentence without its subject. `until_ms`: cluster time, 0 for none."""

    reason: PendingReason
    says: str
    until_ms: int = 0


class Telling(Protocol):
    """What is said of nodes, without a look at each of thousands; `index.Index` is one."""

    def telling(self, shape: Resources, avoid: tuple[str, ...]) -> Iterable[str]:
        """Some nodes of which the same follows as of all: why tasks of the shape have no place."""
        ...

    def able(self, shape: Resources) -> Iterable[str]:
        """All nodes that could hold a task of the shape if they were empty."""
        ...


class Reasons:
    """Why tasks of a cluster wait, as it is now. What is found of a job or of nodes is found once."""

    def __init__(self, cluster: Cluster, soft: Soft, nodes: "Telling") -> None:
        self._cluster = cluster
        self._soft = soft
        self._nodes = nodes
        self._all: dict[int, Waiting | None] = {}
        self._ready: dict[int, Waiting] = {}
        self._room: dict[tuple[Resources, str, tuple[str, ...]], Waiting] = {}

    def of_job(self, job: Job) -> Waiting | None:
        """Why the job's pending tasks wait; if for different things, what the first to run waits for."""
        if job.ended or job.ending:
            return None
        kept = next((one for one in job.lost.values() if one.remaining and one.waits_for_node), None)
        if not job.pending:
            return _kept(kept) if kept is not None else None
        if (common := self._of_all(job)) is not None:
            return common
        if ready_count(job):
            return self._of_ready(job)
        delayed = job.pending & job.delayed
        return _backoff(job, delayed) if delayed else _held(job)

    def of_task(self, job: Job, index: int) -> Waiting | None:
        """Why one task waits; None where it does not."""
        kept = next((one for one in job.lost.values() if index in one.remaining), None)
        if kept is not None and kept.waits_for_node:
            return _kept(kept)
        if index not in job.pending:
            return None
        if (common := self._of_all(job)) is not None:
            return common
        if index in job.held:
            return _held(job)
        return _backoff(job, BitMap([index])) if index in job.delayed else self._of_ready(job)

    def _of_all(self, job: Job) -> Waiting | None:
        """What every pending task of the job waits for."""
        if job.id not in self._all:
            self._all[job.id] = _held(job) if job.config.held else self._of_dependencies(job)
        return self._all[job.id]

    def _of_dependencies(self, job: Job) -> Waiting | None:
        open_ = set(waits_for(self._cluster, job))
        if not open_:
            return None
        waits = [f"job {after.job} {_TO[after.when]}" for after in job.config.after if after.job in open_]
        return Waiting(PendingReason.DEPENDENCY, f"waits for {_some(waits)}")

    def _of_ready(self, job: Job) -> Waiting:
        """What keeps tasks that wait for nothing of their own."""
        if job.id not in self._ready:
            self._ready[job.id] = self._of_limits(job)
        return self._ready[job.id]

    def _of_limits(self, job: Job) -> Waiting:
        spec = job.spec
        if not grantable_count(job):
            says = f"waits because max_running is reached: {on_nodes_count(job)} of {spec.max_running}"
            return Waiting(PendingReason.MAX_RUNNING, says)
        if not quota_slots(self._cluster, job, 1):
            return self._of_quota(job)
        key = (spec.resources, spec.node, job.status.avoid)
        if key not in self._room:
            self._room[key] = self._of_nodes(*key)
        return self._room[key]

    def _of_quota(self, job: Job) -> Waiting:
        queue = self._cluster.queue(job.spec.queue)
        quota = NOTHING if queue is None or queue.quota is None else queue.quota
        charged = self._cluster.queue_charged.get(job.spec.queue, NOTHING)
        full = [
            f"{name} {amount_text(name, charged.get(name))} of {amount_text(name, most)}"
            for name, most in quota.items()
            if job.spec.resources.get(name) > most - charged.get(name)
        ]
        says = f"waits because queue '{job.spec.queue}' has reached its quota: {', '.join(full)}"
        return Waiting(PendingReason.QUOTA, says)

    # ------------------------------------------------------------ nodes

    def _of_nodes(self, shape: Resources, name: str, avoid: tuple[str, ...]) -> Waiting:
        named = self._cluster.node_names.get(name, "")
        known = self._known([named] if name else self._nodes.telling(shape, avoid))
        if not known:
            says = (
                f"waits for node '{name}', which is not known" if name else "waits for a node: none is known"
            )
            return Waiting(PendingReason.NO_NODE, says)
        able = [node for node in known if _could_hold(node, shape)]
        if not able and any(node.pools for node in known):
            most = _most(shape, known, _wholes)
            return Waiting(PendingReason.TOO_LARGE, f"can run on no node: needs {most or _all_of(shape)}")
        taking = [node for node in able if takes_work(self._soft, node) and node.id not in avoid]
        if not taking:
            if able and not name:
                able = self._known(self._nodes.able(shape))
            return Waiting(PendingReason.NODES_UNAVAILABLE, self._unavailable(able or known, avoid))
        if any(_has_room(node, shape) for node in taking):
            return Waiting(PendingReason.QUEUED, "waits for its turn")
        most = _most(shape, taking, _frees, free=True)
        return Waiting(PendingReason.NO_ROOM, f"waits for room: needs {most or _all_of(shape, free=True)}")

    def _known(self, names: Iterable[str]) -> list[Node]:
        nodes = [self._cluster.nodes[name] for name in names if name in self._cluster.nodes]
        return [node for node in nodes if not node.config.removed]

    def _unavailable(self, nodes: Iterable[Node], avoid: tuple[str, ...]) -> str:
        """How many nodes take no work, by why."""
        found: Counter[str] = Counter()
        for node in nodes:
            if node.status.state is not NodeState.READY:
                found[node.status.state.name.lower()] += 1
            elif node.config.draining:
                found["draining"] += 1
            elif node.config.cordoned:
                found["cordoned"] += 1
            elif node.id in avoid:
                found["kept off it, where it failed in a row"] += 1
            else:
                found["not connected"] += 1
        whys = ", ".join(f"{count} {why}" for why, count in found.items())
        return f"waits for a node that takes it: {whys}"


def _held(job: Job) -> Waiting:
    return Waiting(PendingReason.HELD, f"is held; to let it go on: rota release {job.id}")


def _kept(allocation: Allocation) -> Waiting:
    node, job = allocation.node.config.name, allocation.job.id
    says = f"waits for node {node}, which is lost; to give it up and run again: rota release {job}"
    return Waiting(PendingReason.HELD, says)


def _backoff(job: Job, delayed: BitMap) -> Waiting:
    until_ms = min(
        one.until_ms
        for segment, part in indexset.segments_of(delayed)
        for said in (job.exceptions_of(segment),)
        for one in (*said.backoffs, *said.fences)
        if not one.indices.isdisjoint(part)
    )
    return Waiting(PendingReason.BACKOFF, "waits to be tried again", until_ms)


def _some(texts: list[str]) -> str:
    more = len(texts) - NAMED_MAX
    return ", ".join(texts[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _wholes(node: Node) -> Iterator[Resources]:
    """The kinds of units that a node has."""
    for pool in node.pools:
        yield pool.resources


def _frees(node: Node) -> Iterator[Resources]:
    """What is free in the units of a node that differ."""
    for pool in node.pools:
        for unit in units_of(node, pool, 1):
            yield node.free(pool.name, unit)


def _could_hold(node: Node, shape: Resources) -> bool:
    return any(not shape.missing_in(pool.resources) for pool in node.pools)


def _has_room(node: Node, shape: Resources) -> bool:
    return any(
        not shape.missing_in(node.free(pool.name, unit))
        and (not shape.gpu or not pool.devices or devices_room(devices_free(node, pool, unit), shape.gpu))
        for pool in node.pools
        for unit in units_of(node, pool, 1)
    )


def _most(
    shape: Resources,
    nodes: list[Node],
    amounts: Callable[[Node], Iterator[Resources]],
    *,
    free: bool = False,
) -> str:
    """What is asked of each resource that no node has enough of, and which node has the most."""
    found = []
    for name, asked in shape.items():
        pairs = [(amount.get(name), node.config.name) for node in nodes for amount in amounts(node)]
        most, node = max(pairs, key=lambda pair: pair[0])
        if most < asked:
            what = "the most that is free on one node is" if free else "the largest node has"
            found.append(
                f"{name} {amount_text(name, asked)}, {what} {amount_text(name, max(most, 0))} ({node})"
            )
    return "; ".join(found)


def _all_of(shape: Resources, *, free: bool = False) -> str:
    asked = ", ".join(f"{name} {amount_text(name, amount)}" for name, amount in shape.items())
    return f"{asked} together, which no node has{' free' if free else ''}"
