"""Users and operators: what they submit, what they change their minds about, what they do to nodes."""

from pyroaring import BitMap

from rota.core.cluster.check import require
from rota.core.cluster.inputs import (
    CancelJob,
    DropQueue,
    EditNode,
    HoldJob,
    Input,
    LabelNode,
    NodeEdit,
    PutQueue,
    ReleaseJob,
    RemoveNode,
    Reply,
    RetryJob,
    Submit,
    Submitted,
    ToNode,
)
from rota.core.cluster.state import Job
from rota.core.model import indexset
from rota.core.model.protocol import ReadOutput
from rota.core.model.spec import JobSpec
from rota.core.model.states import OnNodeLoss
from rota.sim.cast import Cast
from rota.sim.node import Node
from rota.sim.workload import WIDE_ARRAY, random_job, random_queue, wide_job

JOBS_MAX = 12
LET_GO_MS = 2_000


class Users:
    """Everybody who asks."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._world = cast.world
        self._submissions = 0

    def begin(self) -> None:
        """From now on users do something now and then."""
        cast, chance = self._cast, self._world.chance
        config = random_queue(chance, cast.mix)
        cast.ask(lambda ticket: PutQueue(ticket, "admin", "batch", config))
        self._world.after(chance.randint(1, 100), "a user", self._act)

    def _act(self) -> None:
        if not self._world.faults:
            return
        chance = self._world.chance
        known = sorted(self._cast.checkers.accepted)
        if chance.random() < 0.5 or not known:
            if self._submissions < JOBS_MAX:
                self._submit(known)
        elif chance.random() < 0.75:
            self._change_job(chance.choice(known))
        else:
            self._operate()
        self._world.after(chance.randint(20, self._cast.mix.user_ms_max), "a user", self._act)

    # ------------------------------------------------------------ submissions

    def _submit(self, known: list[int]) -> None:
        cast, chance = self._cast, self._world.chance
        self._submissions += 1
        key = f"key-{self._submissions}"
        nodes = [node.name for node in cast.nodes.values() if not node.removed]
        jobs: list[JobSpec] = []
        if cast.mix.wide and self._submissions == 1:
            jobs.append(wide_job(chance))
        else:
            for _ in range(chance.choice((1, 1, 2))):
                jobs.append(random_job(chance, cast.mix, known, nodes, [job.name for job in jobs]))
        specs = tuple(jobs)

        def accepted(reply: Reply) -> None:
            if isinstance(reply.answer, Submitted):
                for job, spec in zip(reply.answer.jobs, specs, strict=True):
                    was = cast.checkers.accepted.setdefault(job, spec)
                    require(was == spec, "accepted-once", f"job {job} was accepted twice")

        cast.ask(lambda ticket: Submit(ticket, "user", specs, "", key, key.encode()), accepted)

    # ------------------------------------------------------------ changes

    def _change_job(self, job: int) -> None:
        cast, chance = self._cast, self._world.chance
        some = self._some(job)
        grace_ms = chance.choice((None, 0, 300))
        draw = chance.random()
        if draw < 0.15:
            cast.ask(lambda ticket: CancelJob(ticket, "user", job, None, grace_ms))
            if chance.random() < 0.5:
                self._world.after(chance.randint(10, 3_000), "a user regrets", lambda: self._retry(job, None))
        elif draw < 0.35:
            cast.ask(lambda ticket: CancelJob(ticket, "user", job, some, grace_ms))
        elif draw < 0.5:
            cast.ask(lambda ticket: HoldJob(ticket, "user", job))
        elif draw < 0.65:
            cast.ask(lambda ticket: self._release(ticket, job))
        else:
            self._retry(job, some if chance.random() < 0.5 else None)

    def _some(self, job: int) -> BitMap:
        """One task, or every other one."""
        chance = self._world.chance
        spec = self._cast.checkers.accepted[job]
        tasks = indexset.of_job(spec.array, len(spec.lines))
        if chance.random() < 0.7:
            return BitMap([tasks[chance.randrange(len(tasks))]])
        return tasks[chance.randint(0, 1) :: 2] or tasks

    def _retry(self, job: int, some: BitMap | None) -> None:
        checkers, ignore = self._cast.checkers, self._world.chance.random() < 0.5
        checkers.retried.add(job)
        if ignore:
            checkers.dependencies_ignored.add(job)
        self._cast.ask(lambda ticket: RetryJob(ticket, "user", job, some, ignore))

    def _again(self, job: int) -> None:
        """A job is cancelled, and run again after all."""
        chance, world = self._world.chance, self._world
        world.after(chance.randint(10, 500), "a user gives up", lambda: self._cancel(job))
        world.after(chance.randint(500, 3_000), "a user regrets", lambda: self._retry(job, None))

    def _release(self, ticket: int, job: int) -> Input:
        """Whoever gives a lost node's work up answers for it: that machine is off, or it runs twice."""
        known, leader = self._known(job), self._cast.leader
        # A node that is removed ahead of it is lost by then.
        removing = leader is not None and leader.waits(RemoveNode)
        if removing or (known is not None and (known.lost or known.held or known.fenced)):
            self._cast.checkers.truth.forced.add(job)
        return ReleaseJob(ticket, "user", job)

    def _known(self, job: int) -> Job | None:
        leader = self._cast.leader
        return None if leader is None else leader.machine.cluster.jobs.get(job)

    # ------------------------------------------------------------ operators

    def _operate(self) -> None:
        cast, chance = self._cast, self._world.chance
        draw = chance.random()
        if draw < 0.1:
            cast.ask(lambda ticket: DropQueue(ticket, "admin", "batch"))
        elif draw < 0.3:
            config = random_queue(chance, cast.mix)
            cast.ask(lambda ticket: PutQueue(ticket, "admin", "batch", config, update=True))
        elif cast.nodes:
            self._change_node(chance.choice(list(cast.nodes.values())))

    def _change_node(self, node: Node) -> None:
        cast, chance = self._cast, self._world.chance
        draw = chance.random()
        if draw < 0.1:
            cast.ask(lambda ticket: LabelNode(ticket, "admin", node.id, (("a", "b"),), ("c",)))
        elif draw < 0.2:
            read = ReadOutput(1, 1, 1, 0, 1, 1, 0, 0, follow=False)
            cast.ask(lambda ticket: ToNode(ticket, node.id, read))
        elif draw < 0.3:
            self._remove(node)
        else:
            edit = chance.choice(list(NodeEdit))
            deadline_ms = chance.choice((None, 0, 500)) if edit is NodeEdit.DRAIN else None
            cast.ask(lambda ticket: EditNode(ticket, "admin", node.id, edit, deadline_ms))

    def _remove(self, node: Node) -> None:
        """By force where the machine is off, and sometimes where it runs, cut off from here or not."""
        cast, chance = self._cast, self._world.chance
        force = chance.random() < 0.5
        if node.removed or sum(not other.removed for other in cast.nodes.values()) < 2:
            return
        if force:
            node.removed = True
            if chance.random() < 0.5:
                cast.network.deaf_up.add(node.id)
                cast.network.deaf_down.add(node.id)
        jobs: set[int] = set()

        def make(ticket: int) -> Input:
            assert cast.leader is not None
            known = cast.leader.machine.cluster.nodes.get(node.id)
            if known is not None:
                jobs.update(one.job.id for one in known.allocations.values())
            return RemoveNode(ticket, "admin", node.id, force=force)

        def removed(reply: Reply) -> None:
            # Whatever the answer: it may be that to a second request.
            node.removed = node.removed or node.id in cast.checkers.truth.removed
            for job in sorted(jobs):
                if node.removed and chance.random() < 0.3:
                    self._again(job)

        cast.ask(make, removed)

    # ------------------------------------------------------------ the last phase

    def let_go(self) -> None:
        """Nodes are resumed, jobs released, and what nothing can run is cancelled; from time to time."""
        cast = self._cast
        if cast.leader is not None:
            cluster = cast.leader.machine.cluster
            for known in cluster.nodes.values():
                if known.config.cordoned and not cast.nodes[known.id].removed:
                    self._resume(known.id)
            for job in list(cluster.active.values()):
                if job.config.held or job.held or (job.lost and job.spec.on_node_loss is OnNodeLoss.HOLD):
                    self._let_run(job.id)
                if job.spec.array == WIDE_ARRAY or not self._can_run(job.spec):
                    self._cancel(job.id)
        self._world.after(LET_GO_MS, "operators let go", self.let_go)

    def _resume(self, node: str) -> None:
        self._cast.ask(lambda ticket: EditNode(ticket, "admin", node, NodeEdit.RESUME))

    def _let_run(self, job: int) -> None:
        self._cast.ask(lambda ticket: self._release(ticket, job))

    def _cancel(self, job: int) -> None:
        self._cast.ask(lambda ticket: CancelJob(ticket, "admin", job))

    def _can_run(self, spec: JobSpec) -> bool:
        return any(
            not spec.resources.missing_in(pool.resources)
            for node in self._cast.nodes.values()
            if not node.removed and spec.node in ("", node.name)
            for pool in node.pools
        )
