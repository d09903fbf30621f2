"""Every command of the documentation is run, and prints what the page shows."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import LANGUAGES, ROOT, Command, blocks, commands, name_of, pages
from tests.docs.session import Session, same


def with_commands() -> list[Path]:
    return [page for page in pages() if any(block.language == "console" for block in blocks(page))]


def is_make(found: list[Command]) -> bool:
    """A block for `make`, which would test the tests, and takes longer than a test may."""
    return all(command.text.startswith("make ") for command in found)


def run_page(page: Path) -> None:
    """Runs its commands in one session, and compares what they print."""
    with Session() as session:
        for block in blocks(page):
            if block.name:
                session.write(block.name, block.text)
            if block.language != "console" or is_make(commands(block)):
                continue
            found = commands(block)
            for command, following in zip(found, [*found[1:], None], strict=True):
                where = f"{page.name}:{command.line}"
                code, printed = session.run(command.text)
                # A command may fail where the page goes on to show its exit code.
                expected_to_fail = following is not None and following.text == "echo $?"
                assert code == 0 or expected_to_fail, f"{where}: exit {code}\n" + "\n".join(printed)
                assert same(command.printed, printed), f"{where}: it prints\n" + "\n".join(printed)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", with_commands(), ids=name_of)
def test_every_command_does_what_the_page_shows(page: Path) -> None:
    run_page(page)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("```console\n$ echo a\na\n$ exit 3\n```\n", "this ends the shell: exit 3"),
        ("```console\n$ false\n```\n", "page.md:2: exit 1"),
        ("```console\n$ false\n$ echo $?\n0\n```\n", "page.md:3: it prints"),
        ("```console\n$ echo a\nb\n```\n", "page.md:2: it prints"),
        ("```console\n$ echo a\n```\n", "page.md:2: it prints"),
        ("```console\n$ sleep 600 &\n```\n", "the page leaves processes behind"),
        ("```console\na\n```\n", "a console block begins with a command"),
        ("```console\n$ true\n", "the block has no end"),
    ],
)
def test_a_page_that_is_wrong_is_found(block: str, says: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(block)
    with pytest.raises(AssertionError, match=re.escape(says)):
        run_page(page)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (name_of(page), word)
        for page in pages()
        for block in blocks(page)
        if block.language == "console" and is_make(commands(block))
        for command in commands(block)
        for word in re.findall(r"^make ([a-z-]+)", command.text)
    }
    assert named
    assert [(page, word) for page, word in named if word not in targets] == []


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_no_command_stands_where_it_is_not_run(page: Path) -> None:
    for block in blocks(page):
        where = f"{name_of(page)}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: a block in {block.language or 'no language'}"
        assert block.name or block.language != "sh", f"{where}: a script without a name is not run"
        if block.language != "console":
            assert not any(line.startswith("$ ") for line in block.lines), (
                f"{where}: commands, not in console"
            )


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        (["a  b"], ["a b"], True),
        (["a"], ["b"], False),
        (["a"], [], False),
        ([], ["a"], False),
        (["...", "b"], ["x", "y", "b"], True),
        (["...", "b"], ["b"], True),
        (["a ... c"], ["a b c"], True),
        (["a ... c"], ["a b d"], False),
        (["took 12ms"], ["took 1.5s"], True),
        (["took 12ms"], ["took -"], True),
        (["took 12ms"], ["took long"], False),
        (["at 127.0.0.1:80"], ["at 127.0.0.1:7000"], True),
        (["12 tasks"], ["13 tasks"], False),
        (["exit (1)"], ["exit (1)"], True),
    ],
)
def test_the_comparison_tells_apart(shown: list[str], printed: list[str], alike: bool) -> None:
    assert same(shown, printed) is alike


def test_a_session_is_one_shell() -> None:
    with Session() as session:
        assert session.run("x=5; cd /; false") == (1, [])
        assert session.run('echo "$? $x $PWD $ROTA_HOME"') == (0, ["1 5 / /home/ada/.rota"])
        assert session.run("cat; exec 1>&2")[0] == 0
