"""What ``pki`` makes, read by another TLS stack."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


def pki(state: Path, *words: str) -> str:
    command = [sys.executable, "-m", "intermediate_server", "pki", *words, "--state-dir", str(state)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def openssl(*words: str | Path) -> subprocess.CompletedProcess[str]:
    assert OPENSSL is not None
    return subprocess.run([OPENSSL, *map(str, words)], check=False, capture_output=True, text=True, timeout=60)


def test_openssl_takes_certificates_and_revocations(tmp_path: Path) -> None:
    state = tmp_path / "state"
    issued, ca, crl = state / "issued", state / "ca.pem", state / "crl.pem"
    pki(state, "init")
    pki(state, "issue", "agent", "ann", "--service", "web", "--service", "db")
    pki(state, "issue", "connector", "ed", "--service", "web", "--key-type", "ed25519")
    for name in ("ann", "ed"):
        assert openssl("verify", "-CAfile", ca, "-purpose", "sslclient", issued / f"{name}.pem").returncode == 0
        assert stat.S_IMODE((issued / f"{name}.key").stat().st_mode) == 0o600
        assert openssl("pkey", "-in", issued / f"{name}.key", "-noout").returncode == 0
    names = openssl("x509", "-in", issued / "ann.pem", "-noout", "-ext", "subjectAltName").stdout
    assert "DNS:agent.web.ztna, DNS:agent.db.ztna" in names
    pki(state, "renew", "ann")
    pki(state, "revoke", "ed")
    assert "verify OK" in openssl("crl", "-in", crl, "-noout", "-CAfile", ca).stderr
    checked = ("verify", "-crl_check", "-CAfile", ca, "-CRLfile", crl)
    assert openssl(*checked, issued / "ann.pem").returncode == 0
    refused = openssl(*checked, issued / "ed.pem")
    assert "certificate revoked" in refused.stdout + refused.stderr
    assert "ed" in pki(state, "list")


@pytest.mark.parametrize("asked", [["-serial"], ["-fingerprint", "-sha256"]])
def test_what_openssl_prints_can_be_revoked(tmp_path: Path, asked: list[str]) -> None:
    state = tmp_path / "state"
    pki(state, "init")
    # One serial in sixteen begins with a zero.
    for number in range(3):
        pki(state, "issue", "agent", f"a{number}", "--service", "web")
        printed = openssl("x509", "-in", state / "issued" / f"a{number}.pem", "-noout", *asked).stdout.strip()
        assert f"revoked a{number} " in pki(state, "revoke", printed)


def test_a_ca_that_cryptography_warns_of_is_shown_without_a_warning(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    words = ("-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "ca.key", "-subj", "/CN=old", "-set_serial", "0")
    assert openssl("req", "-x509", *words, "-out", ca).returncode == 0
    command = [sys.executable, "-m", "intermediate_server", "pki", "show", str(ca)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "subject  CN=old" in shown.stdout
