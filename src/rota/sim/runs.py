"""Many seeds over the cores of this machine."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial

from rota.sim.check import STEPS_DEFAULT, Found, run_seed

CHUNK_SEEDS = 20


def run_seeds(
    seeds: range, steps: int = STEPS_DEFAULT, processes: int = 1, *, edges: bool = False
) -> Iterator[Found]:
    """What each seed's run came to, in no order."""
    if processes == 1 or len(seeds) <= 1:
        for seed in seeds:
            yield run_seed(seed, steps, edges=edges)
        return
    chunks = [seeds[start : start + CHUNK_SEEDS] for start in range(0, len(seeds), CHUNK_SEEDS)]
    with ProcessPoolExecutor(processes) as pool:
        waiting = [pool.submit(partial(_run_chunk, chunk, steps, edges)) for chunk in chunks]
        for done in as_completed(waiting):
            yield from done.result()


def _run_chunk(seeds: range, steps: int, edges: bool) -> list[Found]:
    return [run_seed(seed, steps, edges=edges) for seed in seeds]
