"""What `rota up` does not do, said in a line each: options that come too late, nodes that it leaves out."""

from collections.abc import Mapping, Sequence

from rota.agent.facts import memory_bytes
from rota.cli.app import say
from rota.client.client import Client
from rota.client.messages import Node, NodeState
from rota.client.units import bytes_about
from rota.main.agent import flag_of, machine_flags, share_text
from rota.main.controller import controller
from rota.main.home import Home
from rota.main.processes import arguments_of, living
from rota.main.settings import Settings


def say_what_waits(home: Home, given: Settings, wanted: Settings, running: Sequence[int], count: int) -> None:
    """Says which of the options differ from how the parts that run were started."""
    flags = machine_flags(wanted.machine)
    for name in given.machine:
        flag = flag_of(name)
        values = sorted(value for key, value in flags if key == flag)
        differing = [number for number in running if sorted(_flags_of(home, number).get(flag, [])) != values]
        _say_waits(home, f"--{name.replace('_', '-')}", differing)
    if given.nodes is not None and not {"cpu", "memory", "disk"} <= set(wanted.machine):
        whole = share_text(0, 1)
        differing = [
            number
            for number in running
            if number < count
            and (_flags_of(home, number).get("--share") or [whole]) != [share_text(number, count)]
        ]
        _say_waits(home, f"the share of the machine with --nodes {count}", differing)
    if given.lost_after_ms is not None:
        with living(home.controller_pid) as process:
            if process is not None and _lost_after_ms(process.pid) != given.lost_after_ms:
                _say_waits(home, "--lost-after", [], "the controller")


def say_what_is_not_there(wanted: Settings, count: int) -> None:
    """Says where nodes that are to be started offer more memory than the machine has."""
    offered = next((int(value) for flag, value in machine_flags(wanted.machine) if flag == "--memory"), 0)
    there = memory_bytes()
    if there and offered * count > there:
        who = f"{count} nodes declare {bytes_about(offered)} of memory each" if count > 1 else ""
        who = who or f"the node declares {bytes_about(offered)} of memory"
        say(f"{who}, the machine has {bytes_about(there)}: tasks may run out of it")


def _say_waits(home: Home, what: str, numbers: Sequence[int], who: str = "") -> None:
    names = who or ", ".join(home.node_name(number) or f"agent {number}" for number in numbers)
    if names:
        verb = "go on as they were" if len(numbers) > 1 else "goes on as it was"
        say(f"{names} {verb} started: {what} takes effect after 'rota down' and 'rota up'")


def _flags_of(home: Home, number: int) -> Mapping[str, Sequence[str]]:
    """What a supervisor that runs was told, by option."""
    with living(home.agent_pid(number)) as process:
        words = arguments_of(process.pid) if process is not None else []
    found: dict[str, list[str]] = {}
    for option, value in zip(words[3::2], words[4::2], strict=False):
        found.setdefault(option, []).append(value)
    return found


def _lost_after_ms(pid: int) -> int | None:
    """What a controller that runs was told, by `rota up` or by hand."""
    words = arguments_of(pid)
    if "controller" not in words:
        return None
    told = words[words.index("controller") + 1 :]
    found: int = controller.make_context("controller", told, resilient_parsing=True).params["lost_after"]
    return found


def say_who_is_left(home: Home, rota: Client, given: Settings, count: int, running: Sequence[int]) -> None:
    """Says what becomes of the home's further nodes, and of their tasks."""
    further = range(count, max(home.agent_count(), count))
    if not further:
        return
    nodes = {node.name: node for node in rota.nodes() if node.state != NodeState.NODE_STATE_GONE}
    alive = [home.node_name(number) or "" for number in further if number in running]
    if alive and given.nodes is not None:
        say(f"{', '.join(alive)} {_is(alive)} left running: 'rota down' stops all nodes of this home")
    idle = [
        nodes[name]
        for number in further
        if number not in running and (name := home.node_name(number)) in nodes
    ]
    # With none at all, what the cluster lacks is said each time.
    if idle and (given.nodes is not None or count == 0):
        names = [node.name for node in idle]
        say(
            f"{', '.join(names)} {_is(names)} not started: 'rota up --nodes {further.stop}' does, "
            "'rota node rm NAME' forgets a node for good"
        )
    for node in idle:
        if _holds(node):
            count = node.running + node.allocated
            its, they = ("task", "it waits") if count == 1 else (f"{count:,} tasks", "they wait")
            say(
                f"{node.name} has not said what became of its {its}: "
                f"{they} until the node is lost; 'rota node rm {node.name}' gives it up now"
            )


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _holds(node: Node) -> bool:
    return bool(node.running or node.allocated) and node.state != NodeState.NODE_STATE_LOST
