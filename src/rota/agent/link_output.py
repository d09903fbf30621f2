"""PushOutput: sends what attempts have written, and write, for as long as the leader gives credit.

Either one stream of one attempt, and on as it grows; or what many attempts have written so far.
"""

import asyncio

# asyncio would load it when the first thread is asked for, and out of descriptors it could not.
import concurrent.futures.thread  # noqa: F401
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc

from rota.agent.output import LOOK_AGAIN_S, SUFFIXES, Reader, folder, path
from rota.agent.watches import Watch, Watches
from rota.core.model.protocol import ReadOutput
from rota.wire.gen.v1 import link_pb2, link_pb2_grpc

PIECE_BYTES_MAX = 64 * 1024
# So many files are read before something else has its turn.
FILES_READ_MAX = 64

_log = logging.getLogger(__name__)

Call = grpc.aio.StreamStreamCall[link_pb2.PushOutputRequest, link_pb2.PushOutputResponse]
Piece = link_pb2.PushOutputRequest
Attempt = tuple[int, int, int]


class OutputSender:
    """All readings that are under way."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._watches: Watches | None = None
        self._sendings: set[_Sending] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, channel: grpc.aio.Channel, read: ReadOutput, *, live: bool) -> None:
        """Begins to send. `live`: the attempt has not ended yet; `ended` will say so."""
        if read.stream not in SUFFIXES and (read.stream or not read.many):
            _log.warning("output stream %d was asked for, which there is not", read.stream)
            return
        sending: _Sending
        if read.many:
            sending = _Many(read, self._home)
        else:
            follow = read.follow and live
            sending = _One(read, self._home, self._watch() if follow else None, over=not live)
        self._sendings.add(sending)
        task = asyncio.create_task(sending.run(channel), name=f"output {read.request}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._sendings.discard(sending))

    def _watch(self) -> Watches | None:
        """The one for all; None where the account has used up what it may have."""
        if self._watches is None:
            with suppress(OSError):
                self._watches = Watches()
                asyncio.get_running_loop().add_reader(self._watches, self._watches.take)
        return self._watches

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
    """One reading, and the credit there is for it."""

    def __init__(self, read: ReadOutput, home: Path) -> None:
        self.attempt = (read.allocation, read.index, read.attempt)
        self._read = read
        self._home = home
        self._over = True
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
            try:
                await self._send(call)
            except OSError as error:
                await call.write(Piece(error=f"the output cannot be read: {error.strerror}"))
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
        raise NotImplementedError


class _One(_Sending):
    """A file, to its end, and while it grows if that is wanted."""

    def __init__(self, read: ReadOutput, home: Path, watches: Watches | None, *, over: bool) -> None:
        super().__init__(read, home)
        self._over = over
        self._watch = Watch(watches, self._changed.set)

    async def _send(self, call: Call) -> None:
        read = self._read
        file = path(self._home, read.job, *self.attempt, read.stream)
        follow = read.follow and not self._over
        reader = Reader(file, read.offset, read.tail_lines, self._watch if follow else None)
        try:
            await self._send_from(reader, call)
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
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), None if self._watch.works else LOOK_AGAIN_S)


class _Many(_Sending):
    """The files that there are of many attempts, small ones together in a message."""

    async def _send(self, call: Call) -> None:
        # Thousands of files may be looked for, and heartbeats do not wait.
        files = await asyncio.to_thread(lambda: sorted(self._files()))
        message = Piece()
        for count, (index, attempt, stream, file, wrong) in enumerate(files, 1):
            for piece in [_unreadable(wrong)] if wrong else _pieces(file, self._read.tail_lines):
                piece.index, piece.attempt, piece.stream = index, attempt, stream
                message.many.append(piece)
                if message.ByteSize() >= PIECE_BYTES_MAX:
                    if not await self._put(call, message):
                        return
                    message = Piece()
            if count % FILES_READ_MAX == 0:
                await asyncio.sleep(0)
        if message.many and not await self._put(call, message):
            return
        await call.write(Piece(end=True))

    def _files(self) -> Iterator[tuple[int, int, int, Path, str]]:
        """Index, attempt, stream and path of what is there; and of what may be there, why nobody knows."""
        read, home = self._read, self._home
        streams = [(stream, SUFFIXES[stream]) for stream in ([read.stream] if read.stream else SUFFIXES)]
        for each in read.many:
            by_folder = defaultdict(list)
            for first, last in each.indices:
                for index in range(first, last + 1):
                    by_folder[folder(home, read.job, each.allocation, index)].append(index)
            for place, indices in by_folder.items():
                there, wrong = set(), ""
                try:
                    there = {entry.name for entry in place.iterdir()}
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    wrong = str(error.strerror)
                for index in indices:
                    for stream, suffix in streams:
                        name = f"{index}.{each.attempt}.{suffix}"
                        if wrong or name in there:
                            yield index, each.attempt, stream, place / name, wrong

    async def _put(self, call: Call, message: Piece) -> bool:
        """Sends a message once there is credit for it; False where no more is wanted."""
        size = message.ByteSize()
        while self._credit_bytes < size and not self._stopped:
            self._changed.clear()
            await self._changed.wait()
        if self._stopped:
            return False
        self._credit_bytes -= size
        await call.write(message)
        return True


def _pieces(file: Path, tail_lines: int) -> Iterator[link_pb2.OutputPiece]:
    """What is in a file now, in pieces; why not, where it cannot be read."""
    try:
        reader = Reader(file, 0, tail_lines)
        try:
            # What is written meanwhile is not waited for: it may be written faster than it is sent.
            size = file.stat().st_size
            while (piece := reader.read(PIECE_BYTES_MAX)) is not None:
                end = piece.offset + len(piece.data) >= size
                yield link_pb2.OutputPiece(
                    offset=piece.offset, data=piece.data, gap_bytes=piece.gap_bytes, end=end
                )
                if end:
                    return
        finally:
            reader.close()
    except OSError as error:
        yield _unreadable(str(error.strerror))


def _unreadable(why: str) -> link_pb2.OutputPiece:
    """In the place of an output, or of the rest of it."""
    return link_pb2.OutputPiece(end=True, error=f"the output cannot be read: {why}")
