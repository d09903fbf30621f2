"""What is done from time to time, besides the turns: the archive is kept small."""

import asyncio
import logging

from rota.controller.loop import Loop, Unavailable
from rota.store.port import Archive, StoreError

FORGOTTEN_AGE_MS_MAX = 7 * 86_400_000
"""The attempts of a job are kept for as long as the job is; of one that is forgotten, for so long."""

ARCHIVE_BYTES_MAX = 10 * 1024**3
"""More than that is never kept: forgotten jobs' attempts go first, then the oldest."""

INTERVAL_S = 3600.0

_log = logging.getLogger(__name__)


async def keep_archive_small(loop: Loop, archive: Archive) -> None:
    """Removes blocks that are too old or too many, now and every hour."""
    while True:
        try:
            kept = await loop.read(lambda machine: set(machine.cluster.jobs))
            count = await archive.prune(loop.wall_ms() - FORGOTTEN_AGE_MS_MAX, ARCHIVE_BYTES_MAX, kept)
        except (StoreError, Unavailable) as failed:
            _log.warning("the archive could not be pruned: %s", failed)
        else:
            if count:
                _log.info("%d blocks of the archive were too old or too many, and are gone", count)
        await asyncio.sleep(INTERVAL_S)
