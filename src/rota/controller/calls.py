"""The messages of a gRPC call, either way, on the controller's side."""

import asyncio
from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]


async def next_message(context: Context) -> bytes | None:
    """The next message of a stream, None at its end."""
    data: object = await context.read()
    return data if isinstance(data, bytes) else None


async def send(context: Context, message: object) -> None:
    """Writes a message.

    Raises CancelledError where the caller has gone: a write may fail of that before gRPC cancels the call.
    """
    try:
        await context.write(message)
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError("the caller has gone") from gone
