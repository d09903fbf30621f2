"""A process that commits without end, and says each commit once it was accepted. Started by the tests.

Commit `n` puts `cfg/queue/last` with weight n, one queue that stays, a large value, and a block of results;
on standard output stands `n` when the store has answered. Several callers try at once, so that groups form.
"""

import asyncio
import os
import sys
from pathlib import Path

from rota.core.cluster.records import META_COMMIT, Commit, JobVersion, QueueConfig, ResultBlock, version_key
from rota.core.model.columns import columns_of, repeated
from rota.core.model.protocol import Ended
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause
from rota.store.port import Changes, Fenced
from rota.store.sqlite import SqliteStore


def commit_number(number: int) -> Changes:
    block = ResultBlock(
        number, 1, "n", columns_of([Ended(0, Cause.EXIT)]), repeated(1, 1), repeated(Cause.EXIT, 1)
    )
    return Changes(
        {
            META_COMMIT: Commit(1, number, number, 1),
            "cfg/queue/last": QueueConfig(number),
            f"cfg/queue/kept-{number}": QueueConfig(number),
            version_key(1, 1): JobVersion(JobSpec(script=str(number) * 5_000)),
        },
        [block],
    )


async def main(home: Path) -> None:
    store = await SqliteStore.open(home, lambda: 1)
    number = (await store.load("meta/")).fence
    os.write(1, b"open\n")
    while True:
        number += 1
        answers = await asyncio.gather(
            *(store.commit(commit_number(number), number - 1) for _ in range(3)), return_exceptions=True
        )
        assert sorted(map(str, map(type, answers))) == sorted(map(str, (int, Fenced, Fenced))), answers
        os.write(1, f"{number}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
