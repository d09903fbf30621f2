"""The client of Rota: `with Client() as rota: rota.submit([JobSpec(command=["make", "test"])])`.

Importing the package imports nothing else: what is named here is loaded when it is first used, so that the
command line starts fast.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rota.client.client import Client as Client
    from rota.client.context import Context as Context
    from rota.client.errors import RotaError as RotaError
    from rota.client.messages import JobSpec as JobSpec

_PLACES = {"Client": "client", "Context": "context", "RotaError": "errors", "JobSpec": "messages"}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'rota.client' has no attribute '{name}'")
    return getattr(importlib.import_module(f"rota.client.{_PLACES[name]}"), name)
