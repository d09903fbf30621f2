"""`python -m bench`: runs benchmarks, prints a table, and keeps JSON lines."""

import argparse
import ast
import importlib
import sys
from pathlib import Path

from bench import report
from bench.harness import Row, Size

FOLDER = Path(__file__).parent
KEPT = FOLDER.parent / ".build" / "bench"


def benchmarks() -> dict[str, str]:
    """The modules here that measure something, with the first line of what they say of themselves."""
    found = {}
    for file in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(file.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "rows" for node in tree.body):
            found[file.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def measure(name: str, size: Size, keep: Path) -> list[Row]:
    """Runs one benchmark; its lines are shown at once, and kept once it is through."""
    found = []
    for row in importlib.import_module(f"bench.{name}").rows(size):
        print(report.lines([row]), end="", file=sys.stderr, flush=True)
        found.append(row)
    keep.mkdir(parents=True, exist_ok=True)
    (keep / f"{name}.jsonl").write_text(report.lines(found))
    return found


def main() -> int:
    known = benchmarks()
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures Rota on this machine, beside the machine's own limits.",
        epilog="benchmarks:\n" + "".join(f"  {name:16}{says}\n" for name, says in known.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks (default: all)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds in turn (default: 3)")
    parser.add_argument("--smoke", action="store_true", help="small sizes, for a first look")
    parser.add_argument(
        "--keep",
        type=Path,
        default=KEPT,
        metavar="FOLDER",
        help="where the lines of JSON go, a file a benchmark (default: .build/bench)",
    )
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(known)):
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    size = Size(max(1, given.rounds), given.smoke)
    rows: list[Row] = []
    for name in given.names or known:
        print(f"bench: {name}: {known[name]}", file=sys.stderr, flush=True)
        rows += measure(name, size, given.keep)
    print(report.table(rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
