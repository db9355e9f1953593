# SPDX-License-Identifier: Apache-2.0
"""Requests to the trunk over a real broker, without a server that replies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import graphs
import numpy as np
import pytest

from splitee.cli.link_options import resolve
from splitee.errors import ModelError
from splitee.inference.manifest import MANIFEST, ClientManifest, read_manifest
from splitee.inference.offload import Offload
from splitee_lab.local.brokers import RunningBroker

SENDABLE = np.ones((1, graphs.FEATURES), "f4")


@pytest.fixture
def offload(mosquitto_broker: RunningBroker) -> Iterator[Offload]:
    options = resolve(str(mosquitto_broker.address), "unanswered", 10.0)
    opened = Offload(options, graphs.manifest(b"", codec="fp32"), timeout=1.0)
    opened.open()
    yield opened
    opened.close()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_features_that_cannot_be_sent_leave_the_prediction_to_the_exit(
    offload: Offload, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A model may give them for an image on which its release was not tried."""
    for _ in range(2):
        assert offload.logits(SENDABLE * np.float32(value)) is None
    assert offload.offloaded == 0
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert line.startswith("features are not offloaded: ") and "not finite, or beyond" in line
    assert offload.logits(SENDABLE) is None  # nobody replies
    assert offload.offloaded == 1


def test_manifest_with_an_unknown_codec_is_refused_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(graphs.encoded(graphs.manifest(b"", codec="brotli")))
    with pytest.raises(ModelError, match="codec"):
        read_manifest(tmp_path, ClientManifest)
