"""docs/drops.md has every reason of a dropped packet that the code has, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from intermediate_server.admin.metrics import SIMPLE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/drops.md").read_text()


def section(title: str) -> list[str]:
    """The reasons in the tables below a heading."""
    text = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("title", "source", "enum"),
    [
        ("At the relay", "crates/engine/src/boundary/counters.rs", "drop_reasons"),
        ("At agents and connectors", "crates/netstack/src/counters.rs", "drops"),
    ],
)
def test_the_reasons_of_the_engine(title: str, source: str, enum: str) -> None:
    declared = (ROOT / source).read_text().partition(f"\n{enum}! {{")[2].partition("\n}")[0]
    reasons = re.findall(r'=> "(\w+)",', declared)
    assert len(reasons) > 15
    assert sorted(section(title)) == sorted(reasons)


def test_the_reasons_beneath_quic() -> None:
    (family,) = (family for family in SIMPLE if family.name == "ztna_udp_dropped_total")
    assert section("Beneath QUIC") == [label for label, _ in family.sources]


def test_the_reasons_of_signaling() -> None:
    book = (ROOT / "src/intermediate_server/signaling/book.py").read_text()
    counted = re.findall(r'totals\.dropped\[("\w+"[^\]]*)\]', book)
    reasons = {reason for key in counted for reason in re.findall(r'"(\w+)"', key)}
    assert sorted(section("Signaling")) == sorted(reasons)
