"""The parts of the documentation that follow from the code are up to date, and the help's examples parse."""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest

from rota.cli.app import root
from rota.core.model import states
from tests.docs.pages import ROOT, name_of, pages, prose
from tools import docs


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert docs.made(text) == text, f"{name_of(page)} is out of date: run make docs"


def test_every_part_is_on_a_page() -> None:
    used: set[str] = set()
    for page in pages():
        docs.made(page.read_text(), used)
    assert used == set(docs.PARTS)


def test_a_change_of_the_code_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/concepts/states.md").read_text()
    moves = {**states.TASK_MOVES, states.TaskState.SUCCEEDED: frozenset({states.TaskState.PENDING})}
    monkeypatch.setattr(states, "TASK_MOVES", moves)
    assert "SUCCEEDED --> PENDING: retry" in docs.made(page)
    assert docs.made(page) != page


def test_a_cause_without_words_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(docs.CAUSES, "OOM")
    with pytest.raises(docs.DocsError, match="OOM"):
        docs.PARTS["causes"]()


def test_a_part_that_nobody_makes_is_refused() -> None:
    with pytest.raises(docs.DocsError, match="no part 'x'"):
        docs.made("<!-- made by make docs: x -->\n<!-- end of x -->\n")


# ---------------------------------------------------------------- examples in the help


def help_of(path: tuple[str, ...]) -> str:
    """The help and the epilog of a command."""
    command: click.Command = root
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    return f"{command.help}\n{command.epilog or ''}"


def examples() -> list[str]:
    """What stands in examples, from `rota` to the end of that command."""
    found = []
    for path in docs.every_command():
        for line in help_of(path).splitlines():
            line = re.split(r"\s{2,}", line.strip().removeprefix("Example: "))[0]
            match = re.match(r"(?:.*[|(]\s*|[A-Z_]+=\S+ )?(rota [^|>&)]+)", line)
            if match is not None:
                found.append(match[1].strip())
    return found


def test_there_are_examples() -> None:
    assert len(examples()) > len(list(docs.every_command())) - 5


def in_prose() -> Iterator[tuple[str, str]]:
    """Commands that the pages' sentences name, each with its place."""
    for page in pages():
        for line, text in prose(page):
            for command in re.findall(r"`(rota [a-z][^`]*)`", text):
                yield f"{name_of(page)}:{line}", command


def test_commands_that_sentences_name_exist_with_their_options() -> None:
    """They are not run: words may stand for others, as in `rota logs JOB`."""
    named = list(in_prose())
    assert len(named) > 50
    for place, text in named:
        command: click.Command = root
        words = shlex.split(text)[1:]
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, f"{place}: there is no {text}"
            command = found
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        own = list(takewhile(lambda word: word != "--", words))
        given = {word.partition("=")[0] for word in own if word.startswith("-")}
        assert given <= known | {"-h", "--help"}, f"{place}: {text}"


@pytest.mark.parametrize("example", examples())
def test_examples_in_the_help_are_command_lines(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading --home sets it.
    monkeypatch.setenv("ROTA_HOME", "/nowhere")
    command: click.Command = root
    words = shlex.split(example)[1:]
    context = click.Context(root, info_name="rota")
    while isinstance(command, click.Group):
        context = command.make_context(command.name, words, parent=context)
        words = [*context._protected_args, *context.args]
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
    command.make_context(command.name, words, parent=context)
