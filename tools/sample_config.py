"""Write the samples of deploy/ and docs/configuration.md from the settings, so that all say what the programs do.

The systemd units of deploy/ are those that the program prints. A unit test compares the files with ``render``,
``render_page`` and ``units``; run this after changing a setting or a unit.
"""

import itertools
import textwrap
from pathlib import Path

from intermediate_server.cli import unit
from intermediate_server.config import Settings
from intermediate_server.config.callout import CalloutSettings
from intermediate_server.config.clients import AgentSettings, ConnectorSettings
from intermediate_server.config.fields import CALLOUT, TABLES
from intermediate_server.config.loading import ENV_PREFIX
from intermediate_server.config.schema import Field, Model

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
PAGE = ROOT / "docs" / "configuration.md"
MODELS: dict[str, type[Model]] = {
    "config.toml": Settings,
    "agent.toml": AgentSettings,
    "connector.toml": ConnectorSettings,
}
"""The settings of each sample."""

HEADER = """\
# Configuration of intermediate-server. Every key is here with its default, commented out; the values of keys without a
# default are examples. Remove the # in front of a key to set it. Flags (--idle-timeout) and environment variables
# (ZTNA_IDLE_TIMEOUT) of the same names come before this file. Unknown keys are errors.
# "intermediate-server check-config --config FILE" says what is wrong without starting anything.
# Paths count from the directory of this file.
# Durations are seconds or "500ms", "30s", "5m", "2h"; sizes are bytes or "256KiB", "4MiB".
"""

HEADER_OF_CLIENTS = """\
# Settings of intermediate-server {program}: intermediate-server {program} --config FILE
# Every key is here with its default, commented out; the values of keys without a default are examples. Remove the # in
# front of a key to set it. Flags (--idle-timeout) and environment variables (ZTNA_{PROGRAM}_IDLE_TIMEOUT) of the same
# names come before this file. Unknown keys are errors.
# "intermediate-server {program} check-config FILE" says what is wrong without starting anything.
# Paths count from the directory of this file. Durations are seconds or "500ms", "30s", "5m", "2h".
"""

HEADER_OF_PAGE = """\
# Configuration

Every setting of the three programs, generated from the settings themselves by `tools/sample_config.py`. A setting is a
flag, an environment variable or a key of one TOML file; the first of these that is given counts.
[config.toml](../deploy/config.toml), [agent.toml](../deploy/agent.toml) and
[connector.toml](../deploy/connector.toml) in `deploy/` are the same as files to copy. The commands `check-config`,
`agent check-config` and `connector check-config` say what is wrong and start nothing.

- `--config FILE` or `ZTNA_CONFIG` (`ZTNA_AGENT_CONFIG`, `ZTNA_CONNECTOR_CONFIG`) names the file. Without them the
  server reads `/etc/intermediate-server/config.toml`, else `intermediate-server.toml` in the working directory.
- A repeatable flag is a list in a file; a variable has commas or whitespace between the values.
- An unknown key is an error. An unknown variable of these prefixes is warned of and changes nothing. An empty variable
  is an unset one, and an error where it would name a file.
- Durations are seconds or `500ms`, `30s`, `5m`, `2h`; sizes are bytes or `256KiB`, `4MiB`.
- Paths in a TOML file count from its directory, those of flags and variables from the working directory.
- `require-client-cert` and `no-verify-peer` of the server are other names for `client-auth` at `required` and `off`.
"""
COLUMNS = "| flag | variable | key | value | default | |\n|---|---|---|---|---|---|"
COLUMNS_OF_TABLE = "| key | value | default | |\n|---|---|---|---|"
TABLE_KEYS = {"rules": "`[[rules]]`", "callout": "`[callout]`"}

# Their defaults are "none" or depend on the machine.
EXAMPLES = {
    "bind": '["0.0.0.0", "::"]',
    "external_ip": '"203.0.113.10"',
    "cert": '"/etc/intermediate-server/cert.pem"',
    "key": '"/etc/intermediate-server/key.pem"',
    "ca_cert": '"/etc/intermediate-server/ca.pem"',
    "crl": '"/etc/intermediate-server/crl.pem"',
    "deny_list": '"/etc/intermediate-server/denied.txt"',
    "public_address": '["relay.example.com"]',
    "join_signer": '["step", "ca", "sign", "/dev/stdin", "/dev/stdout"]',
    "policy": '"my_company.access:Policy"',
    "state_dir": '"/var/lib/intermediate-server"',
    "admin_hosts": '["relay.example.com"]',
    "memory_budget": '"4GiB"',
    "audit_log": '"/var/log/intermediate-server/audit.jsonl"',
}

EXAMPLES_OF_CLIENTS = {
    "profile": '"{program}.ztna"',
    "server": '"relay.example.com:4433"',
    "metrics_hosts": '["{program}.example.com"]',
    "ca_cert": '"ca.pem"',
    "cert": '"{program}.pem"',
    "key": '"{program}.key"',
    "server_name": '"ztna-server"',
    "status_socket": '"/run/intermediate-server/{program}.sock"',
    "default_service": '"web"',
    "address": '["100.64.0.1"]',
    "hosts": '"/etc/hosts"',
    "forward": '["tcp:127.0.0.1:8080=web", "udp:127.0.0.1:5300=dns"]',
    "map": '["10.100.0.2=web"]',
}
SERVICE = {"agent": '["web"]', "connector": '["web=tcp://127.0.0.1:8080", "dns=udp://10.0.0.53:53"]'}

# A table ends the settings of a file, so these come last.
RULES = """\
# docs/access.md has every key. Without rules, and without policy, the names in client certificates decide.
#[[rules]]
#name = "staff"
#dns = ["*.staff.example.com"]
#network = ["198.51.100.0/24"]
#agent = ["web", "db-*"]
#limits = { connections = 4, bytes-per-second = 10_000_000 }

#[[rules]]
#name = "as the certificate says"
#peers = "certified"
#services = "certificate"
"""

EXAMPLES_OF_CALLOUT = {
    "url": '"https://access.example.com/decide"',
    "token_file": '"/etc/intermediate-server/callout.token"',
    "ca_cert": '"/etc/intermediate-server/callout-ca.pem"',
}


def examples(file: str) -> dict[str, str]:
    """The values of a sample that are no defaults."""
    program = file.removesuffix(".toml")
    if MODELS[file] is Settings:
        return EXAMPLES
    texts = {name: text.format(program=program) for name, text in EXAMPLES_OF_CLIENTS.items()}
    return {**texts, "service": SERVICE[program]}


def render(file: str) -> str:
    """A sample as TOML, in the groups of ``--help``."""
    model, shown = MODELS[file], examples(file)
    program = file.removesuffix(".toml")
    header = HEADER if model is Settings else HEADER_OF_CLIENTS.format(program=program, PROGRAM=program.upper())
    parts = [header]
    last = ""
    for panel, name, field in grouped(model):
        if panel != last:
            parts.append(f"# --- {panel} ---\n")
            last = panel
        remark = textwrap.wrap(
            field.description, width=116, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
        if field.kind == TABLES:
            parts.append("\n".join([*remark, RULES if name == "rules" else render_callout()]))
            continue
        value = shown.get(name) or show(field)
        parts.append("\n".join([*remark, f"#{name.replace('_', '-')} = {value}"]) + "\n")
    return "\n".join(parts)


def render_callout() -> str:
    """The table of a sample; a bearer token has one place."""
    fields = {name: field for name, field in CalloutSettings.model_fields.items() if name != "token_env"}
    values = (f"#{name.replace('_', '-')} = {EXAMPLES_OF_CALLOUT.get(name) or show(fields[name])}" for name in fields)
    return "\n".join(["#[callout]", *values, ""])


def render_page() -> str:
    """docs/configuration.md: a table for each group of each program."""
    parts = [HEADER_OF_PAGE]
    for file, model in MODELS.items():
        program = "serve" if model is Settings else file.removesuffix(".toml")
        prefix = ENV_PREFIX if model is Settings else f"{ENV_PREFIX}{program.upper()}_"
        parts.append(f"## intermediate-server {program}\n")
        for panel, settings in itertools.groupby(grouped(model), key=lambda setting: setting[0]):
            rows = (row(name, field, prefix) for _, name, field in settings)
            parts.append("\n".join([f"### {panel}\n", COLUMNS, *rows, ""]))
        if model is Settings:
            rows = (row_of_table(name, field) for name, field in CalloutSettings.model_fields.items())
            parts.append("\n".join([f"### {CALLOUT}\n", COLUMNS_OF_TABLE, *rows, ""]))
    return "\n".join(parts)


def row(name: str, field: Field, prefix: str) -> str:
    """One setting as a line of a table."""
    key = name.replace("_", "-")
    if field.kind == TABLES:
        return f"| | | {TABLE_KEYS[name]} | tables, in a file only | none | {field.description} |"
    flag = f"`--{key}`, `--no-{key}`" if field.is_flag else f"`--{key}`"
    return f"| {flag} | `{prefix}{name.upper()}` {row_of_table(name, field)}"


def row_of_table(name: str, field: Field) -> str:
    """One key of a file as a line of a table."""
    values = "true or false" if field.is_flag else field.kind.replace("|", " or ")
    limits = f", from {field.bounds}" if field.bounds else ""
    if field.required:
        default = "must be given"
    elif field.made:
        default = "depends on the host"
    elif field.default in (None, (), ""):
        default = "none"
    else:
        default = f"`{field.show(field.default)}`"
    return f"| `{name.replace('_', '-')}` | {values}{limits} | {default} | {field.description} |"


def units() -> dict[str, str]:
    """The files of deploy/ for systemd, by name."""
    place = unit.Place(str(unit.ANYWHERE / "bin" / unit.PROGRAM))
    return {name: unit.render(kind, place) for kind, name in unit.KINDS.items()}


def grouped(model: type[Model]) -> list[tuple[str, str, Field]]:
    """Group, name and field of each setting, in the groups of ``--help``."""
    panels = {name: field.panel for name, field in model.model_fields.items()}
    order = list(dict.fromkeys(panels.values()))
    names = sorted(panels, key=lambda name: order.index(panels[name]))
    return [(panels[name], name, model.model_fields[name]) for name in names]


def show(field: Field) -> str:
    """A default as TOML, durations and sizes with their unit."""
    text, number = field.show(field.default), isinstance(field.default, int | float)
    return text if number and field.kind not in ("DURATION", "SIZE") else f'"{text}"'


if __name__ == "__main__":
    for file in MODELS:
        (DEPLOY / file).write_text(render(file), encoding="utf-8")
    PAGE.write_text(render_page(), encoding="utf-8")
    for name, text in units().items():
        (DEPLOY / name).write_text(text, encoding="utf-8")
