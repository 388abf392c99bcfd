"""What introductions cost: the CPU of a session, the delay of the event loop, the memory of those that are open, and
what others pay for hostile ones."""

from __future__ import annotations

import tracemalloc
from ipaddress import IPv4Address

from bench.loads import lag_quantile, lost_of, notes_of, relay_once, say
from bench.plan import Plan
from bench.processes import Generator, Metrics, measured
from bench.report import Row
from intermediate_server.signaling import Book, Limits, LookUpRoute, Send, State
from intermediate_server.types import Address, ConnectionId, Peer
from intermediate_server.wire.signaling import Candidate, CandidateAnswer, CandidateKind, CandidateOffer, decode, encode

OFFERS = 100
"""Offers a second, which is what the server takes of all agents together."""
LAG = 10.0
"""Milliseconds that the event loop may be late at the 99th percentile."""
RATE = 20_000
"""Datagrams relayed a second beside hostile signaling."""
CANDIDATES = 10
"""Candidates of an offer."""


def signaling(plan: Plan) -> list[Row]:
    """Offers at the highest rate that is taken, each with ten candidates, answered at once."""
    costs, python, lags, delays, notes, reports = [], [], [], [], set[str](), []
    for _ in range(plan.repetitions):
        with plan.serve(client_auth="off") as (server, files):
            say(f"{OFFERS} offers a second")
            scrapes: list[Metrics] = []

            def scrape(scrapes: list[Metrics] = scrapes) -> None:
                scrapes.append(server.metrics())

            load = ["signal", "--ca", str(files.ca), "--rate", str(OFFERS), "--seconds", str(plan.seconds)]
            report, use = measured(plan.generator, server, load, at_begin=scrape, at_end=scrape)
        reports.append(report)
        costs.append(use.total / max(1, report["offers"]))
        python.append(100 * use.python / max(1.0, use.total))
        lags.append(lag_quantile(scrapes[0], scrapes[-1], 0.99))
        delays.append(float(report["p99_ms"] or "nan"))
        if report["started"] < report["offers"]:
            notes.add(f"{report['offers'] - report['started']} of {report['offers']} NOT STARTED")
    note = notes_of(reports, *sorted(notes))
    name = f"{OFFERS} offers/s"
    return [
        Row(f"{name}, CPU for one session", "us", costs, digits=0, note=note, details=reports),
        Row("  of it Python", "%", python, digits=0),
        Row("  event-loop lag, p99 at most", "ms", lags, target=LAG, digits=1),
        Row("  offer to StartPunching, p99", "ms", delays, digits=1),
        Row("memory of an open session, 4,096", "KiB", [_memory() for _ in range(plan.repetitions)], digits=1),
    ]


def hostile_signaling(plan: Plan) -> list[Row]:
    """Relay alone, and beside connections that signal as nobody should."""
    rows = []
    for beside in (False, True):
        reports, notes = [], set[str]()
        with plan.serve(client_auth="off", registration_timeout=120) as (server, files):
            hostile = None
            if beside:
                hostile = Generator(plan.generator, ["--server", server.address, "hostile", "--ca", str(files.ca)])
            try:
                if hostile is not None:
                    hostile.wait_for("@ready")
                for _ in range(plan.repetitions):
                    say(f"{RATE:,}/s {'beside hostile signaling' if beside else 'alone'}")
                    reports.append(relay_once(plan, server, files, RATE, plan.seconds, lag=True)[0])
                if hostile is not None:
                    report = hostile.finish()
                    notes.add(f"{report['streams_ended']:,} streams ended")
                    if report["lost"]:
                        notes.add(f"{report['lost']} CONNECTIONS LOST")
                    reports[-1]["hostile"] = report
            finally:
                if hostile is not None:
                    hostile.stop()
        label = f"{RATE // 1000}k/s {'beside hostile signaling' if beside else 'alone'}"
        note = notes_of(reports, lost_of(reports), *notes)
        lost = [float(report["loss_percent"]) for report in reports]
        rows += [
            Row(f"{label}, lost", "%", lost, target=0 if beside else None, digits=4, note=note, details=reports),
            Row("  event-loop lag, p99 at most", "ms", [report["lag_p99"] for report in reports], digits=1),
        ]
    return rows


def _memory() -> float:
    """KiB of the book for each of as many open sessions as it takes; in this process."""
    limits = Limits()
    agents = [_peer(1 + n) for n in range(limits.sessions // limits.sessions_per_agent)]
    connectors = [_peer(10_001 + n) for n in range(limits.sessions // limits.sessions_per_connector)]
    tracemalloc.start()
    book, before, opened = Book(), tracemalloc.get_traced_memory()[0], 0
    for session in range(limits.sessions_per_agent):
        for agent in agents:
            listed = tuple(_candidate(agent, n) for n in range(CANDIDATES))
            payload = encode(CandidateOffer(session, "bench", listed))
            offer = decode(payload)
            assert isinstance(offer, CandidateOffer)
            [look_up] = book.offer(agent, offer, payload, registered=True, now=0.0)
            assert isinstance(look_up, LookUpRoute)
            connector = connectors[opened % len(connectors)]
            [asked] = book.route_found(look_up.request, connector, None, 0.0)
            assert isinstance(asked, Send)
            forwarded = decode(asked.payload)
            assert isinstance(forwarded, CandidateOffer)
            answer = decode(encode(CandidateAnswer(forwarded.session, listed)))
            assert isinstance(answer, CandidateAnswer)
            book.answer(connector.conn, answer, 0.0)
            opened += 1
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert book.states[State.STARTED] == opened == limits.sessions
    return used / opened / 1024


def _peer(number: int) -> Peer:
    return Peer(ConnectionId(number), Address(IPv4Address(0xC6336400 + number % 250), 1_024 + number), None)


def _candidate(peer: Peer, number: int) -> Candidate:
    address = Address(IPv4Address(int(peer.address.host) ^ number << 8), peer.address.port)
    return Candidate(CandidateKind.HOST, address, number, f"host_{address.host}")
