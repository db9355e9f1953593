#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs Mosquitto with apt when it is missing and that is possible; says so when it is not.
set -euo pipefail

PATH=$PATH:/usr/sbin:/usr/local/sbin
if command -v mosquitto >/dev/null; then
    exit 0
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
    sudo="sudo -n"
fi
if command -v apt-get >/dev/null && $sudo true 2>/dev/null; then
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq --no-install-recommends mosquitto >/dev/null
elif [ "${CI:-}" = true ]; then
    echo "Mosquitto is missing and cannot be installed with apt; CI needs it" >&2
    exit 1
else
    echo "Mosquitto is missing and cannot be installed with apt: tests that need it are skipped" >&2
fi
