"""A controller in a process of its own, until its input ends (`python -m ... HOME`)."""

import asyncio
import sys
from pathlib import Path

from rota.controller.server import Controller  # ahead of gRPC, as in the real process
from rota.store.memory import MemoryStore
from tests.shell.controller.harness import CLOCK, wall_ms


async def serve(home: Path) -> None:
    controller = Controller(home, MemoryStore(wall_ms), CLOCK)
    await controller.start()
    print(controller.api_address, controller.join_address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await controller.stop(0.1)


asyncio.run(serve(Path(sys.argv[1])))
