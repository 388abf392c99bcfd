"""The policy itself: one question over HTTP, or an answer from the cache."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import httpx

from intermediate_server.config.callout import CalloutSettings
from intermediate_server.errors import ConfigError
from intermediate_server.policy.base import Decision, Deny, Policy
from intermediate_server.policy.callout.cache import Cache
from intermediate_server.policy.callout.messages import BadAnswer, decision, question
from intermediate_server.types import Registration

MAX_TOKEN = 8 << 10
"""Characters of a token; web servers take no longer header line."""

KEEP = 30.0
"""Seconds an unused connection to the service is used again."""

RULE = "callout"
"""Name of the rule when the service did not decide."""


class CalloutPolicy(Policy):
    """Asks by POST and takes only a whole, timely answer with status 200.

    Everything else is a temporary denial: the peer hears nothing and asks again. It follows no redirects, uses no
    proxies or credentials of the environment, and throws cookies away.
    """

    def __init__(
        self,
        settings: CalloutSettings,
        *,
        env: Mapping[str, str] = os.environ,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Raises ``ConfigError`` when token or CA cannot be used. ``env`` holds the token of ``token_env``."""
        self._settings = settings
        self._clock = clock
        self._asked = 0
        self._cache = Cache(size=settings.cache_size, lifetime=timedelta(seconds=settings.cache))
        self._env_token = None if settings.token_env is None else _token_of(env, settings.token_env)
        if settings.token_file is not None:
            _read_token(settings.token_file)
        self._tls = _tls(settings.ca_cert)
        # Questions beyond these wait at the guard, where re-authorizations have places of their own.
        self.concurrency = settings.concurrency
        self._idle: list[httpx.AsyncClient] = []

    async def authorize(self, registration: Registration) -> Decision:
        body = question(registration)
        # The answer may depend on nothing but the question; its hash keeps long certificates out of memory.
        key = hashlib.sha256(body).digest()
        known = self._cache.get(key, self._clock())
        if known is not None:
            return known
        self._asked += 1
        asked = self._asked
        try:
            async with asyncio.timeout(self._settings.deadline):
                answer = await self._ask(body)
        except (TimeoutError, httpx.TimeoutException):
            return _failed(f"did not answer within {self._settings.deadline:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError) as error:
            # The kind and not the text, since texts of such errors may quote the request.
            return _failed(f"could not be asked ({type(error).__name__})")
        except BadAnswer as error:
            return _failed(f"gave an answer that {error}")
        except ConfigError as error:
            return _failed(f"was not asked: {error}")
        self._cache.put(key, answer, self._clock(), asked=asked)
        return answer

    async def aclose(self) -> None:
        while self._idle:
            await self._idle.pop().aclose()

    async def _ask(self, body: bytes) -> Decision:
        """One question, on a connection that has never failed.

        Each connection has a client of its own: the pool of a shared one loses the place of a request that is cancelled
        at a bad moment, and stops for good once all places are lost.
        """
        client = self._idle.pop() if self._idle else self._connect()
        try:
            answer = await self._post(client, body)
        except BaseException:
            await client.aclose()
            raise
        self._idle.append(client)
        return answer

    def _connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=self._tls,
            # For each step; the deadline around all of them is shorter.
            timeout=self._settings.deadline,
            limits=httpx.Limits(max_connections=1, keepalive_expiry=KEEP),
            trust_env=False,
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )

    async def _post(self, client: httpx.AsyncClient, body: bytes) -> Decision:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        token = self._env_token if self._settings.token_file is None else _read_token(self._settings.token_file)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with client.stream("POST", self._settings.url, content=body, headers=headers) as response:
            if response.status_code != httpx.codes.OK:
                raise BadAnswer(f"has status {response.status_code}")
            answer = bytearray()
            # Raw, since a small compressed answer could unfold without bound.
            async for part in response.aiter_raw():
                answer += part
                if len(answer) > self._settings.max_answer:
                    raise BadAnswer(f"is longer than {self._settings.max_answer} bytes")
        return decision(bytes(answer))


def _failed(what: str) -> Deny:
    return Deny(f"the callout {what}", RULE, temporary=True)


def _tls(ca_cert: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_cert)
    except OSError as error:
        kind = type(error).__name__
        raise ConfigError(f"callout: ca-cert {ca_cert} cannot be used ({kind}); check the file") from None


def _token_of(env: Mapping[str, str], name: str) -> str:
    if name not in env:
        raise ConfigError(f"callout: the environment variable {name} of token-env is not set; set it")
    return _checked_token(env[name], f"the environment variable {name}")


def _read_token(path: Path) -> str:
    """The bearer token from a file, which must be private. Raises ``ConfigError``."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH:
                raise ConfigError(f"callout: token-file {path} can be read by everyone; run: chmod 600 {path}")
            raw = file.read(MAX_TOKEN + 2)
    except OSError as error:
        raise ConfigError(f"callout: token-file {path} cannot be read: {error.strerror}; check the path") from None
    return _checked_token(raw.decode("ascii", "replace"), f"token-file {path}")


def _checked_token(text: str, where: str) -> str:
    """The token without the line end of its file. Raises ``ConfigError``, which never quotes it."""
    token = text.strip()
    if not token or len(token) > MAX_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"callout: {where} must hold one token of 1 to {MAX_TOKEN} printable ASCII characters")
    return token
