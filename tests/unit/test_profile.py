"""Profiles: what is kept over a crash, what is refused, and who may read them."""

from __future__ import annotations

import os
import subprocess
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.profiles import TOKEN, authority, draft

from intermediate_server.client import profile as profiles
from intermediate_server.client.agent import AgentOptions
from intermediate_server.client.options import ConnectOptions
from intermediate_server.client.profile import Draft, NoProfile, Profile
from intermediate_server.client.profile_text import ProfileError
from intermediate_server.client.relay import Relay
from intermediate_server.config import resolve_client
from intermediate_server.config.clients import AgentSettings
from intermediate_server.errors import ConfigError
from intermediate_server.pki import keys
from intermediate_server.types import Role


def make(path: Path, **kwargs: object) -> Profile:
    begun = profiles.begin(path, TOKEN)
    assert isinstance(begun, Draft)
    return profiles.finish(path, begun, authority().issue_for(begun, **kwargs))


def test_a_profile_is_what_was_issued(tmp_path: Path) -> None:
    path = tmp_path / "new" / "connector.ztna"
    made = make(path)
    assert Profile.load(path) == made
    assert (made.name, made.role, made.services, made.token) == ("office", Role.CONNECTOR, ("web",), TOKEN)
    assert made.places() == [("relay.example", 4433)]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir() if each != path] == [".connector.ztna.lock"]
    assert "PRIVATE" not in repr(made)


def test_openssl_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "connector.ztna"
    make(path)
    for command in (["x509", "-noout", "-subject"], ["pkey", "-noout"]):
        done = subprocess.run(["openssl", *command, "-in", path], capture_output=True, text=True, check=True)
        assert done.stdout.strip() in ("subject=CN = office", "subject=CN=office", "")


def test_a_join_that_is_repeated_goes_on_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "agent.ztna"
    first = profiles.begin(path, TOKEN)
    assert profiles.begin(path, TOKEN) == first
    with pytest.raises(NoProfile, match="has not finished"):
        Profile.load(path)
    assert profiles.begin(path, b"other!") != first, "another token, another key"


def test_a_join_goes_over_no_valid_profile(tmp_path: Path) -> None:
    path = tmp_path / "agent.ztna"
    made = make(path)
    assert profiles.begin(path, TOKEN) == made
    with pytest.raises(ProfileError, match='has joined as connector "office"'):
        profiles.begin(path, b"other!")
    assert Profile.load(path) == made


def test_a_join_replaces_a_profile_that_has_expired(tmp_path: Path) -> None:
    path = tmp_path / "agent.ztna"
    make(path, life=timedelta(hours=-1))
    assert isinstance(profiles.begin(path, b"other!"), Draft)


def test_an_answer_for_another_key_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "agent.ztna"
    begun = profiles.begin(path, TOKEN)
    assert isinstance(begun, Draft)
    with pytest.raises(ProfileError, match="does not belong"):
        profiles.finish(path, begun, authority().issue_for(draft()))
    assert profiles.read(path) == begun, "the key is still there for another try"


def test_an_answer_that_could_not_be_read_again_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "agent.ztna"
    begun = profiles.begin(path, TOKEN)
    assert isinstance(begun, Draft)
    for servers in (("no port:x",), ("a\nb",)):
        with pytest.raises(ProfileError):
            profiles.finish(path, begun, authority().issue_for(begun, servers=servers))
    assert profiles.read(path) == begun


def test_two_joins_at_once_make_one_key(tmp_path: Path) -> None:
    path = tmp_path / "agent.ztna"
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(profiles.begin(path, TOKEN))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(each == found[0] for each in found)


def test_a_profile_that_changed_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "agent.ztna"
    begun = profiles.begin(path, TOKEN)
    assert isinstance(begun, Draft)
    profiles.delete(path)
    with pytest.raises(ProfileError, match="changed by another command"):
        profiles.finish(path, begun, authority().issue_for(begun))
    assert not path.exists()


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "agent.ztna"
    made = make(path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ProfileError, match="No space left on device; make room"):
        made.with_issued(authority().issue_for(Draft(made.key_pem), name="other")).save(path)
    monkeypatch.undo()
    assert Profile.load(path) == made
    assert len(list(tmp_path.iterdir())) == 2, "the profile and its lock"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version = 1\n", "", "no version"),
        ('name = "office"', 'name = ""', "no usable text"),
        ('name = "office"', "name = 1", "no usable text"),
        ('name = "office"', 'name = "a\\u202Eb"', "no usable text"),
        ('name = "office"\n', "", "name is missing"),
        ('name = "office"', 'name = "office"\nmore = 1', "more is unknown"),
        ('role = "connector"', 'role = "king"', "neither agent nor connector"),
        ('services = ["web"]', 'services = "web"', "no list"),
        ('servers = ["relay.example"]', "servers = []", "no list of 1"),
        ('servers = ["relay.example"]', 'servers = ["a:b:99999x"]', "names no usable relay"),
        ("renew-after = ", "renew-after = 2026-01-01T00:00:00 #", "no time with its zone"),
        ("token = ", "token = 'zz' #", "no id of a token"),
        ("-----BEGIN PRIVATE KEY-----", "-----BEGIN PUBLIC KEY-----", "private key cannot be read"),
        ("-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\n!!", "cannot be read"),
        ("# Profile", "\0 Profile", "not TOML"),
    ],
)
def test_a_damaged_one_has_one_clear_error(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "agent.ztna"
    make(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ProfileError, match=r"profile .*agent\.ztna is damaged") as caught:
        Profile.load(path)
    assert said in str(caught.value)
    assert "join again with a new token" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_of_a_newer_version_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "agent.ztna"
    make(path)
    path.write_text(path.read_text().replace("version = 1", "version = 2", 1))
    with pytest.raises(ProfileError, match=r"agent\.ztna is of a newer version \(2\); upgrade intermediate-server"):
        Profile.load(path)


def test_others_may_not_read_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.ztna"
    with pytest.raises(NoProfile, match="there is no profile"):
        Profile.load(path)
    made = make(path)
    path.chmod(0o644)
    with pytest.raises(ProfileError, match="can be read by everyone; run: chmod 600"):
        Profile.load(path)
    assert Profile.load(path, readable=True) == made
    path.write_bytes(b"#" * (profiles.MAX_BYTES + 1))
    path.chmod(0o600)
    with pytest.raises(ProfileError, match="is larger than"):
        Profile.load(path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match="--profile"):
        profiles.begin(tmp_path / "file" / "agent.ztna", TOKEN)


def test_the_usual_place() -> None:
    assert profiles.default_profile(Role.AGENT, {"STATE_DIRECTORY": "/x"}) == Path("/x/agent.ztna")
    env = {"XDG_STATE_HOME": "/s"}
    if os.geteuid():
        assert profiles.default_profile(Role.CONNECTOR, env) == Path("/s/intermediate-server/connector.ztna")


def test_a_connection_by_profile(tmp_path: Path) -> None:
    path = tmp_path / "connector.ztna"
    made = make(path, servers=("192.0.2.1", "[2001:db8::1]:4434"))
    options = ConnectOptions(profile=path)
    assert options.places() == [("192.0.2.1", 4433), ("2001:db8::1", 4434)]
    assert options.shown.server_name == "ztna-server"
    assert str(path) in options.shown.ours
    assert options.identity_file == path
    assert keys.load_certificates(path)[0] == made.leaf
    options.tls()


class TestSettings:
    def resolve(self, **flags: object) -> AgentSettings:
        return resolve_client(AgentSettings, "agent", flags, env={}).settings

    def test_the_usual_profile_when_no_relay_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "agent.ztna"
        settings = self.resolve()
        with pytest.raises(NoProfile):
            Relay.of(settings, default=path)
        with pytest.raises(ConfigError, match="--profile FILE"):
            Relay.of(settings)
        make(path, role=Role.AGENT)
        relay = Relay.of(settings, default=path)
        assert (relay.server, relay.profile) == ("relay.example", path)
        assert Relay.of(self.resolve(profile=str(path))) == relay

    def test_files_and_profiles_exclude_each_other(self) -> None:
        for flags in ({"server": "relay"}, {"ca_cert": "x"}, {"cert": "x", "key": "y"}, {"server_name": "x"}):
            with pytest.raises(ConfigError, match=r"profile and .* exclude each other"):
                self.resolve(profile="p", **flags)
        with pytest.raises(ConfigError, match="server is not set"):
            self.resolve(ca_cert="x")

    def test_an_agent_with_a_profile_needs_no_more(self, tmp_path: Path) -> None:
        path = tmp_path / "agent.ztna"
        made = make(path, role=Role.AGENT, services=("web", "db"))
        options = AgentOptions.of(self.resolve(profile=str(path)))
        assert options.all_services() == ("web", "db")
        assert [(each.protocol, each.host, each.port) for each in options.forwards] == [("tcp", "127.0.0.1", 0)] * 2
        assert AgentOptions.of(self.resolve(profile=str(path), service=["db"])).all_services() == ("db",)
        assert AgentOptions.of(self.resolve(profile=str(path), tun="true")).all_services() == ("web", "db")
        chosen = AgentOptions.of(self.resolve(profile=str(path), forward=["udp:127.0.0.1:53=dns"]))
        assert chosen.all_services() == ("dns",)
        made.with_issued(authority().issue_for(Draft(made.key_pem), services=("*",))).save(path)
        with pytest.raises(ConfigError, match="names no service: give those to reach"):
            AgentOptions.of(self.resolve(profile=str(path)))
