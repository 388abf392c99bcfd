"""From the settings to the engine's: the names and the defaults of both are the same."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import intermediate_server
from intermediate_server.client.options import ConnectOptions
from intermediate_server.config import Settings
from intermediate_server.engine import ClientTls, ConnectConfig, EngineError, ListenConfig
from intermediate_server.pki import temporary_secrets
from intermediate_server.server import listener

TLS = ClientTls(verify=False)
SECRETS = temporary_secrets()


def configured(directory: Path, **settings: object) -> ListenConfig:
    """What the engine is told."""
    read = Settings.model_validate({"state_dir": directory, **settings})
    return listener.listen_config(read, listener.load_trust(read), SECRETS, max_connections=7)


def plain(directory: Path) -> ListenConfig:
    """What the engine does by itself."""
    trust = listener.load_trust(Settings.model_validate({"state_dir": directory}))
    return ListenConfig(bind=[], tls=trust.tls, token_key=SECRETS.token_key, reset_key=SECRETS.reset_key)


def stub_defaults(name: str) -> dict[str, object]:
    """Keyword and default of each setting of a class in the stub."""
    source = Path(intermediate_server.__file__).with_name("_engine.pyi").read_text()
    classes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    made = next(node for node in classes if node.name == name).body
    new = next(node for node in made if isinstance(node, ast.FunctionDef) and node.name == "__new__").args
    given = zip(new.kwonlyargs, new.kw_defaults, strict=True)
    defaults = {arg.arg: ast.literal_eval(default) for arg, default in given if default is not None}
    return {name: default for name, default in defaults.items() if default not in (None, ...)}


def test_every_default_is_the_one_of_the_engine(tmp_path: Path) -> None:
    engine = plain(tmp_path).settings()
    assert engine == stub_defaults("ListenConfig")
    assert list(engine) == ListenConfig.names()
    assert configured(tmp_path).settings() == {**engine, "max_connections": 7}


def test_every_default_of_a_client_is_the_one_of_the_engine() -> None:
    remote = ("127.0.0.1", 4433)
    engine = ConnectConfig(remote=remote, server_name="relay", tls=TLS).settings()
    assert engine == stub_defaults("ConnectConfig")
    options = ConnectOptions(remote)
    assert options.config(remote, TLS, options.shown).settings() == engine


def test_what_is_set_arrives(tmp_path: Path) -> None:
    settings: dict[str, object] = {
        "disable_retry": True,
        "idle_timeout": "1500ms",
        "initial_mtu": 1300,
        "send_queue_bytes": "1MiB",
        "inner_addresses": "off",
        "inner_pool_v4": "10.0.0.0/8",
        "inner_pool_v6": "fd00::/56",
        "icmp_source_v4": "192.0.2.8",
        "icmp_source_v6": "fd00::1",
        "icmp_per_second": 8,
    }
    told, default = configured(tmp_path, **settings).settings(), plain(tmp_path).settings()
    assert {name: value for name, value in told.items() if value != default[name]} == {
        "retry": False,
        "idle_timeout_ms": 1_500,
        "initial_mtu": 1300,
        "max_connections": 7,
        "send_queue_bytes": 1 << 20,
        "translate": False,
        "inner_pool_v4": "10.0.0.0/8",
        "inner_pool_v6": "fd00::/56",
        "icmp_source_v4": "192.0.2.8",
        "icmp_source_v6": "fd00::1",
        "icmp_per_second": 8,
    }


@pytest.mark.parametrize(
    ("setting", "kind", "error"),
    [
        ({"mtu": 1200}, TypeError, "there is no setting mtu"),
        ({"keep_alive_ms": "soon"}, EngineError, "keep_alive_ms: 'str' object cannot be interpreted as an integer"),
        ({"max_udp_payload": 1 << 16}, EngineError, "max_udp_payload: "),
    ],
)
def test_a_setting_that_the_engine_does_not_take_is_named(
    setting: dict[str, object], kind: type[Exception], error: str
) -> None:
    with pytest.raises(kind, match=error):
        ConnectConfig(remote=("127.0.0.1", 1), server_name="relay", tls=TLS, **setting)  # type: ignore[arg-type]
