#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Boots systemd in a container, installs the agent with device/install.sh, trains, and does to it what the field
# does: kill -9, a freeze, too much memory, a power cut. Prints a transcript; ends with 1 at the first surprise.
#   sudo scripts/field_test.sh ROOT > docs/records/field-test.txt
# ROOT: a Debian system made by
#   debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3,python3-venv,ca-certificates bookworm ROOT
# The broker (Mosquitto) and the server run here, from .venv. LEND=yes lends its packages to the container, so that
# torch need not be installed twice: what install.sh downloads is then only what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$1
work=$(mktemp -d)
splitee=$PWD/.venv/bin/splitee
export CUDA_VISIBLE_DEVICES=''

say() { printf '\n== %s\n' "$*"; }
in_container() { nsenter -t "$init" -a env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$@"; }
show() { in_container systemctl show -P "$1" splitee-device; }
status() { in_container systemctl status --no-pager -n 0 splitee-device | sed -n '3,5p;/Status:/p' || true; }

wait_for() { # SECONDS WHAT COMMAND...
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $until ] || { echo "FAILED: $what"; in_container journalctl -n 30 --no-pager -u splitee-device; exit 1; }
        sleep 1
    done
    echo "ok: $what"
}
trains() { show StatusText | grep -q 'training, step'; }
another_process() { [ "$(show MainPID)" != 0 ] && [ "$(show MainPID)" != "$1" ]; }
committed() { # round N or a later one
    [ "$("$splitee" status --config "$work/fleet/viewer/viewer.toml" --json 2>/dev/null |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["committed"])')" -ge "$1" ]
}
trains_after() { # round N, which may have been under way, and the next two
    trains && committed $(($1 + 3))
}
now_committed() {
    "$splitee" status --config "$work/fleet/viewer/viewer.toml" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["committed"])'
}

boot() {
    # Cgroups of its own, writable inside: without them its limits are ignored in silence (version 1).
    (
        for controller in /sys/fs/cgroup/*/; do
            [ -e "$controller/cgroup.procs" ] || continue
            name=$(basename "$controller")
            own=$(awk -F: -v c="$name" '$2 == c || $2 == "name=" c { sub("/$", "", $3); print $3 }' /proc/self/cgroup)
            group=$controller$own/field-test
            mkdir -p "$group"
            if [ "$name" = cpuset ]; then
                cat "$group/../cpuset.cpus" >"$group/cpuset.cpus"
                cat "$group/../cpuset.mems" >"$group/cpuset.mems"
            fi
            echo $BASHPID >"$group/cgroup.procs"
        done
        exec systemd-nspawn --quiet --register=no --keep-unit -D "$root" \
            --bind-ro="$PWD:/source" ${LEND:+--bind-ro="$(echo "$PWD"/.venv/lib/python3.*/site-packages):/lent"} /bin/sh -c '
                for c in memory cpu cpuacct pids cpuset blkio devices freezer; do
                    mount -o remount,bind,rw /sys/fs/cgroup/$c 2>/dev/null; done
                exec /lib/systemd/systemd'
    ) >"$work/console" 2>&1 &
    nspawn=$!
    disown
    init=''
    for _ in $(seq 60); do
        child=$(pgrep -P $nspawn | head -n 1 || true)
        [ -z "$child" ] || init=$child
        if [ -n "$init" ] && in_container systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'; then
            return
        fi
        sleep 1
    done
    echo "FAILED: the container did not boot"; tail -n 20 "$work/console"; exit 1
}
clean_up() {
    kill "${server:-}" "${broker:-}" 2>/dev/null || true
    [ -z "${nspawn:-}" ] || kill -9 "$init" "$nspawn" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT

say "a broker with the shipped production configuration, and a server, on this host"
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
chmod 755 "$work"
install -d -m 777 "$work/state"
"$splitee" broker init --directory "$work/fleet" --fleet field --name 127.0.0.1 --port "$port" --broker-state "$work/state" >/dev/null
"$splitee" broker add-device pi-1 --directory "$work/fleet" >/dev/null
mosquitto -c "$work/fleet/broker/mosquitto.conf" 2>"$work/broker.log" &
broker=$!
SPLITEE_CONFIG='' "$splitee" server --config "$work/fleet/server/server.toml" --state "$work/server" --devices 1 \
    --rounds 500 --steps 6 --batch-size 8 --strategy averaging --threads 1 2>"$work/server.log" &
server=$!

say "boot, and install"
cp "$work/fleet/bundles/splitee-pi-1.tar" "$root/srv/"
boot
if [ -n "${LEND:-}" ]; then
    in_container python3 -m venv /opt/splitee
    in_container sh -c 'for d in /opt/splitee/lib/python3*/site-packages; do echo /lent > $d/lent.pth; done'
fi
in_container /source/device/install.sh --bundle /srv/splitee-pi-1.tar --data builtin:fashion-mnist 2>&1 | grep -v '^WARNING'
in_container sh -c 'printf "cut = 3\nlimit = 200\nthreads = 1\n" >> /etc/splitee/device.toml'
# So that the freeze below does not take three minutes to be seen.
in_container sh -c 'mkdir -p /etc/systemd/system/splitee-device.service.d &&
    printf "[Service]\nWatchdogSec=20s\nTimeoutAbortSec=5s\nRestartSec=2s\n" > /etc/systemd/system/splitee-device.service.d/test.conf'
in_container systemctl daemon-reload
in_container systemctl restart splitee-device
wait_for 120 "it trains" trains
wait_for 60 "round 1 is committed" committed 1
status

say "kill -9: it is restarted, and resumes"
before=$(show MainPID)
round=$(now_committed)
in_container systemctl kill -s KILL splitee-device
wait_for 60 "another process" another_process "$before"
wait_for 120 "it trains on, after round $round" trains_after "$round"
status

say "freeze: the watchdog restarts it"
before=$(show MainPID)
round=$(now_committed)
in_container systemctl kill -s STOP splitee-device
wait_for 90 "another process" another_process "$before"
in_container journalctl --no-pager -o cat -u splitee-device | grep -i watchdog | tail -n 2
wait_for 120 "it trains on, after round $round" trains_after "$round"

say "too much memory: it is killed at its limit, and restarted until there is room"
in_container systemctl set-property --runtime splitee-device MemoryMax=100M # less than it needs
in_container systemctl kill -s KILL splitee-device
before=$(show NRestarts)
killed_again() { [ "$(show NRestarts)" -ge $((before + 3)) ]; } # ours, and two of the kernel's
wait_for 90 "the kernel kills it, and it is restarted" killed_again
in_container journalctl --no-pager -o cat -n 100 -u splitee-device | grep -E "oom-kill|status=9/KILL" | tail -n 1
in_container systemctl set-property --runtime splitee-device MemoryMax=80%
round=$(now_committed)
wait_for 120 "it trains on, after round $round" trains_after "$round"

say "power cut, and boot"
round=$(now_committed)
kill -9 "$init"
while kill -0 $nspawn 2>/dev/null; do sleep 0.2; done
boot
wait_for 180 "it trains on by itself, after round $round" trains_after "$round"
status

say "install again over the running one"
in_container /source/device/install.sh 2>&1 | grep -v '^WARNING'
round=$(now_committed)
wait_for 120 "it trains on, after round $round" trains_after "$round"

say "stop: it says offline, and exits with 0"
in_container systemctl stop splitee-device
show ExecMainStatus
"$splitee" status --config "$work/fleet/viewer/viewer.toml" --once | tail -n 1

say "uninstall"
in_container /source/device/install.sh --uninstall --purge
in_container sh -c 'ls -d /opt/splitee /etc/splitee /var/lib/splitee /etc/systemd/system/splitee-device.service; id splitee' 2>&1 || true
say "all as it should be"
