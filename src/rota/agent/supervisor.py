"""The supervisor: the process that is a node. It runs the node's machine, and does what that says.

The law: what a step says is written to the journal first, then done, then said. One thread, one
selector; nothing here waits for anything else.
"""

import contextlib
import logging
import os
import selectors
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from rota.agent import cgroups, facts, files, machine_id, output, tree
from rota.agent.cleanup import kill_journaled_trees, pids_text
from rota.agent.facts import boot_ms
from rota.agent.journal import Journal, JournalError, JournalFull
from rota.agent.launch import INHERITED, PATH_DEFAULT
from rota.agent.link_child import LinkChild
from rota.agent.spawn_frames import Launch, Prepare, Setup
from rota.agent.spawners import Spawners
from rota.agent.trash import Trash
from rota.core.model.protocol import (
    OUTPUT_HELD_JOBS_MAX,
    Heartbeat,
    Input,
    InputTaken,
    OutputHeld,
    ReadOutput,
    Up,
)
from rota.core.model.states import Cause
from rota.core.node.entries import Attempt, Drop, End, Ends, Entry
from rota.core.node.indices import Indices
from rota.core.node.inputs import (
    CloseStream,
    Command,
    DeleteOutput,
    InputLost,
    KillTree,
    Leave,
    NodeInput,
    Outcome,
    Received,
    Returned,
    SendOutput,
    Shutdown,
    Signal,
    Spawn,
    SpawnFailed,
    Storage,
    StreamClosed,
    StreamOpened,
    TellInput,
    TellOutput,
    WriteInput,
)
from rota.core.node.machine import Machine
from rota.core.node.recovery import recover

GRACE_MS_DEFAULT = 10_000
# How often a journal that could not be written, or not begun anew, is tried again.
JOURNAL_RETRY_MS = 1_000
# How often it is looked whether the home is still there.
LOOK_MS = 2_000
ALIVE_MS = 2_000
EXIT_REFUSED = 4
EXIT_HOMELESS = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Config:
    """What the supervisor is told. `link_command` gets `--fd N` behind it."""

    home: Path
    link_command: tuple[str, ...]
    declared: facts.Declared = field(default_factory=facts.Declared)
    cluster: str = ""
    scripts_dir: str = ""
    map_user: tuple[tuple[str, str], ...] = ()
    pid_file: Path | None = None
    link_pid_file: Path | None = None
    grace_ms: int = GRACE_MS_DEFAULT


class Supervisor:
    """One node. Made, it has taken its journal and ended what an earlier one left; `run` lives."""

    def __init__(self, config: Config) -> None:
        """Raises JournalError, Copied and OSError, with a sentence for people."""
        self._config = config
        home = config.home
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        machine_id.claim(home)
        self._journal = Journal(home)
        files.write_pid(config.pid_file)
        tree.become_subreaper()
        self._wakeup = _Wakeup()
        killed = kill_journaled_trees(home, holds_journal=True)
        if killed.count:
            _log.warning("killed %d processes that an earlier agent had left", killed.count)
        if killed.left:
            # Their slots are taken, and nobody would know of it.
            raise JournalError(
                f"processes {pids_text(killed.left)} of an earlier agent's tasks do not end though they were "
                "killed, as where a disk or a device hangs; start this agent when they are gone"
            )
        self._machine = self._recover()
        self._cgroups, warnings = cgroups.prepare(home)
        if self._cgroups is not None:
            self._cgroups.clear()
        if not output.can_punch(home):
            warnings.append(f"output is not limited: the file system of {home} cannot punch holes")
        if config.declared.gpu and not facts.offered_gpus(config.declared):
            warnings.append("GPUs are only counted: this machine has fewer NVIDIA GPUs than were declared")
        if os.geteuid() == 0 and "root" not in dict(config.map_user):
            warnings.append(
                "tasks of the account root run as root; with --map-user root=ACCOUNT they run as another"
            )
        for warning in warnings:
            _log.warning("%s", warning)
        self._warnings = tuple(warnings)
        files.clear_scripts(home)
        self._trash = Trash(home)
        self._meter = facts.Meter(home)

        self._inputs: list[NodeInput] = []
        self._unwritten: list[Entry] = []
        self._retry_at_ms = 0
        self._wake_at_ms: int | None = 0
        # Attempts whose readers want to know of their end: the numbers as people count.
        self._watched: dict[tuple[int, int], set[int]] = {}
        self._leaving = False
        self._refused = ""
        self._fence_told_ms = 0
        self._alive_at_ms = 0
        # The home was removed, and another may be in its place, with another agent.
        self._homeless = False
        self._look_at_ms = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup.descriptor, selectors.EVENT_READ, self._signalled)
        self._setup = self._make_setup()
        self._spawners = Spawners(self._selector, self._setup, self._inputs.append, self._own_pids)
        self._link = LinkChild(self._selector, config.link_command, config.link_pid_file, self)

    def _recover(self) -> Machine:
        fresh = os.urandom(16).hex()
        boot_id = facts.boot_id()
        entries = self._journal.load(boot_id)
        recovered = recover(
            entries,
            boot_id=boot_id,
            journal_id=fresh,
            pools=facts.inventory(self._config.home, self._config.declared, ()).pools,
            cluster=self._config.cluster,
        )
        try:
            if recovered.begun:
                self._journal.begin(recovered.entries)
            else:
                self._journal.append(recovered.entries)
        except JournalFull as full:
            raise JournalError(f"the journal in {self._config.home} cannot be written: {full}") from None
        return recovered.machine

    # ------------------------------------------------------------ the loop

    def run(self) -> int:
        """Lives until it has been asked to end and has ended everything; the exit code."""
        # Ends that are not written yet would be lost.
        while not self._leaving or self._unwritten:
            for key, mask in self._selector.select(self._timeout_s()):
                key.data(mask)
            self._link.tend(boot_ms())
            self._spawners.tend(boot_ms())
            if self._unwritten:
                self._write_again()
            if self._due(self._look_at_ms) and not self._homeless:
                self._look_at_home()
            if self._inputs or self._due(self._wake_at_ms):
                inputs, self._inputs[:] = list(self._inputs), []
                self._perform(self._machine.step(inputs, boot_ms(), time.time_ns() // 1_000_000))
            self._tell_alive()
            if self._journal.wants_snapshot() and not self._unwritten and self._due(self._retry_at_ms):
                self._begin_segment()
            self._spawners.flush()
            self._link.flush()
        self._end()
        if self._homeless:
            return EXIT_HOMELESS
        return EXIT_REFUSED if self._refused else 0

    def _timeout_s(self) -> float | None:
        if self._inputs:
            return 0
        times = [self._wake_at_ms, self._link.wake_at_ms, self._spawners.wake_at_ms]
        if self._unwritten:
            times.append(self._retry_at_ms)
        if not self._homeless:
            times.append(self._look_at_ms)
        if self._fence_told_ms:
            times.append(self._alive_at_ms)
        at_ms = min((at_ms for at_ms in times if at_ms is not None), default=None)
        return None if at_ms is None else max(at_ms - boot_ms(), 0) / 1000

    def _tell_alive(self) -> None:
        """Fenced tasks have to end in time also where this process is stopped: the link sees to that."""
        patience_ms = self._machine.fence_patience_ms
        if patience_ms != self._fence_told_ms or (patience_ms and self._due(self._alive_at_ms)):
            self._fence_told_ms = patience_ms
            # The leader waits for a twentieth longer than the agent.
            slack_ms = patience_ms * 3 // 100
            # Within the slack: who still ends tasks past the fence does not hang.
            self._alive_at_ms = boot_ms() + min(ALIVE_MS, slack_ms // 2)
            self._link.alive(max(self._machine.fence_at_ms - boot_ms(), 0), slack_ms)

    def _due(self, at_ms: int | None) -> bool:
        return at_ms is not None and boot_ms() >= at_ms

    def _perform(self, outcome: Outcome) -> None:
        """Write, do, say."""
        self._wake_at_ms = outcome.wake_at_ms
        if outcome.entries:
            self._write(outcome.entries)
        for command in outcome.commands:
            self._do(command)
        if not self._unwritten:
            for message in outcome.messages:
                self._say(message)
        for entry in outcome.entries:
            self._note(entry)

    def _say(self, message: Up) -> None:
        if isinstance(message, Heartbeat):
            message.utilisation = self._meter.measure()
        self._link.say(self._machine.stream, message)

    def _note(self, entry: Entry) -> None:
        """What the rest of the agent has to know of an entry."""
        if isinstance(entry, End):
            self._unwatch((entry.allocation, entry.ended.index))
        elif self._watched and isinstance(entry, Ends):
            for index in entry.index:
                self._unwatch((entry.allocation, index))
        elif self._watched and isinstance(entry, Drop):
            for allocation, index in list(self._watched):
                if allocation == entry.allocation and any(a <= index <= b for a, b in entry.indices):
                    self._unwatch((allocation, index))

    def _unwatch(self, place: tuple[int, int]) -> None:
        for number in self._watched.pop(place, ()):
            self._link.attempt_ended(*place, number)

    # ------------------------------------------------------------ the journal

    def _write(self, entries: list[Entry]) -> None:
        """Writes entries, or keeps them: until they are written nothing starts and nothing is said."""
        if self._unwritten:
            self._unwritten += entries
            return
        try:
            self._journal.append(entries)
        except JournalFull as full:
            self._unwritten += entries
            self._retry_at_ms = boot_ms() + JOURNAL_RETRY_MS
            self._inputs.append(Storage(writable=False, message=str(full)))
            _log.error(
                "the journal in %s cannot be written: %s; no work is taken until it can be",
                self._config.home,
                full,
            )

    def _write_again(self) -> None:
        if not self._due(self._retry_at_ms):
            return
        try:
            self._journal.append(self._unwritten)
        except JournalFull:
            self._retry_at_ms = boot_ms() + JOURNAL_RETRY_MS
            return
        self._unwritten.clear()
        self._inputs.append(Storage(writable=True))
        _log.warning("the journal can be written again")

    def _begin_segment(self) -> None:
        try:
            self._journal.begin(self._machine.snapshot())
        except JournalFull as full:
            _log.warning("no new segment of the journal can be begun: %s", full)
            self._retry_at_ms = boot_ms() + JOURNAL_RETRY_MS

    # ------------------------------------------------------------ commands

    def _do(self, command: Command) -> None:
        match command:
            case Spawn():
                self._spawn(command)
            case Signal():
                self._spawners.kill(command.attempt, command.signal, whole_tree=command.tree)
            case KillTree():
                self._spawners.kill(command.attempt, signal.SIGKILL, whole_tree=True)
            case CloseStream():
                self._close_stream(command)
            case DeleteOutput():
                self._trash.throw_away(command.jobs)
            case SendOutput():
                self._send_output(command.read, live=command.live)
            case WriteInput():
                self._write_input(command.input)
            case TellInput(allocation, index):
                self._tell_input(allocation, index, again=True)
            case TellOutput():
                jobs = output.jobs(self._config.home)
                for at in range(0, len(jobs), OUTPUT_HELD_JOBS_MAX):
                    self._say(OutputHeld(tuple(jobs[at : at + OUTPUT_HELD_JOBS_MAX])))
            case Leave():
                self._leaving = True
            case _:
                assert_never(command)

    def _spawn(self, spawn: Spawn) -> None:
        if self._unwritten:
            self._fail(spawn, "the journal could not be written")
            return
        lease = self._machine.held.leases[spawn.lease]
        self._renew_setup()
        devices = self._machine.slot(spawn.lease, spawn.slot).devices
        launch = Launch(spawn.parts, lease.shape, devices, spawn.start_before_ms)
        try:
            self._spawners.launch(launch, self._prepare)
        except OSError as error:
            # No descriptor for another spawner, no memory, or no room for a script: the others go on.
            self._fail(spawn, f"the agent cannot start it: {error.strerror}")
            return
        # One that is fed is alone in its run.
        part = spawn.parts[0]
        if self._machine.template(part.job, part.version).spec.stdin:
            self._feed((part.allocation, part.indices[0][0], 1), part.job)

    def _fail(self, spawn: Spawn, message: str) -> None:
        """The first of a run cannot be started, and the others with it are not."""
        first = spawn.parts[0]
        index = first.indices[0][0]
        self._inputs.append(SpawnFailed((first.allocation, index, 1), message, Cause.AGENT_ERROR))
        rest = Indices(first.indices)
        rest.remove(((index, index),))
        tasks = [(first.allocation, rest.ranges()), *((p.allocation, p.indices) for p in spawn.parts[1:])]
        self._inputs.append(Returned(tuple((number, indices) for number, indices in tasks if indices)))

    def _prepare(self, job: int, version: int) -> Prepare:
        """Raises OSError where the job's script cannot be kept."""
        template = self._machine.template(job, version)
        spec = template.spec
        script = None
        if spec.script:
            script = files.script_path(self._config.home.resolve(), job, version, spec.name)
            try:
                files.write_script(script, spec.script)
            except OSError as error:
                raise OSError(error.errno, f"its script cannot be kept: {error.strerror}") from None
        return Prepare(
            job,
            version,
            spec.command,
            str(script or ""),
            spec.script.startswith("#!"),
            spec.path,
            spec.env,
            spec.cwd,
            spec.stdout,
            spec.stderr,
            spec.stdin,
            template.task_count,
            template.account,
        )

    def _close_stream(self, close: CloseStream) -> None:
        self._link.end_stream(close)
        if not close.final:
            _log.warning("the stream to the controller was ended: %s", close.reason)
        elif not self._refused:
            self._refused = close.reason
            home = self._config.home
            _log.error("%s; to join again, remove %s, then start with a new token", close.reason, home)
            self._inputs.append(Shutdown(self._config.grace_ms))

    def _send_output(self, read: ReadOutput, *, live: bool) -> None:
        self._link.send_output(read, live=live)
        if live:
            self._watched.setdefault((read.allocation, read.index), set()).add(read.attempt)

    def _write_input(self, piece: Input) -> None:
        held = self._machine.held.allocations.get(piece.allocation)
        if held is None:
            return
        path = output.input_path(self._config.home, held.job, piece.allocation, piece.index)
        try:
            fresh = files.spool(path, piece.offset, piece.data, end=piece.end)
        except OSError as error:
            _log.error("cannot keep input in %s: %s", path, error.strerror)
            message = f"its standard input could not be kept on the node: {error.strerror}"
            self._inputs.append(InputLost(piece.allocation, piece.index, message))
            return
        if fresh:
            self._feed((piece.allocation, piece.index, 1), held.job)
        self._tell_input(piece.allocation, piece.index)

    def _tell_input(self, allocation: int, index: int, *, again: bool = False) -> None:
        job = self._machine.held.allocations[allocation].job
        size, end = files.spooled(output.input_path(self._config.home, job, allocation, index))
        self._say(InputTaken(allocation, index, size, end, again))

    def _feed(self, attempt: Attempt, job: int) -> None:
        path = output.input_path(self._config.home, job, *attempt[:2])
        size, end = files.spooled(path)
        self._spawners.feed(attempt, size, end=end)

    # ------------------------------------------------------------ what the tasks have in common

    def _make_setup(self) -> Setup:
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environment.setdefault("PATH", PATH_DEFAULT)
        found = self._cgroups
        return Setup(
            str(self._config.home.resolve()),
            self._machine.node_id,
            self._machine.node_name,
            tuple(environment.items()),
            "" if found is None else str(found.group),
            "" if found is None else str(found.rest),
            () if found is None else tuple(sorted(found.controllers)),
            self._config.scripts_dir,
            self._config.map_user,
            bool(facts.offered_gpus(self._config.declared)),
        )

    def _renew_setup(self) -> None:
        known = self._machine.node_id, self._machine.node_name
        if (self._setup.node_id, self._setup.node_name) != known:
            self._setup = self._make_setup()
            self._spawners.set_up(self._setup)

    # ------------------------------------------------------------ what the link says

    def stream_opened(self, stream: int) -> None:
        """A stream stands."""
        found = facts.inventory(self._config.home, self._config.declared, self._warnings)
        self._inputs.append(StreamOpened(stream, found))

    def stream_closed(self) -> None:
        """It is gone, or the link is."""
        self._inputs.append(StreamClosed())

    def received(self, received: Received) -> None:
        """A message from the controller."""
        self._inputs.append(received)

    # ------------------------------------------------------------ signals, and the end

    def _signalled(self, _mask: int) -> None:
        for number in self._wakeup.take():
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGQUIT or self._machine.granting.leaving:
                _log.warning("asked to end at once: what still runs is killed")
                self._inputs.append(Shutdown(0))
            else:
                _log.info("asked to end: tasks have %d ms", self._config.grace_ms)
                self._inputs.append(Shutdown(self._config.grace_ms))

    def _reap(self) -> None:
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._link.reaped(pid, boot_ms())
                self._trash.reaped(pid)
        except ChildProcessError:
            return

    def _own_pids(self) -> set[int]:
        return {self._link.pid, *self._trash.pids}

    def _look_at_home(self) -> None:
        """Ends where the home was removed: an agent that is started there would not know of this one."""
        self._look_at_ms = boot_ms() + LOOK_MS
        if self._journal.removed():
            self._homeless = True
            _log.error("%s was removed or replaced while its agent ran: this agent ends", self._config.home)
            self._inputs.append(Shutdown(self._config.grace_ms))

    def _end(self) -> None:
        self._link.close()
        self._spawners.close()
        # An agent that has come to its place uses the same cgroups.
        if self._cgroups is not None and not self._homeless:
            self._cgroups.remove()
        self._journal.close()
        files.remove_pid(self._config.pid_file)


class _Wakeup:
    """Signals as something to select on."""

    def __init__(self) -> None:
        self.descriptor, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda *_: None)
        # A terminal that is closed is no reason to end.
        for number in (signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)

    def take(self) -> set[int]:
        """The numbers of the signals that have come."""
        try:
            return set(os.read(self.descriptor, 4096))
        except BlockingIOError:
            return set()


def supervise(config: Config, ready: int | None = None) -> int:
    """Runs a node in this process; the exit code. `ready` is a descriptor to say so on, or why not."""
    try:
        supervisor = Supervisor(config)
    except (JournalError, machine_id.Copied, OSError) as error:
        sys.stderr.write(f"rota agent: {error}\n")
        _tell(ready, str(error))
        # To start it again is of use only where that may mend itself.
        return EXIT_REFUSED if isinstance(error, machine_id.Copied) else 1
    _tell(ready, "ready")
    return supervisor.run()


def _tell(descriptor: int | None, text: str) -> None:
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(descriptor, f"{text}\n".encode())
            os.close(descriptor)
