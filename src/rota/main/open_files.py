"""How many files a process may have open: a connection of a node is one."""

import resource

# What a process needs beside its connections.
FILES_BESIDE = 100


def allow(connections: int | None = None) -> int:
    """Raises the soft limit to what so many connections need (None: to the hard limit).

    Returns how many connections there may be, which may be fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if connections is None else connections + FILES_BESIDE
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and (wanted > soft or wanted == resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return connections_max(soft)


def connections_max(files: int) -> int:
    """How many connections a limit leaves room for."""
    return 2**31 if files == resource.RLIM_INFINITY else files - FILES_BESIDE
