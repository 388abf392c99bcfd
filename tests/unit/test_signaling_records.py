"""Records of sessions: one outcome and one reason for everything that can happen, and bounded texts."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from tests.unit.signaling import address

from intermediate_server.signaling.candidates import Counts, Removal
from intermediate_server.signaling.records import (
    CODES,
    REFUSALS,
    SENTENCES,
    Outcome,
    Reason,
    Record,
    Side,
    explain,
    printable,
)
from intermediate_server.wire.signaling import CandidateKind

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "direct.md"
REPORTS = (None, False, True)
BY_REPORTS = {Reason.DIRECT, Reason.NOTHING_ARRIVED, Reason.ONE_WAY, Reason.NO_COMMON_FAMILY}


def test_every_combination_has_one_outcome_and_one_reason() -> None:
    reached = set()
    for ended_by, started, agent, connector, family in itertools.product(
        set(Reason) - BY_REPORTS, (False, True), REPORTS, REPORTS, (False, True)
    ):
        outcome, reason = explain(ended_by, started=started, agent=agent, connector=connector, common_family=family)
        reached.add(reason)
        assert (outcome is Outcome.DIRECT) == (reason is Reason.DIRECT and started)
        assert outcome is not Outcome.REFUSED or (reason in REFUSALS and not started)
        assert (reason in BY_REPORTS) <= started
        assert outcome is not Outcome.UNANSWERED or reason is Reason.UNANSWERED
        if not started:
            assert reason is ended_by, "there are no reports of probes before both begin"
    assert reached == set(Reason)


@pytest.mark.parametrize(
    ("agent", "connector", "family", "expected"),
    [
        (True, None, True, (Outcome.DIRECT, Reason.DIRECT)),
        (None, True, True, (Outcome.DIRECT, Reason.DIRECT)),
        (True, False, True, (Outcome.DIRECT, Reason.DIRECT)),
        (False, True, True, (Outcome.FAILED, Reason.ONE_WAY)),
        (False, False, True, (Outcome.FAILED, Reason.NOTHING_ARRIVED)),
        (False, None, True, (Outcome.FAILED, Reason.NOTHING_ARRIVED)),
        (None, False, False, (Outcome.FAILED, Reason.NO_COMMON_FAMILY)),
        (None, None, True, (Outcome.UNREPORTED, Reason.UNREPORTED)),
        (None, None, False, (Outcome.UNREPORTED, Reason.NO_COMMON_FAMILY)),
    ],
)
def test_reports_decide_about_a_session_that_has_run_its_time(
    agent: bool | None, connector: bool | None, family: bool, expected: tuple[Outcome, Reason]
) -> None:
    assert explain(Reason.UNREPORTED, started=True, agent=agent, connector=connector, common_family=family) == expected


@pytest.mark.parametrize(
    ("ended_by", "started", "outcome"),
    [
        (Reason.UNANSWERED, False, Outcome.UNANSWERED),
        (Reason.BUSY, False, Outcome.REFUSED),
        (Reason.AGENT_GONE, False, Outcome.FAILED),
        (Reason.AGENT_GONE, True, Outcome.UNREPORTED),
        (Reason.REVOKED, True, Outcome.FAILED),
    ],
)
def test_without_reports_the_end_decides(ended_by: Reason, started: bool, outcome: Outcome) -> None:
    explained = explain(ended_by, started=started, agent=None, connector=None, common_family=True)
    assert explained == (outcome, ended_by)


def test_every_reason_has_a_sentence_and_every_refusal_a_code() -> None:
    assert set(SENTENCES) == set(Reason)
    assert len(set(SENTENCES.values())) == len(Reason)
    assert not any(sentence.endswith(".") for sentence in SENTENCES.values())
    assert set(CODES) <= REFUSALS | {Reason.CONNECTOR_GONE}


def test_the_document_has_each_reason_with_its_sentence() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert dict(rows) == {str(reason): sentence for reason, sentence in SENTENCES.items()}
    assert len(rows) == len(Reason)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("line\nbreak\x1b[0m", "line?break?[0m"),
        ("é" * 200, "é" * 128),
        ("x" + "é" * 200, "x" + "é" * 127),
        ("\u202ereversed", "?reversed"),
        ("x" * 65_000, "x" * 256),
        ("", ""),
    ],
)
def test_texts_of_peers_are_short_and_printable(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_the_largest_record_has_at_most_4_kib() -> None:
    counts = Counts(
        passed=dict.fromkeys(CandidateKind, 64),
        replaced=dict.fromkeys(CandidateKind, 64),
        removed={(kind, why): 64 for kind in CandidateKind for why in Removal},
        added=1,
    )
    where = address("2001:db8:1111:2222:3333:4444:5555:6666", 65_535)
    side = Side(identity="é" * 128, address=where, candidates=counts, report=False)
    record = Record(
        began=1_790_000_000.123456,
        session=2**64 - 1,
        service="é" * 128,
        agent=side,
        connector=side,
        answered_ms=15_000,
        started_ms=15_000,
        ended_ms=15_000,
        working=where,
        working_kind=CandidateKind.SERVER_REFLEXIVE,
        outcome=Outcome.UNREPORTED,
        reason=max(Reason, key=lambda reason: len(SENTENCES[reason])),
        detail="é" * 128,
    )
    text = json.dumps(record.as_dict(), ensure_ascii=False, separators=(",", ":"))  # as HTTP answers
    assert len(text.encode()) <= 4_096
    assert json.loads(text)["session"] == "18446744073709551615"
    assert json.loads(text)["working_kind"] == "srflx"
