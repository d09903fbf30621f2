"""`rota sim`: the simulator for people."""

from rota.cli.group import Entry, LazyGroup

sim = LazyGroup(
    "sim",
    {
        "check": Entry("rota.sim.cli:check", "run random clusters in virtual time, with faults on purpose"),
        "edges": Entry("rota.main.edges:edges", "run many simulated nodes, which a real cluster can use"),
    },
    "The simulator: clusters in virtual time, and nodes whose tasks only take time.",
)
