"""YAML as a tree of texts, lists and mappings, each with its place; nothing else of YAML is let in.

The tree is made of the parser's events, because PyYAML's own trees do not tell an alias from what it repeats,
or a tag from a guess, and are built to any depth before anybody can look at them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import yaml

from rota.wire.problems import PROBLEMS_MAX, Path
from rota.wire.units import quoted

FILE_BYTES_MAX = 4 * 1024 * 1024
DEPTH_MAX = 32
NODES_MAX = 500_000


class NotATree(Exception):
    """What was read is no YAML, or more of it than is taken. `line` and `column` count from 0."""

    def __init__(self, says: str, line: int | None = None, column: int = 0) -> None:
        super().__init__(says)
        self.says = says
        self.line = line
        self.column = column


@dataclass(slots=True)
class Text:
    """A scalar, as it stands there: YAML's types are not used. `bare` is without quotes."""

    value: str
    bare: bool
    line: int
    column: int


@dataclass(slots=True)
class List:
    """A sequence."""

    line: int
    column: int
    items: list["Node"] = field(default_factory=list)


@dataclass(slots=True)
class Mapping:
    """A mapping, with its pairs as they stand there, also where a key is there twice."""

    line: int
    column: int
    pairs: list[tuple["Node", "Node"]] = field(default_factory=list)

    def get(self, name: str) -> "Node | None":
        """The first value under a name."""
        return next((value for key, value in self.pairs if isinstance(key, Text) and key.value == name), None)


Node = Text | List | Mapping


@dataclass(frozen=True, slots=True)
class Refused:
    """What a node has of YAML's that is not let in: where it stands, and what is wrong with that."""

    path: Path
    node: Node
    says: str


@dataclass(slots=True)
class Document:
    """One of a file's documents, without what is refused of it; an alias is as good as nothing."""

    root: Node
    refused: list[Refused]


def documents(data: bytes) -> Iterator[Document]:
    """The documents of a file's bytes. Raises NotATree."""
    if len(data) > FILE_BYTES_MAX:
        raise NotATree(f"is larger than {FILE_BYTES_MAX // 2**20} MiB; give long lists as a file of lines")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start)
        raise NotATree(f"the byte 0x{data[error.start]:02x} is no UTF-8 text", line) from None
    try:
        yield from _trees(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        says = f"this is no YAML: {error.problem or error.context}"
        if _open_to_the_end(error):
            mark, says = error.context_mark, "this is no YAML: what begins here has no end"
        raise NotATree(says, mark.line, mark.column) if mark else NotATree(says) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        raise NotATree(f"this is no YAML: {error.reason}", line) from None


def _open_to_the_end(error: yaml.MarkedYAMLError) -> bool:
    """Whether a quote has no end: it is looked for at its beginning."""
    return "end of stream" in (error.problem or "") and error.context_mark is not None


def _trees(text: str) -> Iterator[Document]:
    open_ones: list[List | Mapping] = []
    keys: list[Node | None] = []  # of each open one, the key whose value is due
    refused: list[Refused] = []
    count = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        done: Node | None = None
        if isinstance(event, yaml.CollectionEndEvent):
            keys.pop()
            done = open_ones.pop()
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            _bound(event, count, len(open_ones))
            done = node = _node(event)
            _place(node, open_ones, keys)
            if (says := _refusal(event)) and len(refused) < PROBLEMS_MAX:
                refused.append(Refused(tuple(_steps([*open_ones, node])), node, says))
            if not isinstance(node, Text):
                open_ones.append(node)
                keys.append(None)
        if done is not None and not open_ones:
            yield Document(done, refused)
            refused = []


def _bound(event: Any, count: int, depth: int) -> None:
    """Raises NotATree where there is more than is read."""
    says = None
    if count > NODES_MAX:
        says = f"there are more than {NODES_MAX:,} values; give long lists as a file of lines"
    elif depth >= DEPTH_MAX and isinstance(event, yaml.CollectionStartEvent):
        says = f"this is nested more than {DEPTH_MAX} deep"
    if says is not None:
        raise NotATree(says, event.start_mark.line, event.start_mark.column)


def _refusal(event: Any) -> str:
    """What is wrong with a node because of what YAML would make of it; nothing where it is plain."""
    if isinstance(event, yaml.AliasEvent):
        return f"{quoted(f'*{event.anchor}')} repeats another part; write it out, aliases are not allowed"
    if event.anchor is not None:
        return (
            f"{quoted(f'&{event.anchor}')} names a part to repeat it; leave it out, anchors are not allowed"
        )
    if event.tag is not None:
        return f"{quoted(event.tag)} is a tag; leave it out, types come from the fields"
    return ""


def _steps(nodes: list[Node]) -> Iterator[str | int]:
    """The way through nodes, each within the one before and the last in it; a key is where its mapping is."""
    for parent, child in pairwise(nodes):
        if isinstance(parent, List):
            yield len(parent.items) - 1
        elif isinstance(parent, Mapping) and parent.pairs and parent.pairs[-1][1] is child:
            key = parent.pairs[-1][0]
            yield key.value if isinstance(key, Text) else "?"
        else:
            return


def _node(event: Any) -> Node:
    line, column = event.start_mark.line, event.start_mark.column
    if isinstance(event, yaml.AliasEvent):
        return Text("", True, line, column)
    if isinstance(event, yaml.ScalarEvent):
        return Text(event.value, not event.style, line, column)
    return Mapping(line, column) if isinstance(event, yaml.MappingStartEvent) else List(line, column)


def _place(node: Node, open_ones: list[List | Mapping], keys: list[Node | None]) -> None:
    """Puts a node where it stands: an item, a key, or the value of the key before."""
    if not open_ones:
        return
    parent = open_ones[-1]
    if isinstance(parent, List):
        parent.items.append(node)
    elif (key := keys[-1]) is None:
        keys[-1] = node
    else:
        parent.pairs.append((key, node))
        keys[-1] = None
