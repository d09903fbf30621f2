"""A kind of contract for import-linter: what a part of Rota may, or may not, import.

The kinds that import-linter brings ask for every package they name to exist, and cannot say "the standard
library and nothing else".
"""

import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import grimp
from importlinter import Contract, ContractCheck, fields, output

ROOT = "rota"  # holds the version and nothing to be kept apart from


class ImportsContract(Contract):
    """Checks the imports of `modules`, all that is below them included, against names and patterns.

    - `modules`: whom it is about; `except_modules`: who among them is left out.
    - `allowed`: with it, only these, the standard library and `modules` themselves may be imported.
    - `forbidden`: these may not be imported, whatever `allowed` says.
    - `with_imported`: what of Rota they import, near or far, is held to the same.
    """

    type_name = "imports"

    modules: Any = fields.ListField(subfield=fields.StringField())
    except_modules: Any = fields.ListField(subfield=fields.StringField(), required=False)
    allowed: Any = fields.ListField(subfield=fields.StringField(), required=False)
    forbidden: Any = fields.ListField(subfield=fields.StringField(), required=False)
    with_imported: Any = fields.BooleanField(required=False, default=False)

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        """Called by import-linter with the graph of all imports."""
        concerned = set(filter(self._concerns, graph.modules))
        if self.with_imported:
            concerned = _with_imported(graph, concerned)
        wrong = [
            f"{importer} (l.{detail['line_number']}) may not import {imported}"
            for importer in sorted(concerned)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if not self._permits(imported)
            for detail in graph.get_import_details(importer=importer, imported=imported)
        ]
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Called by import-linter after a check that found something."""
        for line in check.metadata["wrong"]:
            output.print_error(line, bold=False)

    def _concerns(self, module: str) -> bool:
        return _under(module, self.modules) and not _under(module, self.except_modules)

    def _permits(self, imported: str) -> bool:
        if _under(imported, self.forbidden):
            return False
        return (
            not self.allowed
            or imported == ROOT
            or imported.partition(".")[0] in sys.stdlib_module_names
            or self._concerns(imported)
            or _under(imported, self.allowed)
        )


def _with_imported(graph: grimp.ImportGraph, modules: Iterable[str]) -> set[str]:
    """The modules and all of Rota that is loaded with them: an import loads the packages above, too."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found and _under(module, [ROOT]):
            found.add(module)
            waiting += graph.find_modules_directly_imported_by(module)
            waiting += _path(module)
    return found


def _under(module: str, patterns: Iterable[str] | None) -> bool:
    """Whether a pattern names the module or a package above it."""
    return any(fnmatchcase(name, pattern) for pattern in patterns or () for name in _path(module))


def _path(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]
