"""Joining a relay by a token, and leaving it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from intermediate_server.client import profile as profiles
from intermediate_server.client.engine import ClientEngine
from intermediate_server.client.options import ConnectOptions
from intermediate_server.client.profile import Draft, NoProfile, Profile
from intermediate_server.client.profile_text import LockedProfile, ProfileError
from intermediate_server.errors import ConnectError, IntermediateServerError
from intermediate_server.join.messages import (
    Answer,
    Issued,
    Join,
    Leave,
    Left,
    MessageError,
    Pending,
    Refused,
    Request,
    encode,
    parse_answer,
)
from intermediate_server.join.tokens import Token
from intermediate_server.pki import keys

CLOCK_OFF = 60.0
"""Seconds by which clocks may differ without a warning."""
GONE = ("revoked", "unknown-certificate", "past-grace")
"""Causes of a refusal by which the relay holds our identity for ended."""

_OTHER_ANSWER = "the relay has answered another question; use the same version of intermediate-server at both ends"

Tell = Callable[[str], None]
"""Takes a sentence for the person who waits."""


class JoinRefused(IntermediateServerError):
    """The relay refuses; the text is its sentence."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.sentence if not refused.again else f"{refused.sentence} (this may work later)")
        self.cause = refused.cause
        """The slug of the reason (docs/protocol.md)."""
        self.again = refused.again
        """Whether the same request may succeed later."""


async def ask(engine: ClientEngine, options: ConnectOptions, message: Request) -> Answer:
    """The answer to a message. Raises ``ConnectError``, also for an answer that cannot be read."""
    try:
        return parse_answer(await engine.ask(options, encode(message)))
    except MessageError as error:
        raise ConnectError(
            f"the relay's answer {error}; use the same version of intermediate-server at both ends", cause="bad_answer"
        ) from error


async def join(engine: ClientEngine, token: Token, path: Path, *, tell: Tell) -> Profile:
    """Join by a token, and keep what the relay has issued in the profile ``path``.

    The key is kept there before it is first used: who repeats a join that was lost or killed gets the same certificate.
    Waits for as long as an operator takes to approve. Raises ``JoinRefused``, ``ConnectError`` and ``ProfileError``.
    """
    found = profiles.begin(path, token.id)
    if isinstance(found, Profile):
        return found
    first, *others = token.servers
    options = ConnectOptions(first, others=tuple(others), server_name=token.server_name, pin=token.pin)
    message = Join(token.id, token.secret, signing_request(found), host_name(), _version())
    issued = await _issued(engine, options, message, tell)
    off = (datetime.now(UTC) - issued.server_time).total_seconds()
    if abs(off) > CLOCK_OFF:
        tell(
            f"warning: this host's clock is {_span(abs(off))} {'ahead of' if off > 0 else 'behind'} the relay's:"
            " set it, since certificates begin and end by it"
        )
    if issued.role is not token.role:
        raise ConnectError(_OTHER_ANSWER, cause="bad_answer")
    return profiles.finish(path, found, issued)


async def leave(engine: ClientEngine, path: Path) -> Profile:
    """Have the relay revoke the identity of a profile, and delete the file; returns what it was.

    Raises ``ConnectError`` where the relay is away, ``JoinRefused`` and ``ProfileError``; the profile stays then.
    """
    profile = Profile.load(path)
    answer = await ask(engine, ConnectOptions(profile=path), Leave())
    if isinstance(answer, Refused) and answer.cause not in GONE:
        raise JoinRefused(answer)
    if not isinstance(answer, Left | Refused):
        raise ConnectError(_OTHER_ANSWER, cause="bad_answer")
    profiles.delete(path)
    return profile


def begin_offline(path: Path) -> bytes:
    """Make the key of a join without a network between, and its signing request, PEM. Raises ``ProfileError``."""
    found = profiles.begin(path, None)
    if isinstance(found, Profile):
        raise ProfileError(f"{path} has its certificate already; name another file with --profile")
    return x509.load_der_x509_csr(signing_request(found)).public_bytes(serialization.Encoding.PEM)


def complete(draft_path: Path, bundle: bytes, target_of: Callable[[Issued], Path]) -> tuple[Profile, Path]:
    """Put a draft and the answer of ``pki sign`` together; returns the profile, and where ``target_of`` had it put.

    It may be repeated. Raises ``ProfileError``.
    """
    try:
        issued = parse_answer(bundle.strip())
    except MessageError as error:
        raise ProfileError(f"the bundle {error}; give what pki sign has printed") from None
    if not isinstance(issued, Issued):
        raise ProfileError("the bundle is another message; give what pki sign has printed")
    target = target_of(issued)
    leaf = keys.parse_certificates(issued.chain.encode(), "of the bundle")[0]
    with profiles.hold(target):
        there = profiles.read(target)
        if isinstance(there, Profile):
            if there.leaf == leaf:
                return there, target
            _check_ended(there, target)
        draft = profiles.read(draft_path)
        if not isinstance(draft, Draft):
            raise NoProfile(f"no join was begun at {draft_path}; run: intermediate-server join --offline")
        profile = Profile.of(draft, issued)
        profile.save(target)
    if draft_path != target:
        profiles.delete(draft_path)
    return profile, target


def unpack(data: bytes, passphrase: Callable[[], bytes], target_of: Callable[[Profile], Path]) -> tuple[Profile, Path]:
    """Put the profile that ``pki issue --profile`` has written where ``target_of`` says, without its passphrase.

    ``passphrase`` is asked where there is one. It may be repeated. Raises ``ProfileError``.
    """
    try:
        made = profiles.parse(data)
    except LockedProfile:
        made = profiles.parse(data, passphrase())
    except ProfileError as error:
        raise ProfileError(
            f"this is neither what pki sign has printed nor what pki issue --profile has written: {error}"
        ) from None
    if not isinstance(made, Profile):
        raise ProfileError("the file is a join that has not finished; give what pki issue --profile has written")
    target = target_of(made)
    with profiles.hold(target):
        there = profiles.read(target)
        if isinstance(there, Profile) and there.leaf != made.leaf:
            _check_ended(there, target)
        made.save(target)
    return made, target


def _check_ended(there: Profile, target: Path) -> None:
    if there.is_valid:
        raise ProfileError(f"{target} is another profile; leave first, or name another file with --profile")


def signing_request(draft: Draft) -> bytes:
    """The signing request for the key of a draft, DER (RFC 2986); its name is the host's, which grants nothing."""
    key = keys.parse_key(draft.key_pem, "of the profile")
    builder = x509.CertificateSigningRequestBuilder().subject_name(keys.common_name(host_name() or "client"))
    return builder.sign(key, keys.signing_hash(key)).public_bytes(serialization.Encoding.DER)


def host_name() -> str:
    """The name of this host without its domain, of printable characters; it may be empty."""
    name = socket.gethostname().partition(".")[0]
    return "".join(letter for letter in name if letter.isprintable())[:255]


async def _issued(engine: ClientEngine, options: ConnectOptions, message: Join, tell: Tell) -> Issued:
    """Ask until there is a certificate or a refusal."""
    pause = 0.0
    while True:
        try:
            answer = await ask(engine, options, message)
        except ConnectError as error:
            if not pause or error.answered:
                raise
            tell(f"still waiting; the relay cannot be reached now: {error}")
            await asyncio.sleep(pause)
            continue
        match answer:
            case Issued():
                return answer
            case Refused():
                raise JoinRefused(answer)
            case Pending(retry_after=again):
                tell(
                    "not approved yet"
                    if pause
                    else "waiting for an operator to approve this join (on the relay: intermediate-server token"
                    f" pending); asking again every {again:g} s"
                )
                pause = again
                await asyncio.sleep(pause)
            case _:
                raise ConnectError(_OTHER_ANSWER, cause="bad_answer")


def _span(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3_600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _version() -> str:
    try:
        return metadata.version("intermediate-server")
    except metadata.PackageNotFoundError:
        return ""
