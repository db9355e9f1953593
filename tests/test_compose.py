# SPDX-License-Identifier: Apache-2.0
"""docker-compose.yml: valid by the compose specification, no container with more rights than it needs.

`data/compose-spec.json` is the specification's own schema (Apache-2.0), unchanged.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from splitee.pairing.messages import PORT
from splitee_broker.commands.invite import invite as invite_command
from splitee_device.commands.device import device as device_command
from splitee_server.commands.server import server as server_command
from splitee_web.commands.page import page as page_command

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SCHEMA = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text())

SETUP = ("certificates", "invite")  # run by hand, to their end
OWN_IMAGE = r"hetero-splitee:\d+\.\d+\.\d+"
PINNED_IMAGE = (
    r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}"  # a tag for people, a digest for the registry
)


def test_compose_file_is_valid_by_the_specification() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(COMPOSE)] == []


def test_compose_schema_rejects_an_invalid_file() -> None:
    broken = {**COMPOSE, "services": {"broker": {"image": "x", "healthchek": {}}}}
    assert not jsonschema.Draft7Validator(SCHEMA).is_valid(broken)


@pytest.mark.parametrize("name", SERVICES)
def test_container_has_only_the_rights_that_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "ipc", "devices"} & set(service)
    assert re.fullmatch(OWN_IMAGE if "hetero-splitee" in service["image"] else PINNED_IMAGE, service["image"])
    if name in SETUP:  # they hand files to the other containers' account; only one must reach the network
        assert (service.get("network_mode") == "none") == (name == "certificates")
        assert service["cap_add"] == ["CHOWN", "DAC_OVERRIDE", "FOWNER"]
        assert service["profiles"] == ["setup"]
        return
    assert service["user"] == "1883:1883"
    assert "cap_add" not in service
    assert service["restart"] in ("on-failure", "unless-stopped")


def test_services_wait_for_a_healthy_broker() -> None:
    for name, service in SERVICES.items():
        if name.startswith("broker"):
            assert "healthcheck" in service
        elif name not in SETUP:
            brokers = ["broker", "broker-2"] if name == "server-ranks" else ["broker"]
            assert service["depends_on"] == {one: {"condition": "service_healthy"} for one in brokers}


def test_server_ranks_have_a_broker_each_and_replace_the_server() -> None:
    ranks, server = SERVICES["server-ranks"], SERVICES["server"]
    count = int(ranks["entrypoint"][ranks["entrypoint"].index("--nproc-per-node") + 1])
    urls = [f"mqtts://{name}:8883" for name in ranks["depends_on"]]
    assert ranks["environment"]["SPLITEE_BROKERS"] == ",".join(urls)
    assert len(urls) == count == 2
    assert ranks["environment"].items() > server["environment"].items()
    assert ranks["volumes"] == server["volumes"]  # so the run goes on, and never in both: the state is locked
    assert ranks["profiles"] == SERVICES["broker-2"]["profiles"] == ["ranks"]
    named = SERVICES["certificates"]["command"][0]
    assert all(f"--name {name}" in named for name in ranks["depends_on"])
    assert SERVICES["broker-2"]["volumes"][1] != SERVICES["broker"]["volumes"][1]


@pytest.mark.slow
def test_secret_belongs_to_one_service_only() -> None:
    used = [
        secret["source"]
        for name, service in SERVICES.items()
        for secret in service.get("secrets", [])
        if name != "server-ranks"  # the server's own, in whose place it is
    ]
    assert sorted(used) == sorted(COMPOSE["secrets"])
    for name, service in SERVICES.items():
        folder = {"server": "server", "server-ranks": "server", "page": "viewer"}.get(name, f"bundles/{name}")
        files = {
            secret["target"]: COMPOSE["secrets"][secret["source"]] for secret in service.get("secrets", [])
        }
        assert all(file["file"] == f"./secrets/{folder}/{target}" for target, file in files.items())
    for ignored in (".gitignore", ".dockerignore"):
        lines = (ROOT / ignored).read_text().splitlines()
        assert "secrets/" in lines or "*" in lines


@pytest.mark.parametrize("name", [name for name in SERVICES if name.startswith(("server", "demo", "page"))])
def test_service_settings_are_known_to_their_commands(name: str) -> None:
    command = {"server": server_command, "demo": device_command, "page": page_command}[name.partition("-")[0]]
    known = {str(parameter.envvar) for parameter in command.params if getattr(parameter, "envvar", None)}
    assert set(SERVICES[name]["environment"]) <= known
    flags = [word for word in SERVICES[name].get("command", []) if word.startswith("--")]
    assert set(flags) <= {flag for parameter in command.params for flag in parameter.opts}


def test_invite_service_listens_at_its_published_port() -> None:
    invite = SERVICES["invite"]
    command, flag, port = invite["entrypoint"][:3], *invite["entrypoint"][3:]
    assert command == ["splitee", "broker", "invite"]
    assert flag in {flag for parameter in invite_command.params for flag in parameter.opts}
    assert port == f"${{INVITE_PORT:-{PORT}}}"
    assert invite["ports"] == [f"{port}:{port}"]
    assert invite["volumes"] == SERVICES["certificates"]["volumes"]


def test_page_service_is_published_on_loopback_with_a_token() -> None:
    page = SERVICES["page"]
    assert all(port.startswith("127.0.0.1:") for port in page["ports"])
    assert page["environment"]["SPLITEE_TOKEN_FILE"] == "/run/secrets/page.token"  # noqa: S105
    assert "page.token" in SERVICES["certificates"]["command"][0]


def test_build_context_has_the_files_of_the_image_and_no_others() -> None:
    """.dockerignore lets in what is named: what the build copies, and what the wheel is made of."""
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line[:1] == "!"
    }
    assert allowed == _copied() | _of_the_wheel()


def _copied() -> set[str]:
    """What the image's build copies by name; for the wheel, it copies all that it gets."""
    lines = (ROOT / "server" / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from=" not in line]
    sources = {source for copy in copies for source in copy}
    assert "." in sources
    return {source.partition("/")[0] for source in sources - {"."}}


def _of_the_wheel() -> set[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, packages = settings["project"], settings["tool"]["setuptools"]["packages"]["find"]["where"]
    return {"pyproject.toml", project["readme"], *project["license-files"], *packages}
