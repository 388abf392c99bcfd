"""The commands ``token``, ``revoke`` and ``backup``, as people type them."""

from __future__ import annotations

import io
import re
import stat
import tarfile
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from intermediate_server.cli import main
from intermediate_server.config import Settings
from intermediate_server.join import relay
from intermediate_server.join.tokens import Token, secret_hash
from intermediate_server.pki import Authority, keys
from intermediate_server.pki.joins import Joins, Waiting
from intermediate_server.pki.store import Store
from intermediate_server.types import Role


class Shell:
    """Runs commands on one state directory."""

    def __init__(self, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.state, self._capsys = state, capsys

    def run(self, *arguments: str, code: int = 0) -> str:
        """Standard output of a command that ends with ``code``, and its error output in ``errors``."""
        assert main([*arguments, "--state-dir", str(self.state)]) == code
        out, self.errors = self._capsys.readouterr()
        return out

    def tokens(self, *arguments: str) -> list[Token]:
        out = self.run("token", "create", *arguments)
        return [Token.parse(text) for text in re.findall(r"join (\S+)", out)]


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("ZTNA_PUBLIC_ADDRESS", "relay.example.com")
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path / "state", capsys)


def test_a_token_for_each_role_is_printed_with_the_commands(shell: Shell) -> None:
    out = shell.run("token", "create", "web").splitlines()
    assert len(out) == 2
    time = r"(\d{4}-\d\d-\d\d )?\d\d:\d\d"
    assert re.fullmatch(
        rf"connector, used once, until {time}:  intermediate-server join ztj1_\S+   "
        "then: intermediate-server connector --service web=tcp://127.0.0.1:8080",
        out[0],
    )
    assert re.fullmatch(
        rf"agent, used once, until {time}:      intermediate-server join ztj1_\S+   "
        "then: intermediate-server agent --forward tcp:127.0.0.1:8081=web",
        out[1],
    )
    assert shell.errors == ""


def test_a_token_pins_the_ca_and_names_the_relay(shell: Shell) -> None:
    connector, agent = shell.tokens("web", "db")
    [ca] = keys.load_certificates(shell.state / "ca.pem")
    assert (connector.role, agent.role) == (Role.CONNECTOR, Role.AGENT)
    for token in (connector, agent):
        assert token.pin == ca.fingerprint(keys.SHA256)
        assert (token.servers, token.server_name) == (("relay.example.com",), "ztna-server")
    rows = Joins(Authority(shell.state)).tokens()
    assert [(row.id, row.terms.role, row.terms.services) for row in rows] == [
        (connector.id, Role.CONNECTOR, ("web", "db")),
        (agent.id, Role.AGENT, ("web", "db")),
    ]
    for path in shell.state.rglob("*"):
        if path.is_file():
            assert str(agent)[64:90].encode() not in path.read_bytes(), path
            assert agent.secret not in path.read_bytes(), path


def test_every_option_reaches_the_token(shell: Shell) -> None:
    [token] = shell.tokens(
        *(
            "web",
            "--role",
            "agent",
            "--expires",
            "2h",
            "--uses",
            "3",
            "--from",
            "192.0.2.0/24",
            "--from",
            "2001:db8::/32",
        ),
        *("--lifetime", "1d", "--ephemeral", "1h", "--approve", "--name-prefix", "ci-", "--replace"),
        *("--dns", "ci.example.com", "--spiffe", "spiffe://example.org/ci", "--address", "192.0.2.9:5000"),
    )
    assert token.servers == ("192.0.2.9:5000",)
    [row] = Joins(Authority(shell.state)).tokens()
    each = row.terms
    assert row.expires_at - row.created_at == timedelta(hours=2)
    assert (each.uses, each.lifetime, each.ephemeral) == (3, timedelta(days=1), timedelta(hours=1))
    assert [str(network) for network in each.networks] == ["192.0.2.0/24", "2001:db8::/32"]
    assert (each.approve, each.replaces, each.prefix) == (True, True, "ci-")
    assert (each.dns, each.uris) == (("ci.example.com",), ("spiffe://example.org/ci",))
    [named] = shell.tokens("web", "--role", "connector", "--name", "office")
    assert Joins(Authority(shell.state)).token(named.id).terms.name == "office"  # type: ignore[union-attr]  # it is there


def test_the_settings_of_the_server_that_runs_count(shell: Shell) -> None:
    shell.state.mkdir()
    values = {"state_dir": str(shell.state), "public_address": "other.example.com", "certificate_lifetime": "2d"}
    relay.note(Settings.model_validate({**values, "port": 0}), 5000)
    token = shell.tokens("web")[0]
    assert token.servers == ("other.example.com:5000",)
    assert Joins(Authority(shell.state)).tokens()[0].terms.lifetime == timedelta(days=2)


def test_a_relay_on_this_host_only_is_warned_of(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZTNA_PUBLIC_ADDRESS")
    monkeypatch.setenv("ZTNA_BIND", "127.0.0.1")
    assert shell.tokens("web")[0].servers == ("127.0.0.1",)
    assert "warning: 127.0.0.1 is reached from this host only; set public-address, or give --address" in shell.errors


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "needs at least one service"),
        (("web", "--role", "server"), "--role: 'server' is not one of agent, connector"),
        (("web", "--replace"), "--replace: say whom"),
        (("web", "--expires", "31d"), "--expires: 31d is out of range, 1m to 30d"),
        (("web", "--expires", "soon"), "--expires: 'soon' is not a duration"),
        (("web", "--uses", "many"), "--uses: 'many' is not a whole number"),
        (("web", "--from", "here"), "--from: 'here' is not a network"),
        (("web", "--address", "a b"), "--address: 'a b' is not a host name"),
        (("web", "--dns", "agent.db.ztna"), "would grant a service"),
    ],
    ids=str,
)
def test_what_makes_no_token_says_why(shell: Shell, arguments: tuple[str, ...], error: str) -> None:
    assert shell.run("token", "create", *arguments, code=2) == ""
    assert error in shell.errors
    assert Joins(Authority(shell.state)).tokens() == []


def test_a_certificate_without_its_chain_makes_no_token(shell: Shell, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    other.init()
    other.issue_server("relay.example.com")
    shell.state.mkdir()
    files = {
        "cert": str(other.certificate_file("relay.example.com")),
        "key": str(other.key_path("relay.example.com")),
    }
    relay.note(Settings.model_validate({"state_dir": str(shell.state), **files}), 4433)
    shell.run("token", "create", "web", code=2)
    assert "holds no chain" in shell.errors
    assert "append the certificates of its issuers" in shell.errors


def test_tokens_are_listed_inspected_and_revoked(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    connector, agent = shell.tokens("web", "--from", "192.0.2.0/24")
    lines = shell.run("token", "list").splitlines()
    assert lines[0].split() == ["id", "role", "services", "name", "used", "from", "until", "state"]
    assert [line.split()[0] for line in lines[1:]] == [connector.id.hex(), agent.id.hex()]
    assert lines[1].endswith("live")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{agent}\n"))
    for text in (shell.run("token", "inspect", "-"), shell.run("token", "inspect", str(agent))):
        assert agent.pin.hex() in text
        assert re.search(r"^servers +relay\.example\.com$", text, re.MULTILINE)
        assert re.search(r"^state +live$", text, re.MULTILINE)
        assert str(agent)[64:90] not in text
        assert agent.secret.hex() not in text
    assert "192.0.2.0/24" in shell.run("token", "inspect", agent.id.hex()[:6])
    assert shell.run("token", "revoke", agent.id.hex()) == f"revoked token {agent.id.hex()}, used 0 of 1 times\n"
    assert f"revoked token {connector.id.hex()}" in shell.run("token", "revoke", str(connector))
    assert "live" not in shell.run("token", "list")
    shell.run("token", "revoke", "0123456789ab", code=2)
    assert "token list" in shell.errors
    shell.run("token", "inspect", str(agent)[:-3], code=2)
    assert "cut short" in shell.errors


def test_a_token_is_inspected_without_a_relay(shell: Shell) -> None:
    token = Token.new(Role.AGENT, pin=bytes(32), servers=("relay.example.com",))
    assert "relay.example.com" in shell.run("token", "inspect", str(token))


def test_joins_that_wait_are_approved_and_denied(shell: Shell) -> None:
    [token] = shell.tokens("web", "--role", "agent", "--approve", "--uses", "2")
    joins = Joins(Authority(shell.state))
    waiting = []
    for number in range(2):
        answer = joins.reserve(
            token.id,
            secret_hash(token.secret),
            bytes([number] * 32),
            f"h\x1b[2J{number}",
            IPv4Address(1),
            keys.utc_now(),
        )
        assert isinstance(answer, Waiting)
        waiting.append(str(answer.join))
    listed = shell.run("token", "pending")
    assert "\x1b" not in listed
    assert [line.split()[0] for line in listed.splitlines()[1:]] == waiting
    assert "approved h-2J0 as agent, asked from 0.0.0.1" in shell.run("token", "approve", waiting[0])
    assert "denied h-2J1" in shell.run("token", "deny", waiting[1])
    assert len(shell.run("token", "pending").splitlines()) == 1
    shell.run("token", "approve", waiting[1], code=2)
    assert "token pending" in shell.errors


def test_revoke_ends_whoever_issued(shell: Shell) -> None:
    authority = Authority(shell.state)
    authority.init()
    old = authority.issue(Role.AGENT, "laptop", services=["web"])
    new = authority.renew("laptop")
    out = shell.run("revoke", old.serial)
    assert out == f"revoked laptop (serial {old.serial})\nrevoked laptop (serial {new.serial})\n"
    assert shell.run("revoke", "ab" * 32) == f"denied {'ab' * 32}, which was not issued here\n"
    assert (shell.state / "denied.txt").read_text().startswith("ab" * 32)
    shell.run("revoke", "nobody", code=2)
    assert "give the SHA-256 fingerprint" in shell.errors
    other = authority.issue(Role.AGENT, "other", services=["web"])
    assert f"(serial {other.serial})" in shell.run("revoke", str(authority.certificate_file("other")))
    shell.run("revoke", str(shell.state / "ca.key"), code=2)
    assert "is not a PEM certificate" in shell.errors


def test_a_damaged_index_keeps_nobody_from_being_denied(shell: Shell) -> None:
    shell.state.mkdir()
    (shell.state / "identity.db").write_bytes(b"damaged" * 1000)
    shell.run("revoke", "laptop", code=2)
    assert "is damaged" in shell.errors
    shell.run("revoke", "ab" * 32, code=1)
    assert f"denied {'ab' * 32}; its renewal is not ended" in shell.errors
    shell.run("token", "create", "web", code=2)
    assert "is damaged" in shell.errors


def test_a_backup_is_a_state_directory(shell: Shell, tmp_path: Path) -> None:
    tokens = shell.tokens("web")
    authority = Authority(shell.state)
    authority.issue(Role.AGENT, "laptop", services=["web"])
    with Store(shell.state) as store, store.transaction():
        pass  # as a running server has it open
    file = tmp_path / "backup.tar"
    assert "it holds private keys" in shell.run("backup", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    shell.run("backup", str(file), code=2)
    assert "exists; name a new file" in shell.errors
    shell.run("backup", str(tmp_path / "none" / "backup.tar"), code=2)
    assert shell.errors.endswith("cannot be written: No such file or directory; name a file in another directory\n")
    restored = tmp_path / "restored"
    with tarfile.open(file) as archive:
        archive.extractall(restored, filter="data")
    other = Authority(restored)
    assert not other.init()
    assert other.entries() == authority.entries()
    assert [row.id for row in Joins(other).tokens()] == [token.id for token in tokens]
    assert stat.S_IMODE((restored / "ca.key").stat().st_mode) == 0o600
    assert other.key_path("laptop").read_bytes() == authority.key_path("laptop").read_bytes()
    assert not list(shell.state.glob(".backup*"))
