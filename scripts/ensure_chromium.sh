#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# In CI: installs Chromium with apt, in which a test looks at the page. Elsewhere nothing: that test is skipped.
set -euo pipefail

if [ "${CI:-}" != true ] || command -v chromium >/dev/null || command -v google-chrome >/dev/null; then
    exit 0
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
    sudo="sudo -n"
fi
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
