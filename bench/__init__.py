"""Rota's own benchmarks, and what they share: `python -m bench --help`."""
