"""Keys and certificates of simulated nodes, kept in one file of a home: `HOME/edges/identities.sqlite`.

A key is kept before anybody is asked to sign for it, and then its certificate: so a node whose answer was
lost is the same one when it asks again.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rota.agent.link_identity import Identity

BUSY_S = 20.0

_TABLES = """
CREATE TABLE IF NOT EXISTS cluster (uuid TEXT NOT NULL, ca BLOB NOT NULL, addresses TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS node (
    name TEXT PRIMARY KEY, key BLOB NOT NULL, uuid TEXT, chain BLOB
) WITHOUT ROWID;
"""


class HomeError(Exception):
    """The identities cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which cluster the nodes of a home belong to. `ca` is PEM; `addresses` are `HOST:PORT`."""

    uuid: str
    ca: bytes
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Signed:
    """What a node got for its key; the chain is PEM."""

    name: str
    node: str
    chain: bytes


class Identities:
    """The file; several processes may use it at once."""

    def __init__(self, home: Path) -> None:
        """Raises HomeError."""
        self.path = home / "edges" / "identities.sqlite"
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
            self._file = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            self._file.executescript(f"PRAGMA journal_mode = WAL; {_TABLES}")
        except (OSError, sqlite3.Error) as wrong:
            raise HomeError(f"{self.path} cannot be used: {wrong}") from wrong

    def close(self) -> None:
        """Ends it."""
        self._file.close()

    def cluster(self) -> Cluster | None:
        """The cluster, once the first node has enrolled."""
        row = self._file.execute("SELECT uuid, ca, addresses FROM cluster").fetchone()
        return None if row is None else Cluster(row[0], row[1], tuple(json.loads(row[2])))

    def join(self, cluster: Cluster) -> None:
        """Says which cluster it is, and where it now listens. Raises HomeError where it is another one."""
        known = self.cluster()
        if known is not None and known.uuid != cluster.uuid:
            raise HomeError(
                f"the nodes in {self.path.parent} belong to cluster {known.uuid}, this is "
                f"{cluster.uuid}; give these a home of their own (--home), or remove that directory"
            )
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.execute("DELETE FROM cluster")
            row = (cluster.uuid, cluster.ca, json.dumps(cluster.addresses))
            self._file.execute("INSERT INTO cluster VALUES (?, ?, ?)", row)

    def keys(self, names: Iterable[str]) -> dict[str, bytes]:
        """Of those that have no certificate, the keys there are."""
        found = self._file.execute("SELECT name, key FROM node WHERE chain IS NULL")
        wanted = set(names)
        return {name: key for name, key in found if name in wanted}

    def keep_keys(self, keys: Iterable[tuple[str, bytes]]) -> None:
        """Keeps new keys, PEM, on disk when this returns."""
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("INSERT INTO node (name, key) VALUES (?, ?)", keys)

    def keep(self, signed: Iterable[Signed]) -> None:
        """Keeps certificates, on disk when this returns."""
        rows = [(each.node, each.chain, each.name) for each in signed]
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("UPDATE node SET uuid = ?, chain = ? WHERE name = ?", rows)

    def enrolled(self, names: Iterable[str]) -> set[str]:
        """Which of these have a certificate."""
        found = {name for (name,) in self._file.execute("SELECT name FROM node WHERE chain IS NOT NULL")}
        return found.intersection(names)

    def read(self, names: Sequence[str]) -> list[Identity]:
        """The identities of nodes that have enrolled."""
        cluster = self.cluster()
        assert cluster is not None
        rows = self._file.execute("SELECT name, uuid, key, chain FROM node WHERE chain IS NOT NULL")
        by_name = {
            name: Identity(node, name, cluster.addresses, cluster.ca, key, chain)
            for name, node, key, chain in rows
        }
        return [by_name[name] for name in names]
