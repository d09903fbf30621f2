"""What a short command does not pay for: modules that it does not need, and the interpreter's own end."""

import subprocess
import sys

import pytest

# Each takes a millisecond or more to import, and serves other commands, or rare options alone.
NOT_NEEDED = (
    "apsw",
    "cryptography",
    "click.shell_completion",
    "decimal",
    "difflib",
    "fractions",
    "graphlib",
    "numpy",
    "rich",
    "yaml",
    "rota.agent",
    "rota.controller",
    "rota.core.cluster",
    "rota.core.model.spec",
    "rota.store",
    "rota.wire.convert",
    "rota.wire.yaml",
)


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["run", "submit", "ls", "show", "logs", "wait", "cancel", "events"])
def test_a_command_imports_what_it_needs_alone(command: str) -> None:
    done = python(
        "import sys, click\n"
        "from rota.main.cli import root\n"
        f"assert root.get_command(click.Context(root), {command!r})\n"
        "assert 'rota.client.client' in sys.modules\n"
        f"print(*[name for name in {NOT_NEEDED!r} if name in sys.modules])\n"
    )
    assert (done.stdout.split(), done.stderr) == ([], "")


def test_a_command_ends_without_taking_the_interpreter_apart() -> None:
    done = python(
        "import atexit, sys\n"
        "atexit.register(print, 'taken apart')\n"
        "from rota.main.cli import main\n"
        "sys.argv = ['rota', '--version']\n"
        "sys.stdout.write('printed before, ')\n"
        "main()\n"
    )
    assert done.returncode == 0
    assert done.stdout.startswith("printed before, rota ")
    assert "taken apart" not in done.stdout


def test_what_was_printed_before_an_error_is_not_lost() -> None:
    done = python(
        "import sys\n"
        "from rota.main.cli import main\n"
        "sys.argv = ['rota', 'no-such-command']\n"
        "sys.stdout.write('printed before')\n"
        "main()\n"
    )
    assert (done.returncode, done.stdout) == (2, "printed before")
    assert done.stderr.startswith("rota: there is no command 'no-such-command'")
