"""A machine of its own for a test: QEMU, without help of the processor, on the files of this one, read-only.

What its first process writes to the console is what comes back. It has cgroup v2 with all controllers, root,
and nobody else's processes, whatever this machine grants.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNEL = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rota-tests" / "kernel"
# Those first that others need; an insmod that comes too early is made again.
_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "netfs",
    "fscache",
    "9pnet",
    "9pnet_virtio",
    "9p",
    "overlay",
)
_QEMU = "qemu-system-x86_64"
_BUSYBOX = shutil.which("busybox")
MISSING = (
    [name for name in (_QEMU, "cpio") if shutil.which(name) is None]
    + ([] if _BUSYBOX and b"/ld-linux" not in Path(_BUSYBOX).read_bytes()[:4096] else ["a static busybox"])
    + ([] if (KERNEL / "vmlinuz").exists() else ["a kernel (.ci/kernel fetches one)"])
    + ([] if platform.machine() == "x86_64" else ["an x86-64 processor"])
)

needs_machine = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

# `/` of the new machine: this one's files, with a layer in memory over them that takes what is written.
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
for module in {modules}; do insmod /modules/$module.ko; done
mkdir -p /lower /layer /new
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=524288 root /lower
mount -t tmpfs tmpfs /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work overlay /new
mount -t proc proc /new/proc
mount -t sysfs sysfs /new/sys
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
mount -t devtmpfs devtmpfs /new/dev
mount -t tmpfs tmpfs /new/run
cp /start /new/run/start
exec switch_root /new /run/start
"""


def boot(folder: Path, start: str, *, memory: str = "1G", timeout_s: int = 300) -> str:
    """Starts a machine whose first process is the shell script `start`; what it wrote until it was off.

    `folder` is for what the machine needs. PATH and PYTHONPATH are this process's own, for this checkout.
    """
    made = folder / "initramfs"
    (made / "bin").mkdir(parents=True)
    (made / "dev").mkdir()
    (made / "modules").mkdir()
    assert _BUSYBOX is not None
    shutil.copy(_BUSYBOX, made / "bin" / "busybox")
    modules = [name for name in _MODULES if (KERNEL / "modules" / f"{name}.ko").exists()]
    for name in modules:
        shutil.copy(KERNEL / "modules" / f"{name}.ko", made / "modules")
    python = f"export PATH={Path(sys.executable).parent}:{os.environ['PATH']} PYTHONPATH={ROOT}/src:{ROOT}\n"
    for name, text in (
        ("init", _INIT.format(modules=" ".join(modules))),
        ("start", f"#!/bin/sh\n{python}export HOME=/root PYTHONUNBUFFERED=1\ncd {ROOT}\n{start}"),
    ):
        (made / name).write_text(text)
        (made / name).chmod(0o755)
    with (folder / "initramfs.cpio").open("wb") as archive:
        names = "\n".join(str(path.relative_to(made)) for path in sorted(made.rglob("*")))
        pack = ["cpio", "--quiet", "-o", "-H", "newc"]
        subprocess.run(pack, cwd=made, input=names.encode(), stdout=archive, check=True)
    command = [_QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-m", memory, "-smp", "2", "-nodefaults"]
    command += ["-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", str(KERNEL / "vmlinuz")]
    command += ["-initrd", str(folder / "initramfs.cpio"), "-append", "console=ttyS0 loglevel=1 panic=-1"]
    files = "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"
    command += ["-fsdev", files, "-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]
    console = folder / "console"
    with console.open("wb") as output, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    return console.read_text(errors="replace")


def saw(console: str) -> list[str]:
    """What was said of lines that begin with SAW; the kernel writes to the console as well."""
    return [line.partition("SAW ")[2].rstrip() for line in console.splitlines() if "SAW " in line]
