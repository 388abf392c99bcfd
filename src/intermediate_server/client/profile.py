"""The profile of a client: its key, its certificate and where its relay is, in one file.

The file is TOML with its PEM blocks as they are, so that ``pki show`` and OpenSSL read it too.
"""

from __future__ import annotations

import fcntl
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cryptography import x509

from intermediate_server.client.hosts import split_server
from intermediate_server.client.profile_text import (
    LockedProfile,
    NewerProfile,
    ProfileError,
    read_certificates,
    read_moment,
    read_role,
    read_text,
    read_texts,
    read_token,
    render,
)
from intermediate_server.config.host import default_state_dir
from intermediate_server.config.values import read_host, read_server
from intermediate_server.errors import CertificateError, ConfigError
from intermediate_server.join.messages import Issued
from intermediate_server.pki import files, keys
from intermediate_server.pki.material import ClientMaterial, Pair
from intermediate_server.types import Role

VERSION = 1
MAX_BYTES = 256 << 10
"""Bytes of the largest file that is parsed; a profile has about 3,000."""

_REQUIRED = ("name", "role", "services", "servers", "server-name", "renew-after", "certificate", "ca")
"""Keys of a profile beside those of a draft."""


class NoProfile(ProfileError):
    """There is no profile yet, or its join has not finished."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A join that has begun: a key without a certificate."""

    key_pem: bytes = field(repr=False)
    """The private key, PEM."""
    token: bytes | None = None
    """The id of the token, 6 bytes; None for a join without a network between."""

    def save(self, path: Path) -> None:
        """Replace the file. Raises ``ProfileError``."""
        _write(path, {"version": VERSION, **_token(self.token)}, {"key": self.key_pem})


@dataclass(frozen=True, slots=True)
class Profile:
    """The identity of a client, and its relay."""

    key_pem: bytes = field(repr=False)
    """The private key, PEM."""
    certificate_pem: bytes
    """The certificate chain, PEM, leaf first."""
    ca_pem: bytes
    """The CAs of the relay's certificate, PEM."""
    servers: tuple[str, ...]
    """Addresses of the relay, ``host`` or ``host:port``; the first one is tried first."""
    server_name: str
    """The name that the relay's certificate must carry."""
    name: str
    role: Role
    services: tuple[str, ...]
    """The services that the certificate grants; ``*`` is all."""
    renew_after: datetime
    """When to ask for the next certificate; aware UTC, whole seconds."""
    token: bytes | None = None
    """The id of the token it joined by, 6 bytes."""

    @classmethod
    def load(cls, path: Path, *, readable: bool = False) -> Self:
        """Read a file; ``readable`` takes one that everyone may read. Raises ``NoProfile`` and ``ProfileError``."""
        found = read(path, readable=readable)
        if found is None:
            raise NoProfile(f"there is no profile at {path}; make one with: intermediate-server join TOKEN")
        if not isinstance(found, cls):
            raise NoProfile(f"the join of {path} has not finished; repeat it: intermediate-server join TOKEN")
        return found

    @classmethod
    def of(cls, draft: Draft, issued: Issued) -> Self:
        """A draft with what the relay has issued for its key."""
        return cls(
            key_pem=draft.key_pem,
            certificate_pem=issued.chain.encode(),
            ca_pem=issued.ca.encode(),
            servers=issued.servers,
            server_name=issued.server_name,
            name=issued.name,
            role=issued.role,
            services=issued.services,
            renew_after=issued.renew_after,
            token=draft.token,
        )

    def with_issued(self, issued: Issued, *, key_pem: bytes | None = None) -> Self:
        """The profile with the next certificate, for the same key or another."""
        return self.of(Draft(key_pem or self.key_pem, self.token), issued)

    def save(self, path: Path) -> None:
        """Replace the file, whose mode is 0600 then. Raises ``ProfileError``, also for what could not be read again."""
        try:
            found = parse(render(*_fields(self)))
        except ProfileError as error:
            raise ProfileError(
                f"profile {path} stays as it was, since it cannot hold what was issued: {error}"
            ) from None
        assert isinstance(found, Profile)  # noqa: S101  a draft has fewer fields
        _write(path, *_fields(found))

    @property
    def is_valid(self) -> bool:
        """Whether its certificate has not ended, by this host's clock."""
        return self.leaf.not_valid_after_utc > datetime.now(UTC)

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate."""
        return x509.load_pem_x509_certificate(self.certificate_pem)

    def material(self) -> ClientMaterial:
        """What TLS needs of it."""
        return ClientMaterial(ca_pem=self.ca_pem, pair=Pair(self.certificate_pem, self.key_pem, self.leaf))

    def places(self) -> list[tuple[str, int]]:
        """Host and port of each of the relay's addresses."""
        return [split_server(server) for server in self.servers]


def default_profile(role: Role, env: Mapping[str, str] = os.environ) -> Path:
    """The usual profile of a role: ``agent.ztna`` or ``connector.ztna`` in the state directory.

    Raises ``ConfigError`` when the user has none.
    """
    return default_directory(env) / f"{role.value}.ztna"


def default_directory(env: Mapping[str, str]) -> Path:
    """The directory of the usual profiles. Raises ``ConfigError``."""
    try:
        return default_state_dir(env)
    except ValueError:
        raise ConfigError("this user has no home directory; name a file with --profile") from None


def read(path: Path, *, readable: bool = False) -> Profile | Draft | None:
    """The content of a file, None when there is none; ``readable`` as for ``Profile.load``. Raises ``ProfileError``."""
    try:
        path.stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ProfileError(f"profile {path} cannot be read: {_reason(error)}") from None
    try:
        data = files.read_private_file(path, "profile", readable=readable, limit=MAX_BYTES)
    except CertificateError as error:
        raise ProfileError(str(error)) from None
    try:
        return parse(data)
    except LockedProfile as error:
        raise LockedProfile(f"profile {path}: {error}") from None
    except NewerProfile as error:
        raise NewerProfile(f"profile {path} {error}") from None
    except ProfileError as error:
        raise ProfileError(
            f"profile {path} is damaged: {error}; delete it and join again with a new token, or put a copy back"
        ) from None


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock of a profile, to read, change and save it as one step; never over the network.

    Makes the directory. The kernel gives the lock up when a process dies. Raises ``ProfileError``.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(
            path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except BaseException:
            os.close(lock)
            raise
    except (OSError, ValueError) as error:
        raise ProfileError(
            f"profile {path} cannot be written: {_reason(error)}; name another file with --profile"
        ) from None
    try:
        yield
    finally:
        os.close(lock)


def begin(path: Path, token: bytes | None) -> Profile | Draft:
    """The join by a token as far as it has come: the key is made and kept before anything is sent.

    A repeated join goes on with the same key, so that the relay takes it for the same one; without a ``token`` every
    join goes on with a draft. Raises ``ProfileError``, where another join has made a profile that is still valid too.
    """
    with hold(path):
        found = read(path)
        if isinstance(found, Profile) and found.token != token and found.is_valid:
            raise ProfileError(
                f'this host has joined as {found.role.value} "{found.name}" ({path}); leave first: intermediate-server'
                " leave, or name another file with --profile"
            )
        if found is not None and found.token == token:
            return found
        draft = Draft(keys.key_pem(keys.new_key()), token)
        draft.save(path)
        return draft


def finish(path: Path, draft: Draft, issued: Issued) -> Profile:
    """Make a draft a profile, and keep it. Raises ``ProfileError``."""
    profile = Profile.of(draft, issued)
    with hold(path):
        found = read(path)
        if found is None or found.key_pem != draft.key_pem:
            raise ProfileError(f"profile {path} was changed by another command meanwhile; join again")
        profile.save(path)
    return profile


def delete(path: Path) -> None:
    """Delete a profile, or what is left of one. Raises ``ProfileError``."""
    with hold(path):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ProfileError(f"profile {path} cannot be deleted: {_reason(error)}; delete it by hand") from None


def locked(profile: Profile, passphrase: bytes) -> bytes:
    """The bytes of a profile for the way to its device, its key encrypted as PKCS #8."""
    texts, blocks = _fields(profile)
    key = keys.parse_key(profile.key_pem, "of the profile")
    return render(texts, {**blocks, "key": keys.key_pem(key, passphrase)})


def parse(data: bytes, passphrase: bytes | None = None) -> Profile | Draft:
    """The content of a profile's bytes. Raises ``ProfileError``, which quotes none of them.

    ``LockedProfile`` where its key has another passphrase.
    """
    try:
        body = tomllib.loads(data.decode())
    except RecursionError:
        raise ProfileError("it is nested too deeply") from None
    except ValueError:
        raise ProfileError("it is not TOML, or it is cut short") from None
    version = body.pop("version", None)
    if type(version) is not int or version < 1:
        raise ProfileError("it names no version")
    if version != VERSION:
        raise NewerProfile(
            f"is of a newer version ({version}); upgrade intermediate-server on this host, or delete it and join again "
            "with a new token"
        )
    token = read_token(body, "token") if "token" in body else None
    try:
        key = keys.parse_key(read_text(body, "key").encode(), "", passphrase)
    except keys.LockedKey:
        say = "its key has a passphrase; open it with: intermediate-server join --complete FILE"
        raise LockedProfile(say if passphrase is None else "the passphrase is another one; try again") from None
    except CertificateError as error:
        raise error if isinstance(error, ProfileError) else ProfileError("its private key cannot be read") from None
    key_pem = keys.key_pem(key)
    left = body.keys() - {"token", "key"}
    if not left:
        return Draft(key_pem, token)
    if left != set(_REQUIRED):
        wrong = sorted(left - set(_REQUIRED)) or sorted(set(_REQUIRED) - left)
        raise ProfileError(f"the key {ascii(wrong[0])[1:-1][:40]} is {'unknown' if wrong[0] in left else 'missing'}")
    profile = Profile(
        key_pem=key_pem,
        certificate_pem=read_certificates(body, "certificate"),
        ca_pem=read_certificates(body, "ca"),
        servers=read_texts(body, "servers", least=1),
        server_name=read_text(body, "server-name"),
        name=read_text(body, "name"),
        role=read_role(body),
        services=read_texts(body, "services", least=0),
        renew_after=read_moment(body, "renew-after"),
        token=token,
    )
    try:
        for server in profile.servers:
            read_server(server)
        read_host(profile.server_name)
    except ValueError as error:
        raise ProfileError(f"it names no usable relay: {error}") from None
    try:
        keys.check_pair(profile.leaf, key, "")
    except CertificateError:
        raise ProfileError("its private key does not belong to its certificate") from None
    return profile


def _fields(profile: Profile) -> tuple[dict[str, Any], dict[str, bytes]]:
    texts = {
        "version": VERSION,
        "name": profile.name,
        "role": profile.role.value,
        "services": profile.services,
        "servers": profile.servers,
        "server-name": profile.server_name,
        "renew-after": profile.renew_after,
        **_token(profile.token),
    }
    return texts, {"key": profile.key_pem, "certificate": profile.certificate_pem, "ca": profile.ca_pem}


def _token(token: bytes | None) -> dict[str, str]:
    return {} if token is None else {"token": token.hex()}


def _write(path: Path, texts: Mapping[str, Any], blocks: Mapping[str, bytes]) -> None:
    try:
        files.write_file(path, render(texts, blocks), private=True)
    except CertificateError as error:
        raise ProfileError(f"profile {error}; make room or name another file with --profile") from None


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
