#!/bin/bash
# Runs under systemd in a machine of its own (see `test_units`): does what the comments in deploy/*.service say, and
# tells what it saw.
set -u
say() { echo "SAW $*" >/dev/ttyS0; }
as_rota() { runuser -u rota -- env ROTA_HOME=/var/lib/rota LD_LIBRARY_PATH=/opt/python/lib "$@"; }
rota() { as_rota /opt/rota/bin/rota "$@"; }
until_so() {
    for _ in $(seq 60); do
        "$@" >/run/last 2>&1 && return
        sleep 0.5
    done
    say "never: $*: $(tail -n 3 /run/last)"
    [[ -e /run/joined ]] && cat /run/joined >/dev/ttyS0
    exit 1
}
main_pid() { systemctl show -p MainPID --value "$1"; }
another_pid() { [[ $(main_pid "$1") != 0 && $(main_pid "$1") != "$2" ]]; }
ready() { rota node ls | grep -q READY; }

systemctl start rota-controller
say "controller: $(systemctl is-active rota-controller)"
say "home: $(stat -c '%U %a' /var/lib/rota)"

token=$(rota token create --ttl 15m --uses 1)
as_rota env ROTA_TOKEN="$token" /opt/rota/bin/rota agent --join 127.0.0.1:7071 &>/run/joined &
until_so ready
kill -INT $(cat /var/lib/rota/run/agent-0.pid)
wait
systemctl start rota-agent
until_so ready
say "agent: $(systemctl is-active rota-agent)"
say "$(rota run -- sh -c 'echo a task of $(id -un)')"
rota run --memory 64MB -- /opt/rota/bin/python -c 'bytearray(200 << 20)' &>/run/hog
say "too much memory: $? $(grep -c OOM /run/hog)"

before=$(main_pid rota-controller)
kill -KILL "$before"
until_so another_pid rota-controller "$before"
say "$(rota run -- echo after the controller was killed)"
before=$(main_pid rota-agent)
kill -KILL "$before"
until_so another_pid rota-agent "$before"
say "$(rota run -- echo after the agent was killed)"

rota submit -o name -- sleep 600 >/dev/null
until_so sh -c "systemctl status rota-agent | grep -q 'sleep 600'"
systemctl stop rota-agent
say "agent: $(systemctl is-active rota-agent) $(systemctl show -p Result --value rota-agent)"
say "left of its tasks: $(pgrep -c sleep)"
systemctl stop rota-controller
say "controller: $(systemctl is-active rota-controller) $(systemctl show -p Result --value rota-controller)"
say "the end"
