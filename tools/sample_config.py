"""Write deploy/config.toml from the settings, so that the sample never says anything else than the program.

A unit test compares the file with ``render``; run this after changing a setting.
"""

import textwrap
from pathlib import Path

from intermediate_server.config import Settings
from intermediate_server.config.model import TABLES
from intermediate_server.config.values import show_duration, show_size

SAMPLE = Path(__file__).resolve().parents[1] / "deploy" / "config.toml"

HEADER = """\
# Configuration of intermediate-server. Every key is here with its default, commented out; the values of keys without a
# default are examples. Remove the # in front of a key to set it. Flags (--idle-timeout) and environment variables
# (ZTNA_IDLE_TIMEOUT) of the same names come before this file. Unknown keys are errors.
# "intermediate-server check-config --config FILE" says what is wrong without starting anything.
# Durations are seconds or "500ms", "30s", "5m", "2h"; sizes are bytes or "256KiB", "4MiB".
"""

# Their defaults are "none" or depend on the machine.
EXAMPLES = {
    "bind": '["0.0.0.0", "::"]',
    "external_ip": '"203.0.113.10"',
    "cert": '"/etc/intermediate-server/cert.pem"',
    "key": '"/etc/intermediate-server/key.pem"',
    "ca_cert": '"/etc/intermediate-server/ca.pem"',
    "crl": '"/etc/intermediate-server/crl.pem"',
    "deny_list": '"/etc/intermediate-server/denied.txt"',
    "policy": '"my_company.access:Policy"',
    "state_dir": '"/var/lib/intermediate-server"',
    "audit_log": '"/var/log/intermediate-server/audit.jsonl"',
}

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


CALLOUT = """\
#[callout]
#url = "https://access.example.com/decide"
#token-file = "/etc/intermediate-server/callout.token"
#ca-cert = "/etc/intermediate-server/callout-ca.pem"
#deadline = "1500ms"
#cache = "10s"
#cache-size = 10000
#concurrency = 16
#max-answer = "16KiB"
"""

TABLES_EXAMPLES = {"rules": RULES, "callout": CALLOUT}


def render() -> str:
    """The sample as TOML, in the order and the groups of ``--help``."""
    parts = [HEADER]
    last = ""
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        panel = str(extra["panel"])
        if panel != last:
            parts.append(f"# --- {panel} ---\n")
            last = panel
        remark = textwrap.wrap(
            field.description or "", width=116, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
        if extra["kind"] == TABLES:
            parts.append("\n".join([*remark, TABLES_EXAMPLES[name]]))
            continue
        value = EXAMPLES.get(name) or show(field.default, kind=str(extra["kind"]))
        parts.append("\n".join([*remark, f"#{name.replace('_', '-')} = {value}"]) + "\n")
    return "\n".join(parts)


def show(value: object, *, kind: str) -> str:
    """A default as TOML, durations and sizes with their unit."""
    if kind == "DURATION" and isinstance(value, int | float):
        return f'"{show_duration(value)}"'
    if kind == "SIZE" and isinstance(value, int):
        return f'"{show_size(value)}"'
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else f'"{value}"'


if __name__ == "__main__":
    SAMPLE.write_text(render(), encoding="utf-8")
