"""Rota's own benchmarks, and what they share: `python -m bench --help`."""

import os

# With it every start of a command compiles what is not yet kept in __pycache__, and nothing is ever kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
