"""The benchmarks' runner: rows, verdicts, pages. Nothing here is timed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from bench import growth, harness, limits, page, peers, report, smoke
from bench.__main__ import benchmarks
from bench.harness import Bar, Point, Row, Size
from tests.support.processes import alive

FAST = Row("x", "fast", 900.0, "/s", {"bare loop": 0.9}, Bar(at_least=0.75, of="bare loop"))
SLOW = Row("x", "slow", 10.5, "ms", {}, Bar(at_most=5.0))


def test_a_row_says_what_it_is_in_one_line_of_json() -> None:
    row = Row("x", "w", 1234.5678, "/s", {"bare loop": 0.123456}, Bar(at_least=0.75, of="bare loop"))
    line = report.lines([row])
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "bench": "x",
        "what": "w",
        "value": 1235.0,
        "unit": "/s",
        "ratio": {"bare loop": 0.1235},
        "bar": {"at_least": 0.75, "of": "bare loop"},
    }


@pytest.mark.parametrize("row", [FAST, SLOW, Row("x", "w", 1.0, "s", point=Point("c", 10.0, 1.0))])
def test_rows_are_read_back(row: Row) -> None:
    assert report.from_json(json.loads(report.lines([row]))) == row


@pytest.mark.parametrize(
    ("bar", "value", "ratio", "reached"),
    [
        (Bar(at_least=100.0), 50.0, {}, 0.5),
        (Bar(at_most=5.0), 20.0, {}, 0.25),
        (Bar(at_least=0.75, of="bare loop"), 1.0, {"bare loop": 0.75}, 1.0),
        (Bar(at_most=2.0, of="python"), 1.0, {"python": 4.0}, 0.5),
    ],
)
def test_how_much_of_a_bar_is_reached(
    bar: Bar, value: float, ratio: dict[str, float], reached: float
) -> None:
    assert Row("x", "w", value, "/s", ratio, bar).reached == pytest.approx(reached)


def test_a_bar_of_a_ratio_that_was_not_measured_is_a_bug() -> None:
    with pytest.raises(KeyError):
        _ = Row("x", "w", 1.0, "/s", {}, Bar(at_least=1.0, of="bare loop")).reached


def test_the_guard_fails_below_half_of_a_bar_and_not_above() -> None:
    assert smoke.failures([FAST, Row("x", "no bar", 0.0, "/s")]) == []
    just_half = Row("x", "half", 50.0, "/s", {}, Bar(at_least=100.0))
    assert smoke.failures([just_half]) == []
    assert smoke.failures([SLOW]) == ["x: slow: 10.5 ms, ≤ 5: 48 % of it"]


def test_what_stands_in_place_of_a_target_is_what_counts() -> None:
    standing = {("x", "slow"): Bar(at_most=8.0)}
    assert smoke.failures(smoke.judged([SLOW, FAST], standing)) == []
    worse = Row("x", "slow", 17.0, "ms", {}, Bar(at_most=5.0))
    assert len(smoke.failures(smoke.judged([worse], standing))) == 1


@pytest.mark.parametrize(("value", "status"), [(40.0, 1), (60.0, 0)])
def test_the_guards_status_follows_from_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: float, status: int
) -> None:
    def rows(size: Size) -> Iterator[Row]:
        assert size == Size(rounds=1, small=True)
        yield Row("limits", "w", value, "/s", {}, Bar(at_least=100.0))

    monkeypatch.setattr(smoke, "benchmarks", lambda: {"limits": "", "peers": ""})
    monkeypatch.setattr(limits, "rows", rows)
    assert smoke.main() == status
    said = capsys.readouterr()
    assert "limits  w     " in said.out
    assert ("below half" in said.err) == bool(status)


def test_rounds_take_turns() -> None:
    order = []

    def named(name: str, value: float) -> float:
        order.append(name)
        return value

    found = harness.in_turn(2, a=lambda: named("a", 4.0), b=lambda: named("b", 2.0))
    assert order == ["a", "b", "b", "a"]
    assert harness.medians(found) == {"a": 4.0, "b": 2.0}
    assert harness.ratios(found, of="a") == {"b": 2.0}


def test_ratios_are_of_the_rounds_and_not_of_the_medians() -> None:
    """A drift of the whole machine, twice as fast from round to round, changes no ratio."""
    assert harness.ratios({"ours": [1.0, 2.0, 4.0], "bare": [2.0, 4.0, 8.0]}, of="ours") == {"bare": 0.5}


def test_quantiles() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [harness.quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 51.0, 100.0, 100.0]


@pytest.mark.parametrize("files", [False, True])
def test_bare_loops_spawn_what_they_say(files: bool) -> None:
    per_s, cpu_s = limits.spawns(6, 2, files=files)
    assert per_s > 0
    assert cpu_s >= 0


def test_the_other_limits() -> None:
    rates = (limits.syncs_per_s(3), limits.commits_per_s(3, rows=2), limits.echoes_per_s(3))
    assert min(rates) > 0
    with pytest.raises(subprocess.CalledProcessError):
        limits.command_ms(sys.executable, "-c", "raise SystemExit(1)")


def test_cpu_time_and_memory_are_of_the_process_and_what_it_reaped() -> None:
    burn = "import time\nwhile time.process_time() < 0.1: pass\n"
    begin = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\n"
    script = begin + "print(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert harness.cpu_s(child.pid) >= 0.1
        resident, proportional = harness.memory_kib(child.pid)
        assert resident >= proportional > 0
        child.communicate(b"\n")
    assert harness.cpu_s(child.pid) == 0


def test_a_cluster_is_stopped_and_removed_whatever_happens() -> None:
    seen = []

    def measure() -> None:
        with harness.cluster("--nodes", "1", "--cpu", "1") as rota:
            parts = rota.processes()
            assert {rota.pid("controller"), rota.pid("agent-0"), rota.pid("link-0")} <= set(parts)
            assert rota.pss_mib() >= rota.pss_mib("controller") > 0
            seen.append((rota.home, parts))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure()
    ((home, parts),) = seen
    assert not any(map(alive, parts))
    assert not home.parent.exists()


def test_every_benchmark_says_what_it_measures() -> None:
    known = benchmarks()
    assert {"limits", "peers"} <= set(known)
    assert set(known) >= smoke.LEFT_OUT
    assert all(known.values()), known
    helped = subprocess.run(
        [sys.executable, "-m", "bench", "--help"], cwd=page.ROOT, capture_output=True, text=True, check=True
    )
    assert all(name in helped.stdout for name in known)


def test_an_unknown_benchmark_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "nothing"],
        cwd=page.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no benchmark nothing; there are" in done.stderr


# ---------------------------------------------------------------- peers


def test_peers_whose_scripts_are_missing_are_skipped_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    assert list(peers.rows(Size())) == []
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(peers.PEERS)
    assert said[0] == f"bench: peers: HyperQueue is skipped: there is no {tmp_path}/hyperqueue_bench.py"


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def test_peers_that_are_not_installed_are_skipped_with_a_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    monkeypatch.setattr(peers, "INSTALLED", tmp_path)
    script(tmp_path, "a_bench.py", "")
    script(tmp_path, "b_bench.sh", "")
    package = peers.Peer("A", "a_bench.py", lambda _: (), dict, packages=("a",))
    program = peers.Peer("B", "b_bench.sh", lambda _: (), dict, programs=("sh", "no-such-program"))
    assert package.lacks() == "it is not installed; 'make bench-peers' does that"
    assert program.lacks() == "there is no program 'no-such-program'; 'make bench-peers' installs it, as root"


def test_a_peers_script_is_run_and_its_last_line_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    script(tmp_path, "a.sh", 'echo noise; echo "{\\"results\\": {\\"n\\": $1}}"')
    peer = peers.Peer("A", "a.sh", lambda size: (size.of(7, 3),), lambda results: {"n": results["n"]})
    assert peer.measure(Size()) == {"n": 7}
    script(tmp_path, "a.sh", "echo broken >&2; exit 1")
    with pytest.raises(peers.PeerFailed, match="broken"):
        peer.measure(Size())
    script(tmp_path, "a.sh", "echo '{}'")
    with pytest.raises(peers.PeerFailed, match="results"):
        peer.measure(Size())


def test_a_peer_that_fails_does_not_take_the_others_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    monkeypatch.setattr(peers, "cluster", lambda *_: nullcontext())
    monkeypatch.setattr(peers, "rota_measures", lambda rota, size: {peers.PROCESSES: 100.0})
    script(tmp_path, "a.sh", "exit 1")
    script(tmp_path, "b.sh", "echo '{\"results\": 20}'")
    bad = peers.Peer("A", "a.sh", lambda _: (), dict)
    good = peers.Peer(
        "B",
        "b.sh",
        lambda _: (),
        lambda results: {peers.PROCESSES: results},
        bars={peers.PROCESSES: Bar(at_least=4.0)},
    )
    monkeypatch.setattr(peers, "PEERS", (bad, good))
    (row,) = peers.rows(Size(rounds=2))
    assert row == Row("peers", peers.PROCESSES, 100.0, "/s", {"B": 5.0}, Bar(at_least=4.0, of="B"))
    assert "A is skipped" in capsys.readouterr().err


# ---------------------------------------------------------------- pages


def points(curve: str, *pairs: tuple[float, float]) -> list[Row]:
    return [Row("x", f"{size}", 1.0, "s", point=Point(curve, size, cost)) for size, cost in pairs]


def test_the_exponent_of_growth() -> None:
    rows = points("square", (10, 1), (1, 0.01), (100, 100)) + points("flat", (1, 2), (10, 2))
    found = growth.curves(rows + points("alone", (1, 1)))
    assert list(found) == ["flat", "square"], "one point says nothing of growth"
    assert growth.exponent(found["square"]) == pytest.approx(2.0)
    assert growth.exponent(found["flat"]) == pytest.approx(0.0)


def test_the_plot_has_every_curve_and_is_well_formed() -> None:
    from xml.etree import ElementTree

    rows = points("a < b", (1, 2.0), (1000, 40.0)) + points("steep", (1, 1.0), (10, 10_000.0))
    drawn = growth.svg(growth.curves(rows))
    root = ElementTree.fromstring(drawn)
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2
    assert "a &lt; b: exponent 0.43" in drawn
    for line in lines:
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= growth.WIDTH
            assert 0 <= y <= growth.HEIGHT
    assert ElementTree.fromstring(growth.svg({})) is not None


def test_the_published_page_and_plot_are_those_of_the_published_results() -> None:
    found = page.results()
    assert (page.PAGES / "results.md").read_text() == page.page(found), "'make bench-report' renews it"
    assert (page.PAGES / "growth.svg").read_text() == page.plot(found), "'make bench-report' renews it"
