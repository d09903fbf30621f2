"""Homes, and the two ways to hold a task's tree together."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness import WITHOUT_CGROUPS, hides_cgroups
from rota.agent import cgroups
from tests.support.processes import look_again


@pytest.fixture(params=["cgroup", "subreaper"])
def way(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What to put before the supervisor's command, so that it uses cgroups, or cannot."""
    if cgroups.writable() == (request.param == "cgroup"):
        return ()
    if request.param == "cgroup" or not hides_cgroups():
        pytest.skip(f"this machine does not let the test have it: {request.param}")
    return WITHOUT_CGROUPS


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup of the test's own."""
    own = cgroups._own()
    made = None if own is None else own[1] / f"rota-test-{uuid.uuid4().hex}"
    try:
        if made is not None:
            made.mkdir()
    except OSError:
        made = None
    if made is None:
        pytest.skip("this machine does not let the test have a cgroup")
    yield made
    cgroups.kill(made)
    look_again(lambda: cgroups.empty(made), "what was killed is still there")
    cgroups.remove(made)
    assert not made.exists()
