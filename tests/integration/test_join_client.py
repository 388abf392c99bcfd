"""``join`` and ``leave`` against a relay that answers as the test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.client.profile import Draft, Profile, read
from intermediate_server.join.messages import Answer, Join, Leave, Left, Pending, Refused, Request, encode
from intermediate_server.pki import keys
from intermediate_server.types import Role
from tests.integration.commands import PATIENCE
from tests.integration.join_relay import JoinRelay, join_relay, run, start


@pytest.fixture
async def relay() -> AsyncIterator[JoinRelay]:
    async with join_relay() as made:
        yield made


class Kept:
    """The profile that a connector makes by default."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def there(self) -> bool:
        return self.path.exists()

    def put(self, text: str) -> None:
        self.path.write_text(text)

    def remove(self) -> None:
        self.path.unlink()


@pytest.fixture
def profile(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "state" / "connector.ztna")


def public_key(request: Request) -> bytes:
    assert isinstance(request, Join)
    key = x509.load_der_x509_csr(request.csr).public_key()
    return keys.public_bytes(key)


def kept_key(path: Path) -> bytes:
    found = read(path)
    assert found is not None
    return keys.public_bytes(keys.parse_key(found.key_pem, "").public_key())


async def test_a_token_becomes_a_profile(relay: JoinRelay, tmp_path: Path, profile: Kept) -> None:
    token = relay.token()
    done = await run(tmp_path, "join", str(token))
    made = Profile.load(profile.path)
    until = f"{made.leaf.not_valid_after_utc:%Y-%m-%d}"
    assert done.out == (
        f'joined as connector "office" for web; certificate until {until}, renewed by itself; profile {profile.path}\n'
    )
    assert (done.code, done.err) == (0, "")
    (request,) = relay.asked
    assert isinstance(request, Join)
    assert (request.token_id, request.secret) == (token.id, token.secret)
    assert public_key(request) == kept_key(profile.path)
    assert x509.load_der_x509_csr(request.csr).is_signature_valid
    assert relay.shown == [None]
    again = await run(tmp_path, "join", str(token))
    assert (again.code, again.out) == (0, done.out)
    assert len(relay.asked) == 1, "it has its certificate"


async def test_the_key_is_kept_before_it_is_sent_and_over_a_kill(
    relay: JoinRelay, tmp_path: Path, profile: Kept
) -> None:
    came, kept = asyncio.Event(), list[bytes]()

    async def silent(request: Request, _: bytes | None) -> Answer:
        kept.append(kept_key(profile.path))
        came.set()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    relay.reply = silent
    token = str(relay.token())
    process = await start(tmp_path, "join", token)
    async with asyncio.timeout(PATIENCE):
        await came.wait()
    process.kill()
    await process.communicate()
    assert isinstance(read(profile.path), Draft)
    relay.reply = None
    assert (await run(tmp_path, "join", token)).code == 0
    first, second = relay.asked
    assert public_key(first) == public_key(second) == kept[0]


async def test_a_relay_with_another_ca_gets_nothing(relay: JoinRelay, tmp_path: Path, profile: Kept) -> None:
    done = await run(tmp_path, "join", str(relay.token(pin=bytes(32))))
    assert done.code == 1
    assert "this is not the relay that the join token is for" in done.err
    assert done.err.count("\n") == 1
    assert relay.asked == []
    assert relay.engine.counters()["joins"] == 0


async def test_a_relay_that_is_not_there(tmp_path: Path) -> None:
    async with join_relay() as gone:
        token = str(gone.token())
    done = await run(tmp_path, "join", token)
    assert done.code == 1
    assert "see that the relay runs and that UDP reaches it, then repeat this command" in done.err


async def test_a_relay_where_nobody_can_join(tmp_path: Path) -> None:
    async with join_relay(joining=False) as closed:
        done = await run(tmp_path, "join", str(closed.token()))
    assert done.code == 1
    assert "nobody can join there" in done.err


async def test_a_relay_that_has_refused_five_times(relay: JoinRelay, tmp_path: Path) -> None:
    async def no(_: Request, __: bytes | None) -> Answer:
        return Refused("expired", "expired", False)

    relay.reply = no
    token = str(relay.token())
    first = await asyncio.gather(*(run(tmp_path, "join", token) for _ in range(5)))
    assert [done.err for done in first] == ["error: expired\n"] * 5
    assert "takes no requests to join from here now" in (await run(tmp_path, "join", token)).err


async def test_waiting_for_approval_is_told(relay: JoinRelay, tmp_path: Path) -> None:
    async def later(request: Request, _: bytes | None) -> Answer:
        return Pending(0.25) if len(relay.asked) < 4 else relay.issue(request)

    relay.reply = later
    done = await run(tmp_path, "join", str(relay.token()))
    assert done.code == 0
    lines = done.err.splitlines()
    assert "waiting for an operator to approve this join" in lines[0]
    assert "asking again every 0.25 s" in lines[0]
    assert lines[1:] == ["not approved yet"] * 2
    assert len({public_key(request) for request in relay.asked}) == 1


@pytest.mark.parametrize("again", [False, True])
async def test_a_refusal_is_told_in_the_relays_words(relay: JoinRelay, tmp_path: Path, again: bool) -> None:
    async def no(_: Request, __: bytes | None) -> Answer:
        return Refused("used", 'token was used by "office" at 12:05; make another', again)

    relay.reply = no
    done = await run(tmp_path, "join", str(relay.token()))
    assert done.code == 1
    more = " (this may work later)" if again else ""
    assert done.err == f'error: token was used by "office" at 12:05; make another{more}\n'


@pytest.mark.parametrize(("late", "told"), [(600, "is 10 min ahead of"), (-10_800, "is 3 h behind"), (30, "")])
async def test_a_clock_that_is_off_is_told(relay: JoinRelay, tmp_path: Path, late: int, told: str) -> None:
    async def issue(request: Request, _: bytes | None) -> Answer:
        return relay.issue(request, late=timedelta(seconds=late))

    relay.reply = issue
    done = await run(tmp_path, "join", str(relay.token()))
    assert done.code == 0
    assert told in done.err
    assert bool(done.err) is bool(told)


async def test_every_way_to_give_a_token(relay: JoinRelay, tmp_path: Path, profile: Kept) -> None:
    token = str(relay.token())
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "join-token").write_text(f"{token}\n")
    (tmp_path / "token").write_text(f"{token}\n")
    directory = {"CREDENTIALS_DIRECTORY": str(credentials)}
    for arguments, env, text in (
        (["-"], {}, f"{token[:40]}\n{token[40:]}\n"),
        (["--token-file", "token"], {"ZTNA_JOIN_TOKEN": "bad"}, None),
        ([], {"ZTNA_JOIN_TOKEN": token, **directory}, None),
        ([], directory, None),
    ):
        done = await run(tmp_path, "join", *arguments, env=env, text=text)
        assert done.code == 0, done.err
        profile.remove()
    (credentials / "join-token").write_text(" ")  # as the unit has it by default
    for arguments, env, told in (
        (["-"], {}, "this is no join token"),
        ([token[:-9]], {}, "cut short"),
        ([f"{token[:30]}x{token[31:]}"], {}, "not copied well"),
        ([], directory, "no join token is given"),
        (["--token-file", "nothing"], {}, "nothing cannot be read: No such file"),
        ([token, "--token-file", "token"], {}, "give one"),
        ([token, "--offline"], {}, "give one"),
    ):
        done = await run(tmp_path, "join", *arguments, env=env, text="" if arguments == ["-"] else None)
        assert done.code == 2
        assert told in done.err
        assert done.err.count("\n") == 1
        assert token[10:30] not in done.err, "a token is a secret"
    assert not profile.there()


class TestLeave:
    @pytest.fixture
    async def joined(self, relay: JoinRelay, tmp_path: Path, profile: Kept) -> Profile:
        assert (await run(tmp_path, "join", str(relay.token()))).code == 0
        return Profile.load(profile.path)

    async def test_it_revokes_itself(self, relay: JoinRelay, tmp_path: Path, profile: Kept, joined: Profile) -> None:
        async def left(request: Request, certificate: bytes | None) -> Answer:
            assert request == Leave()
            assert certificate == joined.leaf.public_bytes(Encoding.DER)
            return Left()

        relay.reply = left
        done = await run(tmp_path, "leave")
        assert (done.code, done.err) == (0, "")
        assert done.out == f'connector "office" has left: its certificate is revoked, profile {profile.path} deleted\n'
        assert not profile.there()
        done = await run(tmp_path, "leave")
        assert done.code == 2
        assert "this host has not joined, or has left already" in done.err

    async def test_it_has_left_when_the_relay_knows_it_no_more(
        self, relay: JoinRelay, tmp_path: Path, profile: Kept, joined: Profile
    ) -> None:
        async def no(_: Request, __: bytes | None) -> Answer:
            return Refused("revoked", "revoked on Monday", False)

        relay.reply = no
        assert (await run(tmp_path, "leave", "connector")).code == 0
        assert not profile.there()

    async def test_a_relay_that_is_away(self, tmp_path: Path, profile: Kept) -> None:
        async with join_relay() as gone:
            assert (await run(tmp_path, "join", str(gone.token()))).code == 0
        done = await run(tmp_path, "leave")
        assert done.code == 1
        assert "leave --force and revoke it on the relay: intermediate-server revoke office" in done.err
        assert profile.there()
        done = await run(tmp_path, "leave", "--force")
        assert done.code == 0
        assert "intermediate-server revoke office" in done.err
        assert not profile.there()

    async def test_what_is_damaged_or_unfinished(self, tmp_path: Path, profile: Kept, joined: Profile) -> None:
        profile.put("damaged")
        assert (await run(tmp_path, "leave")).code == 2
        assert (await run(tmp_path, "leave", "--force")).code == 0
        assert not profile.there()

    async def test_which_one(self, relay: JoinRelay, tmp_path: Path, joined: Profile) -> None:
        async def issue(request: Request, _: bytes | None) -> Answer:
            return relay.issue(request, role=Role.AGENT)

        relay.reply = issue
        assert (await run(tmp_path, "join", str(relay.token(Role.AGENT)))).code == 0
        done = await run(tmp_path, "leave")
        assert done.code == 2
        assert "leave agent, or leave connector" in done.err


class TestOffline:
    async def test_a_bundle_completes_it(self, relay: JoinRelay, tmp_path: Path, profile: Kept) -> None:
        done = await run(tmp_path, "join", "--offline")
        assert done.code == 0
        assert (await run(tmp_path, "join", "--offline")).out.splitlines()[0] == "-----BEGIN CERTIFICATE REQUEST-----"
        request = x509.load_pem_x509_csr(done.out.encode())
        issued = relay.authority.issue(request.public_key(), servers=(relay.server,))
        (tmp_path / "bundle").write_bytes(encode(issued) + b"\n")
        for _ in range(2):
            done = await run(tmp_path, "join", "--complete", "bundle")
            assert (done.code, done.err) == (0, "")
            assert done.out.startswith('joined as connector "office" for web; certificate until ')
        assert Profile.load(profile.path).leaf == x509.load_pem_x509_certificate(issued.chain.encode())
        assert not (tmp_path / "state" / "offline.ztna").exists()
        other = relay.authority.issue(keys.new_key().public_key())
        done = await run(tmp_path, "join", "--complete", "-", text=encode(other).decode())
        assert done.code == 2
        assert "is another profile" in done.err

    async def test_wrong_bundles(self, relay: JoinRelay, tmp_path: Path, profile: Kept) -> None:
        other = encode(relay.authority.issue(keys.new_key().public_key())).decode()
        done = await run(tmp_path, "join", "--complete", "-", text=other)
        assert "no join was begun at" in done.err
        await run(tmp_path, "join", "--offline", "--profile", "mine")
        for text, told in (
            ("{no json", "the bundle is not JSON"),
            ("neither", "neither what pki sign has printed nor what pki issue --profile has written"),
            (encode(Left()).decode(), "is another message"),
            (other, "its private key does not belong to its certificate"),
        ):
            done = await run(tmp_path, "join", "--complete", "-", "--profile", "mine", text=text)
            assert done.code == 2
            assert told in done.err
        assert not profile.there()


async def test_connectors_join_when_they_start(relay: JoinRelay, tmp_path: Path, profile: Kept) -> None:
    token = str(relay.token())
    arguments = ["connector", "--service", "web=tcp://127.0.0.1:9", "--status-socket", "s", "--join"]
    for source in (token, "auto"):
        # The second time there is a profile, and no token is looked for.
        process = await start(tmp_path, *arguments, source)
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            lines = []
            async for line in process.stderr:
                lines.append(line.decode())
                if "Connecting to" in lines[-1]:
                    break
        process.terminate()
        await process.communicate()
        assert any("joined as connector" in line for line in lines) is (source == token)
    assert len(relay.asked) == 1
    profile.remove()
    done = await run(tmp_path, *arguments, "auto")
    assert done.code == 2
    assert "no join token is given" in done.err
    done = await run(tmp_path, *arguments, str(relay.token(Role.AGENT)))
    assert done.code == 2
    assert "makes an agent, not a connector" in done.err
