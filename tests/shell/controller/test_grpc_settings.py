"""What the controller and the simulated nodes ask of gRPC by the environment, this gRPC knows."""

import os
import subprocess
import sys

import pytest

from rota.main import controller, edges

_USE = "import grpc; grpc.insecure_channel('127.0.0.1:1').close()"


def said(experiments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _USE],
        env={**os.environ, "GRPC_EXPERIMENTS": experiments},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stderr


@pytest.mark.parametrize("experiments", [controller.GRPC_EXPERIMENTS, edges.GRPC_EXPERIMENTS])
def test_this_grpc_knows_them(experiments: str) -> None:
    assert "Unknown experiment" in said("-no_such_thing")
    assert said(experiments) == ""
