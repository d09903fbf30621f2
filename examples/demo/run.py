"""`make demo`: a cluster in a temporary home, an array job on real input, and a job that merges its results.

Every module of the running Python's standard library is parsed by one task, which writes down what it found;
when all have, another job adds the results up. Everything is an ordinary call of `rota`, printed as it is
made; at the end the cluster is stopped and its home removed.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
# Without the user's packages, without `site`: a task should spend its time on its module.
PYTHON = [sys.executable, "-I", "-S"]


def main() -> int:
    began = time.monotonic()
    # A short path: a home in a deep directory would be too long for some of the system's names.
    place = Path(tempfile.mkdtemp(prefix="rota-demo-"))
    demo = Demo(place)
    try:
        code = demo.run()
    finally:
        demo.rota("down")
        shutil.rmtree(place)
    print(
        f"\n{'done' if code == 0 else 'FAILED'} after {time.monotonic() - began:.0f} s; everything is stopped"
    )
    return code


class Demo:
    """One run, in a directory of its own."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._environment = {**os.environ, "ROTA_HOME": str(place / "home")}

    def run(self) -> int:
        """The exit code: 0 if every module was parsed and the results were merged."""
        library = Path(sysconfig.get_path("stdlib"))
        modules = modules_of(library)
        (self._place / "modules.txt").write_text("".join(f"{module}\n" for module in modules))
        (self._place / "results").mkdir()
        print(f"{len(modules):,} modules of Python {sys.version.split()[0]} in {library}\n")
        if self.rota("up", "--detach"):
            return 1
        parse = self.submit(
            *("--name", "parse", "--each-line", "modules.txt", "--time-limit", "1m"),
            *("--", *PYTHON, str(HERE / "parse.py"), "{line}", "results/{index}.json"),
        )
        merge = self.submit(
            *("--name", "merge", "--after", parse),
            *("--", *PYTHON, str(HERE / "merge.py"), str(library), "results", str(len(modules))),
        )
        if self.rota("wait", parse):
            self.rota("show", parse, "--failed")
            return 1
        code = self.rota("wait", merge)
        self.rota("show", parse)
        print()
        self.rota("logs", merge)
        if code:
            self.rota("logs", merge, "--stderr")
        return code

    def rota(self, *arguments: str) -> int:
        """Calls `rota` and shows that it does; its exit code."""
        self._show(arguments)
        return subprocess.call(self._command(arguments), env=self._environment, cwd=self._place)

    def submit(self, *arguments: str) -> str:
        """Submits a job; its number."""
        arguments = ("submit", "-o", "name", *arguments)
        self._show(arguments)
        return subprocess.check_output(
            self._command(arguments), env=self._environment, cwd=self._place, text=True
        ).strip()

    @staticmethod
    def _command(arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "rota.main", *arguments]

    @staticmethod
    def _show(arguments: tuple[str, ...]) -> None:
        print(f"$ rota {shlex.join(arguments)}", flush=True)


def modules_of(library: Path) -> list[Path]:
    """Every Python file of the standard library; Python's own tests and installed packages are not of it."""
    return sorted(
        file
        for file in library.rglob("*.py")
        if file.relative_to(library).parts[0].removesuffix(".py") in sys.stdlib_module_names
    )


if __name__ == "__main__":
    sys.exit(main())
