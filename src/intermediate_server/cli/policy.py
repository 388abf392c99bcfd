"""``policy``: explains the decision about a registration, and runs written cases."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from intermediate_server import cli, logs, loop
from intermediate_server.access.explain import AccessQuery, Certificate, Explainer, Explanation
from intermediate_server.cli import commands
from intermediate_server.cli.cases import EXAMPLE_SOURCE, Case, read_cases, read_source
from intermediate_server.config import Settings, resolve
from intermediate_server.errors import ConfigError
from intermediate_server.policy import Allow, Decision, Limits
from intermediate_server.types import Role

ConfigFile = Annotated[
    str | None, commands.Option("--config", metavar="PATH", help="Configuration file of the server; as for serve.")
]
StateDir = Annotated[
    str | None, commands.Option("--state-dir", metavar="PATH", help="State directory of the server; as for serve.")
]


def register(app: commands.Group) -> None:
    """Add the commands of this module."""
    group = commands.Group(help="Explain and test who may register what.")
    group.command("explain")(explain)
    group.command("test")(test)
    app.add_group(group, "policy")


def explain(
    cert: Annotated[
        Path | None, commands.Option("--cert", metavar="FILE", help="The peer's certificate, PEM; without it, none.")
    ] = None,
    agent: Annotated[
        str | None, commands.Option("--agent", metavar="SERVICE", help="It would be agent of this.")
    ] = None,
    connector: Annotated[
        str | None, commands.Option("--connector", metavar="SERVICE", help="It would be connector for this.")
    ] = None,
    source: Annotated[str | None, commands.Option("--source", metavar="ADDR", help="Where it would come from.")] = None,
    at: Annotated[
        str | None, commands.Option("--at", metavar="TIME", help="When, such as 2026-01-01T09:00:00Z; rules only.")
    ] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: Annotated[bool, commands.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Print what the server would decide about a registration, by which rule, and why not by those before it."""
    if (agent is None) == (connector is None):
        raise ConfigError("--agent, --connector: name one of them with a service")
    query = AccessQuery(
        certificate=None if cert is None else Certificate.read(cert),
        role=Role.CONNECTOR if agent is None else Role.AGENT,
        service=(connector if agent is None else agent) or "",
        source=read_source(source or EXAMPLE_SOURCE, "--source"),
        at=None if at is None else _moment(at),
    )
    explainer = _explainer(config, state_dir)
    [explanation] = loop.run(_explain(explainer, [query]))
    if as_json:
        commands.echo(json.dumps(_plain(query, explainer, explanation), indent=2))
        return
    for line in _lines(query, explainer, explanation, example=source is None):
        commands.echo(line if line.isprintable() else ascii(line)[1:-1])


def test(
    file: Annotated[Path, commands.Argument(metavar="FILE", help="TOML; docs/policies.md has the keys.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
) -> None:
    """Run written cases; the exit status is 1 when one of them fails, 2 when the file cannot be used."""
    written = read_cases(file)
    if config is None and written.config is not None:
        config = str(written.config)
    explainer = _explainer(config, state_dir)
    explanations = loop.run(_explain(explainer, [case.query for case in written.cases]))
    failed = 0
    for case, explanation in zip(written.cases, explanations, strict=True):
        problem = _problem(case, explanation.decision)
        if problem is not None:
            failed += 1
            line = f"FAILED {case.name}: {problem}"
            commands.echo(line if line.isprintable() else ascii(line)[1:-1])
    commands.echo(f"{len(written.cases)} cases, {failed} failed")
    raise commands.Exit(cli.FAILED if failed else cli.OK)


def _explainer(config: str | None, state_dir: str | None) -> Explainer:
    settings: Settings = resolve({"config": config, "state_dir": state_dir}, env=os.environ).settings
    # Standard output is for the answer.
    logs.configure(level="warning")
    return Explainer(settings)


async def _explain(explainer: Explainer, queries: Sequence[AccessQuery]) -> list[Explanation]:
    try:
        return [await explainer.explain(query) for query in queries]
    finally:
        await explainer.aclose()


def _problem(case: Case, decision: Decision) -> str | None:
    """The difference from the expected decision, None without one."""
    allowed = isinstance(decision, Allow)
    got = f"{'allowed' if allowed else 'denied'} by {_rule(decision)}"
    why = "" if isinstance(decision, Allow) else f": {decision.reason}"
    if allowed is not case.allowed:
        return f"expected to be {'allowed' if case.allowed else 'denied'}, is {got}{why}"
    if case.rule is not None and case.rule != decision.rule:
        return f"expected rule {case.rule!r}, is {got}{why}"
    return None


def _rule(decision: Decision) -> str:
    return f"rule {decision.rule!r}" if decision.rule else "no rule that has a name"


def _lines(query: AccessQuery, explainer: Explainer, explanation: Explanation, *, example: bool) -> list[str]:
    hint = " (an example; give --source where networks count)" if example else ""
    lines = [
        f"who         {_who(query)}",
        f"wants       {query.role.value} of service {query.service!r}",
        f"from        {query.source}{hint}",
        f"at          {(query.at or datetime.now(UTC)).isoformat(timespec='seconds')}",
        f"decided by  {explainer.described}",
        *(f"note        {note}" for note in explanation.notes),
        *(f"  {step.rule}: {'matches' if step.mismatch is None else step.mismatch}" for step in explanation.steps),
    ]
    decision = explanation.decision
    if isinstance(decision, Allow):
        lines.append(f"ALLOWED by {_rule(decision)}")
        lines += [f"limit       {key.replace('_', ' ')}: {number}" for key, number in _limits(decision.limits).items()]
        if not decision.direct:
            lines.append("direct      no: every packet goes through the relay")
        if decision.valid_until is not None:
            lines.append(f"until       {decision.valid_until.isoformat()}, then it is asked again")
    else:
        for_now = " for now" if decision.temporary else ""
        lines.append(f"DENIED{for_now} by {_rule(decision)}: {decision.reason}")
    return lines


def _who(query: AccessQuery) -> str:
    if query.certificate is None:
        return "a peer without a certificate"
    identity = query.certificate.identity
    names = ", ".join((*identity.dns_names[:8], *identity.uris[:8])) or "no DNS name and no URI"
    return f"{identity.subject or 'no subject'}, {names}, sha256 {identity.fingerprint}"


def _plain(query: AccessQuery, explainer: Explainer, explanation: Explanation) -> dict[str, Any]:
    decision = explanation.decision
    identity = None if query.certificate is None else query.certificate.identity
    granted = isinstance(decision, Allow)
    return {
        "allowed": granted,
        "rule": decision.rule or None,
        "reason": None if isinstance(decision, Allow) else decision.reason,
        "temporary": False if isinstance(decision, Allow) else decision.temporary,
        "limits": _limits(decision.limits) if isinstance(decision, Allow) else None,
        "valid_until": decision.valid_until.isoformat()
        if isinstance(decision, Allow) and decision.valid_until
        else None,
        "direct": decision.direct if isinstance(decision, Allow) else None,
        "decided_by": explainer.described,
        "steps": [{"rule": step.rule, "mismatch": step.mismatch} for step in explanation.steps],
        "notes": list(explanation.notes),
        "role": query.role.value,
        "service": query.service,
        "source": str(query.source),
        "identity": None
        if identity is None
        else {
            "fingerprint": identity.fingerprint,
            "subject": identity.subject,
            "dns_names": identity.dns_names,
            "uris": identity.uris,
        },
    }


def _limits(limits: Limits) -> dict[str, int]:
    names = ("bytes_per_second", "packets_per_second", "bytes_per_month", "connections")
    return {name: getattr(limits, name) for name in names if getattr(limits, name) is not None}


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ConfigError("--at must be a time with its offset, such as 2026-01-01T09:00:00Z")
