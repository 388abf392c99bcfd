"""Certificates from another CA, by a command of the operator: step-ca, Vault or anything that can sign a request.

The command gets the signing request on standard input, PEM, and the wanted names and lifetime in variables of its
environment. It writes the certificate, and the intermediates behind it, to standard output, PEM. The names in the
request are the device's own wishes; the command must not copy them into the certificate.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import IO

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.errors import CertificateError
from intermediate_server.pki import keys
from intermediate_server.pki.anchors import path_of
from intermediate_server.pki.inspect import is_authority
from intermediate_server.types import Role

TIMEOUT = 10.0
"""Seconds that the command may take; it is killed then, with all that it started in its own process group."""
MAX_OUTPUT = 64 << 10
"""Most bytes of its standard output."""
MAX_CHAIN = 4
"""Most certificates in its answer."""
SLACK = timedelta(seconds=TIMEOUT)
"""How far the command's clock may be ahead: it runs after the moment that the lifetime is counted from."""

_MAX_ERROR = 400
"""Most characters of its standard error in a log line."""
_PREFIX = "ZTNA_"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a certificate is to say."""

    name: str
    """The common name of its subject."""
    role: Role
    services: tuple[str, ...]
    dns: tuple[str, ...]
    """Further DNS names, beside those of role and services."""
    uris: tuple[str, ...]
    lifetime: timedelta

    @property
    def dns_names(self) -> tuple[str, ...]:
        """All DNS names."""
        return (*(f"{self.role.value}.{service}.ztna" for service in self.services), *self.dns)


class Signer:
    """Runs the command, one at a time, and checks its answer."""

    def __init__(self, command: Sequence[str], authorities: Sequence[x509.Certificate]) -> None:
        """``authorities`` are the CAs of clients, one of which must be above every answer."""
        self._command = tuple(command)
        self._authorities = tuple(authorities)
        self._process: subprocess.Popen[bytes] | None = None
        """The running command."""
        self._lock = threading.Lock()

    def sign(self, request: x509.CertificateSigningRequest, wanted: Wanted, *, now: datetime) -> list[x509.Certificate]:
        """The certificate and the intermediates above it. Raises ``SignerError``."""
        output = self._run(request.public_bytes(Encoding.PEM), _environment(wanted, now))
        try:
            chain = keys.parse_certificates(output, f"from {self._command[0]}")
        except CertificateError as error:
            raise SignerError(f"the signer gave no certificate: {error}") from None
        return _checked(chain, request.public_key(), wanted, self._authorities, now)

    def stop(self) -> None:
        """Kill the running command; may be called on another thread."""
        with self._lock:
            if self._process is not None:
                _kill(self._process)

    def _run(self, request: bytes, environment: Mapping[str, str]) -> bytes:
        try:
            # Held so that stop() cannot come between the start and its record.
            with self._lock:
                process = self._process = subprocess.Popen(  # noqa: S603 - the operator's own command
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=environment,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise SignerError(f"the signer {self._command[0]} cannot be run: {reason}; check join-signer") from None
        until = time.monotonic() + TIMEOUT
        try:
            output, errors = _exchange(process, request, until)
            _wait(process, until)
        except _Late:
            raise SignerError(
                f"the signer {self._command[0]} was killed: it took more than {TIMEOUT:g} s, or wrote more than "
                f"{MAX_OUTPUT} bytes"
            ) from None
        finally:
            # Nothing has waited for it, so its number is not another's yet.
            with self._lock:
                self._process = None
                _kill(process)
            status = process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
        if status != 0:
            said = errors.decode(errors="replace").strip()[:_MAX_ERROR]
            raise SignerError(f"the signer {self._command[0]} ended with {status}: {said or 'it says nothing'}")
        return output


class SignerError(CertificateError):
    """The command has given no usable certificate; the text is for the operator."""


class _Late(Exception):
    """The command is over its time or its output."""


def _exchange(process: subprocess.Popen[bytes], request: bytes, until: float) -> tuple[bytes, bytes]:
    """Write the request and read until both outputs end. Raises ``_Late``."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: S101
    output, errors = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for pipe, events in (
            (process.stdin, selectors.EVENT_WRITE),
            (process.stdout, selectors.EVENT_READ),
            (process.stderr, selectors.EVENT_READ),
        ):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, events)
        left = memoryview(request)
        while selector.get_map():
            ready = selector.select(until - time.monotonic())
            if not ready or time.monotonic() >= until:
                raise _Late
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    left = _write(process.stdin, left)
                    if not left:
                        selector.unregister(process.stdin)
                        with suppress(OSError):
                            process.stdin.close()
                    continue
                data = os.read(key.fd, 65_536)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    output += data
                else:
                    errors += data[: max(0, MAX_OUTPUT - len(errors))]
            if len(output) > MAX_OUTPUT:
                raise _Late
    return bytes(output), bytes(errors)


def _wait(process: subprocess.Popen[bytes], until: float) -> None:
    """Wait for its end, and leave its status to be read. Raises ``_Late``."""
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= until:
            raise _Late
        time.sleep(0.005)


def _write(pipe: IO[bytes], left: memoryview) -> memoryview:
    """Write what fits; nothing is left for a command that does not read."""
    try:
        return left[os.write(pipe.fileno(), left) :]
    except BlockingIOError:
        return left
    except OSError:
        return left[len(left) :]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the command's process group, of which its children are, also after its own end."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(wanted: Wanted, now: datetime) -> dict[str, str]:
    """The server's environment with the wishes in place of the server's own settings."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(_PREFIX)}
    inherited.pop("NOTIFY_SOCKET", None)
    return inherited | {
        "ZTNA_NAME": wanted.name,
        "ZTNA_ROLE": wanted.role.value,
        "ZTNA_SERVICES": ",".join(wanted.services),
        "ZTNA_DNS_NAMES": ",".join(wanted.dns_names),
        "ZTNA_URIS": ",".join(wanted.uris),
        "ZTNA_LIFETIME": str(int(wanted.lifetime.total_seconds())),
        "ZTNA_NOT_AFTER": (now + wanted.lifetime).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _checked(
    chain: Sequence[x509.Certificate],
    key: CertificatePublicKeyTypes,
    wanted: Wanted,
    authorities: Sequence[x509.Certificate],
    now: datetime,
) -> list[x509.Certificate]:
    """The path from the leaf up to below a trusted CA. Raises ``SignerError``."""
    leaf = chain[0]
    if len(chain) > MAX_CHAIN:
        raise _wrong(f"of {len(chain)} certificates; at most {MAX_CHAIN} are taken")
    try:
        same = keys.public_bytes(leaf.public_key()) == keys.public_bytes(key)
        dns_names, uris = _names(leaf)
        usages = _usages(leaf)
    except SignerError:
        raise
    except Exception:
        raise _wrong("whose certificate cannot be read") from None
    if not same:
        raise _wrong("for another key")
    if dns_names != {name.lower() for name in wanted.dns_names} or uris != set(wanted.uris):
        found = ", ".join(sorted((*dns_names, *uris))) or "none"
        raise _wrong(f"with other names than those asked for in ZTNA_DNS_NAMES and ZTNA_URIS: {found}")
    common = [str(item.value) for item in leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    if any(name not in (wanted.name, *wanted.dns_names, *wanted.uris) for name in common):
        raise _wrong("with another common name than ZTNA_NAME")
    if is_authority(leaf) or (usages and keys.CLIENT_AUTH not in usages):
        raise _wrong("that is not for a TLS client")
    if leaf.not_valid_after_utc > now + wanted.lifetime + SLACK:
        raise _wrong(f"valid until {leaf.not_valid_after_utc.isoformat()}, longer than ZTNA_LIFETIME")
    path = path_of(chain, authorities)
    if path is None:
        raise _wrong("that chains to no CA of ca-cert")
    if any(not item.not_valid_before_utc <= now + SLACK < item.not_valid_after_utc for item in path):
        raise _wrong("that is not valid now")
    return path


def _wrong(what: str) -> SignerError:
    return SignerError(f"the signer gave an answer {what}; it is not used")


def _names(leaf: x509.Certificate) -> tuple[set[str], set[str]]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set(), set()
    others = [name for name in names if not isinstance(name, x509.DNSName | x509.UniformResourceIdentifier)]
    if others:
        raise _wrong("with names that are neither DNS names nor URIs")
    dns_names = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    return dns_names, set(names.get_values_for_type(x509.UniformResourceIdentifier))


def _usages(leaf: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return []
