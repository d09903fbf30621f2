"""The wheel's build hook: makes the code of the contract before files are collected."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs the same generator as `make generate`, for wheels and for editable installations."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling; source distributions carry the contract instead of its code."""
        if self.target_name != "wheel":
            return
        sys.path.insert(0, self.root)
        try:
            from tools.generate import generate
        finally:
            sys.path.remove(self.root)
        generate(Path(self.root))
