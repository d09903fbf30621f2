"""Calls of the API over gRPC with mutual TLS: typed errors, and patience with a controller that is away.

Every controller has the name `controller.rota` in its certificate, so any address will do.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from rota.client.context import Context, how_to_renew, is_controllers
from rota.client.errors import (
    ControllerFailed,
    InvalidRequest,
    NoCluster,
    NotFound,
    Refused,
    RotaError,
    Unreachable,
)

SERVER_NAME = "controller.rota"
DETAILS_KEY = "grpc-status-details-bin"
CALL_S_MAX = 60.0
PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 1.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

_OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.default_authority", SERVER_NAME),
    # What is tried again, and for how long, is decided here alone.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A controller that is frozen, or behind a cable that was pulled, is noticed on streams too.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", ANSWER_BYTES_MAX),
    ("grpc.enable_http_proxy", 0),
)

# What gRPC says of a connection that did not come about, and what it means; the first that is there counts.
_WHY = {
    "Connection refused": "connection refused",
    "certificate has expired": "its certificate has expired",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not of this cluster",
    "WRONG_VERSION_NUMBER": "what listens there speaks no TLS: another program?",
    "Handshake read failed": "what listens there says nothing",
    "handshake failed": "what listens there speaks TLS in another way",
}

_ERRORS: dict[grpc.StatusCode, type[RotaError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.ABORTED: Refused,
    grpc.StatusCode.ALREADY_EXISTS: Refused,
    grpc.StatusCode.PERMISSION_DENIED: Refused,
    grpc.StatusCode.UNAUTHENTICATED: Refused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Refused,
    grpc.StatusCode.UNIMPLEMENTED: Refused,
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unreachable,
    # Not by us: a controller that stops ends its streams so.
    grpc.StatusCode.CANCELLED: Unreachable,
}


@dataclass(frozen=True)
class Method(Generic[Q, A]):
    """One RPC of the contract."""

    service: str
    name: str
    question: type[Q]
    answer: type[A]

    @property
    def path(self) -> str:
        """As gRPC names it."""
        return f"/rota.v1.{self.service}/{self.name}"

    @property
    def coders(self) -> dict[str, Any]:
        """How its messages become bytes and back."""
        return {
            "request_serializer": self.question.SerializeToString,
            "response_deserializer": self.answer.FromString,
        }


class Patience:
    """How long an unreachable controller is tried again, counted from the last answer."""

    def __init__(self, seconds: float, notice: Callable[[str], None] | None, notice_s: float) -> None:
        self._seconds = seconds
        self._notice = notice
        self._notice_s = notice_s
        self._since: float | None = None
        self._pause = PAUSE_S_MIN
        self._told = False

    def answered(self) -> None:
        """The controller is there."""
        self._since = None
        self._pause = PAUSE_S_MIN
        self._told = False

    def renew(self) -> None:
        """Begins to count anew."""
        self._since = None

    def wait(self, error: Unreachable) -> None:
        """Sleeps before the next try; raises the error where there shall be none."""
        now = time.monotonic()
        self._since = self._since or now
        left = self._since + self._seconds - now
        if left <= 0:
            raise error
        if self._notice is not None and not self._told and now - self._since >= self._notice_s:
            self._told = True
            self._notice(f"{error}; trying for {left:.0f} s more")
        time.sleep(min(self._pause, left))
        self._pause = min(2 * self._pause, PAUSE_S_MAX)


class Connection:
    """One channel to a controller, usable from several threads.

    `patience_s`: how long an unreachable controller is tried again. `notice`: told, for people, when that
    has taken `notice_s`.
    """

    def __init__(
        self,
        context: Context,
        patience_s: float,
        notice: Callable[[str], None] | None = None,
        notice_s: float = 0.0,
    ) -> None:
        self._context = context
        self._patience_s = patience_s
        self._notice = notice
        self._notice_s = notice_s
        self._channel = grpc.secure_channel(context.address, _credentials(context), options=_OPTIONS)

    def close(self) -> None:
        """Ends everything that is under way."""
        self._channel.close()

    def patience(self) -> Patience:
        """Patience for one undertaking."""
        return Patience(self._patience_s, self._notice, self._notice_s)

    def ask(self, method: Method[Q, A], question: Q) -> A:
        """The answer to a question that may safely be asked twice. Raises RotaError."""
        call = self._channel.unary_unary(method.path, **method.coders)
        patience = self.patience()
        while True:
            try:
                answer: A = call(question, timeout=CALL_S_MAX)
                return answer
            except grpc.RpcError as failed:
                self._bear(patience, failed)

    def stream(
        self, method: Method[Q, A], question: Callable[[], Q], hopeful: Callable[[], bool] = lambda: False
    ) -> Iterator[A]:
        """The answers to a question. Raises RotaError.

        Where the connection is lost it is asked anew, as it then is; for as long as it is `hopeful`, patience
        does not end.
        """
        call = self._channel.unary_stream(method.path, **method.coders)
        patience = self.patience()
        while True:
            answers = call(question())
            try:
                for answer in answers:
                    patience.answered()
                    yield answer
                return
            except grpc.RpcError as failed:
                if hopeful():
                    patience.renew()
                self._bear(patience, failed)
            finally:
                answers.cancel()

    def send(self, method: Method[Q, A], questions: Callable[[], Iterable[Q]]) -> A:
        """The answer to a stream of questions. Raises RotaError.

        Where the connection is lost they are sent anew, as they then are.
        """
        call = self._channel.stream_unary(method.path, **method.coders)
        patience = self.patience()
        while True:
            try:
                answer: A = call(iter(questions()))
                return answer
            except grpc.RpcError as failed:
                self._bear(patience, failed)

    def _bear(self, patience: Patience, failed: grpc.RpcError) -> None:
        error = self._typed(failed)
        if not isinstance(error, Unreachable):
            raise error from failed
        patience.wait(error)

    def _typed(self, failed: Any) -> RotaError:
        # What gRPC raises is an RpcError and a Call in one, which its types cannot say.
        code, text = failed.code(), failed.details() or ""
        kind = _ERRORS.get(code, ControllerFailed)
        if kind is Unreachable:
            return Unreachable(_unreachable_text(self._context, code, text))
        if kind is ControllerFailed:
            return ControllerFailed(f"the controller failed: {text or code.name} (its log says more)")
        return kind(_violations(failed) or [text or code.name])


def _credentials(context: Context) -> grpc.ChannelCredentials:
    try:
        ca, key, cert = (path.read_bytes() for path in (context.ca, context.key, context.cert))
    except OSError as error:
        raise NoCluster(
            f"{error.filename} cannot be read: {error.strerror}; {how_to_renew(context.home)}"
        ) from error
    return grpc.ssl_channel_credentials(ca, key, cert)


def _unreachable_text(context: Context, code: grpc.StatusCode, text: str) -> str:
    """One line for people instead of gRPC's."""
    address = context.address
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the controller at {address} did not answer within {CALL_S_MAX:.0f} s"
    if "failed to connect" in text or "Socket closed" in text or "GOAWAY" in text or "recvmsg" in text:
        why = next((says for sign, says in _WHY.items() if sign in text), "no connection")
        says = f"no controller answers at {address} ({why})"
        if not is_controllers(context.home):
            return f"{says}; is it running on its machine? {context.home} is a client of it alone"
        return f"{says}; is it running? 'rota up' starts it"
    return text or f"no controller answers at {address}"


def _violations(failed: Any) -> list[str]:
    """All problems of a refused request: `path: what is wrong`."""
    for key, value in failed.trailing_metadata() or ():
        if key == DETAILS_KEY:
            return _read_violations(value)
    return []


def _read_violations(data: Any) -> list[str]:
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    violations = error_details_pb2.BadRequest()
    try:
        for detail in status_pb2.Status.FromString(data).details:
            if detail.Unpack(violations):
                break
    except DecodeError:
        return []
    return [
        f"{each.field}: {each.description}" if each.field else each.description
        for each in violations.field_violations
    ]
