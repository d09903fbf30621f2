"""PushOutput: sends what an attempt has written, and writes, for as long as the leader gives credit."""

import asyncio
import logging
from pathlib import Path

import grpc

from rota.agent.output import SUFFIXES, Reader, path
from rota.core.model.protocol import ReadOutput
from rota.wire.gen.v1 import link_pb2, link_pb2_grpc

PIECE_BYTES_MAX = 64 * 1024

_log = logging.getLogger(__name__)

Call = grpc.aio.StreamStreamCall[link_pb2.PushOutputRequest, link_pb2.PushOutputResponse]
Piece = link_pb2.PushOutputRequest
Attempt = tuple[int, int, int]


class OutputSender:
    """All readings that are under way."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._sendings: set[_Sending] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, channel: grpc.aio.Channel, read: ReadOutput, *, live: bool) -> None:
        """Begins to send. `live`: the attempt has not ended yet; `ended` will say so."""
        if read.stream not in SUFFIXES:
            _log.warning("output stream %d was asked for, which there is not", read.stream)
            return
        file = path(self._home, read.job, read.allocation, read.index, read.attempt, read.stream)
        sending = _Sending(read, file, over=not live)
        self._sendings.add(sending)
        task = asyncio.create_task(sending.run(channel), name=f"output {read.request}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._sendings.discard(sending))

    def ended(self, attempt: Attempt) -> None:
        """Nothing more is written by this attempt (allocation, index, number as people count)."""
        for sending in self._sendings:
            if sending.attempt == attempt:
                sending.finish()

    async def stop(self) -> None:
        """Ends all: their connection is gone."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Sending:
    """One reading: a file, and the credit there is for it."""

    def __init__(self, read: ReadOutput, file: Path, *, over: bool) -> None:
        self.attempt = (read.allocation, read.index, read.attempt)
        self._read = read
        self._file = file
        self._over = over
        self._credit_bytes = 0
        self._stopped = False
        # The attempt ended, credit came, the leader said stop, or there is more in the file.
        self._changed = asyncio.Event()

    def finish(self) -> None:
        self._over = True
        self._changed.set()

    async def run(self, channel: grpc.aio.Channel) -> None:
        call: Call = link_pb2_grpc.LinkServiceStub(channel).PushOutput()
        crediting = asyncio.create_task(self._take_credit(call))
        try:
            await call.write(Piece(request=self._read.request))
            await self._send(call)
            await call.done_writing()
            await crediting
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as gone:
            _log.info("output %d is not wanted any more: %s", self._read.request, gone)
        finally:
            crediting.cancel()
            await asyncio.gather(crediting, return_exceptions=True)
            call.cancel()

    async def _take_credit(self, call: Call) -> None:
        """Counts the credit that comes, to the end of the stream."""
        try:
            async for answer in call:
                self._credit_bytes += answer.credit_bytes
                self._stopped = self._stopped or answer.stop
                self._changed.set()
        except grpc.aio.AioRpcError as failed:
            _log.info("output %d: %s", self._read.request, failed.details())
        self._stopped = True
        self._changed.set()

    async def _send(self, call: Call) -> None:
        """Sends the file to its end, and while it grows if that is wanted."""
        read = self._read
        try:
            reader = Reader(self._file, read.offset, read.tail_lines, follow=read.follow and not self._over)
        except OSError as error:
            await call.write(Piece(error=f"the output cannot be read: {error.strerror}"))
            return
        try:
            await self._send_from(reader, call)
        except OSError as error:
            await call.write(Piece(error=f"the output cannot be read: {error.strerror}"))
        finally:
            reader.close()

    async def _send_from(self, reader: Reader, call: Call) -> None:
        offset = self._read.offset
        while not self._stopped:
            self._changed.clear()
            # Looked at before the file is: what was written before the end is then read after it.
            over = self._over
            if self._credit_bytes <= 0:
                await self._changed.wait()
                continue
            piece = reader.read(min(self._credit_bytes, PIECE_BYTES_MAX))
            if piece is not None:
                self._credit_bytes -= len(piece.data)
                offset = piece.offset + len(piece.data)
                await call.write(Piece(offset=piece.offset, data=piece.data, gap_bytes=piece.gap_bytes))
            elif over:
                await call.write(Piece(offset=offset, end=True))
                return
            elif not self._read.follow:
                return
            else:
                await self._wait_for_more(reader)

    async def _wait_for_more(self, reader: Reader) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(reader.fileno(), self._changed.set)
        try:
            await self._changed.wait()
        finally:
            loop.remove_reader(reader.fileno())
