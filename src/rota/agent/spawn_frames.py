"""What the supervisor and its spawners say to each other, as frames of `rota.agent.codec`.

Up go the machine's own inputs, Spawned, SpawnFailed, Exited, Ran, Returned and InputLost, and Stuck.
"""

from dataclasses import dataclass

from rota.core.model.resources import Resources
from rota.core.node.entries import Attempt
from rota.core.node.inputs import Exited, InputLost, Part, Ran, Returned, Spawned, SpawnFailed

# What is logged where nobody knows any more whose processes they are.
STUCK = (
    "what tasks left whose spawner died does not end though it was killed; "
    "their slots stay taken until it is gone"
)

# ---------------------------------------------------------------- to a spawner


@dataclass(slots=True)
class Setup:
    """The first frame: what all tasks of this node have in common.

    `environment` is what they have of the agent's own. `controllers` are those of the cgroups that
    limit, `rooms` is the cgroup that holds this spawner's, and `rest` that of the agent's other processes;
    where there are no cgroups, both are empty. `has_gpus`: tasks are told of theirs.
    """

    home: str
    node_id: str
    node_name: str
    environment: tuple[tuple[str, str], ...]
    rooms: str
    rest: str
    controllers: tuple[str, ...]
    scripts_dir: str
    map_user: tuple[tuple[str, str], ...]
    has_gpus: bool


@dataclass(slots=True)
class Prepare:
    """A template, ahead of the first Launch of it.

    `script`: the file that is run with `command` as its arguments, by its `#!` line if it is
    `executable`, else by a shell; empty where the command is the program.
    """

    job: int
    version: int
    command: tuple[str, ...]
    script: str
    executable: bool
    path: str
    environment: tuple[tuple[str, str], ...]
    cwd: str
    stdout: str
    stderr: str
    stdin: bool
    task_count: int
    account: str


@dataclass(slots=True)
class Launch:
    """Runs tasks in a slot, one after the other; see `rota.core.node.inputs.Spawn`.

    Each task is answered by SpawnFailed, Exited or Ran, the last two after Spawned where it lasts, or it is
    Returned. `shape` is what the slot may use, `devices` the GPUs that are its own.
    """

    parts: tuple[Part, ...]
    shape: Resources
    devices: tuple[str, ...]
    start_before_ms: int | None = None


@dataclass(slots=True)
class Kill:
    """Signals an attempt: its main process, or its tree. SIGKILL to the tree ends the attempt."""

    attempt: Attempt
    signal: int
    tree: bool


@dataclass(slots=True)
class Feed:
    """So much of a task's standard input is in its file now; `end`: that is all."""

    allocation: int
    index: int
    size: int
    end: bool


@dataclass(slots=True)
class Stuck:
    """An attempt's processes that go on though they were killed; it goes on with them."""

    attempt: Attempt
    job: int
    pids: tuple[int, ...]


ToSpawner = Setup | Prepare | Launch | Kill | Feed
FromSpawner = Spawned | SpawnFailed | Exited | Ran | Returned | Stuck | InputLost
