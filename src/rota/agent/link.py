"""The link: the process between a supervisor and the controller. It translates, dials, and starts no process.

    python -m rota.agent.link --home HOME --fd N

N is an inherited end of a socketpair, on which it exchanges `link_frames` with the supervisor. It dials the
controller at each of its addresses in turn, for as long as it lives, and says when a stream stands and when
it is gone; what is said on a stream is the supervisor's. When the socketpair ends, the supervisor is dead:
every process that the journal names is killed, and the link exits.
"""

import argparse
import asyncio
import itertools
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import assert_never

from rota.agent.cleanup import kill_journaled_trees, pids_text
from rota.agent.codec import Codec, Frames, frame
from rota.agent.link_frames import Alive, AttemptEnded, End, FromLink, Say, SendOutput, ToLink
from rota.agent.link_identity import Identity, IdentityError, read_identity
from rota.agent.link_output import OutputSender
from rota.agent.link_stream import Stream
from rota.agent.log import log_to_stderr
from rota.first import first_of

EXIT_NO_IDENTITY = 3
RETRY_S_MIN = 0.1
RETRY_S_MAX = 5.0
RECEIVE_BYTES = 256 * 1024

# Not by __name__: this module is run as a program.
_log = logging.getLogger("rota.agent.link")


_FROM_LINK: Codec[FromLink] = Codec(FromLink)
_TO_LINK: Codec[ToLink] = Codec(ToLink)


class SupervisorGone(Exception):
    """The socketpair has ended."""


class Supervisor:
    """The other end of the socketpair."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._sending = asyncio.Lock()

    async def tell(self, *messages: FromLink) -> None:
        """Says something, all at once; waits while the supervisor is busy. Raises SupervisorGone."""
        data = b"".join(frame(_FROM_LINK.encode(message)) for message in messages)
        async with self._sending:
            try:
                await asyncio.get_running_loop().sock_sendall(self._end, data)
            except OSError as gone:
                raise SupervisorGone from gone

    async def orders(self) -> AsyncIterator[ToLink]:
        """What it says, to the end of the socketpair. Raises SupervisorGone."""
        frames = Frames()
        while True:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._end, RECEIVE_BYTES)
            except OSError as gone:
                raise SupervisorGone from gone
            if not data:
                raise SupervisorGone
            for one in frames.feed(data):
                yield _TO_LINK.decode(one)


class Link:
    """Both sides of the link, on one event loop."""

    def __init__(self, home: Path, identity: Identity, supervisor: Supervisor) -> None:
        self._identity = identity
        self._supervisor = supervisor
        self._stream: Stream | None = None
        # The same, and when it has ended: what came last on it the supervisor may have still to answer.
        self._last: Stream | None = None
        self._output = OutputSender(home)
        self._heard_s = time.monotonic()
        # When the supervisor must have ended fenced tasks; and how late it may say so.
        self._fence_at_s = 0.0
        self._slack_s = 0.0
        self._fenced = asyncio.Event()

    async def run(self) -> None:
        """Lives until the supervisor is gone; then raises SupervisorGone."""
        await first_of(self._dial(), self._listen(), self._watch())

    async def _listen(self) -> None:
        """Does what the supervisor says."""
        async for order in self._supervisor.orders():
            self._heard_s = time.monotonic()
            self._obey(order)

    async def _watch(self) -> None:
        """Kills a supervisor that is stopped, or hangs, while a fenced task runs: nobody else would end that.

        By the clock that stands still while the machine is suspended: then the supervisor was, too, and ends
        such tasks itself when it goes on.
        """
        supervisor = os.pidfd_open(os.getppid())
        try:
            while not (self._hangs() and await self._still_hangs()):
                await self._fenced.wait()
                await asyncio.sleep(max(self._fence_at_s + self._slack_s - time.monotonic(), 0.0))
            _log.error(
                "the supervisor has said nothing for %.0f s, and a task runs that must not run twice: "
                "it is killed, and all that it started",
                time.monotonic() - self._heard_s,
            )
            signal.pidfd_send_signal(supervisor, signal.SIGKILL)
        finally:
            os.close(supervisor)
        # Its end of the socketpair ends, and with it this process.
        await asyncio.Event().wait()

    def _hangs(self) -> bool:
        return self._fenced.is_set() and time.monotonic() >= self._fence_at_s + self._slack_s

    async def _still_hangs(self) -> bool:
        """What it has said may lie there unread, where this process was stopped as well."""
        await asyncio.sleep(self._slack_s / 4)
        return self._hangs()

    def _obey(self, order: ToLink) -> None:
        stream = self._stream
        match order:
            case Say(number, message):
                if stream is not None and stream.number == number:
                    stream.say(message)
            case End(number):
                if self._last is not None and self._last.number == number:
                    self._last.finish(order)
            case SendOutput(read, live):
                if stream is not None:
                    self._output.start(stream.channel, read, live=live)
            case Alive(left_ms, slack_ms):
                self._fence_at_s = self._heard_s + left_ms / 1000
                self._slack_s = slack_ms / 1000
                if slack_ms:
                    self._fenced.set()
                else:
                    self._fenced.clear()
            case AttemptEnded(allocation, index, attempt):
                self._output.ended((allocation, index, attempt))
            case _:
                assert_never(order)

    async def _dial(self) -> None:
        """One stream after the other; each pause is longer than the one before, up to RETRY_S_MAX."""
        failures = 0
        addresses = itertools.cycle(self._identity.addresses)
        for number in itertools.count(1):
            address = next(addresses)
            async with self._identity.channel(address) as channel:
                stream = self._stream = self._last = Stream(number, channel, self._supervisor.tell)
                reason = await stream.run()
                self._stream = None
                await self._output.stop()
            _log.info("stream %d to %s ended: %s", number, address, reason)
            failures = 0 if stream.heard else failures + 1
            await asyncio.sleep(pause_s(failures))
            # By now the supervisor has answered what came last.
            if stream.end is not None and stream.end.final:
                _log.info("no further stream is wanted: %s", stream.end.reason)
                await asyncio.Event().wait()
            if stream.end is not None:
                await asyncio.sleep(stream.end.retry_ms / 1000 * random.uniform(1.0, 1.2))


def pause_s(failures: int) -> float:
    """Seconds until the next try: twice as long with each failure, and apart at random.

    So the nodes of a cluster do not all come at once.
    """
    longest = min(RETRY_S_MAX, RETRY_S_MIN * (1 << min(failures, 10)))
    return longest * random.uniform(0.5, 1.0)


async def _live(home: Path, descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as end:
        await Link(home, read_identity(home), Supervisor(end)).run()


def main() -> int:
    """The process."""
    parser = argparse.ArgumentParser(prog="python -m rota.agent.link", description="An agent's link.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    arguments = parser.parse_args()
    log_to_stderr(arguments.home.absolute().parent / "log")
    # What asks a whole group of processes to end (Ctrl-C, a service manager) is the supervisor's affair: it
    # still has things to report, and when it ends, so does the link.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    try:
        asyncio.run(_live(arguments.home, arguments.fd))
    except SupervisorGone:
        killed = kill_journaled_trees(arguments.home)
        if killed.left:
            _log.error("processes %s of tasks do not end though they were killed", pids_text(killed.left))
    except IdentityError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_NO_IDENTITY
    return 0


if __name__ == "__main__":
    sys.exit(main())
