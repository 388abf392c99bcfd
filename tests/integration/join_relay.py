"""A relay that answers ``ztna-join/1`` as a test wants it, on a real engine in this process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from intermediate_server.client.tasks import background
from intermediate_server.engine import Engine, Event
from intermediate_server.join.messages import Answer, Issued, Join, Refused, Request, encode, parse_request
from intermediate_server.join.tokens import Token
from intermediate_server.pki import keys
from intermediate_server.types import Role
from tests.integration import joins
from tests.integration.commands import PATIENCE, environment
from tests.unit.profiles import Authority, authority

Replier = Callable[[Request, bytes | None], Awaitable[Answer]]


@dataclass
class JoinRelay:
    """The relay, what it was asked, and how it answers."""

    engine: Engine
    server: str
    authority: Authority
    reply: Replier | None = None
    """None issues for whatever key."""
    asked: list[Request] = field(default_factory=list)
    shown: list[bytes | None] = field(default_factory=list)
    """The certificate that came with each request."""

    def token(self, role: Role = Role.CONNECTOR, *, pin: bytes | None = None) -> Token:
        """A token for it."""
        der = self.authority.certificate.fingerprint(keys.SHA256)
        return Token.new(role, pin=pin or der, servers=(self.server,))

    def issue(self, request: Request, **kwargs: Any) -> Issued:
        """The answer for the key of a request."""
        assert isinstance(request, Join)
        public_key = x509.load_der_x509_csr(request.csr).public_key()
        return self.authority.issue(public_key, servers=(self.server,), **kwargs)

    async def answer(self, request: Request, certificate: bytes | None) -> Answer:
        return self.issue(request) if self.reply is None else await self.reply(request, certificate)


@asynccontextmanager
async def join_relay(*, joining: bool = True) -> AsyncIterator[JoinRelay]:
    """A relay on a free port of 127.0.0.1."""
    ca, key = joins.Ca(), keys.new_key()
    ca.key, ca.certificate = authority().key, authority().certificate
    starting = joins.JoinRelay.start(ca, ca.sign(key, "ztna-server"), key, joining=joining)
    async with starting as asked:
        relay = JoinRelay(asked.engine, "{}:{}".format(*asked.address), authority())

        async def answer(event: Event.JoinRequest) -> None:
            request = parse_request(event.data)
            relay.asked.append(request)
            relay.shown.append(event.certificate)
            made = await relay.answer(request, event.certificate)
            asked.reply(event, encode(made), refused=isinstance(made, Refused))

        async def serve() -> None:
            async with asyncio.TaskGroup() as answers:
                while True:
                    answers.create_task(answer(await asked.requests.get()))

        async with background(serve()):
            yield relay


@dataclass
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


async def start(
    directory: Path, *arguments: str, env: Mapping[str, str] | None = None, stdin: bool = False
) -> asyncio.subprocess.Process:
    """Begin a command whose state is in ``directory``."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "intermediate_server",
        *arguments,
        env=environment(directory, dict(env or {})),
        cwd=directory,
        stdin=pipe if stdin else asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
    )


async def run(directory: Path, *arguments: str, env: Mapping[str, str] | None = None, text: str | None = None) -> Done:
    """Run a command to its end, with ``text`` on its standard input."""
    process = await start(directory, *arguments, env=env, stdin=text is not None)
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate(None if text is None else text.encode())
    assert b"Traceback" not in err, err.decode()
    return Done(process.returncode or 0, out.decode(), err.decode())
