"""Certificate chains made to be dear to verify, and what they cost a server's engine thread.

``python -m tests.integration.hostile`` prints the cost of each chain at a server of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ObjectIdentifier

from intermediate_server.client import ClientEngine
from intermediate_server.errors import ConnectError
from intermediate_server.pki import keys
from intermediate_server.testing import Relay
from tests.integration.conftest import Server
from tests.integration.site import free_port

Extension = tuple[x509.ExtensionType, bool]


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs: a name and a key, which need not belong together."""

    name: x509.Name
    key: keys.PrivateKey

    def sign(
        self, subject: x509.Name, key: keys.PrivateKey, *, is_ca: bool, extensions: Sequence[Extension] = ()
    ) -> x509.Certificate:
        now = keys.utc_now()
        builder = (
            x509.CertificateBuilder(subject_name=subject, issuer_name=self.name, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - keys.BACKDATE)
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, None if isinstance(self.key, ed25519.Ed25519PrivateKey) else keys.SHA256)


@dataclass(frozen=True, slots=True)
class Chain:
    """A leaf with its key, and what is sent behind it."""

    certificates: list[x509.Certificate]
    key: keys.PrivateKey

    @property
    def size(self) -> int:
        """Bytes of all its certificates."""
        return sum(len(each.public_bytes(Encoding.DER)) for each in self.certificates)

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """The certificate file and the key file."""
        certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
        certificate.write_bytes(b"".join(map(keys.certificate_pem, self.certificates)))
        key.write_bytes(keys.key_pem(self.key))
        key.chmod(0o600)
        return certificate, key


@functools.cache
def rsa_key(bits: int, owner: str = "") -> rsa.RSAPrivateKey:
    """An RSA key, which takes seconds to make; the same whenever its owner asks."""
    return rsa.generate_private_key(65537, bits)


def forger(key: keys.PrivateKey) -> keys.PrivateKey:
    """A key whose signatures are checked against ``key``: it has the same algorithm."""
    match key:
        case ed25519.Ed25519PrivateKey():
            return keys.new_key("ed25519")
        case rsa.RSAPrivateKey():
            return rsa_key(key.key_size, "forger")
        case _:
            return keys.new_key()


def legitimate(ca: Issuer, intermediates: Sequence[keys.PrivateKey], key: keys.PrivateKey) -> Chain:
    """A chain as a client with intermediate CAs has it, leaf first."""
    above = ca
    chain: list[x509.Certificate] = []
    for number, own in enumerate(intermediates):
        name = keys.common_name(f"intermediate {number}")
        chain.insert(0, above.sign(name, own, is_ca=True))
        above = Issuer(name, own)
    usage = (x509.ExtendedKeyUsage([keys.CLIENT_AUTH]), False)
    names = (x509.SubjectAlternativeName([x509.DNSName("agent.web.ztna")]), False)
    return Chain([above.sign(keys.common_name("client"), key, is_ca=False, extensions=[usage, names]), *chain], key)


def one_name(
    name: x509.Name,
    count: int,
    *,
    signer: keys.PrivateKey | None = None,
    key: keys.PrivateKey | None = None,
    extensions: Sequence[Extension] = (),
    unrelated: int = 0,
) -> Chain:
    """A leaf and CAs that all name one issuer, so that each could have signed each; ``signer`` signs all of them."""
    key = key or keys.new_key()
    issuer = Issuer(name, signer or keys.new_key())
    certificates = [issuer.sign(keys.common_name("leaf"), key, is_ca=False)]
    for _ in range(count):
        certificates.append(issuer.sign(name, keys.new_key(), is_ca=True, extensions=extensions))
    for number in range(unrelated):
        own, other = keys.new_key(), keys.common_name(f"unrelated {number}")
        certificates.append(Issuer(other, own).sign(other, own, is_ca=True))
    return Chain(certificates, key)


def stuffing(size: int) -> list[Extension]:
    """Extensions of about ``size`` bytes together, as many and as small as they get."""
    return [
        (x509.UnrecognizedExtension(ObjectIdentifier(f"1.3.{n // 100}.{n % 100}"), b""), False)
        for n in range(size // 9)
    ]


def many_names(ca: Issuer, *, intermediates: int = 1) -> Chain:
    """CAs below a real one that constrain names, and a leaf with as many names, each compared with each."""
    excluded = [x509.DNSName(f"x{n}") for n in range(450)]
    constraints = (x509.NameConstraints(None, excluded), True)
    above = ca
    chain: list[x509.Certificate] = []
    for number in range(intermediates):
        own, name = keys.new_key(), keys.common_name(f"constrained {number}")
        chain.insert(0, above.sign(name, own, is_ca=True, extensions=[constraints]))
        above = Issuer(name, own)
    key = keys.new_key()
    names = x509.SubjectAlternativeName([x509.DNSName(f"y{n}") for n in range(900)])
    return Chain([above.sign(keys.common_name("leaf"), key, is_ca=False, extensions=[(names, False)]), *chain], key)


def chains(ca: Issuer) -> dict[str, Chain]:
    """Every kind by its name; ``ca`` is the server's client CA."""
    x, key = keys.common_name("x"), keys.new_key()
    signer = forger(ca.key)
    return {
        "no certificate of any CA": one_name(x, 0),
        "nine of one name": one_name(x, 9),
        "nine of one name, 40 unrelated": one_name(x, 9, unrelated=40),
        "nine of the CA's name": one_name(ca.name, 9, signer=signer),
        "four of one name": one_name(x, 4),
        "four of one name, stuffed": one_name(x, 4, extensions=stuffing(3300)),
        "four of the CA's name": one_name(ca.name, 4, signer=signer),
        "four of the CA's name, stuffed": one_name(ca.name, 4, signer=signer, extensions=stuffing(3100)),
        "many names": many_names(ca),
        "two CAs, many names": many_names(ca, intermediates=2),
        "a leaf of RSA 5120": one_name(x, 0, key=rsa_key(5120)),
        "a leaf of P-521": one_name(x, 0, key=ec.generate_private_key(ec.SECP521R1())),
        "a large leaf": Chain([ca.sign(x, key, is_ca=False, extensions=stuffing(8200))], key),
    }


def engine_seconds(server: Relay) -> float:
    """CPU time of the server's engine thread."""
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        if (task / "comm").read_text().strip() == "ztna-engine":
            return int((task / "schedstat").read_text().split()[0]) / 1e9
    raise ProcessLookupError("the server has no engine thread")


def authority(server: Relay) -> Issuer:
    """The CA that the server made for its clients."""
    certificate = keys.load_certificates(server.ca_file)[0]
    return Issuer(certificate.subject, keys.load_key(server.state_dir / "ca.key"))


async def attack(engine: ClientEngine, server: Relay, files: tuple[Path, Path]) -> str:
    """Connect with a chain; what the server answered, empty when it let the client in."""
    certificate, key = files
    try:
        connection = await engine.connect(
            server.address, ca_file=server.ca_file, server_name="ztna-server", cert_file=certificate, key_file=key
        )
        # A client is done before the server has looked at its certificate.
        closed = await asyncio.wait_for(connection.wait_closed(), 2)
    except ConnectError as error:
        return str(error)
    except TimeoutError:
        return ""
    return closed.reason


async def cost(engine: ClientEngine, server: Relay, files: tuple[Path, Path], times: int) -> tuple[float, str]:
    """Seconds of the engine thread for one handshake with a chain, the least of several, and how it ended.

    A core that others use too makes the same work take longer, and never shorter.
    """
    costs: list[tuple[float, str]] = []
    for _ in range(times):
        before = engine_seconds(server)
        end = await attack(engine, server, files)
        costs.append((engine_seconds(server) - before, end))
    return min(costs)


def trust_anchors() -> dict[str, Issuer]:
    """Client CAs by the kind of their key, each dearer to check signatures with than the one before."""
    made: dict[str, keys.PrivateKey] = {
        "P-256": keys.new_key(),
        "Ed25519": keys.new_key("ed25519"),
        "RSA 4096": rsa_key(4096),
        "P-384": ec.generate_private_key(ec.SECP384R1()),
        "P-521": ec.generate_private_key(ec.SECP521R1()),
    }
    return {kind: Issuer(keys.common_name(f"a CA of {kind}"), key) for kind, key in made.items()}


async def _costs(times: int) -> None:
    """Print what a handshake with each chain costs, for client CAs of each kind."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        for kind, ca in trust_anchors().items():
            print(f"A client CA of {kind}:")
            ca_file = directory / "ca.pem"
            ca_file.write_bytes(keys.certificate_pem(ca.sign(ca.name, ca.key, is_ca=True)))
            server = await Relay.begin(directory / kind, "--ca-cert", str(ca_file))
            try:
                async with ClientEngine() as engine:
                    for number, (name, chain) in enumerate(chains(ca).items()):
                        seconds, end = await cost(engine, server, chain.write(directory, str(number)), times)
                        print(f"{seconds * 1000:8.2f} ms  {chain.size:6} bytes  {name}: {end[:120]}")
            finally:
                await server.terminate()


async def _flood(engine: ClientEngine, server: Relay, files: tuple[Path, Path], rate: int) -> None:
    """Begin ``rate`` handshakes a second, whatever becomes of them, until cancelled."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for number in itertools.count(1):
            tasks.create_task(attack(engine, server, files))
            await asyncio.sleep(begun + number / rate - loop.time())


async def _beside(loadgen: Path, rates: Sequence[int], realtime: bool) -> None:
    """Print how late packets are beside so many hostile handshakes a second; ``loadgen`` is ztna-loadgen."""
    with tempfile.TemporaryDirectory() as scratch:
        directory, within = Path(scratch), ("chrt", "--rr", "2") if realtime else ()
        ca = trust_anchors()["P-521"]
        ca_file = directory / "ca.pem"
        ca_file.write_bytes(keys.certificate_pem(ca.sign(ca.name, ca.key, is_ca=True)))
        flags = ["--ca-cert", str(ca_file), "--client-auth", "optional", "--metrics-port", str(free_port())]
        made = chains(ca)
        for name in ("four of the CA's name", "four of the CA's name, stuffed", "many names"):
            hostile = made[name].write(directory, "hostile")
            for rate in rates:
                server = await Server.begin(directory / f"{name}-{rate}", *flags, within=within)
                try:
                    async with ClientEngine() as engine:
                        flood = asyncio.create_task(_flood(engine, server, hostile, rate)) if rate else None
                        address = ":".join(map(str, server.address))
                        measure = [loadgen, "--server", address, "--ca", server.ca_file, "rtt", "--rate", "5000"]
                        echo = [server.state_dir / f"server.{part}" for part in ("pem", "key")]
                        measure += ["--seconds", "8", "--echo-cert", echo[0], "--echo-key", echo[1]]
                        before = engine_seconds(server)
                        load = await asyncio.create_subprocess_exec(
                            *within, *map(str, measure), stdout=asyncio.subprocess.PIPE
                        )
                        out, _ = await load.communicate()
                        spent, failed = engine_seconds(server) - before, 0.0
                        for outcome in ("refused_chain", "failed"):
                            failed += await server.metric(f'ztna_handshakes_total{{outcome="{outcome}"}}')
                        if flood is not None:
                            flood.cancel()
                            await asyncio.gather(flood, return_exceptions=True)
                    row = json.loads(out)["rates"][0]
                    print(f"{name}, {rate}/s: {failed:.0f} of them, engine {spent:.2f} s of CPU")
                    for way in ("direct", "relay"):
                        print(f"    {way}: {row[way]}", flush=True)
                finally:
                    await server.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="handshakes with each chain")
    parser.add_argument("--loadgen", type=Path, help="ztna-loadgen: measure packets beside the handshakes instead")
    parser.add_argument("--rate", type=int, nargs="+", default=[0, 100], help="hostile handshakes a second")
    parser.add_argument("--realtime", action="store_true", help="server and ztna-loadgen before all other programs")
    given = parser.parse_args()
    asyncio.run(_costs(given.times) if given.loadgen is None else _beside(given.loadgen, given.rate, given.realtime))
