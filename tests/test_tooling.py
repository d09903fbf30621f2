"""The project's own tools: dependencies, locks, targets, generated code, import rules, contract checks."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tools.generate import GenerateError, generate

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
FILE_LINES_MAX = 700
FUNCTION_LINES_MAX = 90

# In two parts, or this file would be what it looks for.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("proxy.golang", "org"),
        ("crates", "io"),
        ("repo.maven", "apache"),
        ("deb.debian", "org"),
        ("docker", "io"),
        ("buf", "build"),
    )
]


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs to the end, output and errors in `stdout`; what a make around us set is kept from it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        command,
        cwd=cwd,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def project_files() -> list[Path]:
    """What git tracks, or would at the next `git add`."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    assert listed.returncode == 0, listed.stdout
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_every_dependency_has_its_reason() -> None:
    project = pyproject()
    declared = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    names = {Requirement(line).name for line in declared}
    page = (ROOT / "docs/design/dependencies.md").read_text()
    reasoned = set(re.findall(r"`([\w.-]+)`", "".join(re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE))))
    assert reasoned == names


def test_locks_hold_what_is_declared() -> None:
    project = pyproject()
    runtime, dev = (
        dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / f"requirements/{name}.lock").read_text(), re.MULTILINE))
        for name in ("runtime", "dev")
    )
    assert runtime.items() <= dev.items()
    for locked, declared in (
        (runtime, project["project"]["dependencies"]),
        (dev, project["dependency-groups"]["dev"] + project["build-system"]["requires"]),
    ):
        for requirement in map(Requirement, declared):
            version = locked[re.sub(r"[-_.]+", "-", requirement.name).lower()]
            assert requirement.specifier.contains(version, prereleases=True), requirement


def test_generated_code_and_runtime_agree() -> None:
    """The declared lower bounds are what the generator in use writes into the code it makes."""
    requirements = {line.name: line for line in map(Requirement, pyproject()["project"]["dependencies"])}
    gen = ROOT / "src/rota/wire/gen"
    stubs = "".join(path.read_text() for path in gen.rglob("*_pb2_grpc.py"))
    messages = "".join(path.read_text() for path in gen.rglob("*_pb2.py"))
    (grpc,) = set(re.findall(r"GRPC_GENERATED_VERSION = '([\d.]+)'", stubs))
    (protobuf,) = set(re.findall(r"^# Protobuf Python Version: ([\d.]+)", messages, re.MULTILINE))
    assert f">={grpc}" in str(requirements["grpcio"].specifier)
    assert f">={protobuf}" in str(requirements["protobuf"].specifier)


def test_no_file_names_a_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in project_files()
        for host in REGISTRIES
        if host.encode() in path.read_bytes()
    ]
    assert found == []


def test_sizes() -> None:
    too_long = []
    for path in project_files():
        if path.suffix != ".py":
            continue
        source = path.read_text()
        if (lines := source.count("\n")) > FILE_LINES_MAX:
            too_long.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {FILE_LINES_MAX}")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {lines} lines")
    assert too_long == []


def test_listed_targets_exist() -> None:
    shown = run("make", "help")
    targets = re.findall(r"^([a-z-]+)  +\S", shown.stdout, re.MULTILINE)
    assert {"setup", "check", "test", "test-ci", "test-nightly", "demo", "lock", "baseline"} <= set(targets)
    phony = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(targets) == sorted(phony)
    for target in targets:
        dry = run("make", "--dry-run", target)
        assert dry.returncode == 0, dry.stdout


def test_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements/dev.lock", "pyproject.toml", "hatch_build.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.2' && exit 0\nexit 1\n")
    old.chmod(0o755)
    done = run("make", "setup", f"PYTHON={old}", cwd=tmp_path)
    assert done.returncode != 0
    assert f"Rota needs Python 3.11 or newer, '{old}' is Python 3.9.2" in done.stdout
    assert "ensurepip" not in done.stdout


def contract_copy(folder: Path) -> Path:
    """A checkout with only what the contract's tools need, in `folder`."""
    for name in ("proto", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "buf.yaml", folder)
    return folder


def test_generated_modules_import_under_their_installed_names() -> None:
    gen = ROOT / "src/rota/wire/gen"
    paths = [path.relative_to(ROOT / "src") for path in gen.rglob("*_pb2*.py")]
    modules = [".".join(path.with_suffix("").parts) for path in paths]
    assert len(modules) >= len(list((ROOT / "proto").rglob("*.proto"))) > 0
    for name in modules:
        assert importlib.import_module(name).__name__ == name


def test_messages_know_the_module_they_live_in() -> None:
    """Their pickles and their reprs name a module that can be imported."""
    records = importlib.import_module("rota.wire.gen.store.v1.records_pb2")
    (first, *_) = records.DESCRIPTOR.message_types_by_name
    assert getattr(records, first).__module__ == records.__name__


def test_generating_follows_the_contract(tmp_path: Path) -> None:
    root = contract_copy(tmp_path)
    added = root / "proto/rota/v1/zebra.proto"
    code = root / "src/rota/wire/gen/v1/zebra_pb2.py"
    added.write_text('syntax = "proto3";\npackage rota.v1;\nmessage Zebra {}\n')
    assert generate(root)
    assert code.is_file()
    assert not generate(root), "nothing changed"

    added.write_text('syntax = "proto3";\npackage rota.v1;\nmessage Zebra { strin name = 1; }\n')
    with pytest.raises(GenerateError, match=r'zebra\.proto:3:17: "strin" is not defined'):
        generate(root)
    assert code.is_file(), "what was there stays"

    added.unlink()
    assert generate(root)
    assert not code.exists()


def test_contract_check_refuses_bad_style_and_breaking_changes(tmp_path: Path) -> None:
    root = contract_copy(tmp_path)
    check = (sys.executable, "-m", "tools.contract", "check")
    added = root / "proto/rota/v1/zebra.proto"
    start = 'syntax = "proto3";\n\npackage rota.v1;\n\n'
    added.write_text(start + "message Zebra {\n  string name = 1;\n}\n")
    made = run(sys.executable, "-m", "tools.contract", "baseline", cwd=root)
    assert made.returncode == 0, made.stdout
    assert run(*check, cwd=root).stdout == "contract: lint passed, nothing broken\n"

    added.write_text(start + "message Zebra {\n  int64 name = 1;\n}\n")
    broken = run(*check, cwd=root)
    assert broken.returncode != 0
    assert 'changed type from "string" to "int64"' in broken.stdout
    assert "decision record" in broken.stdout

    added.write_text(start + "message zebra {\n  string name = 1;\n}\n")
    styled = run(*check, cwd=root)
    assert styled.returncode != 0
    assert "should be PascalCase" in styled.stdout


# Each line breaks one rule of .importlinter: module, what it imports, the rule's name.
WRONG_IMPORTS = [
    ("wire.convert", "rota.store.port", "Parts stand in layers"),
    ("cli.run", "rota.sim.world", "Parts stand in layers"),
    ("client.session", "rota.controller.turn", "Parts stand in layers"),
    ("gadgets.one", "os", "Parts stand in layers"),
    ("core.model.job", "rota.core.placement.score", "The core stands in layers"),
    ("core.cluster.step", "rota.core.node.step", "The core stands in layers"),
    ("core.model.job", "datetime", "The core knows no I/O, no clock, no chance and no log"),
    ("core.cluster.step", "google.protobuf.message", "The core knows no I/O, no clock, no chance and no log"),
    ("core.node.step", "rota.core.model.indexset", "The core of a node needs the standard library alone"),
    # Nothing asks for this one, but loading anything of the package loads it.
    (
        "core.model.__init__",
        "rota.core.model.indexset",
        "The core of a node needs the standard library alone",
    ),
    ("core.node.step", "pyroaring", "The core of a node needs the standard library alone"),
    ("agent.supervisor", "grpc", "The supervisor needs the standard library and its core alone"),
    ("agent.supervisor", "rota.wire.convert", "The supervisor needs the standard library and its core alone"),
    ("agent.supervisor", "rota.agent.link", "The supervisor needs the standard library and its core alone"),
    ("agent.link", "rota.store.port", "The agent knows no store"),
    ("cli.run", "rota.wire.convert", "The command line knows the client and nothing below"),
    ("sim.world", "rota.sim.network", "No cycles"),
]


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package named rota with every module that the rules are tried on, none importing what is wrong."""
    root = tmp_path_factory.mktemp("skeleton")
    shutil.copytree(ROOT / "tools", root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", root)
    modules = {f"rota.{module}" for module, _, _ in WRONG_IMPORTS if module != "gadgets.one"}
    modules |= {imported for _, imported, _ in WRONG_IMPORTS if imported.startswith("rota.")}
    for name in modules:
        path = root / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for folder in [root / "rota", *(path for path in (root / "rota").rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
    (root / "rota/core/model/indexset.py").write_text("import pyroaring\n")
    (root / "rota/core/node/step.py").write_text("import rota.core.model.job\n")
    (root / "rota/agent/link.py").write_text("import grpc\nimport rota.wire.convert\n")
    (root / "rota/agent/supervisor.py").write_text("import os\nimport rota.core.node.step\n")
    (root / "rota/sim/network.py").write_text("import rota.sim.world\n")
    return root


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    return run(BIN / "lint-imports", "--no-logo", "--no-cache", cwd=root, PYTHONPATH=str(root), COLUMNS="200")


def test_right_imports_are_let_through(skeleton: Path) -> None:
    done = lint_imports(skeleton)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("module", "imported", "rule"), WRONG_IMPORTS)
def test_wrong_imports_are_found(
    skeleton: Path, tmp_path: Path, module: str, imported: str, rule: str
) -> None:
    root = shutil.copytree(skeleton, tmp_path / "checkout")
    path = root / f"rota/{module.replace('.', '/')}.py"
    path.parent.mkdir(exist_ok=True)
    (path.parent / "__init__.py").touch()
    with path.open("a") as file:
        file.write(f"import {imported}\n")
    done = lint_imports(root)
    assert done.returncode != 0
    assert f"{rule} BROKEN" in done.stdout


@pytest.mark.ci
def test_wheel_holds_the_generated_code(tmp_path: Path) -> None:
    """Built by way of the source distribution, as a release is, and installed in a fresh environment."""
    checkout = tmp_path / "checkout"
    for path in project_files():
        target = checkout / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert not (checkout / "src/rota/wire/gen").exists()
    built = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, cwd=checkout)
    assert built.returncode == 0, built.stdout
    (wheel,) = tmp_path.glob("rota-*.whl")
    made = run(BIN / "uv", "venv", "--offline", "--python", sys.executable, tmp_path / "venv")
    assert made.returncode == 0, made.stdout
    python = tmp_path / "venv/bin/python"
    installed = run(BIN / "uv", "pip", "install", "--offline", "--no-deps", "--python", python, wheel)
    assert installed.returncode == 0, installed.stdout

    # The libraries are lent by this environment, whose own rota is not on the path that way.
    libraries = importlib.import_module("grpc").__path__[0]
    script = (
        "import json, importlib, pathlib, pkgutil, rota, rota.wire.gen as gen\n"
        "names = [m.name for m in pkgutil.walk_packages(gen.__path__, 'rota.wire.gen.')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(json.dumps({'file': rota.__file__, 'version': rota.__version__, 'names': names}))\n"
    )
    seen = run(python, "-c", script, cwd=tmp_path, PYTHONPATH=str(Path(libraries).parent))
    assert seen.returncode == 0, seen.stdout
    told = json.loads(seen.stdout)
    assert Path(told["file"]).is_relative_to(tmp_path / "venv")
    assert told["version"] in wheel.name
    protos = sorted(path.stem for path in (ROOT / "proto").rglob("*.proto"))
    assert sorted(name.rpartition(".")[2][:-4] for name in told["names"] if name.endswith("_pb2")) == protos
