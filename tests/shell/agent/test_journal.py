"""The journal's file: nothing written is lost, whatever is cut off, and damage is not read as truth."""

import resource
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from rota.agent import journal as journal_module
from rota.agent.files import replaced
from rota.agent.journal import Journal, JournalError, JournalFull, encode, in_use, read
from rota.core.model.protocol import Ended, Template
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause
from rota.core.node.entries import Begin, Drop, End, Entry, Intent, Session, Start, TemplateKept

BOOT = "boot-1"
HEAD: list[Entry] = [Begin("j", BOOT), Session(1, 2, 3, "u", "n")]
TAIL: list[Entry] = [
    TemplateKept(Template(7, 1, JobSpec(script="echo äöü\n"), 9, "")),
    Intent(10, ((0, 63),)),
    Start(10, 0, 1, 0, 4711, 99, 1_700_000_000_000),
    End(10, Ended(0, Cause.EXIT, message="no ☃ here")),
    Drop(10, ((1, 63),), 5),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def _written(home: Path) -> Path:
    made = Journal(home)
    made.begin(HEAD)
    for entry in TAIL:
        made.append([entry])
    made.close()
    (segment,) = (home / "journal").glob("*.log")
    return segment


def _load(home: Path, boot_id: str = BOOT) -> list[Entry]:
    found = Journal(home)
    try:
        return list(found.load(boot_id))
    finally:
        found.close()


def test_an_empty_journal_is_empty(home: Path) -> None:
    assert read(home) == []
    assert _load(home) == []


def test_what_was_written_is_read(home: Path) -> None:
    _written(home)
    assert read(home) == HEAD + TAIL
    assert _load(home) == HEAD + TAIL


def test_a_tail_torn_at_any_byte_is_cut(home: Path) -> None:
    segment = _written(home)
    data = segment.read_bytes()
    ends = [0]
    for entry in HEAD + TAIL:
        ends.append(ends[-1] + len(encode(entry)))
    for cut in range(ends[2], len(data)):
        segment.write_bytes(data[:cut])
        whole = sum(1 for end in ends[1:] if end <= cut)
        assert read(home) == (HEAD + TAIL)[:whole]
        found = Journal(home)
        assert list(found.load(BOOT)) == (HEAD + TAIL)[:whole]
        # And it goes on behind what was whole.
        found.append(TAIL[-1:])
        found.close()
        assert read(home) == [*(HEAD + TAIL)[:whole], TAIL[-1]]


def test_damage_in_the_middle_is_not_passed_over(home: Path) -> None:
    segment = _written(home)
    data = segment.read_bytes()
    start = len(encode(HEAD[0])) + len(encode(HEAD[1]))
    last = len(data) - len(encode(TAIL[-1]))
    for at in range(start, last):
        damaged = bytearray(data)
        damaged[at] ^= 0x41
        segment.write_bytes(damaged)
        with pytest.raises(JournalError, match=r"is damaged at byte \d+.*Remove .*journal"):
            _load(home)
        assert segment.read_bytes() == damaged, "it is left as it is"


def test_damage_after_a_power_cut_ends_the_journal(home: Path) -> None:
    segment = _written(home)
    data = bytearray(segment.read_bytes())
    start = len(encode(HEAD[0])) + len(encode(HEAD[1]))
    data[start + 20] ^= 1
    segment.write_bytes(data)
    assert _load(home, "boot-2") == HEAD


def test_one_agent_at_a_time(home: Path) -> None:
    assert not in_use(home)
    first = Journal(home)
    assert in_use(home)
    with pytest.raises(JournalError, match=r"another agent \(pid \d+\) uses .*; stop it, or give"):
        Journal(home)
    first.close()
    assert not in_use(home)
    Journal(home).close()


def test_a_new_segment_takes_the_place_of_the_old(home: Path) -> None:
    _written(home)
    found = Journal(home)
    list(found.load(BOOT))
    found.begin(HEAD)
    found.append(TAIL[:1])
    found.close()
    assert len(list((home / "journal").glob("*"))) == 2, "the segment and the lock"
    assert _load(home) == HEAD + TAIL[:1]


def test_a_segment_that_was_not_finished_is_not_there(home: Path) -> None:
    _written(home)
    (home / "journal" / f"{2:016d}.new").write_bytes(b"half a snapsh")
    assert read(home) == HEAD + TAIL
    assert _load(home) == HEAD + TAIL
    assert not list((home / "journal").glob("*.new"))


def test_a_segment_that_stands_beside_the_old_one_wins(home: Path) -> None:
    _written(home)
    (home / "journal" / f"{2:016d}.log").write_bytes(b"".join(map(encode, HEAD)))
    assert read(home) == HEAD
    assert _load(home) == HEAD
    assert len(list((home / "journal").glob("*.log"))) == 1


def test_a_snapshot_is_wanted_when_the_segment_has_grown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES_MAX", 1_000)
    made = Journal(home)
    made.begin(HEAD)
    count = 0
    while not made.wants_snapshot():
        made.append(TAIL[2:3])
        count += 1
    assert count == 1_000 // len(encode(TAIL[2])) + 1
    made.begin(HEAD)
    assert not made.wants_snapshot()
    made.close()


FULL = """
import resource, sys
from pathlib import Path
from rota.agent.files import replaced
from rota.agent.journal import Journal, JournalFull
from tests.shell.agent.test_journal import HEAD, TAIL
made = Journal(Path(sys.argv[1]))
made.begin(HEAD)
size = made._size
for limit in range(size, size + 400):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        made.append(TAIL[1:])
        break
    except JournalFull as full:
        assert made._size == size
resource.setrlimit(resource.RLIMIT_FSIZE, (5, resource.RLIM_INFINITY))
try:
    made.begin(HEAD)
except JournalFull:
    print("fine", limit - size)
"""


def test_a_write_that_does_not_fit_leaves_nothing_behind(home: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(home)], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"fine {sum(len(encode(entry)) for entry in TAIL[1:])}\n", done.stderr
    assert read(home) == HEAD + TAIL[1:]


def test_the_numbers_of_the_kinds_stay() -> None:
    """A journal is read by later versions: new kinds are added at the end."""
    assert [kind.__name__ for kind in typing.get_args(Entry)] == [
        "Begin",
        "Session",
        "TemplateKept",
        "LeaseKept",
        "Granted",
        "Intent",
        "Start",
        "End",
        "Drop",
        "Resize",
        "Acknowledged",
        "AllocationKept",
        "Unacknowledged",
        "Ends",
    ]


def test_an_unwritable_journal_says_so(home: Path) -> None:
    made = Journal(home)
    made.begin(HEAD)
    journal_file = next((home / "journal").glob("*.log"))
    assert journal_file.stat().st_mode & 0o777 == 0o600
    made.close()
    with pytest.raises((JournalFull, OSError)):
        made.append(TAIL)


def test_a_home_is_taken_as_removed_only_where_that_is_known(home: Path) -> None:
    made = Journal(home)
    lock = home / "journal" / "lock"
    assert not made.removed()
    # No file of this process's any more, as one is whose handle a file server has lost.
    assert not replaced(-1, lock)
    lock.rename(lock.with_suffix(".away"))
    assert made.removed()
    lock.touch()
    assert made.removed()
    made.close()
