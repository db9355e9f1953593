#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the device's agent as a systemd service; run it again to upgrade, or to take a new bundle.
# Nothing is changed before it is known that all can be installed.
set -eu

usage() {
    cat <<'EOF'
sudo device/install.sh [--bundle splitee-ID.tar] [--data SPEC] [--infer-only] [--wheels DIR]
                       [--no-hashes]
sudo device/install.sh --uninstall [--purge]

  --bundle FILE  this device's identity, made by `splitee broker add-device ID`; without it, once all is
                 installed: splitee join HOST CODE, as `splitee broker invite` shows it
  --data SPEC    what to train on, as for `splitee device --data`
  --infer-only   without torch: the device classifies and offloads, it does not train
  --wheels DIR   install from the wheels in DIR, and reach for no index
  --no-hashes    take other versions and builds than those that requirements/*.txt pins
  --python EXE   the Python to use (3.11 or later); default: python3
  --root DIR     install under DIR, without an account and without starting anything: images, tests
  --uninstall    remove the service and the program; keep settings, identity and state
  --purge        with --uninstall: remove these, and the account, as well
EOF
}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

here=$(cd "$(dirname "$0")/.." && pwd)
bundle='' data='' extra='[train]' wheels='' python=python3 root='' action=install purge='' hashes=yes
while [ $# -gt 0 ]; do
    case $1 in
    --bundle | --data | --wheels | --python | --root)
        [ $# -ge 2 ] || fail "$1 needs a value; see --help"
        name=${1#--}
        eval "$name=\$2"
        shift
        ;;
    --infer-only) extra='' ;;
    --no-hashes) hashes='' ;;
    --uninstall) action=uninstall ;;
    --purge) purge=yes ;;
    -h | --help) usage && exit 0 ;;
    *) fail "unknown flag $1; see --help" ;;
    esac
    shift
done

program=$root/opt/splitee
state=$root/var/lib/splitee
software=$state/software
settings=$root/etc/splitee/device.toml
identity=$root/etc/splitee/device
unit=$root/etc/systemd/system/splitee-device.service
service=splitee-device

on_this_system() { [ -z "$root" ]; }
has_service() { on_this_system && [ -e "$unit" ] && [ -d /run/systemd/system ]; }

value_of() { # KEY FILE: a text of a TOML file's first level
    sed -n "s/^ *$1 *= *\"\\([^\"]*\\)\".*/\\1/p" "$2" | head -n 1 | LC_ALL=C tr -cd '[:print:]'
}

set_value() { # KEY TEXT: of the settings, instead of an earlier one; the text is escaped
    sed -i "/^ *$1 *=/d" "$settings"
    [ -z "$(tail -c 1 "$settings")" ] || echo >>"$settings" # the last line has no end
    printf '%s = "%s"\n' "$1" "$2" >>"$settings"
}

works() { # PYTHON: of an environment that can be installed into
    "$1" -m pip --version >/dev/null 2>&1
}

check_machine() {
    case $(uname -m) in
    aarch64 | arm64 | x86_64) ;;
    *) fail "$(uname -m): torch and onnxruntime have no wheels for it; use a 64-bit system" ;;
    esac
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$python: expected Python 3.11 or later; name another by --python"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments: apt install python3-venv"
    memory=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024))
    [ -z "$extra" ] || [ "$memory" -ge 900 ] ||
        echo "note: $memory MiB of memory: training will only do for small networks and early cuts" >&2
    [ ! -e /sys/fs/cgroup/cgroup.controllers ] || grep -qw memory /sys/fs/cgroup/cgroup.controllers ||
        echo "note: the kernel does not limit memory: add cgroup_enable=memory to cmdline.txt" >&2
    needed=400
    [ -z "$extra" ] || needed=2000
    mkdir -p "$root/opt"
    free=$(df -Pm "$root/opt" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$needed" ] || fail "$root/opt: $needed MiB are needed, $free are free"
}

pip_install() { # PYTHON FLAGS...
    with=$1
    shift
    [ -z "$wheels" ] || set -- --no-index --find-links "$wheels" "$@"
    "$with" -m pip install --disable-pip-version-check --quiet --only-binary :all: "$@"
}

build_wheel() { # by a setuptools of known hash, and from a copy: a build leaves things behind
    mkdir "$scratch/source"
    (cd "$here" && cp -R pyproject.toml README.md LICENSE core web device server export lab broker_config \
        "$scratch/source")
    if [ -n "$hashes" ]; then
        set -- --require-hashes -r "$here/requirements/build.txt"
    else
        set -- 'setuptools>=77'
    fi
    pip_install "$checker" --target "$scratch/build" "$@" &&
        (cd "$scratch/source" && PYTHONPATH=$scratch/build "$checker" -c \
            "from setuptools.build_meta import build_wheel; build_wheel('$scratch')" >/dev/null)
}

install_packages() { # PYTHON FLAGS...: splitee, and all that it needs, pinned and with the hashes that are known
    into=$1
    shift
    if [ -n "$hashes" ]; then
        lock=base
        [ -z "$extra" ] || lock=train
        printf 'hetero-splitee%s @ file://%s --hash=sha256:%s\n' \
            "$extra" "$built" "$(sha256sum "$built" | cut -d' ' -f1)" >"$scratch/own.txt"
        set -- --require-hashes -r "$scratch/own.txt" -r "$here/requirements/$lock.txt" "$@"
    else
        set -- "$built$extra" "$@"
    fi
    pip_install "$into" "$@"
}

check_wheels() { # nothing that runs is touched; where nothing is installed yet, that is done already
    checker=$program/bin/python
    if ! works "$checker"; then
        environment=$scratch/venv
        if [ ! -e "$program" ]; then # the one that is installed into: to make two takes a Pi half a minute
            environment=$program
            unchecked=$program
        fi
        "$python" -m venv "$environment"
        checker=$environment/bin/python
    fi
    built=$(find "${wheels:-$scratch}" -maxdepth 1 -name 'hetero_splitee-*.whl' | sort | tail -n 1)
    if [ -z "$built" ]; then
        build_wheel || fail "splitee itself does not build; see above"
    else
        cp "$built" "$scratch"
    fi
    built=$(find "$scratch" -maxdepth 1 -name 'hetero_splitee-*.whl')
    set -- --dry-run
    [ -z "$unchecked" ] || set --
    install_packages "$checker" "$@" ||
        fail "not all wheels are to be had for Python $("$python" -V | cut -d' ' -f2) on $(uname -m); see above"
    [ -z "$unchecked" ] || is_new=yes
    unchecked=''
}

has_identity() { # settings from before an identity, as an installation without a bundle makes them, have none
    [ -e "$settings" ] && [ -n "$(value_of id "$settings")" ]
}

check_bundle() {
    [ -n "$bundle" ] || return 0
    { [ -f "$bundle" ] && [ -r "$bundle" ]; } || fail "$bundle: no such file"
    made_by="expected a device's bundle, made by \`splitee broker add-device\`"
    entries=$(tar -tvf "$bundle" 2>/dev/null) || fail "$bundle: $made_by"
    [ -z "$(printf '%s' "$entries" | grep -v '^-')" ] ||
        fail "$bundle: it holds links, folders or devices; $made_by, which holds plain files only"
    names=$(tar -tf "$bundle")
    # Of other releases: bundles may lack what is not named here, and hold more.
    for name in device.toml ca.crt client.crt client.key; do
        printf '%s\n' "$names" | grep -qxF "$name" || fail "$bundle: $name is missing; $made_by"
    done
    fresh=$scratch/bundle
    mkdir "$fresh"
    tar -xf "$bundle" -C "$fresh" --no-same-owner device.toml ca.crt client.crt client.key ||
        fail "$bundle: it is damaged; $made_by"
    # Bundles of older releases have none; then what this device has pinned stays.
    for name in release.pub software.pub; do
        tar -xf "$bundle" -C "$fresh" --no-same-owner "$name" 2>/dev/null || true
    done
    [ -e "$settings" ] || return 0
    for key in fleet id; do
        now=$(value_of $key "$settings")
        [ -n "$now" ] || has_identity || continue
        [ "$now" = "$(value_of $key "$fresh/device.toml")" ] ||
            fail "$bundle is for $key $(value_of $key "$fresh/device.toml"), but this device's is" \
                "$now: --uninstall --purge first, if that is meant"
    done
}

install_identity() {
    [ -n "$bundle" ] || return 0
    install -d -m 755 "$root/etc/splitee"
    install -d -m 700 "$identity"
    for name in ca.crt client.crt client.key; do
        install -m 600 "$fresh/$name" "$identity/$name"
    done
    # The paths are the unit's: systemd hands the keys to the service, and to nobody else.
    if [ ! -e "$settings" ]; then
        grep -vE '^(ca|cert|key|release-key|software-key) *=' "$fresh/device.toml" |
            install -m 644 /dev/stdin "$settings"
    elif ! has_identity; then
        for key in fleet broker id; do
            set_value $key "$(value_of $key "$fresh/device.toml")"
        done
    fi
    # No secrets: they lie beside the settings that name them.
    for what in release software; do
        [ -f "$fresh/$what.pub" ] || continue
        install -m 644 "$fresh/$what.pub" "$root/etc/splitee/$what.pub"
        set_value "$what-key" "$what.pub"
    done
}

install_settings() {
    if [ ! -e "$settings" ]; then
        install -d -m 755 "$root/etc/splitee"
        printf "# The flags of splitee device as keys.\n" | install -m 644 /dev/stdin "$settings"
    fi
    [ -n "$data" ] || return 0
    set_value data "$(printf '%s' "$data" | sed 's/[\\"]/\\&/g')"
}

install_program() {
    if [ -z "$is_new" ]; then
        # A broken environment (another Python, a run that was cut off) is made anew.
        works "$program/bin/python" || "$python" -m venv --clear "$program"
        install_packages "$program/bin/python"
        pip_install "$program/bin/python" --no-deps --force-reinstall "$built"
    fi
    "$program/bin/splitee" --version >/dev/null || fail "the installed program does not start; see above"
    # What is installed by hand runs next, whatever upgrades there were.
    rm -f "$software/current" "$software/previous" "$software/trial" "$software/tried"
}

install_service() {
    install -D -m 644 "$here/device/systemd/splitee-device.service" "$unit"
    if ! on_this_system; then
        return 0
    fi
    getent passwd splitee >/dev/null ||
        useradd --system --user-group --home-dir /var/lib/splitee --no-create-home --shell /usr/sbin/nologin splitee
    ! getent group video >/dev/null || usermod -aG video splitee # for vcgencmd
    [ -d /run/systemd/system ] || return 0
    systemctl daemon-reload
    systemctl enable --quiet $service
}

start_service() {
    has_service || return 0
    if [ ! -e "$identity/client.key" ]; then
        echo "installed, not started: now type what \`splitee broker invite\` shows on the hub:" \
            "sudo $program/bin/splitee join HOST CODE"
        return 0
    fi
    missing=''
    for key in id broker data; do
        [ -n "$(value_of $key "$settings")" ] || missing="$missing $key"
    done
    if [ -n "$missing" ]; then
        echo "installed, not started: give$missing (in $settings, or to install.sh), then: systemctl start $service"
    else
        systemctl start --no-block $service
        echo "installed and started: systemctl status $service"
    fi
}

uninstall() {
    if has_service; then
        systemctl disable --quiet --now $service
    fi
    rm -f "$unit"
    rm -rf "$program" "$unit.d"
    ! on_this_system || [ ! -d /run/systemd/system ] || systemctl daemon-reload
    if [ -n "$purge" ]; then
        rm -rf "$identity" "$settings" "$root/etc/splitee/release.pub" "$root/etc/splitee/software.pub" "$state"
        rmdir "$root/etc/splitee" 2>/dev/null || true
        ! on_this_system || ! getent passwd splitee >/dev/null || userdel splitee
        echo "removed, with settings, identity and state"
    else
        echo "removed; kept: $settings $identity $state (--purge removes them)"
    fi
}

on_this_system && [ "$(id -u)" -ne 0 ] && fail "run it as root (sudo)"
if [ $action = uninstall ]; then
    uninstall
    exit 0
fi
scratch=$(mktemp -d)
unchecked='' # an environment that goes again unless all can be installed into it
is_new=''    # whether all was installed into such a one
trap 'rm -rf "$scratch" ${unchecked:+"$unchecked"}' EXIT
check_machine
check_bundle
check_wheels
if has_service; then
    systemctl stop $service # its files are about to change; SIGTERM saves what it trained
fi
install_program
install_identity
install_settings
install_service
start_service
