"""The units in `deploy/` under systemd, the first process of a machine of its own."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.machine.qemu import ROOT, boot, needs_machine, saw

SYSTEMD = Path("/lib/systemd/systemd")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

pytestmark = [
    pytest.mark.ci,
    pytest.mark.timeout(660),
    needs_machine,
    pytest.mark.skipif(not SYSTEMD.exists(), reason="needs systemd"),
    pytest.mark.skipif(shutil.which("useradd") is None, reason="needs useradd"),
]

# An environment at /opt/rota as the units want it, which the account may read wherever this checkout is: the
# interpreter, the libraries and the sources are those of this test.
START = f"""
ulimit -n 65536
useradd --system --home-dir /var/lib/rota --shell /bin/sh rota
mkdir -p /opt/rota/bin /opt/rota/lib/{PYTHON}/site-packages /opt/python /opt/src
mount --bind {sys.base_prefix} /opt/python
mount --bind {Path(sys.prefix) / "lib" / PYTHON / "site-packages"} /opt/rota/lib/{PYTHON}/site-packages
mount --bind {ROOT}/src /opt/src
echo "home = /opt/python/bin" > /opt/rota/pyvenv.cfg
ln -s /opt/python/bin/{PYTHON} /opt/rota/bin/python
sed '1s|.*|#!/opt/rota/bin/python|' {Path(sys.executable).parent}/rota > /opt/rota/bin/rota
chmod 755 /opt/rota/bin/rota
for editable in /opt/rota/lib/{PYTHON}/site-packages/_*.pth; do echo /opt/src > $editable; done
cp deploy/*.service /etc/systemd/system
for unit in controller agent; do
    mkdir -p /etc/systemd/system/rota-$unit.service.d
    printf '[Service]\\nEnvironment=LD_LIBRARY_PATH=/opt/python/lib\\n' \
        > /etc/systemd/system/rota-$unit.service.d/python.conf
done
cp tests/machine/units_inside.sh /run/check
# Of this machine's own services none: they would take minutes.
rm -rf /lib/systemd/system-generators/* /etc/systemd/system/*.wants /lib/systemd/system/sysinit.target.wants
find /lib/systemd/system/sockets.target.wants -mindepth 1 ! -name 'systemd-journald*' -delete
mkdir -p /run/systemd/system
cat > /run/systemd/system/check.service <<END
[Unit]
After=systemd-journald.service
[Service]
Type=oneshot
ExecStart=/bin/bash /run/check
StandardError=tty
TTYPath=/dev/ttyS0
ExecStopPost=/bin/systemctl poweroff -ff
END
exec {SYSTEMD} --unit=check.service --show-status=no --log-level=warning
"""


def test_the_units_start_again_and_end_all_that_they_started(tmp_path: Path) -> None:
    console = boot(tmp_path, START, memory="2G", timeout_s=600)
    assert saw(console) == [
        "controller: active",
        "home: rota 700",
        "agent: active",
        "a task of rota",
        "too much memory: 137 1",
        "after the controller was killed",
        "after the agent was killed",
        "agent: inactive success",
        "left of its tasks: 0",
        "controller: inactive success",
        "the end",
    ], console
