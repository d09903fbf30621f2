"""What can go wrong between a client and a cluster, by whose turn it is to do something about it."""

from collections.abc import Iterable


class RotaError(Exception):
    """A request that was not carried out, with all problems, one line each for people."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        assert self.problems
        super().__init__("; ".join(self.problems))


class InvalidRequest(RotaError):
    """What was asked is not well formed: change it."""


class NotFound(RotaError):
    """What was asked for is not there."""


class Refused(RotaError):
    """The cluster will not do it: it cannot, or this user may not."""


class Unreachable(RotaError):
    """No controller answered for as long as the client tries."""


class NoCluster(Unreachable):
    """There is no usable client context."""


class ControllerFailed(RotaError):
    """The controller answered with a failure of its own."""
