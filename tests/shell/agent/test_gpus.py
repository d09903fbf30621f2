"""Finding GPUs, in files as an NVIDIA driver makes them."""

import os
from pathlib import Path

import pytest

from rota.agent import facts, gpus
from rota.agent.facts import Declared

UUIDS = [f"GPU-0000000{number}-aaaa-bbbb-cccc-123456789abc" for number in range(4)]


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """Four GPUs, numbered the other way round than their buses; one that its driver has not looked at."""
    for number in range(4):
        folder = tmp_path / "driver" / f"0000:{9 - number:02x}:00.0"
        folder.mkdir(parents=True)
        uuid = UUIDS[number] if number != 2 else "GPU-????????-????-????-????-????????????"
        (folder / "information").write_text(
            f"Model: \t\t Test\nGPU UUID: \t {uuid}\nBus Type: \t PCIe\nDevice Minor: \t {number}\n"
        )
    return tmp_path / "driver"


def _device(path: Path) -> None:
    """Any character device will do."""
    os.mknod(path, 0o020600, os.makedev(1, 3))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")
def test_what_has_a_device_file_is_there(driver: Path, tmp_path: Path) -> None:
    devices = tmp_path / "dev"
    devices.mkdir()
    assert gpus.find(devices, driver) == ()
    for number in (0, 2, 3, 10):
        _device(devices / f"nvidia{number}")
    _device(devices / "nvidiactl")
    _device(devices / "nvidia-uvm")
    (devices / "nvidia1").write_text("no device")
    assert gpus.find(devices, driver) == (UUIDS[0], "2", UUIDS[3], "10")
    assert gpus.find(devices, tmp_path / "no-driver") == ("0", "2", "3", "10")
    assert gpus.find(tmp_path / "nowhere", driver) == ()


@pytest.mark.parametrize(
    ("declared", "offered", "thousandths"),
    [
        (Declared(), ("a", "b", "c"), 3000),
        (Declared(gpu=2000), ("a", "b"), 2000),
        (Declared(gpu=500), ("a",), 500),
        (Declared(gpu=0), (), 0),
        (Declared(gpu=4000), (), 4000),
        (Declared(share=(0, 2)), ("a", "c"), 2000),
        (Declared(share=(1, 2)), ("b",), 1000),
        (Declared(share=(3, 4)), (), 0),
    ],
)
def test_what_is_offered(
    declared: Declared,
    offered: tuple[str, ...],
    thousandths: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(gpus, "find", lambda: ("a", "b", "c"))
    (pool,) = facts.inventory(tmp_path, declared, ()).pools
    assert tuple(device.id for device in pool.devices) == offered
    assert pool.resources.gpu == thousandths


def test_a_task_without_gpus_sees_none_where_there_are_some() -> None:
    assert gpus.environment((), has_some=True) == {"CUDA_VISIBLE_DEVICES": ""}
