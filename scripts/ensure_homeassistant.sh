#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs Home Assistant into an environment of its own, build/homeassistant, for a test that checks messages by its schemas.
set -euo pipefail
cd "$(dirname "$0")/.."

environment=build/homeassistant
wanted=scripts/homeassistant.txt
if cmp --silent "$wanted" "$environment/installed.txt"; then
    exit 0
fi
rm -rf "$environment"
if .venv/bin/python -m venv --without-pip "$environment" &&
    .venv/bin/uv pip install --quiet --python "$environment/bin/python" \
        --only-binary :all: --no-deps --requirements "$wanted"; then
    cp "$wanted" "$environment/installed.txt"
elif [ "${CI:-}" = true ]; then
    echo "Home Assistant cannot be installed into $environment; CI needs it" >&2
    exit 1
else
    echo "Home Assistant cannot be installed into $environment: tests that need it are skipped" >&2
fi
