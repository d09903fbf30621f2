"""Many who are ready at once are served in several rounds of the event loop."""

import asyncio
from itertools import pairwise

from rota.controller.pace import ROUND_COUNT_MAX, Pace, Rounds


async def test_of_many_who_are_ready_a_round_serves_some_and_in_order() -> None:
    # A round that has lasted for longer than it may.
    rounds = Rounds(Pace(round_began_ns=0))
    count = 5 * ROUND_COUNT_MAX
    served: list[int] = []
    served_by_round = [0]

    async def wants(number: int) -> None:
        await rounds.turn()
        served.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(wants(number))
        while len(served) < count:
            await asyncio.sleep(0)
            served_by_round.append(len(served))
    assert served == list(range(count))
    assert max(after - before for before, after in pairwise(served_by_round)) <= ROUND_COUNT_MAX


async def test_who_gives_up_keeps_nobody() -> None:
    rounds = Rounds(Pace(round_began_ns=0))
    first, second = (asyncio.create_task(rounds.turn()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled() or first.cancelling()


async def test_a_round_that_has_time_serves_at_once() -> None:
    pace = Pace(round_began_ns=2**63)
    turn = Rounds(pace).turn()
    try:
        turn.send(None)
    except StopIteration:
        return
    raise AssertionError("it waited")
