"""Where people wrote what was refused: a problem has a field's path, and they gave an option, or a line."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import click

from rota.client.errors import RotaError

Tell = Callable[[int, str, str], str]
"""(number of the job, path of the field in it, what is wrong) as a line for people."""

_OF_JOB = re.compile(r"jobs\[(\d+)\]\.?(.*?): (.*)", re.DOTALL)
_OF_FIELD = re.compile(r"(?!jobs\[)([a-z_]+(?:[.\[][^: ]*)?): (.*)", re.DOTALL)
# A field's name among other words, if it can be nothing else; not what somebody wrote himself.
_FIELD_NAME = re.compile(r"(?<![\w'-])[a-z]+(?:_[a-z]+)+(?![\w'])")

# Parameters of commands that are called otherwise than what they become.
_PARAMETERS = {"indices": "tasks"}


@dataclass(frozen=True, slots=True)
class _Given:
    name: str
    place: str


class Origins:
    """Which option said what of one job. `options`: the option of each field that has one."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = options
        self._given: dict[str, _Given] = {}

    def note(self, path: str, place: str = "", *, name: str = "") -> None:
        """A field was given, at a place if not on the command line; `name`: by the option of this name."""
        self._given[path] = _Given(name, place)

    def tell(self, path: str, says: str) -> str:
        """What is wrong with a field, by what it was given by; and the place of that, if it has one."""
        path = re.sub(r"\['([^']*)'\]", r".\1", path)
        given = self._given_at(path, says)
        option = _above(path, self._options)
        label = path if option is None else self._options[option] + _within(option, path)
        place = ""
        if given is not None:
            place = given.place
            if given.name and not _begins_with(says, given.name):
                label = f"{label} {given.name}"
        says = _FIELD_NAME.sub(lambda found: self._options.get(found[0], found[0]), says)
        return (f"{label}: " if label else "") + says + (f" ({place})" if place else "")

    def _given_at(self, path: str, says: str) -> _Given | None:
        if (at := _above(path, self._given)) is not None:
            return self._given[at]
        # What is wrong with a name is told of all that have one.
        named = (given for at, given in self._given.items() if given.name and at == f"{path}.{given.name}")
        return next((given for given in named if _begins_with(says, given.name)), None)


def _begins_with(says: str, name: str) -> bool:
    return says.startswith((f"'{name}'", f"'{name}="))


def _above(path: str, known: Mapping[str, object]) -> str | None:
    """The nearest of the known fields that the path is, or lies in."""
    found = [each for each in known if path == each or path.startswith((f"{each}.", f"{each}["))]
    return max(found, key=len, default=None)


def _within(at: str, path: str) -> str:
    """Which of a list's items is meant, counted as people do."""
    match = re.fullmatch(r"\[(\d+)\]", path[len(at) :])
    if match is None or at not in ("command", "lines"):
        return ""
    number = int(match[1])
    if at == "lines":
        return f", line {number + 1}"
    return f", argument {number}" if number else ""


@contextmanager
def told_by(tell: Tell) -> Iterator[None]:
    """What the cluster refuses of submitted jobs is told as `tell` does, and not as `jobs[0]...`."""
    with _changed(lambda problem: _of_job(problem, tell)):
        yield


def _of_job(problem: str, tell: Tell) -> str:
    match = _OF_JOB.fullmatch(problem)
    return tell(int(match[1]), match[2], match[3]) if match is not None else problem


@contextmanager
def told_by_parameters() -> Iterator[None]:
    """A field that the running command has an option or an argument for is told by its name there."""
    with _changed(_of_parameter):
        yield


def _of_parameter(problem: str) -> str:
    context = click.get_current_context(silent=True)
    match = _OF_FIELD.fullmatch(problem)
    if context is None or match is None:
        return problem
    labels = {param.name: _label(param, context) for param in context.command.params if param.name}
    steps = [_PARAMETERS.get(step, step) for step in re.findall(r"\w+", match[1])]
    for number, step in reversed(list(enumerate(steps))):
        if step in labels:
            below = [each for each in steps[number + 1 :] if each != "named" and not each.isdecimal()]
            says = _FIELD_NAME.sub(lambda found: labels.get(found[0], found[0]), match[2])
            return f"{' '.join([labels[step], *below])}: {says}"
    return problem


def _label(param: click.Parameter, context: click.Context) -> str:
    if isinstance(param, click.Argument):
        return param.make_metavar(context).removesuffix("...")
    return max(param.opts, key=len)


@contextmanager
def _changed(change: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except RotaError as error:
        raise type(error)(map(change, error.problems)) from error
