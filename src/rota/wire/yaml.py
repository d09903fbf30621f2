"""A job file: YAML to `SubmitJobsRequest`, with the place of everything that is wrong.

Each text is read as the type and the unit of the field where it stands say, so that `on: yes`, `1.10`, `0755`
and `12:30:45` are what they look like where a text is wanted.

A file is a mapping with `jobs:`, or one job; several documents in a file are joined.
"""

import difflib
from dataclasses import dataclass
from typing import Any

from rota.wire.gen.v1 import job_service_pb2
from rota.wire.problems import PROBLEMS_MAX, BadInput, Path, Problem, follows
from rota.wire.tree import Document, List, Mapping, Node, NotATree, Text, documents
from rota.wire.units import UnitError, quoted
from rota.wire.validate import rules_of, validate
from rota.wire.values import value_of

_HINT_LENGTH_MAX = 40


class JobsOfFile:
    """The jobs that were read from a file, and where all that they say stands there."""

    def __init__(self, reader: "_Reader") -> None:
        self._reader = reader
        self.jobs = reader.request.jobs

    def problem(self, job: int, path: Path, says: str) -> Problem:
        """What was found to be wrong with a field of a job, by its number, later."""
        return self._reader.problem(("jobs", job, *path), says)


def read_jobs(data: bytes, file: str) -> JobsOfFile:
    """The jobs of a file's bytes, checked. `file` is its name, for the places of problems.

    Raises BadInput, with everything that is wrong; nothing else.
    """
    reader = _Reader(file)
    try:
        for document in documents(data):
            reader.document(document)
    except NotATree as error:
        place = file if error.line is None else f"{file}:{error.line + 1}:{error.column + 1}"
        raise BadInput([Problem((), error.says, place)]) from None
    if not reader.request.jobs and not reader.found:
        raise BadInput([Problem((), "there are no jobs; begin with 'jobs:' and a list of them", file)])
    reader.check()
    if reader.found:
        raise BadInput([found.problem for found in sorted(reader.found, key=lambda found: found.position)])
    return JobsOfFile(reader)


@dataclass(slots=True)
class _Found:
    position: tuple[int, int]
    problem: Problem


class _Reader:
    """Fills the request from trees, and finds what is wrong."""

    def __init__(self, file: str) -> None:
        self.request = job_service_pb2.SubmitJobsRequest()
        self.found: list[_Found] = []
        self._file = file
        # The node of each job of the request, and the numbers of those that are a document by themselves.
        self._nodes: list[Node] = []
        self._alone: set[int] = set()
        # Paths whose value could not be read, and all that lead to one.
        self._unread: set[Path] = set()
        # Where values stand that the tree is without.
        self._refused: set[tuple[int, int]] = set()
        self._above: set[Path] = set()

    # ---------------------------------------------------------------- documents

    def document(self, document: Document) -> None:
        """Takes one document: a mapping with `jobs`, or one job."""
        node, first = document.root, len(self._nodes)
        is_alone = isinstance(node, Mapping) and node.get("jobs") is None
        if is_alone:
            self._alone.add(first)
        for refused in document.refused:
            path = ("jobs", first, *refused.path) if is_alone else _counted_from(first, refused.path)
            self._add(refused.node, path, refused.says)
            if isinstance(refused.node, Text):
                self._mark_unread(path or ("jobs",))
                self._refused.add((refused.node.line, refused.node.column))
        if _is_nothing(node):
            return  # as behind a last `---`
        if not isinstance(node, Mapping):
            says = (
                f"{_named(node)} is no mapping; begin with 'jobs:' and a list of jobs, or with a job's keys"
            )
            self._mark_unread(("jobs",))
            self._add(node, (), says)
        elif is_alone:
            self._job(node)
        else:
            self._jobs(node)

    def _jobs(self, node: Mapping) -> None:
        seen: set[str] = set()
        for key, value in node.pairs:
            name = self._key(key, (), seen)
            if name is not None and name != "jobs":
                self._add(key, (name,), "unknown key beside jobs; a job's own keys stand in the list")
            elif name is not None and not _is_nothing(value):
                for item in self._items(value, ("jobs",)):
                    self._job(item)

    def _job(self, node: Node) -> None:
        self._nodes.append(node)
        self._message(node, self.request.jobs.add(), ("jobs", len(self._nodes) - 1))

    def check(self) -> None:
        """Adds what is wrong with what could be read, but for what follows from what could not."""
        for problem in validate(self.request):
            path = problem.path
            if not follows(problem, self._unread) and not (len(path) > 2 and path in self._above):
                self._add(self._locate(path), path, problem.says)

    # ---------------------------------------------------------------- problems

    def _add(self, node: Node | None, path: Path, says: str) -> None:
        if len(self.found) >= PROBLEMS_MAX:
            return
        line, column = (node.line, node.column) if node is not None else (0, 0)
        self.found.append(_Found((line, column), self._problem(line, column, path, says)))

    def _problem(self, line: int, column: int, path: Path, says: str) -> Problem:
        if len(path) > 1 and path[1] in self._alone:
            path = path[2:]  # nobody who writes one job knows it as jobs[0]
        return Problem(path, says, f"{self._file}:{line + 1}:{column + 1}")

    def problem(self, path: Path, says: str) -> Problem:
        """What is wrong at a path, with its place."""
        node = self._locate(path)
        return self._problem(*((node.line, node.column) if node is not None else (0, 0)), path, says)

    def _unreadable(self, node: Node, path: Path, says: str) -> None:
        self._mark_unread(path)
        if (node.line, node.column) not in self._refused:
            self._add(node, path, says)

    def _mark_unread(self, path: Path) -> None:
        self._unread.add(path)
        self._above.update(path[:length] for length in range(1, len(path)))

    def _locate(self, path: Path) -> Node | None:
        """The node at a path, or the nearest above it."""
        if len(path) < 2:
            return self._nodes[0] if self._nodes else None
        assert isinstance(path[1], int), path
        node = self._nodes[path[1]]
        for step in path[2:]:
            if isinstance(node, Mapping):
                below = node.get(str(step))
            elif isinstance(node, List) and isinstance(step, int) and step < len(node.items):
                below = node.items[step]
            else:
                below = None
            if below is None:
                break
            node = below
        return node

    # ---------------------------------------------------------------- from nodes to fields

    def _key(self, key: Node, path: Path, seen: set[str]) -> str | None:
        """A mapping's key; None, and a problem, where it is no name or is there a second time."""
        if not isinstance(key, Text):
            self._add(key, path, f"{_named(key)} cannot be a key; a key is a name")
            return None
        if not key.value and (key.line, key.column) in self._refused:
            return None
        if key.value in seen:
            self._add(key, (*path, key.value), "is there twice; keep one of them")
            return None
        seen.add(key.value)
        return key.value

    def _items(self, node: Node, path: Path, of: Any = None) -> list[Node]:
        """A list's items; none, and a problem, where it is no list. `of`: the messages that are its items."""
        if isinstance(node, List):
            return node.items
        hint = ""
        if of is not None:
            hint = f"; write [{_example(of, node)}]"
        elif isinstance(node, Text) and len(node.value) <= _HINT_LENGTH_MAX:
            hint = f"; write [{', '.join(node.value.split())}]"
        self._unreadable(node, path, f"{_named(node)} is no list{hint}")
        return []

    def _message(self, node: Node, message: Any, path: Path) -> None:
        if _is_nothing(node):
            return
        if not isinstance(node, Mapping):
            example = _example(message.DESCRIPTOR, node)
            self._unreadable(node, path, f"{_named(node)} is no mapping; write {example}")
            return
        fields = message.DESCRIPTOR.fields_by_name
        seen: set[str] = set()
        for key, value in node.pairs:
            name = self._key(key, path, seen)
            if name is None:
                continue
            if name in fields:
                self._field(value, message, fields[name], (*path, name))
            else:
                self._unknown(key, name, message.DESCRIPTOR, path)

    def _unknown(self, key: Node, name: str, message: Any, path: Path) -> None:
        if len(self.found) >= PROBLEMS_MAX:
            return  # looking for what was meant takes time
        known = list(message.fields_by_name)
        if len(path) == 2 and path[1] in self._alone:
            known = [*known, "jobs"]
        near, hint = _nearest(name, known), ""
        if near:  # and nothing is said of a field that is missing only because of the slip
            self._mark_unread(path if near == "jobs" else (*path, near))
            hint = f"did you mean {near}?"
        elif "named" in known:
            hint = f"did you mean {', '.join(known[:-1])}, or named: {{{name}: ...}}?"
        else:
            hint = _within(name, message) or f"known are {', '.join(known)}"
        self._add(key, (*path, name), f"unknown key; {hint}")

    def _field(self, node: Node, message: Any, field: Any, path: Path) -> None:
        if _is_nothing(node):
            return  # a key without a value is as good as no key
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._map(node, getattr(message, field.name), field, path)
        elif field.is_repeated:
            self._list(node, getattr(message, field.name), field, path)
            # Which the message cannot tell from no list at all.
            if field.name == "lines" and isinstance(node, List) and not node.items:
                self._unreadable(node, path, "has no lines, so there is nothing to run")
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            self._message(node, getattr(message, field.name), path)
        else:
            value = self._scalar(node, field, rules_of(field).unit, path)
            if value is not None:
                setattr(message, field.name, value)

    def _list(self, node: Node, into: Any, field: Any, path: Path) -> None:
        unit = rules_of(field).unit
        for number, item in enumerate(self._items(node, path, field.message_type)):
            if field.message_type is not None:
                self._message(item, into.add(), (*path, number))
            else:
                value = self._scalar(item, field, unit, (*path, number))
                # What could not be read leaves its place, so that those behind it keep theirs.
                into.append("" if value is None else value)

    def _map(self, node: Node, into: Any, field: Any, path: Path) -> None:
        if not isinstance(node, Mapping):
            self._unreadable(node, path, f"{_named(node)} is no mapping; write {{NAME: value}}")
            return
        of_value = field.message_type.fields_by_name["value"]
        unit = rules_of(field).unit
        seen: set[str] = set()
        for key, item in node.pairs:
            name = self._key(key, path, seen)
            if name is not None:
                value = self._scalar(item, of_value, unit, (*path, name))
                if value is not None:
                    into[name] = value

    def _scalar(self, node: Node, field: Any, unit: int, path: Path) -> Any:
        """The value of a text by the type of its field; None, and a problem, where it has none."""
        if not isinstance(node, Text):
            self._unreadable(node, path, f"{_named(node)} stands where one value is due")
            return None
        try:
            return value_of(node.value, field, unit)
        except UnitError as error:
            self._unreadable(node, path, str(error))
            return None


def _counted_from(first: int, path: Path) -> Path:
    """A path in a document with `jobs`, where so many jobs stand in those before it."""
    match path:
        case ("jobs", int(number), *rest):
            return ("jobs", first + number, *rest)
    return path


def _is_nothing(node: Node) -> bool:
    return isinstance(node, Text) and node.bare and not node.value


def _named(node: Node) -> str:
    if isinstance(node, Text):
        return quoted(node.value)
    return "a list" if isinstance(node, List) else "a mapping"


def _example(message: Any, node: Node) -> str:
    """How a message is written, of what stands in its place if that can be."""
    meant = node.value if isinstance(node, Text) and 0 < len(node.value) <= _HINT_LENGTH_MAX else "..."
    return f"{{{message.fields[0].name}: {meant}}}"


def _nearest(name: str, known: list[str]) -> str:
    """The known name that was meant, if one is near: one that it abbreviates, before one that looks alike."""
    near = difflib.get_close_matches(name, known, 3)
    return next((each for each in near if _abbreviates(name, each)), near[0] if near else "")


def _abbreviates(short: str, name: str) -> bool:
    """Whether all letters of the one are in the other, in their order: `cmd` and `command`."""
    letters = iter(name)
    return all(letter in letters for letter in short)


def _within(name: str, message: Any) -> str:
    """Where a key belongs that stands one level too high: `resources: {cpu: ...}`."""
    for field in message.fields:
        if field.message_type is not None and not field.is_repeated:
            below = _nearest(name, list(field.message_type.fields_by_name))
            if below:
                return f"did you mean {field.name}: {{{below}: ...}}?"
    return ""
