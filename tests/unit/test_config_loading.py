"""From flags, environment and file to settings: who wins, what is unknown, what is out of range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from tests.unit.settings import problem, resolved, settings

from intermediate_server.config import Settings, milliseconds
from intermediate_server.config.files import MAX_FILE_BYTES
from intermediate_server.config.host import default_state_dir, host_has_ipv6
from intermediate_server.engine import EngineError, inner_address

Write = Callable[[str], Path]


@pytest.fixture
def toml(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


class TestPrecedence:
    def test_a_flag_wins_over_a_variable_and_that_over_the_file_and_that_over_the_default(self, toml: Write) -> None:
        file = [toml("port = 3\nmax-connections = 30\nmax-half-open = 300\n")]
        env = {"ZTNA_PORT": "2", "ZTNA_MAX_CONNECTIONS": "20"}
        found = resolved({"port": "1"}, env, file)
        assert (found.settings.port, found.settings.max_connections, found.settings.max_half_open) == (1, 20, 300)
        assert found.settings.idle_timeout == 30.0
        assert found.origins["port"] == "--port"
        assert found.origins["max_connections"] == "ZTNA_MAX_CONNECTIONS"
        assert found.origins["max_half_open"].endswith("config.toml: max-half-open")
        assert "idle_timeout" not in found.origins
        assert found.file == file[0]

    def test_a_flag_not_given_and_an_empty_variable_say_nothing(self) -> None:
        assert settings({"port": None, "bind": []}, {"ZTNA_PORT": ""}) == settings()

    def test_a_named_file_wins_over_the_default_ones(self, toml: Write, tmp_path: Path) -> None:
        named = tmp_path / "named.toml"
        named.write_text("port = 5\n")
        default = toml("port = 4\n")
        assert settings(files=[tmp_path / "missing.toml", default]).port == 4
        assert settings({"config": str(named)}, files=[default]).port == 5
        assert settings(env={"ZTNA_CONFIG": str(named)}, files=[default]).port == 5
        assert settings({"config": str(named)}, {"ZTNA_CONFIG": "/nowhere"}).port == 5

    def test_other_names_of_client_auth_obey_precedence_too(self, toml: Write) -> None:
        file = [toml("client-auth = 'optional'\n")]
        assert settings(files=file).client_auth == "optional"
        assert settings(env={"ZTNA_NO_VERIFY_PEER": "yes"}, files=file).client_auth == "off"
        assert settings({"require_client_cert": True}, {"ZTNA_CLIENT_AUTH": "off"}, file).client_auth == "required"
        assert settings({"no_verify_peer": False}, files=file).client_auth == "optional", "a no says nothing"

    def test_contradicting_names_in_one_place_are_an_error(self) -> None:
        text = problem({"require_client_cert": True, "no_verify_peer": True})
        assert "--require-client-cert, --no-verify-peer: contradict each other" in text

    def test_one_setting_in_two_spellings_is_an_error(self, toml: Write) -> None:
        assert "the same setting as" in problem(files=[toml("idle-timeout = 5\nidle_timeout = 6\n")])


class TestUnknown:
    @pytest.mark.parametrize(
        ("key", "near"),
        [("idle-timout", "idle-timeout"), ("PORT_", "port"), ("max_conections", "max-connections")],
    )
    def test_a_file_key_names_its_nearest(self, toml: Write, key: str, near: str) -> None:
        text = problem(files=[toml(f"{key} = 1\n")])
        assert f"config.toml: {key}: unknown setting; did you mean {near}?" in text

    def test_a_variable_that_is_no_setting_is_told_of_and_stops_nothing(self) -> None:
        found = resolved(env={"ZTNA_METRICS_PROT": "1", "ZTNA_QQQQQQQ": "1"})
        assert found.warnings == (
            "ZTNA_METRICS_PROT is no setting and not read; did you mean ZTNA_METRICS_PORT?",
            "ZTNA_QQQQQQQ is no setting and not read; intermediate-server serve --help lists them",
        )
        assert found.settings == settings()

    def test_what_resembles_nothing_is_sent_to_the_help(self, toml: Write) -> None:
        assert "serve --help lists them" in problem(files=[toml("qqqqqqqq = 1\n")])

    def test_a_hostile_key_cannot_drive_the_terminal(self, toml: Write) -> None:
        text = problem(files=[toml('"\\u001b[2J\\nport" = 1\n')])
        assert text.isprintable()
        assert "unknown setting" in text

    def test_all_problems_are_told_at_once_but_not_a_thousand(self, toml: Write) -> None:
        file = toml("port = 70000\nidle-timeout = 'x'\ncert = 'c.pem'\nnonsense = 1\n")
        lines = problem(files=[file]).splitlines()
        assert lines[0] == "4 problems in the configuration:"
        for part in ("port: 70000 is out of range, 0 to 65535", "'x' is not a duration", "set without key", "nonsense"):
            assert any(part in line for line in lines), part
        many = problem(files=[toml("".join(f"unknown-{n} = 1\n" for n in range(1000)))]).splitlines()
        assert len(many) == 22
        assert many[-1].strip() == "and 980 more"


LIMITED = [name for name, info in Settings.model_fields.items() if info.low is not None or info.high is not None]


class TestModel:
    def test_every_limit_has_a_default_within_its_range_on_both_sides(self) -> None:
        assert len(LIMITED) > 20
        for name in LIMITED:
            info = Settings.model_fields[name]
            low, high = info.low, info.high
            assert low is not None
            assert high is not None
            # The memory there is has no default: the machine says it.
            assert name == "memory_budget" or low <= info.default <= high, name

    @pytest.mark.parametrize("name", LIMITED)
    def test_the_ends_of_a_range_pass_and_what_is_beyond_does_not(self, name: str) -> None:
        info = Settings.model_fields[name]
        low, high = info.low, info.high
        assert low is not None
        assert high is not None
        for value in (low, high):
            assert getattr(settings({name: str(value)}), name) == value
        for beyond in (str(high + 1), "-1", "a"):
            text = problem({name: beyond})
            assert text.startswith(f"--{name.replace('_', '-')}: ")

    def test_settings_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError):
            settings().port = 1  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("icmp_source_v4", "fd00::1"),
            ("icmp_source_v4", "127.0.0.1"),
            ("icmp_source_v6", "192.0.0.8"),
            ("icmp_source_v6", "ff02::1"),
            ("external_ip", "0.0.0.0"),
            ("external_ip", "224.0.0.1"),
            ("inner_addresses", "on"),
            ("client_auth", "sometimes"),
            ("policy", "rm -rf /"),
            ("log_level", "loud"),
        ],
    )
    def test_values_that_make_no_sense(self, name: str, value: str) -> None:
        assert problem({name: value}).startswith(f"--{name.replace('_', '-')}: ")

    @pytest.mark.parametrize(
        ("pool", "usable"),
        [
            ("10.0.0.0/8", True),
            ("192.0.2.4/30", True),
            ("169.0.0.0/8", True),
            ("0.0.0.0/0", False),
            ("10.0.0.0/31", False),
            ("0.0.0.0/8", False),
            ("127.0.0.0/8", False),
            ("169.254.1.0/24", False),
            ("224.0.0.0/8", False),
            ("240.0.0.0/8", False),
            ("fd00::/32", True),
            ("fd00::/120", True),
            ("2001:db8::/64", True),
            ("2002:c000:200::/48", True),
            ("64:ff9b::c000:200/120", True),
            ("fc00::/31", False),
            ("fd00::/121", False),
            ("::/96", False),
            ("::ffff:0:0/96", False),
            ("fe80::/64", False),
            ("ff00::/32", False),
            ("2002:7f00::/32", False),
            ("2002:f000:1::/48", False),
            ("64:ff9b::a9fe:100/120", False),
        ],
    )
    def test_a_pool_is_usable_exactly_when_the_engine_takes_it(self, pool: str, usable: bool) -> None:
        key = f"pool_v{6 if ':' in pool else 4}"
        if usable:
            inner_address(bytes(32), **{key: pool})
            assert str(getattr(settings({f"inner_{key}": pool}), f"inner_{key}")) == pool
        else:
            with pytest.raises(EngineError):
                inner_address(bytes(32), **{key: pool})
            assert problem({f"inner_{key}": pool}).startswith(f"--inner-pool-v{key[-1]}: ")

    @pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
    def test_certificate_and_key_come_together(self, given: str, missing: str) -> None:
        assert f"{given} is set without {missing}" in problem({given: "x.pem"})

    def test_where_it_listens(self) -> None:
        assert settings().listen_addresses(ipv6=True) == [("::", 4433)]
        assert settings().listen_addresses(ipv6=False) == [("0.0.0.0", 4433)]
        assert settings().listen_addresses() == [("::" if host_has_ipv6() else "0.0.0.0", 4433)]
        both = settings({"bind": ["127.0.0.1", "[::1]"], "port": "1"})
        assert both.bind == (IPv4Address("127.0.0.1"), IPv6Address("::1"))
        assert both.listen_addresses() == [("127.0.0.1", 1), ("::1", 1)]
        assert settings({"bind": "0.0.0.0,127.0.0.1,::1"}).listen_addresses() == [("0.0.0.0", 4433), ("::1", 4433)]
        assert settings({"bind": "127.0.0.1,::"}).listen_addresses() == [("::", 4433)]

    def test_the_state_directory(self) -> None:
        def where(env: Mapping[str, str], root: bool = False) -> str:
            return str(default_state_dir(env, root=root))

        assert where({"STATE_DIRECTORY": "/run/a:/run/b", "HOME": "/h"}, root=True) == "/run/a"
        assert where({"HOME": "/h"}, root=True) == "/var/lib/intermediate-server"
        assert where({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == "/x/intermediate-server"
        assert where({"XDG_STATE_HOME": "relative", "HOME": "/h"}) == "/h/.local/state/intermediate-server"

    def test_the_engine_counts_milliseconds(self) -> None:
        assert [milliseconds(value) for value in (0.1, 0.0005, 30.0)] == [100, 0, 30_000]


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "part"),
        [
            (b"port = ", "not valid TOML"),
            (b"\xff\xfe", "not UTF-8 text at byte 0"),
            (b"port = 1\nport = 2\n", "not valid TOML"),
            (b"x = " + b"[" * 50_000, "deeply"),
            (b"# " + b"x" * MAX_FILE_BYTES, "larger than"),
            (b"port = 1979-05-27", "not a whole number"),
            (b"[port]\nvalue = 1", "not a whole number"),
            (b"port = nan", "not a whole number"),
        ],
    )
    def test_bad_toml(self, tmp_path: Path, content: bytes, part: str) -> None:
        path = tmp_path / "config.toml"
        path.write_bytes(content)
        text = problem({"config": str(path)})
        assert part in text
        assert text.isprintable()

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        assert "not found; name an existing file" in problem({"config": str(tmp_path / "no.toml")})
        assert "cannot be read" in problem({"config": str(tmp_path)})
        assert problem({"config": ""}).startswith("--config: ")
        assert problem(env={"ZTNA_CONFIG": "\0"}).startswith("ZTNA_CONFIG: ")

    def test_a_byte_order_mark_is_no_error(self, toml: Write) -> None:
        assert settings(files=[toml("\ufeffport = 7\n")]).port == 7
