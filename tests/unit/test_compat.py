"""The older server's files and arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.settings import problem, settings

from intermediate_server.compat.arguments import with_positional
from intermediate_server.errors import ConfigError

Write = Callable[[str], Path]


@pytest.fixture
def old(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "intermediate.json"
        path.write_text(text)
        return path

    return write


def test_the_older_servers_file(old: Write) -> None:
    text = json.dumps(
        {
            "_comment": "a sample",
            "_comment_tls": ["certificates"],
            "port": 5000,
            "bind_addr": "0.0.0.0",
            "external_ip": "203.0.113.7",
            "cert_path": "c.pem",
            "key_path": "k.pem",
            "ca_cert_path": None,
            "verify_peer": True,
            "require_client_cert": True,
            "disable_retry": True,
            "metrics_port": 0,
        }
    )
    found = settings({"config": str(old(text))})
    assert (found.port, str(found.bind[0]), str(found.external_ip)) == (5000, "0.0.0.0", "203.0.113.7")
    assert (found.cert, found.key, found.ca_cert) == (Path("c.pem"), Path("k.pem"), None)
    assert (found.client_auth, found.disable_retry, found.metrics_port) == ("required", True, 0)


@pytest.mark.parametrize(
    ("keys", "auth"),
    [
        ({}, "required"),
        ({"verify_peer": True}, "optional"),
        ({"verify_peer": False}, "off"),
        ({"require_client_cert": False}, "optional"),
        ({"require_client_cert": True}, "required"),
        ({"client_auth": "off"}, "off"),
    ],
)
def test_what_the_older_servers_switches_mean(old: Write, keys: dict[str, object], auth: str) -> None:
    assert settings({"config": str(old(json.dumps(keys)))}).client_auth == auth


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"prot": 1}', "did you mean port?"),
        ('{"require_client_cert": true, "verify_peer": false}', "contradict each other"),
        ('{"verify_peer": "perhaps"}', "verify_peer: 'perhaps' is not true or false"),
        ("[1, 2]", "instead of settings by name"),
        ('{"port": 1', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"port": 1e999}', "not a whole number"),
    ],
)
def test_bad_files_of_the_older_server(old: Write, text: str, part: str) -> None:
    said = problem({"config": str(old(text))})
    assert part in said
    assert "intermediate.json" in said


def test_arguments_without_a_flag_fill_in_what_no_flag_says() -> None:
    flags: dict[str, object] = {"port": None, "bind": [], "cert": "flag.pem"}
    found = with_positional(flags, ["4434", "c.pem", "k.pem", "127.0.0.1"])
    assert found == {"port": "4434", "cert": "flag.pem", "key": "k.pem", "bind": "127.0.0.1"}
    with pytest.raises(ConfigError, match="at most 5 are known"):
        with_positional({}, list("123456"))
