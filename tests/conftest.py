"""What holds for every test."""

import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support.files import Gate

# A shared machine may stop a process for a second at any moment, so time is no sign of a fault here: the
# limit of pytest-timeout stands instead. A failure prints what reproduces it.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("nightly", deadline=None, print_blob=True, max_examples=10_000)
hypothesis.settings.load_profile("default")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Tasks wait at it until the test opens it."""
    with Gate(tmp_path / "gate") as made:
        yield made


# What nohup or a background shell ignores would be ignored by all that the tests start.
for _number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
