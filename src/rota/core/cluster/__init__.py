"""The leader's machine: the cluster as a value.

The cluster is its records: `Cluster.put` and `Cluster.drop` are the only mutations, and keep
everything derived true. `step(inputs, now_ms)` is the one entry.
"""
