"""Enrolment of many nodes with one token, over one connection to the join port."""

import asyncio
from collections.abc import Callable, Sequence

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rota.agent import enrol
from rota.agent.enrol import EXIT_USAGE, EnrolError
from rota.core.model.token import parse
from rota.sim.edges.identities import Cluster, Identities, Signed
from rota.wire.gen.v1 import enrol_pb2

# So many wait for an answer at once: the controller takes them in one commit.
ASKING_MAX = 64
# So many keys are made, and kept, before they are used.
KEYS_COUNT = 500

_Key = ec.EllipticCurvePrivateKey


async def enrol_all(
    identities: Identities, names: Sequence[str], join: str, token_text: str, done: Callable[[int], None]
) -> None:
    """Gets certificates for these names, which have none, and keeps them; `done` is told how many.

    Raises EnrolError at the first that is refused; those that were signed for are kept.
    """
    token = parse(token_text)
    if token is None:
        raise EnrolError(EXIT_USAGE, "this is no join token; a whole one begins with rota1_")
    authority = await asyncio.to_thread(enrol.offered_authority, join, token.fingerprint)
    known = identities.keys(names)
    async with grpc.aio.secure_channel(join, *enrol.trusting(authority)) as channel:
        ask = channel.unary_unary(
            enrol.METHOD, enrol_pb2.EnrolRequest.SerializeToString, enrol_pb2.EnrolResponse.FromString
        )

        async def sign(name: str, key: _Key) -> enrol_pb2.EnrolResponse:
            request = enrol.request_for(key, token.secret, name)
            try:
                answer: enrol_pb2.EnrolResponse = await ask(request, timeout=enrol.TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                wrong = enrol.refusal(error, join)
                raise EnrolError(wrong.exit_code, f"{name}: {wrong}") from error
            enrol.check(answer, authority, key, join)
            return answer

        for start in range(0, len(names), KEYS_COUNT):
            keys = _keys(identities, known, names[start : start + KEYS_COUNT])
            for first in range(0, len(keys), ASKING_MAX):
                some = keys[first : first + ASKING_MAX]
                answers = await asyncio.gather(*(sign(*each) for each in some), return_exceptions=True)
                signed = [answer for answer in answers if isinstance(answer, enrol_pb2.EnrolResponse)]
                if signed:
                    where = tuple(enrol.addresses(signed[0], join))
                    identities.join(Cluster(signed[0].cluster, signed[0].ca, where))
                    identities.keep(Signed(one.name, one.node_id, one.certificate_chain) for one in signed)
                for answer in answers:
                    if isinstance(answer, BaseException):
                        raise answer
                done(start + first + len(some))


def _keys(identities: Identities, known: dict[str, bytes], names: Sequence[str]) -> list[tuple[str, _Key]]:
    """A key for each name, on disk."""
    made = {name: ec.generate_private_key(ec.SECP256R1()) for name in names if name not in known}
    identities.keep_keys((name, _pem(key)) for name, key in made.items())
    keys = []
    for name in names:
        key = made[name] if name in made else serialization.load_pem_private_key(known[name], None)
        assert isinstance(key, ec.EllipticCurvePrivateKey), name
        keys.append((name, key))
    return keys


def _pem(key: _Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
