# SPDX-License-Identifier: Apache-2.0
"""Records messages of this release; tests check that later releases read them. Run it before a release.

python tests/support/record_messages.py      writes tests/data/messages-VERSION.json
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from hypothesis import given, settings

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
EACH = 4  # messages per route
LONGEST = 1500  # bytes of a message

sys.path.insert(0, str(ROOT))

from tests.core.strategies import messages  # noqa: E402

from splitee import __version__  # noqa: E402
from splitee.protocol.routes import ROUTES, Route  # noqa: E402


def recorded(route: Route) -> list[str]:
    """Payloads that a sender of this release may publish, the shortest and longer ones, in Base64."""
    found: set[bytes] = set()

    @settings(max_examples=50, derandomize=True, database=None, deadline=None)
    @given(messages(route.message))
    def collect(message: object) -> None:
        payload = message.encode()  # type: ignore[attr-defined]
        if len(payload) <= LONGEST:
            found.add(payload)

    collect()
    ordered = sorted(found, key=lambda payload: (len(payload), payload))
    chosen = ordered[:: max(1, len(ordered) // EACH)][:EACH]
    return [base64.b64encode(payload).decode() for payload in chosen]


if __name__ == "__main__":
    path = DATA / f"messages-{__version__}.json"
    path.write_text(json.dumps({route.path: recorded(route) for route in ROUTES}, indent=1) + "\n")
