"""What the supervisor and its link say to each other, as frames of `rota.agent.codec` over a socketpair.

The supervisor starts the link as `python -m rota.agent.link --home HOME --fd N`, N being an inherited end
of the socketpair. The link dials; the supervisor decides. Nothing here outlives the link: when it dies, its
streams are closed and its readers of output are gone. When the socketpair ends, the supervisor is dead: the
link kills what the journal names and exits.

Standard library alone: the supervisor imports it.
"""

from dataclasses import dataclass

from rota.core.model.protocol import Down, ReadOutput, Up

# ---------------------------------------------------------------- from the link


@dataclass(slots=True)
class Opened:
    """A stream to the controller stands; the link numbers them from 1. A Hello is due."""

    stream: int


@dataclass(slots=True)
class Closed:
    """The stream is gone, whoever ended it; the link dials again by itself."""

    stream: int
    reason: str


@dataclass(slots=True)
class Came:
    """A message from the controller."""

    stream: int
    down: Down


FromLink = Opened | Closed | Came

# ---------------------------------------------------------------- to the link


@dataclass(slots=True)
class Say:
    """A message for the controller, on this stream; it is dropped where the stream is gone."""

    stream: int
    message: Up


@dataclass(slots=True)
class End:
    """End this stream once what was said is sent; dial again after `retry_ms`, or never if `final`.

    Where it has ended meanwhile, the rest still counts.
    """

    stream: int
    reason: str
    retry_ms: int = 0
    final: bool = False


@dataclass(slots=True)
class SendOutput:
    """Somebody wants to read an attempt's output. `live`: an AttemptEnded will follow."""

    read: ReadOutput
    live: bool


@dataclass(slots=True)
class Alive:
    """The supervisor runs. In `left_ms` it ends fenced tasks, unless it says otherwise until then.

    Where it has neither done so nor said anything `slack_ms` later, it hangs; 0: there are no such tasks.
    """

    left_ms: int
    slack_ms: int


@dataclass(slots=True)
class AttemptEnded:
    """Nothing more is written by this attempt (by its number as people count)."""

    allocation: int
    index: int
    attempt: int


ToLink = Say | End | SendOutput | AttemptEnded | Alive
