"""TokenService."""

import secrets

import grpc

from rota.controller.api import views
from rota.controller.api.desk import Call, Desk
from rota.controller.api.errors import error
from rota.core.cluster.inputs import Done, PutToken, RevokeToken
from rota.core.cluster.records import TokenConfig
from rota.core.cluster.step import Machine
from rota.core.model import token as tokens
from rota.core.model.states import TokenKind
from rota.wire.gen.v1 import cluster_pb2

TTL_MS_DEFAULT = 15 * 60_000
USES_DEFAULT = 1


class Tokens:
    """Join tokens."""

    CONTRACT = cluster_pb2.DESCRIPTOR.services_by_name["TokenService"]

    def __init__(self, desk: Desk, fingerprint: bytes) -> None:
        self._desk = desk
        self._fingerprint = fingerprint

    async def create_token(
        self, request: cluster_pb2.CreateTokenRequest, call: Call
    ) -> cluster_pb2.CreateTokenResponse:
        """Makes a token; its secret is seen in this answer alone."""
        kind = TokenKind(request.kind or TokenKind.NODE)
        if kind is not TokenKind.NODE:
            raise error(
                grpc.StatusCode.UNIMPLEMENTED,
                f"tokens for a {kind.name.lower()} are not made yet; try node",
                "kind",
            )
        secret, text = tokens.make(
            self._fingerprint, secrets.token_bytes(tokens.ID_BYTES + tokens.RANDOM_BYTES)
        )
        call.about = f"token {secret.token}"
        now_ms = self._desk.loop.wall_ms()
        config = TokenConfig(
            kind=kind,
            secret_sha256=secret.sha256,
            created_at_ms=now_ms,
            expires_at_ms=now_ms + (request.ttl or TTL_MS_DEFAULT),
            uses_left=request.uses or USES_DEFAULT,
            created_by=call.caller.name,
        )
        await self._desk.change(lambda ticket: PutToken(ticket, call.caller.name, secret.token, config), Done)
        return cluster_pb2.CreateTokenResponse(secret=text, token=views.token(secret.token, config))

    async def list_tokens(self, _: cluster_pb2.ListTokensRequest, __: Call) -> cluster_pb2.ListTokensResponse:
        """All tokens that the store has, the oldest first."""
        return cluster_pb2.ListTokensResponse(tokens=await self._desk.read(_all))

    async def revoke_token(
        self, request: cluster_pb2.RevokeTokenRequest, call: Call
    ) -> cluster_pb2.RevokeTokenResponse:
        """Ends a token; who has joined with it stays."""
        call.about = f"token {request.id}"
        await self._desk.change(lambda ticket: RevokeToken(ticket, call.caller.name, request.id), Done)
        view = await self._desk.read(lambda machine: _one(machine, request.id))
        return cluster_pb2.RevokeTokenResponse(token=view)


def _one(machine: Machine, name: str) -> cluster_pb2.Token:
    config = machine.cluster.tokens.get(name)
    return cluster_pb2.Token(id=name, revoked=True) if config is None else views.token(name, config)


def _all(machine: Machine) -> list[cluster_pb2.Token]:
    found = sorted(machine.cluster.tokens.items(), key=lambda item: (item[1].created_at_ms, item[0]))
    return [views.token(name, config) for name, config in found]
