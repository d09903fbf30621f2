"""A real link process, with the test in the supervisor's place at the other end of the socketpair."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from rota.agent.codec import Codec, Frames, frame
from rota.agent.link_frames import Came, FromLink, Opened, Say, ToLink
from rota.core.model.protocol import Body, Hello, HoldingEnd, Inventory, Pool, Up, Welcome
from rota.core.model.resources import Resources
from tests.shell.controller.harness import Running, child

WAIT_S_MAX = 20.0

FROM_LINK: Codec[FromLink] = Codec(FromLink)
TO_LINK: Codec[ToLink] = Codec(ToLink)

F = TypeVar("F", bound=FromLink)
B = TypeVar("B", bound=Body)


class Supervised:
    """The supervisor's side of one link."""

    def __init__(self, home: Path, process: asyncio.subprocess.Process, end: socket.socket) -> None:
        self.home = home
        self.process = process
        self._end = end
        self._frames = Frames()
        self._heard: list[FromLink] = []
        self.cluster = ""

    async def tell(self, order: ToLink) -> None:
        await asyncio.get_running_loop().sock_sendall(self._end, frame(TO_LINK.encode(order)))

    async def say(self, stream: int, message: Up) -> None:
        await self.tell(Say(stream, message))

    async def hear(self, kind: type[F]) -> F:
        """The next frame, which is of this kind."""
        async with asyncio.timeout(WAIT_S_MAX):
            while not self._heard:
                data = await asyncio.get_running_loop().sock_recv(self._end, 65536)
                assert data, "the link hung up"
                self._heard += [FROM_LINK.decode(one) for one in self._frames.feed(data)]
        first = self._heard.pop(0)
        assert isinstance(first, kind), first
        return first

    async def come(self, stream: int, kind: type[B]) -> B:
        """The body of the next message from the controller, on this stream and of this kind."""
        came = await self.hear(Came)
        assert came.stream == stream
        assert isinstance(came.down.body, kind), came
        return came.down.body

    def hello(self) -> Hello:
        pool = Pool(resources=Resources(cpu=4000))
        return Hello(1, self.cluster, 0, "boot", "journal", 0, 0, Inventory((pool,)), 17)

    async def come_up(self) -> int:
        """A stream on which the leader has said Welcome; its number."""
        opened = await self.hear(Opened)
        await self.say(opened.stream, self.hello())
        welcome = await self.come(opened.stream, Welcome)
        assert welcome.hello_sent_ms == 17
        await self.say(opened.stream, HoldingEnd())
        return opened.stream

    def hang_up(self) -> None:
        """As when the supervisor dies."""
        self._end.close()

    async def exit_code(self) -> int:
        async with asyncio.timeout(WAIT_S_MAX):
            return await self.process.wait()


async def enrol(run: Running, home: Path, name: str = "n1") -> None:
    """With the real enrolment process."""
    arguments = ("--home", str(home), "--join", run.controller.join_address, "--name", name)
    token = await run.token()
    assert await child("rota.agent.enrol", *arguments, stdin=f"{token}\n".encode()) == (0, "")


@asynccontextmanager
async def linked(
    home: Path, cluster: str = "", program: Sequence[str] = ("-m", "rota.agent.link")
) -> AsyncIterator[Supervised]:
    """A link that runs in an agent's home, killed at the end if it still does."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *program,
                "--home",
                str(home),
                "--fd",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env=os.environ,
            )
        it = Supervised(home, process, ours)
        it.cluster = cluster
        try:
            yield it
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
