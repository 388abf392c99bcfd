"""CAs that come and go: which connections a CA takes along, and handshakes that began under it."""

from __future__ import annotations

import pytest
from cryptography import x509
from tests.unit.ca import Ca, der
from tests.unit.sessions_rig import Rig, connected, rig

from intermediate_server.access.admission import Admission
from intermediate_server.pki import Anchors, certificate_ids
from intermediate_server.pki.anchors import path_of
from intermediate_server.wire import close_codes


def ders(*chain: x509.Certificate) -> list[bytes]:
    return [der(item) for item in chain]


def reached(anchors: Anchors, *chain: x509.Certificate) -> bool:
    return anchors.reached(ders(*chain), certificate_ids(ders(*chain)))


def test_chains_are_followed_through_cas_only() -> None:
    root = Ca("root")
    below = Ca("below", above=root)
    leaf = below.leaf()
    assert path_of([leaf, below.certificate], [root.certificate]) == [leaf, below.certificate]
    assert path_of([leaf, Ca("x").certificate, below.certificate, root.certificate], [root.certificate]) is not None
    assert path_of([leaf], [root.certificate]) is None
    assert path_of([leaf], [root.certificate, below.certificate]) == [leaf]
    false = Ca("false")
    false.certificate = root.sign("false", false.key, is_ca=False)
    assert path_of([false.leaf(), false.certificate], [root.certificate]) is None


def test_a_ca_that_left_is_reached_no_more() -> None:
    one, two = Ca("one"), Ca("two")
    below = Ca("below", above=one)
    both = Anchors().followed_by([one.certificate, two.certificate])
    after = both.followed_by([two.certificate])
    assert reached(both, one.leaf())
    assert not reached(after, one.leaf())
    assert not reached(after, below.leaf(), below.certificate)
    assert reached(after, two.leaf())
    assert not reached(after.followed_by([two.certificate]), one.leaf()), "it is remembered"
    back = after.followed_by([one.certificate])
    assert reached(back, one.leaf())
    assert reached(back, below.leaf(), below.certificate)
    assert reached(both.followed_by([below.certificate]), below.leaf())


def test_a_ca_is_its_name_and_its_key() -> None:
    old, new = Ca("ca"), Ca("ca")
    renewed = Ca("ca", key=old.key)
    before = Anchors().followed_by([old.certificate])
    assert reached(before.followed_by([renewed.certificate]), old.leaf())
    assert before.gone(Anchors((renewed.certificate,))) == frozenset()
    after = before.followed_by([new.certificate])
    assert len(before.gone(after)) == 1
    assert not reached(after, old.leaf())
    assert reached(after, new.leaf())


async def connect(r: Rig, conn: int, *chain: x509.Certificate) -> list[tuple[object, ...]]:
    told = await r.happen(connected(conn, *ders(*chain)))
    return [command for command in told if command[0] == "close"]


@pytest.mark.parametrize("same_name", [False, True])
async def test_a_ca_that_leaves_takes_its_connections_along(same_name: bool) -> None:
    old, other = Ca("old"), Ca("other")
    new = Ca("old" if same_name else "new")
    below = Ca("below", above=old)
    before = Admission(anchors=Anchors().followed_by([old.certificate, other.certificate]))
    after = Admission(anchors=before.anchors.followed_by([new.certificate, other.certificate]))
    async with rig(admission=before) as r:
        for conn, chain in enumerate(([old.leaf()], [other.leaf()], [below.leaf(), below.certificate]), start=1):
            assert await connect(r, conn, *chain) == []
        await r.happen(connected(4))
        batch = len(r.engine.batches)
        assert r.sessions.use_admission(after) == 2
        await r.settle()
        closed = [command for command in r.told_since(batch) if command[0] == "close"]
        assert [command[1:3] for command in closed] == [
            (1, close_codes.UNKNOWN_AUTHORITY),
            (3, close_codes.UNKNOWN_AUTHORITY),
        ]
        # Their handshakes had begun before.
        assert [command[1:3] for command in await connect(r, 5, old.leaf())] == [(5, close_codes.UNKNOWN_AUTHORITY)]
        assert await connect(r, 6, new.leaf()) == []
        assert r.totals.disconnected["authority"] == 2
        assert r.totals.rejected["authority"] == 1
        assert r.sessions.use_admission(after) == 0
