"""Which NVIDIA GPUs this machine has, and how a task is told of its own: from the driver's files."""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

_DEVICE = re.compile(r"nvidia([0-9]+)")
# A driver that has not looked at a device yet writes question marks.
_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def find(devices: Path = Path("/dev"), driver: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """Their UUIDs, or their numbers where the driver does not say these, in the order of the numbers.

    Of the machine's GPUs a container may have been given some: those whose device files it has.
    """
    uuids = dict(filter(None, map(_described, driver.glob("*/information"))))
    try:
        numbers = sorted(
            int(match[1])
            for name in os.listdir(devices)  # noqa: PTH208 - names alone are needed
            if (match := _DEVICE.fullmatch(name)) and stat.S_ISCHR((devices / name).stat().st_mode)
        )
    except OSError:
        return ()
    return tuple(uuids.get(number, str(number)) for number in numbers)


def _described(file: Path) -> tuple[int, str] | None:
    """The number and the UUID of one GPU, as its driver describes it."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return None
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    number, uuid = said.get("Device Minor", ""), said.get("GPU UUID", "")
    return (int(number), uuid) if number.isdecimal() and _UUID.fullmatch(uuid) else None


def environment(devices: Sequence[str], *, has_some: bool) -> dict[str, str]:
    """What a task is told: which are its own; where the node has some and it has none, that too."""
    if devices:
        return {"ROTA_GPUS": ",".join(devices), "CUDA_VISIBLE_DEVICES": ",".join(devices)}
    return {"CUDA_VISIBLE_DEVICES": ""} if has_some else {}
