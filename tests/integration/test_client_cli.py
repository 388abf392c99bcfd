"""``agent`` and ``connector`` from the command line: everything is read and checked before anything is dialled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from intermediate_server.client.agent import AgentOptions, running
from intermediate_server.client.relay import Relay
from intermediate_server.client.specs import ForwardSpec
from intermediate_server.pki import Authority
from intermediate_server.testing.plugin import StartAgent
from intermediate_server.types import Role
from tests.integration.commands import run
from tests.integration.conftest import Server, StartServer


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory with settings of both, and all the files that they name beside them."""
    authority = Authority(str(tmp_path / "state"))
    authority.init()
    for role in Role:
        authority.issue(role, role.value, services=["web"])
        for source in (authority.certificate_file(role.value), authority.key_path(role.value)):
            target = tmp_path / source.name
            target.write_bytes(source.read_bytes())
            target.chmod(0o600)
    (tmp_path / "ca.pem").write_bytes(authority.certificate_path.read_bytes())
    common = 'server = "127.0.0.1:1"\nca-cert = "ca.pem"\n'
    (tmp_path / "agent.toml").write_text(
        f'{common}cert = "agent.pem"\nkey = "agent.key"\nforward = "tcp:127.0.0.1:0=web"\n'
    )
    (tmp_path / "connector.toml").write_text(
        f'{common}cert = "connector.pem"\nkey = "connector.key"\nservice = ["web=tcp://127.0.0.1:1"]\n'
    )
    yield tmp_path


@pytest.mark.parametrize("role", ["agent", "connector"])
def test_a_good_file_is_good_wherever_one_is(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, role: str
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run(elsewhere, role, "check-config", str(directory / f"{role}.toml"), "--show")
    assert (done.returncode, done.stderr) == (0, f"{directory / role}.toml: ok\n")
    (directory / "again.toml").write_text(done.stdout)
    again = run(elsewhere, role, "check-config", "--config", str(directory / "again.toml"))
    assert (again.returncode, again.stdout) == (0, f"{directory}/again.toml: ok\n"), (
        "what it shows is a file of settings"
    )


def no_key(directory: Path) -> None:
    (directory / "agent.key").unlink()


def open_key(directory: Path) -> None:
    (directory / "agent.key").chmod(0o644)


def other_key(directory: Path) -> None:
    (directory / "agent.key").write_bytes((directory / "connector.key").read_bytes())


def bad_ca(directory: Path) -> None:
    (directory / "ca.pem").write_text("no certificate")


def bad_server(directory: Path) -> None:
    path = directory / "agent.toml"
    path.write_text(path.read_text().replace("127.0.0.1:1", "127.0.0.1:99999"))


def bad_forward(directory: Path) -> None:
    path = directory / "agent.toml"
    path.write_text(path.read_text().replace("tcp:", "sctp:"))


def bad_setting(directory: Path) -> None:
    path = directory / "agent.toml"
    path.write_text(path.read_text() + "sever = 1\n")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_key, "private key file not found: "),
        (open_key, "can be read by everyone; run: chmod 600 "),
        (other_key, "the private key does not belong to the certificate"),
        (bad_ca, "ca.pem is not a PEM certificate"),
        (bad_server, "is not host:port"),
        (bad_forward, "is not a forward such as tcp:127.0.0.1:8080=web"),
        (bad_setting, "sever: unknown setting; did you mean server?"),
    ],
)
@pytest.mark.parametrize("command", [["agent"], ["agent", "check-config"]], ids=" ".join)
def test_what_is_wrong_ends_with_one_line_and_status_2(
    directory: Path, command: list[str], damage: Callable[[Path], None], said: str
) -> None:
    damage(directory)
    done = run(directory, *command, "--config", str(directory / "agent.toml"))
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_netcheck_reads_its_files_first_too(directory: Path) -> None:
    flags = ["netcheck", "--server", "127.0.0.1:1", "--ca-cert", "ca.pem"]
    done = run(directory, *flags, "--cert", "agent.pem", "--key", "connector.key")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "does not belong to the certificate" in done.stderr
    assert run(directory, *flags, "--cert", "").stderr == "error: --cert: an empty path\n"
    both = run(directory, *flags, "--agent", "web", "--connector", "web")
    assert (both.returncode, both.stderr) == (2, "error: --agent, --connector: name one\n")


async def test_status_is_a_health_check(start_server: StartServer, start_agent: StartAgent, directory: Path) -> None:
    server = await start_server()
    agent = await start_agent(server, [("tcp", "web")])
    status = run(directory, "agent", "status", "--status-socket", str(agent.socket))
    assert status.returncode == 0, status.stderr
    lines = dict(line.split(maxsplit=1) for line in status.stdout.splitlines())
    assert lines["connected"] == "yes"
    counters = [item.split() for item in lines["tunnel"].split(", ")] if lines["tunnel"] != "none" else []
    assert counters == sorted(counters)
    assert all(int(count) for _, count in counters)
    await server.kill()
    await agent.wait_log("is silent")
    gone = run(directory, "agent", "status", "--status-socket", str(agent.socket))
    assert gone.returncode == 1
    assert run(directory, "agent", "status", "--status-socket", str(agent.socket), "--json").returncode == 1


async def test_paths_in_python_may_be_text(start_server: StartServer) -> None:
    server: Server = await start_server()
    cert, key = server.certificate(["agent.web.ztna"])
    relay = Relay(
        server="{}:{}".format(*server.address),
        ca_file=str(server.ca_file),
        cert_file=str(cert),
        key_file=str(key),
        server_name="ztna-server",
    )
    options = AgentOptions(relay=relay, forwards=(ForwardSpec.parse("tcp:127.0.0.1:0=web"),))
    async with running(options) as agent:
        await agent.wait_ready()
        assert (await agent.status())["connected"]
