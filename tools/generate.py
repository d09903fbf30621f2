"""Makes the Python code of the contract: `proto/rota/**.proto` into `src/rota/wire/gen/`.

Run by `make generate`, and by the wheel's build through `hatch_build.py`. The result is not committed.
A digest of all that goes in stands beside the result, so a second run costs only the reading of it.
"""

import hashlib
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = {"rota/v1": "v1", "rota/store/v1": "store/v1"}
"""Folders under `proto/`, and where their code goes under `src/rota/wire/gen/`."""

GENERATORS = ("grpcio-tools", "mypy-protobuf", "googleapis-common-protos")

# `from rota.v1 import job_pb2` and `rota.v1.job_pb2`, but not the contract's names such as `rota.v1.Job`.
MODULE = re.compile(r"\brota\.(store\.)?v1(?= import \w+_pb2|\.\w+_pb2)")

INIT = '"""Made by tools/generate.py from proto/. Do not edit."""\n'


class GenerateError(Exception):
    """The contract does not compile; the text is protoc's own, with file, line and column."""


def generate(root: Path) -> bool:
    """Brings the generated code under `root` up to date. Returns whether there was something to do.

    Raises GenerateError where a .proto does not compile; the code from before is left as it was.
    """
    sources = sorted(path for folder in PACKAGES for path in (root / "proto" / folder).glob("*.proto"))
    target = root / "src" / "rota" / "wire" / "gen"
    stamp = target / ".digest"
    digest = _digest(root, sources)
    if stamp.is_file() and stamp.read_text() == digest:
        return False
    with tempfile.TemporaryDirectory(prefix="rota-generate-") as made:
        out = Path(made, "out")
        out.mkdir()
        if sources:
            _compile(root / "proto", sources, out, Path(made))
        wanted = dict(_rewritten(out))
    stamp.unlink(missing_ok=True)  # a run that is cut short from here on is done again
    _write(target, wanted)
    _replace(stamp, digest)
    return True


def googleapis_folder() -> Path:
    """The folder that holds `google/api/*.proto`, from the package that also has their Python code."""
    files = importlib.metadata.distribution("googleapis-common-protos").locate_file("")
    return Path(str(files))


def _digest(root: Path, sources: list[Path]) -> str:
    total = hashlib.sha256(Path(__file__).read_bytes())
    for name in GENERATORS:
        total.update(f"{name}=={importlib.metadata.version(name)}\n".encode())
    for path in sources:
        content = path.read_bytes()
        total.update(f"{path.relative_to(root)} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest() + "\n"


def _compile(proto: Path, sources: list[Path], out: Path, scratch: Path) -> None:
    import grpc_tools

    services = [path for path in sources if re.search(r"^\s*service\s", path.read_text(), re.MULTILINE)]
    include = [f"-I{proto}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}", f"-I{googleapis_folder()}"]
    _protoc(
        *include,
        f"--plugin=protoc-gen-mypy={_plugin(scratch, 'main')}",
        f"--python_out={out}",
        f"--mypy_out=quiet:{out}",
        sources=sources,
    )
    if services:
        _protoc(
            *include,
            f"--plugin=protoc-gen-mypy_grpc={_plugin(scratch, 'grpc')}",
            f"--grpc_python_out={out}",
            f"--mypy_grpc_out=quiet,only_async:{out}",  # grpc.aio is the one that Rota uses
            sources=services,
        )


def _protoc(*options: str, sources: list[Path]) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", *options, *map(str, sources)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise GenerateError(done.stdout.strip())


def _plugin(scratch: Path, function: str) -> Path:
    """A protoc plugin of this very interpreter: what stands in PATH may be another installation's."""
    path = scratch / f"protoc-gen-{function}"
    code = f"from mypy_protobuf.main import {function}; {function}()"
    path.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)}\n")
    path.chmod(0o755)
    return path


def _rewritten(out: Path) -> Iterator[tuple[str, str]]:
    """Pairs of path under `gen/` and content, with the modules' names as they are once installed there."""
    yield "__init__.py", INIT
    yield "store/__init__.py", INIT
    for folder, package in PACKAGES.items():
        yield f"{package}/__init__.py", INIT
        for path in sorted((out / folder).glob("*.py*")):
            yield f"{package}/{path.name}", MODULE.sub(r"rota.wire.gen.\1v1", path.read_text())


def _write(target: Path, wanted: dict[str, str]) -> None:
    for path in sorted(target.rglob("*.py*")):
        if path.suffix in {".py", ".pyi"} and str(path.relative_to(target)) not in wanted:
            path.unlink()
    for name, content in wanted.items():
        path = target / name
        if not path.is_file() or path.read_text() != content:
            _replace(path, content)


def _replace(path: Path, content: str) -> None:
    """Whole or not at all: somebody may be importing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".new-", delete=False) as new:
        new.write(content)
        os.fchmod(new.fileno(), 0o644)
    Path(new.name).replace(path)


def main() -> int:
    """Entry point of `python -m tools.generate`."""
    try:
        changed = generate(Path(__file__).resolve().parent.parent)
    except GenerateError as error:
        print(error, file=sys.stderr)
        return 1
    if changed:
        print("generate: src/rota/wire/gen is new")
    return 0


if __name__ == "__main__":
    sys.exit(main())
