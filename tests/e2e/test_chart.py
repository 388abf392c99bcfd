"""The Helm chart's pods, as its manifests say, from the first start to a page through a connector."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from intermediate_server.testing import Program
from intermediate_server.testing.programs import ENDED
from tests.chart.manifests import component, of_kind, pod, workloads
from tests.e2e.netns import Network
from tests.e2e.pods import EMPTY, WORLD, Node, Pod, until
from tests.integration import commands
from tests.integration.commands import PATIENCE

PAGE = (Path(__file__).resolve().parents[2] / "docs/kubernetes.md").read_text(encoding="utf-8")
RELAY, SERVICE, WEB = "relay.example.com", "relay-intermediate-server.ztna.svc", "web.default.svc"


class Cluster:
    """The pods of the value file ``cluster``, and an application behind the connector."""

    def __init__(self, network: Network, running: AsyncExitStack, directory: Path, state_mode: int | None) -> None:
        self.running = running
        self.node = Node(network)
        self.application, self.application_address, _ = self.node.attach()
        self.device, self.device_address, _ = self.node.attach()
        self.pods = {
            component(each): self.node.pod(each, directory / component(each), state_mode=state_mode)
            for each in workloads("cluster")
        }
        # Its public name is known outside alone.
        self.connector.names = {SERVICE: self.server.address, WEB: self.application_address}
        self.configure(settings("cluster"))

    @property
    def server(self) -> Pod:
        return self.pods["server"]

    @property
    def connector(self) -> Pod:
        return self.pods["connector"]

    def configure(self, text: str) -> None:
        """Change the ConfigMap."""
        self.server.volumes["config"].write({"config.toml": text})

    async def start(self, part: str) -> Program:
        """A pod, once it is ready."""
        program = await self.running.enter_async_context(await self.pods[part].start())
        await self.node.until_healthy(self.pods[part], program)
        return program

    async def command(self, part: str, *arguments: str) -> tuple[int, str]:
        """``kubectl exec``."""
        command = await self.pods[part].exec(*arguments)
        async with asyncio.timeout(PATIENCE):
            status = await command.process.wait()
        await command.terminate()
        return status, "\n".join(str(line["event"]) for line in command.lines[:-1])

    async def token(self, role: str, *options: str) -> str:
        """A join token, as the notes of the chart make it."""
        status, text = await self.command("server", "token", "create", "web", "--role", role, *options)
        found: list[str] = re.findall("ztj1_[^ ]*", text)
        assert (status, len(found)) == (0, 1)
        return found[0]

    async def give_token(self) -> None:
        """Make the secret of the connector."""
        self.connector.volumes["token"].write({"token": f"{await self.token('connector')}\n"}, 0o400)


def settings(name: str) -> str:
    """What is in the ConfigMap of the relay."""
    (found,) = of_kind(name, "ConfigMap")
    return str(found["data"]["config.toml"])


@pytest.fixture
def cluster(request: pytest.FixtureRequest, network: Network, running: AsyncExitStack, tmp_path: Path) -> Cluster:
    return Cluster(network, running, tmp_path, getattr(request, "param", None))


any_volume = pytest.mark.parametrize("cluster", [None, WORLD], indirect=True, ids=["fsGroup", "open to everyone"])


@any_volume
async def test_a_page_comes_through_the_connector(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.start("server")
    shared = Program.start("8080", "--directory", "/usr/share", module="http.server", within=cluster.application.within)
    await cluster.running.enter_async_context(await shared)
    await cluster.give_token()
    connector = await cluster.start("connector")
    assert "joined as connector" in str(connector.lines[0])

    words = ["agent", "--profile", str(tmp_path / "agent.ztna"), "--status-socket", str(tmp_path / "agent.sock")]
    words += ["--join", await cluster.token("agent")]
    words += ["--forward", "tcp:127.0.0.1:8081=web"]
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{cluster.server.address} {RELAY}\n", encoding="utf-8")
    named = ("unshare", "--mount", "sh", "-ec", f'mount --bind {hosts} /etc/hosts; exec "$@"', "sh")
    starting = Program.start(*words, within=(*cluster.device.within, *named))
    agent = await cluster.running.enter_async_context(await starting)
    await until(lambda: cluster.device.run("curl", "--silent", "--fail", "http://127.0.0.1:8081/"), agent)

    # Here is neither a service in between nor a node whose address it would put in the place of these.
    clients = json.loads(cluster.node.get(f"http://{cluster.server.address}:9090/status"))["clients"]["clients"]
    seen = {client["address"].rpartition(":")[0] for client in clients}
    assert seen == {cluster.device_address, cluster.connector.address}


@any_volume
async def test_a_restart_needs_no_token(cluster: Cluster) -> None:
    relay = await cluster.start("server")
    await cluster.give_token()
    connector = await cluster.start("connector")
    cluster.connector.volumes["token"].write({})
    assert await connector.terminate() == 0
    connector = await cluster.start("connector")

    began = time.monotonic()
    assert await relay.terminate() == 0
    assert time.monotonic() - began < pod(cluster.server.workload)["terminationGracePeriodSeconds"]
    # A kubelet may let the group write all that is in a volume, before it starts a pod.
    for path in cluster.server.volumes["state"].directory.rglob("*"):
        path.chmod(path.stat().st_mode | 0o060)
    await cluster.start("server")
    await connector.wait_log("Registered as", count=2)


async def test_several_pods_join_by_one_token(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.start("server")
    token = await cluster.token("connector", "--uses", "3")
    (workload,) = workloads("connectors")
    for name in ("office-connector-1", "office-connector-2"):
        each = cluster.node.pod(workload, tmp_path / name, state_mode=EMPTY)
        each.names = cluster.connector.names
        each.volumes["token"].write({"token": token}, 0o400)
        program = await cluster.running.enter_async_context(await each.start())
        await cluster.node.until_healthy(each, program)
        assert f'joined as connector "{name}"' in str(program.lines[0])


async def test_the_admin_service_answers_by_its_name(cluster: Cluster) -> None:
    await cluster.start("server")
    url = cluster.server.url("livenessProbe")
    (service,) = (each for each in of_kind("cluster", "Service") if each["metadata"]["name"].endswith("server-admin"))
    metadata = service["metadata"]
    assert cluster.node.get(url, "--header", f"Host: {metadata['name']}.{metadata['namespace']}.svc:9090") == "ok\n"
    with pytest.raises(AssertionError, match="421"):
        cluster.node.get(url, "--header", "Host: another.example.com")


async def test_without_a_token_one_line_says_so(cluster: Cluster) -> None:
    early = await cluster.running.enter_async_context(await cluster.connector.start())
    async with asyncio.timeout(PATIENCE):
        assert await early.process.wait() == 2
    await early.terminate()
    assert [line["event"] for line in early.lines] == [
        "error: --token-file: /run/secrets/intermediate-server/token cannot be read: No such file or directory",
        ENDED,
    ]


LOOK = """
id -u; id -G; grep CapEff /proc/self/status
for at in / /etc /etc/intermediate-server /run /tmp; do touch $at/new 2>/dev/null && echo $at; done; true
"""


async def test_a_pod_can_do_nothing_else(cluster: Cluster) -> None:
    await cluster.start("server")
    for each in cluster.pods.values():
        assert each.run("sh", "-c", LOOK).split() == ["10001", "10001", "CapEff:", "0" * 16]
    key = "/var/lib/intermediate-server/state/ca.key"
    assert cluster.server.run("stat", "--format", "%u %a", key) == "10001 600\n"


async def test_a_changed_configmap_is_in_force_without_a_restart(cluster: Cluster) -> None:
    relay = await cluster.start("server")
    cluster.configure('registration-timeout = "20s"')
    assert (await relay.wait_log("Reloaded"))["changed"] == "registration_timeout"
    cluster.configure("registration-timeuot = 1")
    failed = await relay.wait_log("Reload failed; everything stays as it is")
    assert "registration-timeuot" in failed["reason"]
    assert "registration-timeuot" in json.loads(cluster.node.get(cluster.server.url("readinessProbe")))["reload_error"]


async def test_the_commands_on_the_page_are_known_to_the_pod(cluster: Cluster) -> None:
    commands = re.findall(r"exec relay-intermediate-server-0 -- intermediate-server ([^`\\\n]+)", PAGE)
    assert len(commands) >= 4
    await cluster.start("server")
    assert (await cluster.command("server", "pki", "issue", "agent", "laptop", "--service", "web"))[0] == 0
    commands += re.findall(r"`(token create web [^`]+)`", PAGE)
    for command in commands:
        assert (await cluster.command("server", *command.split()))[0] == 0, command


async def test_the_kubelet_finds_a_pod_with_ipv6(network: Network, running: AsyncExitStack, tmp_path: Path) -> None:
    (workload,) = workloads("ipv6")
    node = Node(network)
    server = node.pod(workload, tmp_path / "server", family="IPv6")
    server.volumes["config"].write({"config.toml": settings("ipv6")})
    program = await running.enter_async_context(await server.start())
    await node.until_healthy(server, program)


async def test_a_certificate_and_lists_come_from_volumes(
    network: Network, running: AsyncExitStack, tmp_path: Path
) -> None:
    state = tmp_path / "state"

    def issued(name: str) -> dict[str, str]:
        assert commands.run(tmp_path, "pki", "issue", "server", name).returncode == 0
        files = {"tls.crt": "pem", "tls.key": "key"}
        return {file: (state / f"issued/{name}.{suffix}").read_text() for file, suffix in files.items()}

    assert commands.run(tmp_path, "pki", "init").returncode == 0
    (workload,) = (each for each in workloads("everything") if component(each) == "server")
    node = Node(network)
    server = node.pod(workload, tmp_path / "server")
    server.volumes["config"].write({"config.toml": settings("everything")})
    server.volumes["certificate"].write(issued("first"), 0o400)
    server.volumes["lists"].write({name: (state / name).read_text() for name in ("ca.pem", "crl.pem")})
    program = await running.enter_async_context(await server.start())
    await node.until_healthy(server, program)
    # As cert-manager renews it.
    server.volumes["certificate"].write(issued("second"), 0o400)
    await program.wait_log("Reloaded")
