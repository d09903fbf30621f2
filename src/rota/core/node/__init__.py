"""The node's machine: what a node holds, runs and reports. The standard library alone, and ranges."""
