"""The API over gRPC: each service of the contract bound to the class that carries it out, by its descriptor.

For every request, in this order: who is it (the certificate, then the user's record), may that user do this
at all, is what is asked well formed, and then the service. Each change that was asked for goes to the audit
log, whatever became of it.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from rota.controller.api.auth import ACTIONS, Action, Caller, authorize
from rota.controller.api.desk import Call, Desk
from rota.controller.api.errors import check, error, refuse
from rota.controller.audit import Audit
from rota.controller.calls import send
from rota.controller.peers import peer_of

T = TypeVar("T")

Context = grpc.aio.ServicerContext[Message, Message]


class Service(Protocol):
    """Carries out a service of the contract, with one method an RPC."""

    @property
    def CONTRACT(self) -> ServiceDescriptor:  # noqa: N802 (a constant of the class)
        """The service's descriptor."""
        ...


class Face:
    """Serves services to holders of users' certificates."""

    def __init__(self, desk: Desk, audit: Audit) -> None:
        self._desk = desk
        self._audit = audit

    def handlers(self, services: Iterable[Service]) -> list[grpc.GenericRpcHandler]:
        """The handlers of all methods of these services, for a server with mutual TLS."""
        return [
            grpc.method_handlers_generic_handler(
                service.CONTRACT.full_name,
                {
                    method.name: self._handler(method, getattr(service, _method_name(method.name)))
                    for method in service.CONTRACT.methods
                },
            )
            for service in services
        ]

    def _handler(
        self, method: MethodDescriptor, carry_out: Callable[..., Any]
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        parse = GetMessageClass(method.input_type).FromString
        serialise = GetMessageClass(method.output_type).SerializeToString
        name = f"{method.containing_service.name}.{method.name}"
        match method.client_streaming, method.server_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(self._unary(name, carry_out), parse, serialise)
            case False, True:
                return grpc.unary_stream_rpc_method_handler(self._answers(name, carry_out), parse, serialise)
            case True, False:
                return grpc.stream_unary_rpc_method_handler(self._requests(name, carry_out), parse, serialise)
        raise TypeError(f"{method.full_name}: streams both ways are not for users")

    def _unary(self, name: str, carry_out: Callable[..., Any]) -> Callable[..., Any]:
        async def handle(request: Message, context: Context) -> Message | None:
            async def work(call: Call) -> Message:
                await check(request)
                answer: Message = await carry_out(request, call)
                return answer

            return await self._serve(name, context, work)

        return handle

    def _answers(self, name: str, carry_out: Callable[..., Any]) -> Callable[..., Any]:
        async def handle(request: Message, context: Context) -> None:
            async def work(call: Call) -> None:
                await check(request)
                async with aclosing(carry_out(request, call)) as answers:
                    async for answer in answers:
                        await send(context, answer)

            await self._serve(name, context, work)

        return handle

    def _requests(self, name: str, carry_out: Callable[..., Any]) -> Callable[..., Any]:
        async def handle(requests: AsyncIterator[Message], context: Context) -> Message | None:
            async def work(call: Call) -> Message:
                answer: Message = await carry_out(_checked(requests), call)
                return answer

            return await self._serve(name, context, work)

        return handle

    async def _serve(self, name: str, context: Context, work: Callable[[Call], Awaitable[T]]) -> T | None:
        """Admits the caller, works, writes the audit log, and turns errors into the call's status.

        None where there is no answer but that.
        """
        call = Call(Caller("", "", "", context.peer()))
        try:
            call.caller = self._caller(context, call.caller.address)
            authorize(call.caller, ACTIONS.get(name))
            answer = await work(call)
        except asyncio.CancelledError:
            self._write_down(name, call, "abandoned")
            raise
        except Exception as failed:  # noqa: BLE001 (a bug in one call is no reason to fail others, and is logged)
            self._write_down(name, call, *refuse(context, failed, name))
            return None
        self._write_down(name, call, "done")
        return answer

    def _write_down(self, name: str, call: Call, outcome: str, problem: str = "") -> None:
        """The audit log's line, ahead of the answer, for whatever is not only looking."""
        if ACTIONS.get(name) is not Action.SEE:
            self._audit.write(
                who=call.caller.name,
                address=call.caller.address,
                what=name,
                of=call.about,
                outcome=outcome,
                problem=problem,
            )

    def _caller(self, context: Context, address: str) -> Caller:
        """Who asks, by certificate and record. Raises ApiError for anybody who is no user."""
        peer = peer_of(context.auth_context(), address)
        if peer is None or peer.kind != "user":
            raise error(
                grpc.StatusCode.UNAUTHENTICATED, "the API is for users: connect with a user's certificate"
            )
        user = self._desk.loop.users().get(peer.name)
        if user is None:
            raise error(grpc.StatusCode.PERMISSION_DENIED, f"'{peer.name}' is no user of this cluster")
        return Caller(peer.name, user.role, user.account, peer.address)


async def _checked(requests: AsyncIterator[Message]) -> AsyncGenerator[Message]:
    async for request in requests:
        await check(request)
        yield request


def _method_name(name: str) -> str:
    """`SubmitJobs` -> `submit_jobs`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
