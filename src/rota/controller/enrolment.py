"""EnrolService, on the join port: a token and a signing request for a certificate.

The port speaks TLS with the controller's certificate and asks for none; whoever comes proves itself by the
token alone, which it sends only after it has found the token's fingerprint in our certificate chain. Here
nothing is told from which a guesser could learn, and the token's use is on disk before a certificate
leaves.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

import grpc

from rota.controller.api.errors import check, error, refuse, refused
from rota.controller.audit import Audit
from rota.controller.ca import Authority, CsrError, key_digest, public_key
from rota.controller.loop import Loop
from rota.controller.peers import is_tls_1_3
from rota.core.cluster.inputs import Enrol, Enrolled, Refusal
from rota.core.model.states import TokenKind
from rota.core.model.token import Secret, parse_secret
from rota.wire.gen.v1 import enrol_pb2, enrol_pb2_grpc

Context = grpc.aio.ServicerContext[enrol_pb2.EnrolRequest, Awaitable[enrol_pb2.EnrolResponse]]


class Enrolment(enrol_pb2_grpc.EnrolServiceServicer):
    """Signs for whoever has a token. `api_address`: where the API listens, as `HOST:PORT` or `:PORT`."""

    def __init__(
        self, loop: Loop, authority: Authority, audit: Audit, api_address: Callable[[], str]
    ) -> None:
        self._loop = loop
        self._authority = authority
        self._audit = audit
        self._api_address = api_address
        self._reckoning = asyncio.Lock()

    async def Enrol(  # noqa: N802 (the contract's name)
        self, request: enrol_pb2.EnrolRequest, context: Context
    ) -> enrol_pb2.EnrolResponse:
        """As the contract says."""
        secret = parse_secret(request.secret)
        audit = partial(
            self._audit.write,
            who=f"token {secret.token}" if secret is not None else "",
            address=context.peer(),
            what="EnrolService.Enrol",
        )
        asked = f"node {request.name[:63]}"
        try:
            if not is_tls_1_3(context.auth_context()):
                raise error(grpc.StatusCode.UNAUTHENTICATED, "enrolment needs TLS 1.3")
            answer = await self._enrol(request, secret)
        except asyncio.CancelledError:
            audit(of=asked, outcome="abandoned")
            raise
        except Exception as failed:  # noqa: BLE001 (a bug in one call is no reason to fail others, and is logged)
            outcome, problem = refuse(context, failed, "EnrolService.Enrol")
            audit(of=asked, outcome=outcome, problem=problem)
            # Of a refused call it is not sent.
            return enrol_pb2.EnrolResponse()
        audit(of=f"node {answer.name} {answer.node_id}", outcome="done")
        return answer

    async def _enrol(self, request: enrol_pb2.EnrolRequest, secret: Secret | None) -> enrol_pb2.EnrolResponse:
        await check(request)
        if not request.name:
            raise error(grpc.StatusCode.INVALID_ARGUMENT, "is missing: a node needs a name", "name")
        if secret is None:
            raise error(
                grpc.StatusCode.FAILED_PRECONDITION,
                "the token is not valid; make one with: rota token create",
            )
        try:
            async with self._alone():
                public = public_key(request.csr)
        except CsrError as wrong:
            raise error(grpc.StatusCode.INVALID_ARGUMENT, str(wrong), "csr") from wrong
        # Bound to the key, so that nobody else gets a certificate by repeating a request that was seen.
        key = f"{request.idempotency_key}:{key_digest(public)}"
        answer = await self._loop.ask(
            lambda ticket: Enrol(
                ticket, secret.token, secret.sha256, TokenKind.NODE, str(uuid.uuid4()), request.name, key
            )
        )
        if isinstance(answer, Refusal):
            raise refused(answer)
        assert isinstance(answer, Enrolled), answer
        async with self._alone():
            chain = self._authority.sign_node(request.csr, answer.node, datetime.now(UTC))
        return enrol_pb2.EnrolResponse(
            certificate_chain=chain,
            ca=self._authority.pem,
            node_id=answer.node,
            address=self._api_address(),
            name=answer.name,
            cluster=await self._loop.read(lambda machine: machine.cluster.meta.uuid),
        )

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One after the other: a check or a signature is half a millisecond, and many may join at once."""
        async with self._reckoning:
            yield
            await asyncio.sleep(0)
