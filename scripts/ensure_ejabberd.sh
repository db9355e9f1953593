#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# In CI: installs ejabberd with apt, the broker of MQTT v5 beside Mosquitto that a test runs a fleet on.
# Elsewhere nothing: Debian's package starts a service, and that one listens on Mosquitto's port.
set -euo pipefail

if [ "${CI:-}" != true ] || compgen -G '/usr/lib/*/ejabberd-*/ebin/mod_mqtt.beam' >/dev/null; then
    exit 0
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
    sudo="sudo -n"
fi
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends ejabberd >/dev/null
