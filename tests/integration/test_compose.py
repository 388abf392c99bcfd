"""``deploy/compose.yaml``: its commands as processes, since no container engine is needed to see whether they work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from ruamel.yaml import YAML

from intermediate_server.testing import Program
from intermediate_server.testing.plugin import Programs
from tests.integration import commands
from tests.integration.relaying import free_port
from tests.integration.site import until

FILE = Path(__file__).resolve().parents[2] / "deploy/compose.yaml"
STATE = "/var/lib/intermediate-server"
PROGRAMS = ("server", "connector", "agent")


def compose() -> dict[str, Any]:
    """The file, with merge keys resolved."""
    found: dict[str, Any] = YAML(typ="safe").load(FILE.read_text(encoding="utf-8"))
    return found


@dataclass
class Host:
    """This host in the place of the networks: every port is a free one of 127.0.0.1."""

    directory: Path
    ports: Mapping[str, int]

    def place(self, text: str) -> str:
        """A word of the file with paths and addresses of this host."""
        for name, file in compose()["secrets"].items():
            text = text.replace(f"/run/secrets/{name}", str(self.directory / file["file"]))
        for address, port in self.ports.items():
            text = text.replace(address, f"127.0.0.1:{port}")
        return text

    def command(self, service: str) -> list[str]:
        """Arguments of the program of a service."""
        default = ["serve"] if service == "server" else []
        return [self.place(word) for word in compose()["services"][service].get("command", default)]

    def environment(self, service: str) -> dict[str, str]:
        """What the image sets, what the file sets, and the ports of this host."""
        home = self.directory / service
        home.mkdir(exist_ok=True)
        given = compose()["services"][service].get("environment", {})
        public = {"ZTNA_PUBLIC_ADDRESS": self.place("server:4433")}
        own = {name: re.sub(r"\$\{(\w+):-[^}]*}", lambda found: public[found[1]], text) for name, text in given.items()}
        bound = {"ZTNA_BIND": "127.0.0.1", "ZTNA_PORT": str(self.ports["server:4433"])}
        bound["ZTNA_METRICS_PORT"] = str(self.ports["metrics"])
        paths = {"STATE_DIRECTORY": str(home), "RUNTIME_DIRECTORY": str(home)}
        return commands.environment(self.directory, {**own, **(bound if service == "server" else {}), **paths})

    async def run(self, service: str, *arguments: str) -> tuple[int, str]:
        """A command in the container of a service: ``docker compose exec``."""
        command = await Program.start(*arguments, env=self.environment(service))
        code = await command.process.wait()
        await command.terminate()
        return code, "\n".join(str(line["event"]) for line in command.lines[:-1])


@pytest.fixture
def host(tmp_path: Path) -> Host:
    names = ("server:4433", "metrics", "application:8080", "0.0.0.0:8081")
    return Host(tmp_path, {name: free_port() for name in names})


async def test_its_commands_join_and_relay_a_request(host: Host, programs: Programs) -> None:
    server = await programs.keep(Program.start(*host.command("server"), env=host.environment("server")))
    await server.wait_log("Server listening on")

    async def healthy(service: str) -> None:
        async def ask() -> bool:
            return await host.run(service, "healthcheck") == (0, f"{service}: ok")

        await until(ask, f"a healthy {service}")

    await healthy("server")
    entrypoint = compose()["services"]["application"]["entrypoint"]
    assert entrypoint[:3] == ["python3", "-m", "http.server"] and entrypoint[3] == "8080"
    port = str(host.ports["application:8080"])
    application = Program.start(port, "--bind", "127.0.0.1", *entrypoint[4:], module="http.server")
    await programs.keep(application)
    for role in ("connector", "agent"):
        # As the head of the file says: grep -o.
        code, text = await host.run("server", "token", "create", "web", "--role", role)
        (token,) = re.findall("ztj1_[^ ]*", text)
        assert code == 0
        place = host.directory / compose()["secrets"][f"{role}-token"]["file"]
        place.write_text(f"{token}\n")
        place.chmod(0o400)
    for _ in range(2):
        clients = []
        for role in ("connector", "agent"):
            arguments = host.command(role)
            assert not any("ztj1_" in word for word in arguments), "a token in argv is seen by every user of the host"
            clients.append(await programs.keep(Program.start(*arguments, env=host.environment(role))))
            await healthy(role)
        address = host.place("0.0.0.0:8081")

        def fetch(url: str = f"http://{address}/") -> bytes:
            with urlopen(url, timeout=commands.PATIENCE) as answer:
                return bytes(answer.read())

        assert b"Directory listing for /" in await asyncio.to_thread(fetch)
        # The second time there is a profile, and the token is used up.
        for client in clients:
            assert await client.terminate() == 0


@pytest.mark.parametrize("service", [*PROGRAMS, "application"])
def test_each_service_has_little(service: str) -> None:
    given = compose()["services"][service]
    assert given["read_only"] is True
    assert given["cap_drop"] == ["ALL"]
    assert given["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in given and "cap_add" not in given and "user" not in given


def test_what_is_written_is_in_a_volume_and_secrets_are_files() -> None:
    found = compose()
    for service in PROGRAMS:
        assert found["services"][service]["volumes"] == [f"{service}:{STATE}"]
        assert service in found["volumes"]
    assert {name: sorted(value) for name, value in found["secrets"].items()} == {
        "connector-token": ["file"],
        "agent-token": ["file"],
    }
    assert found["networks"]["private"] == {"internal": True}
    assert found["services"]["application"]["networks"] == ["private"]
    assert "ports" not in found["services"]["application"]


def test_the_page_has_the_commands_of_the_file() -> None:
    page = (FILE.parents[1] / "docs/deploy.md").read_text(encoding="utf-8")
    commands_of_file = re.findall(r"^#   (.*)$", FILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands_of_file) == 6
    assert "".join(f"# {command}\n" for command in commands_of_file) in page
