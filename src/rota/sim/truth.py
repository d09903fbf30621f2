"""The truth about processes, whatever anybody reports: who runs what, where, and how it ended."""

from dataclasses import dataclass, field

from rota.core.cluster.check import require
from rota.core.cluster.records import (
    AllocationDesired,
    Block,
    JobVersion,
    LeaseDesired,
    NodeConfig,
    ResultBlock,
    parse_key,
)
from rota.core.cluster.rows import Result, results
from rota.core.model.protocol import Pool
from rota.core.model.resources import NOTHING, Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, OnNodeLoss
from rota.core.node.entries import Attempt
from rota.core.node.inputs import Exited
from rota.sim.node import Node, Process
from rota.store.port import Changes

_STRICT = (OnNodeLoss.RERUN_FENCED, OnNodeLoss.HOLD)
_Unit = tuple[str, str, int]


@dataclass(slots=True)
class Truth:
    """`specs` are the jobs' templates as committed; `forced` the jobs that an operator let run twice."""

    specs: dict[int, JobSpec] = field(default_factory=dict)
    forced: set[int] = field(default_factory=set)
    # (job, index) of every attempt that was recorded as a success.
    succeeded: dict[int, set[int]] = field(default_factory=dict)
    _outcomes: set[tuple[int, int, int]] = field(default_factory=set)
    _started_ms: dict[Attempt, int] = field(default_factory=dict)
    _exits: dict[Attempt, Exited] = field(default_factory=dict)
    _live: dict[tuple[int, int], dict[Attempt, str]] = field(default_factory=dict)
    # Jobs of which an attempt may have read standard input.
    _fed: set[int] = field(default_factory=set)
    _used: dict[_Unit, Resources] = field(default_factory=dict)
    _devices: dict[tuple[_Unit, str], int] = field(default_factory=dict)
    # By lease: its pool and unit. Allocations that were called lost once.
    _units: dict[int, tuple[str, int]] = field(default_factory=dict)
    _given_up: set[int] = field(default_factory=set)
    # Nodes that were removed, also those that are forgotten.
    removed: set[str] = field(default_factory=set)

    # ------------------------------------------------------------ processes

    def started(self, node: Node, process: Process) -> None:
        """An attempt's process is there."""
        attempt, job = process.attempt, process.job
        require(attempt not in self._started_ms, "started-once", "{} started again on {}", attempt, node)
        self._started_ms[attempt] = node.world.wall_ms
        require(process.spec == self.specs.get(job), "right-task", "{} runs another job's template", attempt)
        if process.spec.lines:
            line = process.spec.lines[attempt[1]]
            require(
                process.line == line, "right-task", "{} got {!r:.40}, not {:.40}", attempt, process.line, line
            )
        self._not_fed_twice(process)
        self._not_beside(node, process)
        self._charge(node, process, 1)

    def _not_fed_twice(self, process: Process) -> None:
        """What an attempt has read of its input is gone, so there is none after it."""
        if process.spec.stdin:
            require(process.job not in self._fed, "input-once", "{} is fed again", process.attempt)
            self._fed.add(process.job)

    def _not_beside(self, node: Node, process: Process) -> None:
        """Two attempts at a task live only where a job lets a lost node's task run again."""
        task = (process.job, process.attempt[1])
        live = self._live.setdefault(task, {})
        if live and process.job not in self.forced:
            said = f"task {task}: {process.attempt} on {node} beside {live}"
            require(process.spec.on_node_loss not in _STRICT, "never-two-live", said)
            if process.spec.on_node_loss is OnNodeLoss.RERUN:
                known_lost = all(
                    one[0] in self._given_up or where in self.removed for one, where in live.items()
                )
                require(known_lost, "needless-twin", said)
        live[process.attempt] = node.id

    def _charge(self, node: Node, process: Process, sign: int) -> None:
        pool, number = self._units[process.lease]
        unit = (node.name, pool, number)
        used = self._used[unit] = self._used.get(unit, NOTHING).plus(process.shape, sign)
        share = min(process.shape.gpu, 1000)
        for device in process.devices if share else ():
            left = self._devices[unit, device] = self._devices.get((unit, device), 0) + sign * share
            require(left <= 1000, "oversubscribed", "{} of {}: {} thousandths", device, unit, left)
        if sign > 0:
            whole = next((one for one in node.pools if one.name == pool), Pool(units=0))
            free = whole.resources.plus(used, -1)
            require(
                number < whole.units and not free.negative,
                "oversubscribed",
                "{}: {} of {}",
                unit,
                used,
                whole.resources,
            )
            there = {device.id for device in whole.devices}
            require(
                there.issuperset(process.devices), "devices", "{} got {}", process.attempt, process.devices
            )
            enough = not whole.devices or len(process.devices) * 1000 >= process.shape.gpu
            require(enough, "devices", "{} got {} for {}", process.attempt, process.devices, process.shape)

    def ended(self, node: Node, process: Process, exited: Exited | None) -> None:
        """Nothing of it is left; `exited` says how it ended, or nobody will ever know."""
        del self._live[process.job, process.attempt[1]][process.attempt]
        self._charge(node, process, -1)
        if exited is not None:
            self._exits[process.attempt] = exited

    # ------------------------------------------------------------ what is recorded

    def committed(self, changes: Changes) -> None:
        """What has become durable: each attempt has one outcome, and a true one."""
        for key, record in changes.records.items():
            match record:
                case JobVersion(spec):
                    self.specs[parse_key(key).job] = spec
                case LeaseDesired():
                    self._units[parse_key(key).number] = (record.pool, record.unit)
                case AllocationDesired(lost=True):
                    self._given_up.add(parse_key(key).number)
                case None if key.startswith("cfg/node/"):
                    self.removed.add(parse_key(key).node)
                case NodeConfig(removed=True):
                    self.removed.add(parse_key(key).node)
                case _:
                    pass
        for block in changes.blocks:
            self._take_block(block)

    def _take_block(self, block: Block) -> None:
        assert isinstance(block, ResultBlock)
        for result in results(block):
            index, number, cause = result.index, result.attempt, result.cause
            one = (block.job, index, number)
            require(one not in self._outcomes, "one-outcome", "attempt {} has ended twice", one)
            self._outcomes.add(one)
            attempt = (block.allocation, index, 1)
            if cause is Cause.NODE_LOST:
                self._given_up.add(block.allocation)
            else:
                over = attempt not in self._live.get((block.job, index), {})
                require(
                    over,
                    "true-outcome",
                    "{} of job {} is recorded as {}, and runs",
                    attempt,
                    block.job,
                    cause.name,
                )
            if cause is Cause.EXIT:
                self._check_exit(attempt, result)
                if result.code == 0:
                    self.succeeded.setdefault(block.job, set()).add(index)

    def _check_exit(self, attempt: Attempt, result: Result) -> None:
        code, started_ms, duration_ms = result.code, result.started_at_ms, result.duration_ms
        exited = self._exits.get(attempt)
        true = exited is not None and (exited.cause, exited.code) == (Cause.EXIT, code)
        if exited is not None and started_ms:
            true = true and (started_ms, duration_ms) == (self._started_ms[attempt], exited.duration_ms)
        require(
            true,
            "true-outcome",
            "{}: exit {} at {} after {} ms, not {}",
            attempt,
            code,
            started_ms,
            duration_ms,
            exited,
        )
