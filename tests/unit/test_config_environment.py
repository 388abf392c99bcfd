"""Variables that are settings and those that are not, lists in one variable, and where paths count from."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.settings import problem, resolved, settings

from intermediate_server.config import resolve_client
from intermediate_server.config.clients import AgentSettings, ConnectorSettings


def written(tmp_path: Path, text: str, name: str = "config.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


class TestEnvironment:
    @pytest.mark.parametrize("service", ["ZTNA", "ZTNA_RELAY", "ZTNA_METRICS", "ZTNA_AGENT", "ZTNA_AGENT_SERVER"])
    def test_what_kubernetes_sets_for_a_service_is_no_setting(self, service: str) -> None:
        env = {
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": "4433",
            f"{service}_SERVICE_PORT_QUIC": "4433",
            f"{service}_PORT": "udp://10.0.0.1:4433",
            f"{service}_PORT_4433_UDP": "udp://10.0.0.1:4433",
            f"{service}_PORT_4433_UDP_PROTO": "udp",
            f"{service}_PORT_4433_UDP_PORT": "4433",
            f"{service}_PORT_4433_UDP_ADDR": "10.0.0.1",
            f"{service}_PORT_9090_TCP": "tcp://10.0.0.1:9090",
        }
        found = resolved(env=env)
        assert (found.settings, found.warnings) == (settings(), ())
        flags = {"server": "relay:1", "no_verify_peer": True, "forward": ["tcp:127.0.0.1:0=web"]}
        end = resolve_client(AgentSettings, "agent", flags, env=env)
        assert (end.settings.server, end.warnings) == ("relay:1", ())

    def test_a_setting_beside_such_a_variable_is_still_one(self) -> None:
        assert settings(env={"ZTNA_PORT": "5000", "ZTNA_SERVICE_HOST": "10.0.0.1"}).port == 5000
        assert "ZTNA_PORT: 'http://x' is not" in problem(env={"ZTNA_PORT": "http://x"})

    @pytest.mark.parametrize(
        ("text", "values"),
        [
            ("tcp:127.0.0.1:1=a", ("tcp:127.0.0.1:1=a",)),
            ("tcp:127.0.0.1:1=a,udp:127.0.0.1:2=b", ("tcp:127.0.0.1:1=a", "udp:127.0.0.1:2=b")),
            ("tcp:127.0.0.1:1=a, udp:[::1]:2=b", ("tcp:127.0.0.1:1=a", "udp:[::1]:2=b")),
            ("\n  tcp:127.0.0.1:1=a\n  udp:127.0.0.1:2=b\n", ("tcp:127.0.0.1:1=a", "udp:127.0.0.1:2=b")),
        ],
    )
    def test_a_list_in_one_variable_is_a_list(self, text: str, values: tuple[str, ...]) -> None:
        env = {"ZTNA_AGENT_FORWARD": text, "ZTNA_AGENT_SERVER": "a", "ZTNA_AGENT_NO_VERIFY_PEER": "1"}
        assert resolve_client(AgentSettings, "agent", {}, env=env).settings.forward == values

    def test_several_backends_stay_together(self) -> None:
        text = "web=tcp://a:1,tcp://b:1,dns=udp://c:53, udp://d:53  db=tcp://e:2"
        env = {"ZTNA_CONNECTOR_SERVICE": text, "ZTNA_CONNECTOR_SERVER": "a", "ZTNA_CONNECTOR_NO_VERIFY_PEER": "1"}
        found = resolve_client(ConnectorSettings, "connector", {}, env=env).settings.service
        assert found == ("web=tcp://a:1,tcp://b:1", "dns=udp://c:53,udp://d:53", "db=tcp://e:2")

    def test_addresses_too(self) -> None:
        assert list(map(str, settings(env={"ZTNA_BIND": "127.0.0.1, ::1\n10.0.0.1"}).bind)) == [
            "127.0.0.1",
            "::1",
            "10.0.0.1",
        ]
        assert "ZTNA_BIND: holds no value" in problem(env={"ZTNA_BIND": " , "})

    @pytest.mark.parametrize(
        "variable", ["ZTNA_CRL", "ZTNA_CA_CERT", "ZTNA_DENY_LIST", "ZTNA_AUDIT_LOG", "ZTNA_STATE_DIR", "ZTNA_CONFIG"]
    )
    def test_an_empty_path_is_an_error_wherever_it_stands(self, variable: str, tmp_path: Path) -> None:
        assert problem(env={variable: ""}) == f"{variable}: an empty path; name a file, or unset the variable"
        name = variable.removeprefix("ZTNA_").lower()
        assert "an empty path" in problem({name: ""})
        if name != "config":
            assert "an empty path" in problem(files=[written(tmp_path, f"{name} = ''\n")])


class TestPaths:
    def test_those_of_a_file_count_from_it_and_those_of_a_flag_from_where_one_is(self, tmp_path: Path) -> None:
        directory = tmp_path / "etc"
        directory.mkdir()
        file = directory / "config.toml"
        file.write_text("cert = 'c.pem'\nkey = '/k.pem'\ncrl = '~/crl.pem'\naudit-log = '-'\nstate_dir = 'state'\n")
        found = settings({"ca_cert": "ca.pem"}, files=[file])
        assert (found.cert, found.key, found.ca_cert) == (directory / "c.pem", Path("/k.pem"), Path("ca.pem"))
        assert found.crl == Path("~/crl.pem").expanduser()
        assert (found.audit_log, found.state_dir) == (Path("-"), directory / "state")

    def test_those_of_a_callout_too(self, tmp_path: Path) -> None:
        file = written(tmp_path, "[callout]\nurl = 'https://a.example/'\ntoken-file = 't'\nca_cert = '/ca.pem'\n")
        callout = settings(files=[file]).callout
        assert callout is not None
        assert (callout.token_file, callout.ca_cert) == (tmp_path / "t", Path("/ca.pem"))

    def test_those_of_the_older_servers_file_as_there(self, tmp_path: Path) -> None:
        file = written(tmp_path, '{"cert_path": "c.pem", "key_path": "k.pem"}', "old.json")
        assert settings(files=[file]).cert == Path("c.pem")
