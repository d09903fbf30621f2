"""Errors of the API, the same for every face.

Over gRPC an error is a status code, a message for people (its first problem, and how many more there are)
and, one way for all, the trailing metadata `grpc-status-details-bin`: a `google.rpc.Status` with one
`google.rpc.BadRequest`, whose `field_violations` are all problems, each with its path (empty where it is
about no field).
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from rota.controller.loop import Unavailable
from rota.core.cluster.inputs import Refusal, Why
from rota.wire.problems import path_text
from rota.wire.validate import validate

DETAILS_KEY = "grpc-status-details-bin"
# Trailing metadata may have 8 KiB in all, and binary values travel as base64.
DETAILS_BYTES_MAX = 4 * 1024
# What is computed of so little takes some milliseconds at most.
SMALL_BYTES_MAX = 16 * 1024
_PROBLEM_CHARACTERS_MAX = 400

_log = logging.getLogger(__name__)

T = TypeVar("T")

Context = grpc.aio.ServicerContext[Any, Any]

# Of the contract's fields: `jobs[0].resources.memory`, `idempotency_key`.
_PATH = re.compile(r"(jobs\[\d+\][.\w\[\]]*|[a-z]+_[a-z_]+)")

_CODES = {
    Why.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Why.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Why.REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    Why.CONFLICT: grpc.StatusCode.ABORTED,
}


class ApiError(Exception):
    """A request that is not carried out. `problems`: (path of the field or "", what is wrong)."""

    def __init__(self, code: grpc.StatusCode, problems: Iterable[tuple[str, str]]) -> None:
        self.code = code
        self.problems = tuple(problems)
        assert self.problems, code
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """One line for people."""
        path, says = self.problems[0]
        more = len(self.problems) - 1
        first = _short(f"{path}: {says}" if path else says)
        return f"{first} (and {more} more)" if more else first

    def details(self) -> bytes:
        """The serialised `google.rpc.Status`; what is beyond DETAILS_BYTES_MAX is only counted."""
        violations = error_details_pb2.BadRequest()
        used = 0
        for count, (path, says) in enumerate(self.problems):
            says = _short(says)
            used += len(path.encode()) + len(says.encode()) + 8
            if used > DETAILS_BYTES_MAX:
                violations.field_violations.add(description=f"and {len(self.problems) - count} more")
                break
            violations.field_violations.add(field=path, description=says)
        packed = AnyMessage()
        packed.Pack(violations)
        status = status_pb2.Status(code=self.code.value[0], message=self.message, details=[packed])
        return status.SerializeToString()


def error(code: grpc.StatusCode, says: str, path: str = "") -> ApiError:
    """An error with one problem."""
    return ApiError(code, [(path, says)])


async def aside(message: Message, compute: Callable[[], T]) -> T:
    """What is computed of a message; of a large one on a thread, so that others are served meanwhile."""
    if message.ByteSize() <= SMALL_BYTES_MAX:
        return compute()
    return await asyncio.to_thread(compute)


async def check(message: Message) -> None:
    """Raises ApiError with everything that is wrong with a message by the contract's rules."""
    problems = await aside(message, lambda: validate(message))
    if problems:
        found = [(path_text(problem.path), problem.says) for problem in problems]
        raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, found)


def answerable(failed: Exception, name: str) -> ApiError:
    """What an RPC answers when this was raised; a bug is logged, and nothing of it is shown."""
    if isinstance(failed, ApiError):
        return failed
    if isinstance(failed, Unavailable):
        return error(grpc.StatusCode.UNAVAILABLE, str(failed))
    _log.error("%s failed", name, exc_info=failed)
    return error(grpc.StatusCode.INTERNAL, "the controller failed; its log says more")


def refuse(context: Context, failed: Exception, name: str) -> tuple[str, str]:
    """Sets a call's status; whoever serves it has then only to return. The status' name, and its message.

    gRPC's own `abort` raises an error that the call keeps, and which by its traceback keeps the call: a
    cycle. So would the error in the frame that caught it, which is why it is not told.
    """
    wrong = answerable(failed, name)
    context.set_code(wrong.code)
    context.set_details(wrong.message)
    context.set_trailing_metadata(((DETAILS_KEY, wrong.details()),))
    return wrong.code.name, wrong.message


def refused(refusal: Refusal) -> ApiError:
    """What the cluster's machine refused."""
    return ApiError(_CODES[refusal.why], [_split(problem) for problem in refusal.problems])


def _split(problem: str) -> tuple[str, str]:
    """`jobs[0].queue: there is ...` as path and the rest; a problem that is about no field has no path."""
    path, colon, says = problem.partition(": ")
    return (path, says) if colon and _PATH.fullmatch(path) else ("", problem)


def _short(text: str) -> str:
    return text if len(text) <= _PROBLEM_CHARACTERS_MAX else text[: _PROBLEM_CHARACTERS_MAX - 3] + "..."
