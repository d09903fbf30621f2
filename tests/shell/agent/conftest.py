"""Homes, and the two ways to hold a task's tree together."""

import subprocess

import pytest

from rota.agent import cgroups
from tests.shell.agent.harness import WITHOUT_CGROUPS


@pytest.fixture(params=["cgroup", "subreaper"])
def way(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What to put before the supervisor's command, so that it uses cgroups, or cannot."""
    if cgroups.writable() == (request.param == "cgroup"):
        return ()
    hides = subprocess.run([*WITHOUT_CGROUPS, "true"], capture_output=True, check=False).returncode == 0
    if request.param == "cgroup" or not hides:
        pytest.skip(f"this machine does not let the test have it: {request.param}")
    return WITHOUT_CGROUPS
