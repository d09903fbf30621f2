"""Values: equal by what they hold, and never changed, which is for the type checker to see to."""

import dataclasses
import pickle

from rota.core.cluster.records import JobStatus, LeaseDesired
from rota.core.model.resources import Resources
from rota.core.model.states import JobState


def test_values_are_equal_and_hashed_by_what_they_hold() -> None:
    one, other = LeaseDesired(Resources(cpu=1), "q", (), 0, 0), LeaseDesired(Resources(cpu=1), "q", (), 0, 0)
    assert one is not other
    assert one == other
    assert len({one, other, dataclasses.replace(one, target=1)}) == 2
    assert {Resources(cpu=1): 1}[Resources(cpu=1)] == 1
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_value_with_a_hash_of_its_own_keeps_it() -> None:
    amount = Resources(cpu=1)
    assert hash(amount) == hash(dataclasses.replace(amount, cpu=1)) == hash((1, 0, 0, 0, ()))


def test_the_type_checker_refuses_a_change() -> None:
    status = JobStatus()
    # Were this allowed, the comment would be one too many, and mypy would say so.
    status.state = JobState.RUNNING  # type: ignore[misc]
    assert status.state is JobState.RUNNING
