"""The commits of the recent past, kept in memory for those who watch.

Belongs to one event loop, like the store that writes it. What is kept is bounded; a watcher that falls
further behind is told so, and loads again.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from rota.store.port import Compacted, Watched
from rota.wire import records

COMMITS_MAX = 4096
BYTES_MAX = 32 * 1024 * 1024


@dataclass(slots=True)
class _Commit:
    values: Mapping[str, bytes | None]
    size: int


class History:
    """Commits behind revision `revision`, as they are appended."""

    def __init__(self, revision: int, commits_max: int = COMMITS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._revision = revision
        self._commits: deque[_Commit] = deque()
        self._commits_max = commits_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._news = asyncio.Event()
        self._closed = False

    def append(self, revision: int, values: Mapping[str, bytes | None]) -> None:
        """The next commit, with the values put by it and None for what it dropped."""
        assert revision == self._revision + 1, (revision, self._revision)
        size = sum(len(key) + len(value or b"") for key, value in values.items())
        self._revision = revision
        self._commits.append(_Commit(values, size))
        self._bytes += size
        while len(self._commits) > self._commits_max or (
            self._bytes > self._bytes_max and len(self._commits) > 1
        ):
            self._bytes -= self._commits.popleft().size
        self._wake()

    def close(self) -> None:
        """Ends all watches, once they have seen what there is."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def watch(self, prefix: str, after: int) -> AsyncIterator[Watched]:
        """As Store.watch."""
        while True:
            while after < self._revision:
                oldest = self._revision - len(self._commits) + 1
                if after + 1 < oldest:
                    raise Compacted(f"the changes behind revision {after} are no longer kept")
                after += 1
                values = self._commits[after - oldest].values
                touched = {
                    key: None if value is None else records.decode(key, value)
                    for key, value in values.items()
                    if key.startswith(prefix)
                }
                if touched:
                    yield Watched(after, touched)
            if self._closed:
                return
            await self._news.wait()
