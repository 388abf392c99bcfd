"""Whose requests over HTTP are answered."""

from __future__ import annotations

import stat
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.admin import FakeOperations
from tests.unit.settings import load

from intermediate_server.admin import create_app
from intermediate_server.admin.access import BROUGHT, TOKEN, ensure_token
from intermediate_server.errors import CertificateError, ConfigError
from intermediate_server.logs import short_connection

SECRET = "s3cret-of-the-state-directory-000"
PATHS = ("/healthz", "/livez", "/readyz", "/metrics", "/status", "/anonymous", "/nothing")
ACTIONS = ("/reload", "/clients/1/disconnect")


class Admin:
    """The application, and how often it was acted on."""

    def __init__(self, hosts: tuple[str, ...] = ()) -> None:
        self.operations = FakeOperations(token=SECRET, hosts=hosts)
        self.app = create_app(self.operations)

    @property
    def actions(self) -> int:
        return self.operations.reloads + len(self.operations.disconnected)

    async def ask(self, method: str, path: str, *, client: str = "127.0.0.1", **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app, client=(client, 5_000))
        given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9090") as http:
            return await http.request(method, path, headers=given)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:9090",
        "[::1]:9090",
        "[::1]",
        "203.0.113.9:80",
        "localhost",
        "LocalHost:9090",
        "relay.lan",
    ],
)
async def test_a_known_name_is_answered(host: str) -> None:
    admin = Admin(hosts=("relay.lan", "metrics"))
    assert (await admin.ask("GET", "/status", host=host)).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9090",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "127.0.0.1:9090@evil",
        "127.0.0.1:9090:1",
        "user@127.0.0.1",
        "[localhost]",
        "[evil.example]",
        "[::1",
        "::1",
        "127.1",
        "0x7f000001",
        "localhost.",
        "relay.lan",
        "",
        " ",
        "localhost, evil.example",
        "\N{FULLWIDTH DIGIT ONE}27.0.0.1",
    ],
)
async def test_any_other_name_is_not(host: str) -> None:
    admin = Admin()
    for path in PATHS:
        answer = await admin.ask("GET", path, host=host)
        assert (answer.status_code, "admin-hosts" in answer.text) == (421, True), path
    for path in ACTIONS:
        assert (await admin.ask("POST", path, host=host, authorization=f"Bearer {SECRET}")).status_code == 421
    assert admin.actions == 0


async def test_a_program_may_leave_the_name_out() -> None:
    admin = Admin()
    sent: list[int] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            sent.append(message["status"])

    for hosts in ([], [b"localhost"], [b"localhost", b"evil.example"]):
        scope = {
            "type": "http",
            "http_version": "1.0",
            "method": "GET",
            "path": "/healthz",
            "raw_path": b"/healthz",
            "query_string": b"",
            "headers": [(b"host", host) for host in hosts],
            "client": ("127.0.0.1", 1),
        }
        await admin.app(scope, receive, send)
    assert sent == [200, 200, 421]


@pytest.mark.parametrize("proof", [f"Bearer {SECRET}", f"bearer  {SECRET} "])
@pytest.mark.parametrize("client", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
async def test_who_may_act(proof: str, client: str) -> None:
    admin = Admin()
    answers = [await admin.ask("POST", path, client=client, authorization=proof) for path in ACTIONS]
    assert answers[0].json()["reloaded"] is True
    assert answers[1].json() == {"disconnected": 1}
    assert (admin.operations.reloads, admin.operations.disconnected) == (1, [1])


async def test_only_a_connection_that_is_there_is_disconnected() -> None:
    admin = Admin()
    for conn in ("11", "x", "-1", "\u0661", "1.", "1.0.0", f"{1 << 32}.0", "1" * 21, "9" * 5_000):
        answer = await admin.ask("POST", f"/clients/{conn}/disconnect", authorization=f"Bearer {SECRET}")
        assert (answer.status_code, "/status" in answer.json()["error"]) == (404, True), conn
    assert admin.operations.disconnected == [11]
    assert (await admin.ask("GET", "/clients/1/disconnect", authorization=f"Bearer {SECRET}")).status_code == 405


async def test_a_connection_has_the_name_that_the_log_gives_it() -> None:
    admin = Admin()
    for conn in (7, 1 << 32, 5 << 32 | 9):
        path = f"/clients/{short_connection(conn)}/disconnect"
        await admin.ask("POST", path, authorization=f"Bearer {SECRET}")
    assert admin.operations.disconnected == [7, 1 << 32, 5 << 32 | 9]


@pytest.mark.parametrize(
    "proof", ["", "Bearer", "Bearer ", f"Basic {SECRET}", SECRET, f"Bearer {SECRET}x", "Bearer \xff"]
)
@pytest.mark.parametrize("path", ACTIONS)
async def test_without_the_token_there_is_no_action(path: str, proof: str) -> None:
    """A proxy on this host that adds nothing to what it passes on is one of this host, too."""
    admin = Admin()
    answer = await admin.ask("POST", path, authorization=proof)
    assert (answer.status_code, TOKEN in answer.json()["error"]) == (403, True)
    assert SECRET not in answer.text
    assert admin.actions == 0


@pytest.mark.parametrize("brought", [*BROUGHT, "client"])
@pytest.mark.parametrize("path", ACTIONS)
async def test_nor_from_elsewhere_through_a_proxy_or_by_a_page(path: str, brought: str) -> None:
    admin = Admin()
    headers = {"client": "198.51.100.1"} if brought == "client" else {brought: "127.0.0.1"}
    answer = await admin.ask("POST", path, authorization=f"Bearer {SECRET}", **headers)
    assert (answer.status_code, "on this host" in answer.json()["error"]) == (403, True)
    assert admin.actions == 0


def test_the_token_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    token = ensure_token(tmp_path)
    path = tmp_path / TOKEN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) > 40
    assert ensure_token(tmp_path) == token
    assert ensure_token(tmp_path / "other") != token
    path.chmod(0o644)
    with pytest.raises(CertificateError, match="can be read by everyone"):
        ensure_token(tmp_path)
    path.chmod(0o600)
    for damaged in (b"", b"short\n", b"x" * 40 + b"\n" + b"y" * 40, b"\xff" * 40):
        path.write_bytes(damaged)
        with pytest.raises(CertificateError, match=r"is damaged; remove it"):
            ensure_token(tmp_path)


def test_names_are_read_as_people_write_them() -> None:
    found = load({"admin_hosts": ["Relay.Example.com", "a,b , a"]}, env={"HOME": "/nonexistent"}, files=())
    assert found.admin_hosts == ("relay.example.com", "a", "b")
    for bad in ("relay:9090", "http://relay", "*", "", "a b", "[::1]", "-a"):
        with pytest.raises(ConfigError, match="host name"):
            load({"admin_hosts": bad}, env={"HOME": "/nonexistent"}, files=())
