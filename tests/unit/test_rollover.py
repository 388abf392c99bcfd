"""One CA takes over from another, and nobody notices who renews in time."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from intermediate_server.access.loading import load_admission, read_authority
from intermediate_server.cli import main
from intermediate_server.config import Settings
from intermediate_server.errors import CertificateError
from intermediate_server.join.chain import join_chain
from intermediate_server.pki import Authority, ensure_development, files, keys
from intermediate_server.pki.development import load_authority
from intermediate_server.pki.joins import Joins
from intermediate_server.pki.rollover import Rollover
from intermediate_server.pki.terms import terms
from intermediate_server.types import Role

NOW = keys.utc_now()
WEEK = timedelta(days=7)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    Authority(tmp_path).init(now=NOW)
    return tmp_path


def cas(state: Path) -> list[x509.Certificate]:
    return keys.load_certificates(state / "ca.pem")


def signer_of(state: Path, name: str) -> x509.Certificate:
    [leaf] = keys.load_certificates(state / "issued" / f"{name}.pem")
    return next(ca for ca in cas(state) if keys.is_signed_by(leaf, ca))


def served_by(state: Path) -> x509.Certificate:
    made = ensure_development(state, names=(), now=NOW)
    [leaf] = keys.parse_certificates(made.certificate_pem, "")
    assert made.ca_pem == keys.certificate_pem(*cas(state))
    return next(ca for ca in cas(state) if keys.is_signed_by(leaf, ca))


def test_a_rollover_from_the_first_ca_to_the_second(state: Path) -> None:
    authority, rollover = Authority(state), Rollover(state)
    [old] = cas(state)
    settings = Settings.model_validate({"state_dir": str(state)})
    assert served_by(state) == old
    authority.issue(Role.AGENT, "early", services=["web"], now=NOW)
    authority.issue(Role.AGENT, "lost", services=["web"], now=NOW)

    new = rollover.start(now=NOW)
    assert cas(state) == [old, new]
    assert rollover.phase() == "started"
    authority.issue(Role.AGENT, "middle", services=["web"], now=NOW)
    assert signer_of(state, "middle") == served_by(state) == old
    before = load_admission(settings, read_authority(settings))

    assert rollover.switch(now=NOW) == new
    assert cas(state) == [new, old]
    assert load_authority(state, now=NOW)[0] == new
    authority.issue(Role.AGENT, "late", services=["web"], now=NOW)
    assert signer_of(state, "late") == new
    assert served_by(state) == old, "a client that has not renewed knows no other"
    chain = join_chain(settings, (state / "server.pem").read_bytes())
    assert chain.pin == old.fingerprint(keys.SHA256)
    assert chain.ca_pem == keys.certificate_pem(new, old), "renewals hand out both"
    authority.revoke("lost", now=NOW)
    [lost] = keys.load_certificates(authority.certificate_file("lost"))
    revoked = load_admission(settings, read_authority(settings), current=before).revocations.serials
    assert (old.subject.public_bytes(), lost.serial_number) in revoked, "the old CA's list goes on"

    with pytest.raises(CertificateError, match=r"(?s)still needed.*agent early.*agent middle"):
        rollover.finish(now=NOW)
    for name in ("early", "middle"):
        authority.renew(name, now=NOW)
    assert rollover.finish(now=NOW) == new
    assert cas(state) == [new]
    assert served_by(state) == new
    assert sorted(path.name for path in state.glob("ca*")) == ["ca.key", "ca.pem"]
    load_admission(settings, read_authority(settings), current=before)
    assert rollover.phase() == "none"


def test_tokens_that_pin_the_old_ca_hold_up_the_end(state: Path) -> None:
    rollover, joins = Rollover(state), Joins(Authority(state))
    [old] = cas(state)
    row = joins.create(
        bytes(6),
        bytes(32),
        terms(Role.AGENT, ["web"], lifetime=WEEK),
        pin=old.fingerprint(keys.SHA256),
        expires=timedelta(hours=1),
        now=NOW,
    )
    rollover.start(now=NOW)
    rollover.switch(now=NOW)
    with pytest.raises(CertificateError, match=f"token {row.id.hex()}"):
        rollover.finish(now=NOW)
    rollover.finish(now=NOW + timedelta(hours=1))


def test_steps_out_of_order_name_the_next_one(state: Path) -> None:
    rollover = Rollover(state)
    for act, step in ((rollover.switch, "start"), (rollover.finish, "start")):
        with pytest.raises(CertificateError, match=f"pki rollover {step}"):
            act()
    rollover.start()
    for act, step in ((rollover.start, "switch"), (rollover.finish, "switch")):
        with pytest.raises(CertificateError, match=f"pki rollover {step}"):
            act()
    rollover.switch()
    with pytest.raises(CertificateError, match="pki rollover finish"):
        rollover.start()


def test_a_relay_with_a_bundle_of_its_own_gets_the_new_ca_first(state: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes((state / "ca.pem").read_bytes())
    rollover = Rollover(state)
    rollover.start()
    with pytest.raises(CertificateError, match=r"lacks the new CA.*append"):
        rollover.switch(bundle)
    assert rollover.phase() == "started"
    bundle.write_bytes((state / "ca.pem").read_bytes())
    rollover.switch(bundle)


@pytest.mark.parametrize("step", ["start", "switch", "finish"])
def test_a_step_that_is_killed_between_any_two_writes_is_repeated(
    state: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollover = Rollover(state)
    for before in ["start", "switch", "finish"][: ["start", "switch", "finish"].index(step)]:
        getattr(rollover, before)(now=NOW)
    real = files.write_file
    for writes in range(10):
        left = writes

        def write(*args: object, **kwargs: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            real(*args, **kwargs)  # type: ignore[arg-type]  # as it came

        with monkeypatch.context() as patch:
            patch.setattr(files, "write_file", write)
            try:
                getattr(rollover, step)(now=NOW)
            except KeyboardInterrupt:
                pass
            except CertificateError as error:
                assert "next:" in str(error), "the step was complete"
                break
            else:
                break
        # A relay that starts now works, and trusts whoever it trusted.
        served_by(state)
        load_authority(state, now=NOW)
    assert rollover.phase() == {"start": "started", "switch": "switched", "finish": "none"}[step]
    served_by(state)
    if step == "switch":
        assert load_authority(state, now=NOW)[0] == cas(state)[0]


def test_the_command(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, text in (("start", "switch"), ("switch", "finish"), ("finish", "")):
        assert main(["pki", "rollover", step, "--state-dir", str(state)]) == 0
        assert text in capsys.readouterr().out
    assert main(["pki", "rollover", "finish", "--state-dir", str(state)]) == 2
