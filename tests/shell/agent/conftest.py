"""Homes, and the two ways to hold a task's tree together."""

import pytest

from bench.harness import WITHOUT_CGROUPS, hides_cgroups
from rota.agent import cgroups


@pytest.fixture(params=["cgroup", "subreaper"])
def way(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What to put before the supervisor's command, so that it uses cgroups, or cannot."""
    if cgroups.writable() == (request.param == "cgroup"):
        return ()
    if request.param == "cgroup" or not hides_cgroups():
        pytest.skip(f"this machine does not let the test have it: {request.param}")
    return WITHOUT_CGROUPS
