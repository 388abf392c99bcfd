"""Devices that join a running relay: one exchange over ``ztna-join/1`` each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from intermediate_server.engine import ClientTls, Command, ConnectConfig, Engine, Event
from intermediate_server.engine.bridge import Bridge
from intermediate_server.join import messages
from intermediate_server.join.messages import Answer, Issued, Request, encode, parse_answer
from intermediate_server.join.tokens import secret_hash
from intermediate_server.pki import keys
from intermediate_server.pki.authority import Authority
from intermediate_server.pki.joins import Joins
from intermediate_server.pki.terms import terms
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE
from tests.unit.issuing import Token, signing_request

_numbers = itertools.count(1)


class Unanswered(Exception):
    """An exchange has come to no answer."""

    def __init__(self, event: Event.ConnectFailed) -> None:
        super().__init__(event.reason)
        self.cause = event.cause
        self.code = event.code


def pin_of(state: Path) -> bytes:
    """What a token of this relay pins: its CA."""
    return x509.load_pem_x509_certificate((state / "ca.pem").read_bytes()).fingerprint(keys.SHA256)


def new_token(
    state: Path,
    *services: str,
    role: Role = Role.CONNECTOR,
    lifetime: float = 7 * 86_400,
    expires: float = 3600,
    now: datetime | None = None,
    pin: bytes | None = None,
    **options: Any,
) -> Token:
    """A new token, made beside the running server as its command does."""
    number = next(_numbers)
    made = Token(number.to_bytes(6, "big"), number.to_bytes(20, "big"))
    given = terms(role, services or ("web",), lifetime=timedelta(seconds=lifetime), **options)
    joins = Joins(Authority(state))
    joins.create(
        made.id, secret_hash(made.secret), given, pin=pin or pin_of(state), expires=timedelta(seconds=expires), now=now
    )
    return made


@dataclass
class Device:
    """A host with a key, and what it has been issued."""

    host: str = "office"
    key: keys.PrivateKey = field(default_factory=keys.new_key)
    issued: Issued | None = None

    def join(self, token: Token) -> messages.Join:
        return messages.Join(token.id, token.secret, signing_request(self.key), self.host, "test")

    def renew(self) -> messages.Renew:
        return messages.Renew(signing_request(self.key))

    def take(self, answer: Answer) -> Issued:
        """Keep what was issued."""
        assert isinstance(answer, Issued), answer
        self.issued = answer
        return answer

    @property
    def fingerprint(self) -> str:
        assert self.issued is not None
        return x509.load_pem_x509_certificate(self.issued.chain.encode()).fingerprint(keys.SHA256).hex()

    def files(self, directory: Path) -> tuple[Path, Path]:
        """Certificate and key as files, for an ordinary connection."""
        assert self.issued is not None
        certificate, key = directory / f"{self.host}.pem", directory / f"{self.host}.key"
        certificate.write_text(self.issued.chain)
        key.touch(mode=0o600)
        key.write_bytes(keys.key_pem(self.key))
        return certificate, key


class Asker:
    """Asks relays; one engine for all exchanges."""

    def __init__(self) -> None:
        self._engine = Engine()
        self._bridge = Bridge(self._engine)
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._bridge.start(self._event)

    async def ask(
        self,
        address: tuple[str, int],
        request: Request | bytes,
        *,
        pin: bytes | None = None,
        by: Device | None = None,
        source: str = "127.0.0.1",
    ) -> Answer:
        """The answer to a request, over a handshake by a device that has joined or by a pin. Raises ``Unanswered``."""
        data = request if isinstance(request, bytes) else encode(request)
        return parse_answer(await self.exchange(address, data, pin=pin, by=by, source=source))

    async def exchange(
        self, address: tuple[str, int], data: bytes, *, pin: bytes | None, by: Device | None, source: str
    ) -> bytes:
        number = next(_numbers)
        identity: dict[str, Any] = {}
        if by is not None and by.issued is not None:
            identity = {"certificate_pem": by.issued.chain.encode(), "key_pem": keys.key_pem(by.key)}
            if pin is None:
                identity["ca_pem"] = by.issued.ca.encode()
        tls = ClientTls(pin=pin, **identity)
        config = ConnectConfig(remote=address, server_name="ztna-server", tls=tls, bind=(source, 0))
        self._asked[number] = asyncio.get_running_loop().create_future()
        self._bridge.submit(Command.Ask(number, config, data))
        async with asyncio.timeout(PATIENCE):
            return await self._asked[number]

    def close(self) -> None:
        self._bridge.stop()
        self._engine.close(0)

    def _event(self, event: Event) -> None:
        match event:
            case Event.Answered(request=number):
                self._asked.pop(number).set_result(bytes(event.data))
            case Event.ConnectFailed(request=number):
                self._asked.pop(number).set_exception(Unanswered(event))


@contextlib.asynccontextmanager
async def asking() -> AsyncIterator[Asker]:
    """An asker, closed at the end."""
    asker = Asker()
    try:
        yield asker
    finally:
        asker.close()
