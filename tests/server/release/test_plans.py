# SPDX-License-Identifier: Apache-2.0
"""Plans: bundles that share a file, signatures of offer and rollback, and content that is rejected."""

from __future__ import annotations

import hashlib
from pathlib import Path

import graphs
import pytest
from wheels import make_keys, small_wheel, software_file

from splitee.errors import ConfigError, ModelError, SoftwareError
from splitee.inference.bundle import pack_bundle
from splitee.inference.manifest import CLIENT, write_manifest
from splitee.inference.signatures import ReleaseKey, ReleaseSigner
from splitee.protocol.topics import NAME
from splitee_broker.signing_keys import RELEASE_KEY, SIGNING_KEY, new_key
from splitee_server.release import plans
from splitee_server.release.plans import AT_ONCE
from splitee_server.release.rollout import Rollout, new_record

DEVICES = ("pi-1", "pi-2")


@pytest.fixture
def signer(tmp_path: Path) -> ReleaseSigner:
    for name, data in new_key(SIGNING_KEY, RELEASE_KEY).items():
        (tmp_path / name).write_bytes(data)
    return ReleaseSigner(tmp_path / SIGNING_KEY)


def exported(path: Path, device: str) -> Path:
    data = graphs.graph().SerializeToString()
    folder = path / device
    folder.mkdir(parents=True)
    (folder / CLIENT).write_bytes(data)
    write_manifest(folder, graphs.manifest(data, device=device))
    return folder


def packed(path: Path) -> Path:
    """A software file whose name does not tell its content."""
    wheel = small_wheel(path, "hetero_splitee", "0.3.0")
    return software_file(path / "new", make_keys(path / "keys")[0], wheel)


def begun(content: plans.Content) -> Rollout:
    plan = content.plan("a", AT_ONCE)
    rollout = Rollout(new_record(plan, "0" * 64, 1, 0.0), plan)
    rollout.advance(0.0, 1.0, lambda _device: True, lambda _device: False)
    return rollout


def test_bundles_of_devices_share_a_file_and_differ_in_their_heads(tmp_path: Path) -> None:
    paths = [exported(tmp_path / "models", device) for device in DEVICES]
    content = plans.models(paths, "barn", None)
    [(digest, file)] = content.paths.items()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    for path, release in zip(paths, content.releases, strict=True):
        assert release.head + file.read_bytes() == pack_bundle(path)
        assert release.release == hashlib.sha256(pack_bundle(path)).hexdigest()
    assert content.version == "run-a round 1"


@pytest.mark.parametrize("kind", ["model", "software"])
def test_offer_and_rollback_are_signed_for_each_device(
    tmp_path: Path, signer: ReleaseSigner, kind: str
) -> None:
    key = ReleaseKey.read(tmp_path / RELEASE_KEY)
    if kind == "model":
        content = plans.models([exported(tmp_path, device) for device in DEVICES], "barn", signer)
    else:
        content = plans.software(packed(tmp_path), DEVICES, "barn", signer)
        assert content.version == "0.3.0"
    rollout = begun(content)
    first = rollout.offer("pi-1")
    assert first is not None
    key.check(first, "barn", "pi-1")
    with pytest.raises(ModelError):
        key.check(first, "barn", "pi-2")
    rollout.roll_back(lambda _device: False)
    back = rollout.offer("pi-1")
    assert back is not None
    key.check(back, "barn", "pi-1")
    assert (back.action, back.signed_at) == ("roll back", first.signed_at + 1)


def test_unreleasable_models_and_software_are_rejected_with_the_reason(
    tmp_path: Path, signer: ReleaseSigner
) -> None:
    model = exported(tmp_path, "pi-1")
    with pytest.raises(ModelError, match="a second model for pi-1"):
        plans.models([model, model], "barn", None)
    with pytest.raises(ModelError, match="No such file"):
        plans.software(tmp_path / "none", DEVICES, "barn", signer)
    wheels = packed(tmp_path)
    with pytest.raises(ConfigError, match="only signed"):
        plans.software(wheels, DEVICES, "barn", None)
    with pytest.raises(ConfigError, match="no device that it is for"):
        plans.software(wheels, [], "barn", signer)
    wheels.write_bytes(wheels.read_bytes()[:-1])
    with pytest.raises(SoftwareError, match="cut off"):
        plans.software(wheels, DEVICES, "barn", signer)
    wheels.write_bytes(b"notes")
    with pytest.raises(SoftwareError, match="expected software for devices"):
        plans.software(wheels, DEVICES, "barn", signer)


@pytest.mark.parametrize("text", ["2026-11-29 22:18/x", "../../etc", "", "-" * 80, "a" * 80, "._-"])
def test_rollout_name_is_valid_for_any_text(text: str) -> None:
    assert NAME.fullmatch(plans.rollout_name(text))
