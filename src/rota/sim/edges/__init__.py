"""Simulated nodes that a real cluster can use: the node protocol, an identity each, and no process.

| module | what is there |
|---|---|
| `edge` | one node as a machine without I/O: grants in, reports out, by whole sets of tasks |
| `memory` | what such a node holds, and how it tells of it |
| `tasks` | how long a task takes, and how it ends |
| `identities` | keys and certificates of many nodes, kept in a home |
| `enrolling` | how nodes get them |
| `fleet` | many nodes over the network, in one process |
"""
