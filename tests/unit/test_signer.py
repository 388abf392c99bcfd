"""A signer's command gets the request and the wishes, and its answer counts only if it says what was asked for."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from tests.unit.issuing import signing_request

from intermediate_server.pki import keys, signer
from intermediate_server.pki.signer import Signer, SignerError, Wanted
from intermediate_server.types import Role

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WANTED = Wanted(
    "office", Role.CONNECTOR, ("web",), ("ann.example.com",), ("spiffe://example.org/x",), timedelta(days=7)
)
NAMES = ("connector.web.ztna", "ann.example.com")


class Ca:
    """Another CA with an intermediate below it."""

    def __init__(self) -> None:
        self.key = keys.new_key()
        begin, end = NOW - timedelta(days=100), NOW + timedelta(days=1000)
        self.root = keys.sign_itself("root", self.key, not_before=begin, not_after=end)
        self.below_key = keys.new_key()
        self.below = self._authority("below", begin, end)

    def _authority(self, name: str, begin: datetime, end: datetime) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(keys.common_name(name))
            .issuer_name(self.root.subject)
            .public_key(self.below_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, keys.SHA256)
        )

    def sign(
        self,
        key: keys.PrivateKey,
        *,
        names: Sequence[x509.GeneralName] | None = None,
        subject: str = "office",
        days: float = 7,
        begin: timedelta = timedelta(0),
        usage: x509.ObjectIdentifier = keys.CLIENT_AUTH,
    ) -> x509.Certificate:
        return keys.sign(
            subject=keys.common_name(subject),
            public_key=key.public_key(),
            authority=self.below,
            authority_key=self.below_key,
            names=good_names() if names is None else names,
            usage=usage,
            not_before=NOW + begin,
            not_after=NOW + timedelta(days=days),
        )


def good_names() -> list[x509.GeneralName]:
    return [*map(x509.DNSName, NAMES), x509.UniformResourceIdentifier("spiffe://example.org/x")]


@pytest.fixture(scope="module")
def ca() -> Ca:
    return Ca()


@pytest.fixture(scope="module")
def key() -> keys.PrivateKey:
    return keys.new_key()


def run(command: Sequence[str], ca: Ca, key: Any) -> list[x509.Certificate]:
    request = x509.load_der_x509_csr(signing_request(key, "agent.wish.ztna"))
    return Signer(command, [ca.root]).sign(request, WANTED, now=NOW)


def answering(directory: Path, *chain: x509.Certificate) -> list[str]:
    (directory / "answer.pem").write_bytes(keys.certificate_pem(*chain))
    return script(directory, f"cat > {directory}/request.pem; env > {directory}/env; cat {directory}/answer.pem")


def script(directory: Path, text: str) -> list[str]:
    path = directory / "signer"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return [str(path)]


def test_the_command_gets_the_request_and_the_wishes(
    tmp_path: Path, ca: Ca, key: keys.PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZTNA_KEY", "/etc/server.key")
    monkeypatch.setenv("STEPPATH", "/etc/step")
    leaf = ca.sign(key)
    chain = run(answering(tmp_path, leaf, ca.below, ca.root), ca, key)
    # The root itself is at the relay already.
    assert chain == [leaf, ca.below]
    request = x509.load_pem_x509_csr((tmp_path / "request.pem").read_bytes())
    assert keys.public_bytes(request.public_key()) == keys.public_bytes(key.public_key())
    said = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert {name: value for name, value in said.items() if name.startswith("ZTNA_")} == {
        "ZTNA_NAME": "office",
        "ZTNA_ROLE": "connector",
        "ZTNA_SERVICES": "web",
        "ZTNA_DNS_NAMES": "connector.web.ztna,ann.example.com",
        "ZTNA_URIS": "spiffe://example.org/x",
        "ZTNA_LIFETIME": "604800",
        "ZTNA_NOT_AFTER": "2026-03-08T12:00:00Z",
    }
    assert said["STEPPATH"] == "/etc/step"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"names": [x509.DNSName(NAMES[0])]}, "other names"),
        ({"names": []}, "other names"),
        ({"names": [*good_names(), x509.DNSName("agent.*.ztna")]}, "other names"),
        ({"names": [*good_names(), x509.IPAddress(ip_address("192.0.2.1"))]}, "neither DNS names nor URIs"),
        ({"names": [*good_names(), x509.UniformResourceIdentifier("spiffe://x/y")]}, "other names"),
        ({"subject": "somebody"}, "common name"),
        ({"days": 8}, "longer than ZTNA_LIFETIME"),
        ({"begin": timedelta(hours=1)}, "not valid now"),
        ({"usage": keys.SERVER_AUTH}, "not for a TLS client"),
    ],
)
def test_an_answer_that_says_something_else_is_not_used(
    tmp_path: Path, ca: Ca, key: keys.PrivateKey, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SignerError, match=reason):
        run(answering(tmp_path, ca.sign(key, **options), ca.below), ca, key)


def test_an_answer_for_another_key_or_of_another_ca_is_not_used(tmp_path: Path, ca: Ca, key: keys.PrivateKey) -> None:
    with pytest.raises(SignerError, match="another key"):
        run(answering(tmp_path, ca.sign(keys.new_key()), ca.below), ca, key)
    with pytest.raises(SignerError, match="chains to no CA"):
        run(answering(tmp_path, ca.sign(key)), ca, key)
    stranger = Ca()
    with pytest.raises(SignerError, match="chains to no CA"):
        run(answering(tmp_path, stranger.sign(key), stranger.below), ca, key)
    with pytest.raises(SignerError, match="another key"):
        run(answering(tmp_path, ca.below), ca, key)
    with pytest.raises(SignerError, match="at most 4"):
        run(answering(tmp_path, ca.sign(key), *[ca.below] * 4), ca, key)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cat > /dev/null", "no certificate"),
        ("echo no certificate", "no certificate"),
        ("cat", "holds CERTIFICATE REQUEST"),
        ("echo the vault is sealed >&2; exit 3", "ended with 3: the vault is sealed"),
        ("exit 1", "ended with 1: it says nothing"),
        ("kill -9 $$", "ended with -9"),
        ("head -c 100000 /dev/zero", "wrote more than 65536 bytes"),
        ("head -c 10000000 /dev/zero >&2; exit 1", "ended with 1"),
    ],
)
def test_a_command_that_fails_is_an_error_for_the_operator(
    tmp_path: Path, ca: Ca, key: keys.PrivateKey, text: str, reason: str
) -> None:
    with pytest.raises(SignerError, match=reason):
        run(script(tmp_path, text), ca, key)


def test_a_command_that_is_not_there_is_an_error(ca: Ca, key: keys.PrivateKey) -> None:
    with pytest.raises(SignerError, match=r"cannot be run: No such file.*join-signer"):
        run(["/nonexistent/signer"], ca, key)


def test_a_command_that_hangs_is_killed_with_its_children(
    tmp_path: Path, ca: Ca, key: keys.PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signer, "TIMEOUT", 0.5)
    command = script(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(SignerError, match="was killed"):
        run(command, ca, key)
    assert gone(int((tmp_path / "child").read_text()))


def test_a_child_that_keeps_the_output_open_holds_nothing_up(
    tmp_path: Path, ca: Ca, key: keys.PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signer, "TIMEOUT", 0.5)
    with pytest.raises(SignerError, match="was killed"):
        run(script(tmp_path, "sleep 600 & exit 0"), ca, key)


def test_a_running_command_can_be_stopped(tmp_path: Path, ca: Ca, key: keys.PrivateKey) -> None:
    os.mkfifo(tmp_path / "begun")
    running = Signer(script(tmp_path, f"echo > {tmp_path}/begun; exec sleep 600"), [ca.root])
    request = x509.load_der_x509_csr(signing_request(key))
    errors: list[Exception] = []

    def sign() -> None:
        try:
            running.sign(request, WANTED, now=NOW)
        except SignerError as error:
            errors.append(error)

    thread = threading.Thread(target=sign)
    thread.start()
    (tmp_path / "begun").read_text()
    running.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert "ended with -9" in str(errors[0])


def gone(pid: int) -> bool:
    """Whether a process ends within a few seconds; its parent may not have buried it."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False
