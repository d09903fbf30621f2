"""Rota beside HyperQueue, Slurm, Dask, Ray and GNU parallel, where they are installed, in turn with each.

`python -m bench.peers` (`make bench-peers`) installs them: Python packages into environments of their own in
.build/peers, programs with apt where that is possible; what cannot be is skipped with a word. The scripts
that measure them lie beside the repository, in ../shared/peers. Rota is measured right beside each of them.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.harness import ROTA, Bar, Cluster, Row, Size, cluster, quantile, seconds
from bench.limits import command_ms
from rota.client.messages import JobSpec

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT.parent / "shared" / "peers"
INSTALLED = ROOT / ".build" / "peers"
PATH = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"

# What is compared, and its unit.
PROCESSES = "processes"
WITH_FILES = "processes, output files on"
ONE_JOB = "one job, through the client"
ONE_COMMAND = "one job, whole command"
UNITS = {PROCESSES: "/s", WITH_FILES: "/s", ONE_JOB: "ms", ONE_COMMAND: "ms"}

Figures = Mapping[str, float]


class PeerFailed(Exception):
    """A peer's script did not come to a result; the text says why."""


@dataclass(frozen=True)
class Peer:
    """One of them. `packages` go into an environment of its own; `programs` come with apt, in `debian`."""

    name: str
    script: str
    arguments: Callable[[Size], tuple[object, ...]]
    read: Callable[[Any], Figures]
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    debian: tuple[str, ...] = ()
    bars: Mapping[str, Bar] = field(default_factory=dict)

    @property
    def environment(self) -> Path:
        """Where its packages are."""
        return INSTALLED / self.script.partition("_")[0]

    def lacks(self) -> str:
        """Why it cannot be measured; empty where it can."""
        if not (SCRIPTS / self.script).exists():
            return f"there is no {SCRIPTS / self.script}"
        if self.packages and not (self.environment / "bin" / "python").exists():
            return "it is not installed; 'make bench-peers' does that"
        missing = [name for name in self.programs if which(name) is None]
        return (
            f"there is no program '{missing[0]}'; 'make bench-peers' installs it, as root" if missing else ""
        )

    def measure(self, size: Size) -> Figures:
        """One run of its script, which starts and stops the peer. Raises PeerFailed."""
        python = str(self.environment / "bin" / "python") if self.packages else sys.executable
        interpreter = python if self.script.endswith(".py") else "bash"
        done = subprocess.run(
            [interpreter, str(SCRIPTS / self.script), *map(str, self.arguments(size))],
            env=os.environ | {"PATH": PATH},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            done.check_returncode()
            return self.read(json.loads(done.stdout.splitlines()[-1])["results"])
        except (subprocess.CalledProcessError, ValueError, LookupError) as error:
            raise PeerFailed(f"{error!r}; it said: {done.stderr[-2000:]}") from error


def which(program: str) -> str | None:
    """Where a program is, those for administrators included."""
    return shutil.which(program, path=PATH)


def _hyperqueue(results: Any) -> Figures:
    (files,) = (value for name, value in results.items() if name.startswith("default_stdio_files"))
    return {
        PROCESSES: results["no_stdio_files"]["tasks_per_s"]["median"],
        WITH_FILES: files["tasks_per_s"]["median"],
        ONE_JOB: results["single_200"]["submit_to_task_output_ms"]["p50"]["median"],
    }


def _slurm(results: Any) -> Figures:
    (array,) = (value for name, value in results.items() if "oversubscribed" in name)
    return {PROCESSES: array["median"], ONE_COMMAND: results["sbatch_wait_ms_n30"]["p50"]}


def _python(results: Any) -> Figures:
    return {
        PROCESSES: results["subprocess_true_2000_tasks_per_s"]["median"],
        ONE_JOB: results["single_ms_p50"]["median"],
    }


def _parallel(results: Any) -> Figures:
    return {PROCESSES: results["parallel_j2_ungrouped_per_s"]["median"]}


_BELOW = Bar(at_most=1.0)

PEERS = (
    Peer(
        "HyperQueue",
        "hyperqueue_bench.py",
        lambda size: (size.of(10_000, 2_000), 1),
        _hyperqueue,
        packages=("hyperqueue",),
        bars={PROCESSES: Bar(at_least=4.0), ONE_JOB: _BELOW},
    ),
    Peer(
        "Slurm",
        "slurm_bench.sh",
        lambda size: (size.of(2_000, 400), 1),
        _slurm,
        programs=("munged", "slurmctld", "slurmd", "sbatch"),
        debian=("slurmctld", "slurmd", "slurm-client", "munge"),
        bars={PROCESSES: Bar(at_least=10.0), ONE_COMMAND: _BELOW},
    ),
    Peer(
        "Dask",
        "dask_bench.py",
        lambda _: (1, "inf"),
        _python,
        packages=("distributed",),
        bars={ONE_JOB: _BELOW},
    ),
    Peer("Ray", "ray_bench.py", lambda _: (1,), _python, packages=("ray", "psutil")),
    Peer(
        "GNU parallel",
        "gnu_parallel_bench.sh",
        lambda size: (size.of(5_000, 1_000), 1),
        _parallel,
        programs=("parallel",),
        debian=("parallel",),
    ),
)


def rota_measures(rota: Cluster, size: Size) -> Figures:
    """The same of Rota, on a cluster of one node with two cores."""
    count = size.of(10_000, 2_000)
    with rota.client() as client:

        def run(spec: JobSpec) -> None:
            number = client.submit([spec]).ids[0]
            *_, last = client.watch(number)
            assert last.tasks.succeeded == last.tasks.total, f"job {number} did not succeed"

        def array(**more: str) -> float:
            spec = JobSpec(command=["/bin/true"], array=f"0-{count - 1}", **more)  # type: ignore[arg-type]
            return count / seconds(lambda: run(spec))

        one = JobSpec(command=["/bin/true"])
        run(one)
        return {
            PROCESSES: array(stdout="none", stderr="none"),
            WITH_FILES: array(),
            ONE_JOB: quantile([1000 * seconds(lambda: run(one)) for _ in range(size.of(200, 50))], 0.5),
            ONE_COMMAND: quantile(
                [
                    command_ms(ROTA, "run", "--", "true", environment=rota.environment)
                    for _ in range(size.of(30, 10))
                ],
                0.5,
            ),
        }


def rows(size: Size) -> Iterator[Row]:
    """A row for each thing that a peer and Rota both do."""
    there = [peer for peer in PEERS if not _skipped(peer, peer.lacks())]
    if not there:
        return
    with cluster("--cpu", "2") as rota:
        for peer in there:
            try:
                yield from _beside(peer, rota, size)
            except PeerFailed as error:
                _skipped(peer, str(error))


def _beside(peer: Peer, rota: Cluster, size: Size) -> Iterator[Row]:
    """The medians of each round's own ratios; Rota comes first in every other round. Raises PeerFailed."""
    rounds: list[tuple[Figures, Figures]] = []
    for number in range(size.rounds):
        if number % 2:
            theirs = peer.measure(size)
            rounds.append((rota_measures(rota, size), theirs))
        else:
            ours = rota_measures(rota, size)
            rounds.append((ours, peer.measure(size)))
    for what in rounds[0][1]:
        value = median(ours[what] for ours, _ in rounds)
        ratio = median(ours[what] / theirs[what] for ours, theirs in rounds)
        bar = peer.bars.get(what)
        named = bar and Bar(bar.at_least, bar.at_most, of=peer.name)
        yield Row("peers", what, value, UNITS[what], {peer.name: ratio}, named)


def _skipped(peer: Peer, why: str) -> bool:
    """Says why, if there is a reason; whether there was one."""
    if why:
        print(f"bench: peers: {peer.name} is skipped: {why}", file=sys.stderr, flush=True)
    return bool(why)


# ---------------------------------------------------------------- installing


def install() -> None:
    """Installs what is missing, and says of each what became of it."""
    for peer in PEERS:
        print(f"bench-peers: {peer.name}: {_install(peer)}", flush=True)
    print(f"bench-peers: etcd: {_apt(('etcd',), ('etcd-server',))}")


def _install(peer: Peer) -> str:
    if not peer.packages:
        return _apt(peer.programs, peer.debian)
    python = peer.environment / "bin" / "python"
    if not python.exists():
        venv.create(peer.environment, with_pip=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(peer.environment)
        return f"skipped: {(done.stderr.strip() or 'pip failed').splitlines()[-1]}"
    return f"installed in {peer.environment.relative_to(ROOT)}"


def _apt(programs: tuple[str, ...], packages: tuple[str, ...]) -> str:
    """Installs packages where a program is missing."""
    if all(map(which, programs)):
        return "installed"
    if which("apt-get") is None:
        return "skipped: there is no apt-get here"
    if os.geteuid() != 0:
        return f"skipped: only root may install {' '.join(packages)}"
    done = subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return "installed" if done.returncode == 0 else f"skipped: {(done.stderr.strip() or 'apt failed')[-200:]}"


if __name__ == "__main__":
    install()
