"""The engine as Python sees it: events up, commands down, nothing else.

Written by hand and held true by stubtest. ``conn`` is always a connection id: an int below 2**64 that is
never used again. Addresses are ``(host, port)``; IPv4-mapped IPv6 addresses are given as IPv4.
"""

from collections.abc import Sequence
from typing import Literal, final

from typing_extensions import disjoint_base

__version__: str

class EngineError(Exception):
    """The engine refused a setting or cannot go on; the text says what to change."""

@final
class ServerTls:
    """Certificate, key and client trust of a listener, parsed and checked. Raises ``EngineError``.

    ``join_chain_pem`` are certificates, possibly none, that are shown behind the server's own to those who join; with
    None the server does not offer to join (ALPN ``ztna-join/1``).
    """

    def __new__(
        cls,
        *,
        certificate_pem: bytes,
        key_pem: bytes,
        client_ca_pem: bytes | None = None,
        client_auth: Literal["required", "optional", "off"] = "required",
        join_chain_pem: bytes | None = None,
    ) -> ServerTls: ...
    def warnings(self) -> list[str]:
        """Warnings about certificate and key, one sentence each."""

@final
class ClientTls:
    """Trust and, where given, the certificate of a client. Raises ``EngineError``.

    ``ca_pem`` None with ``verify`` True trusts nothing and is an error. ``verify`` False accepts any server:
    for tests and migration only. ``pin`` stands for the CA: SHA-256, 32 bytes, of one of the certificates that the
    server shows. That one is the only root; chain, dates and name are verified as ever.
    """

    def __new__(
        cls,
        *,
        ca_pem: bytes | None = None,
        certificate_pem: bytes | None = None,
        key_pem: bytes | None = None,
        verify: bool = True,
        verify_name: bool = True,
        pin: bytes | None = None,
    ) -> ClientTls: ...

@final
class ListenConfig:
    """Where a server listens and what it allows. Times in milliseconds, sizes in bytes.

    ``sockets`` are descriptors of bound UDP sockets to serve beside those of ``bind``; they are duplicated.
    ``known_addresses`` are the identities (SHA-256 of their public key) and inner addresses, packed, of every
    ``Event.ReservedAddresses`` so far; with ``known_in_part`` some may be lost, and no identity gets a new one.
    """

    def __new__(
        cls,
        *,
        bind: Sequence[tuple[str, int]],
        tls: ServerTls,
        token_key: bytes,
        reset_key: bytes,
        sockets: Sequence[int] = ...,
        known_addresses: Sequence[tuple[bytes, bytes]] = ...,
        retry: bool = True,
        retry_token_lifetime_ms: int = 15_000,
        idle_timeout_ms: int = 30_000,
        handshake_timeout_ms: int = 10_000,
        max_connections: int = 20_000,
        max_half_open: int = 1_024,
        handshakes_per_source: int = 100,
        handshake_burst_per_source: int = 400,
        joins_per_source: int = 1,
        join_burst_per_source: int = 20,
        joins_per_second: int = 20,
        control_per_connection: int = 64,
        cid_lifetime_ms: int = 300_000,
        initial_mtu: int = 1_350,
        send_queue_bytes: int = 262_144,
        receive_queue_bytes: int = 1_048_576,
        socket_buffer_bytes: int = 4_194_304,
        translate: bool = True,
        inner_pool_v4: str = "100.64.0.0/10",
        inner_pool_v6: str = "fd64:7a74:6e61::/64",
        inner_per_agent: int = 4,
        known_in_part: bool = False,
        lease_grace_ms: int = 300_000,
        icmp_source_v4: str = "192.0.0.8",
        icmp_source_v6: str = "fd64:7a74:6e61:ffff::1",
        icmp_per_second: int = 100,
        stall_timeout_ms: int = 3_000,
    ) -> ListenConfig: ...
    @staticmethod
    def names() -> list[str]:
        """The names of the settings."""
    def settings(self) -> dict[str, bool | int | str]:
        """The settings by their names, as they are given."""

@final
class ConnectConfig:
    """Where and how a client connects. Times in milliseconds, sizes in bytes.

    ``bind`` is any local address by default, ``alpn`` ztna-v1. ``send_queue_bytes`` (16 KiB to 16 MiB) bounds the send
    queue. A tunnel waits when the queue is full, so its connection should have a small one, such as 48 KiB: in a small
    queue a packet waits behind few others.
    """

    def __new__(
        cls,
        *,
        remote: tuple[str, int],
        server_name: str,
        tls: ClientTls,
        bind: tuple[str, int] | None = None,
        alpn: Sequence[bytes] | None = None,
        idle_timeout_ms: int = 30_000,
        handshake_timeout_ms: int = 10_000,
        keep_alive_ms: int = 10_000,
        max_udp_payload: int = 1_472,
        send_queue_bytes: int = 1_048_576,
        observe_address: bool = True,
    ) -> ConnectConfig: ...
    def settings(self) -> dict[str, bool | int | str]:
        """The settings by their names, as they are given."""

@final
class Engine:
    """One engine thread with its sockets. Every method returns at once unless it says otherwise."""

    def __new__(cls, *, outbox_capacity: int = 65_536) -> Engine: ...
    def fileno(self) -> int:
        """The eventfd that turns readable when ``drain`` has something to give. Owned by the engine."""
    def listen(self, config: ListenConfig) -> list[tuple[str, int]]:
        """Bind and serve; returns the bound addresses, then those of ``sockets``. Waits for the bind.

        Raises ``EngineError``.
        """
    def drain(self, maximum: int) -> list[Event]:
        """Take up to ``maximum`` events, oldest first; the eventfd stays readable while some are left."""
    def apply(self, commands: Sequence[Command]) -> None:
        """Queue one atomic batch. Raises ``EngineError`` when the engine has stopped."""
    def counters(self) -> dict[str, int]:
        """Every total of the engine by its name (see ``docs/metrics.md``)."""
    def drops(self) -> dict[str, int]:
        """Dropped datagrams by reason; the reasons are a closed set."""
    def drops_by_class(self) -> dict[tuple[str, str], int]:
        """Dropped datagrams by reason and identity class of the sender: certificate, anonymous or unregistered."""
    def usage(self) -> list[tuple[int, int, int]]:
        """For each limiter that moved since the last call: its id, bytes from its connections, bytes to them.

        A finished limiter appears one last time; the same id can appear twice in one result, so sum the entries.
        """
    def services(self) -> list[ServiceCounters]:
        """Totals of each live service."""
    def tunnel_counters(self, tunnel: int) -> dict[str, int]:
        """Totals and gauges of a tunnel by name; empty where there is no such tunnel."""
    def socket_warnings(self) -> list[str]:
        """Warnings about resources of which the kernel gave less than asked for, one sentence each."""
    def close(self, timeout_ms: int) -> None:
        """Stop the thread; waits until closing packets are out, at most for the grace time. Safe to repeat."""

@final
class ServiceCounters:
    @property
    def service(self) -> bytes: ...
    @property
    def connectors(self) -> int: ...
    @property
    def healthy(self) -> int: ...
    @property
    def to_connector_packets(self) -> int: ...
    @property
    def to_connector_bytes(self) -> int: ...
    @property
    def to_agent_packets(self) -> int: ...
    @property
    def to_agent_bytes(self) -> int: ...
    @property
    def drops(self) -> dict[str, int]: ...

@final
class Target:
    """One connector of a service: lower ``rank`` is preferred, ``key`` names it for rendezvous hashing."""

    def __new__(cls, *, conn: int, rank: int, key: int) -> Target: ...
    @property
    def conn(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def key(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...

def service_addresses(service: bytes) -> tuple[str, str]:
    """The IPv4 and IPv6 address of a service inside the tunnel; the same everywhere.

    A relay lets no peer use the addresses of a service without a grant.
    """

def inner_address(
    key_hash: bytes, pool_v4: str = "100.64.0.0/10", pool_v6: str = "fd64:7a74:6e61::/64"
) -> tuple[str, str]:
    """The IPv4 and IPv6 address that a relay with these pools gives to a new public key while they are free.

    ``key_hash`` is SHA-256 of the SubjectPublicKeyInfo. Raises ``EngineError``.
    """

@final
class Forward:
    """A local socket whose traffic goes to a service.

    ``protocol`` is tcp or udp; ``bind`` may have port 0; ``destination`` is the service address and
    the port that its packets carry.
    """

    def __new__(
        cls, *, protocol: str, bind: tuple[str, int], service: bytes, destination: tuple[str, int]
    ) -> Forward: ...
    @property
    def protocol(self) -> str: ...
    @property
    def bind(self) -> tuple[str, int]: ...
    @property
    def service(self) -> bytes: ...
    @property
    def destination(self) -> tuple[str, int]: ...
    def __eq__(self, other: object, /) -> bool: ...

@final
class Backend:
    """An application that a connector serves: no other address is ever reached.

    ``addresses`` are tried in their order; ``service_addresses`` are the inner destination addresses that mean the
    service. With ``proxy_protocol`` each TCP connection begins with a header of the PROXY protocol, version 2.
    """

    def __new__(
        cls,
        *,
        service: bytes,
        protocol: str,
        addresses: Sequence[tuple[str, int]],
        service_addresses: Sequence[str],
        proxy_protocol: bool = False,
    ) -> Backend: ...
    @property
    def service(self) -> bytes: ...
    @property
    def protocol(self) -> str: ...
    @property
    def addresses(self) -> list[tuple[str, int]]: ...
    @property
    def service_addresses(self) -> list[str]: ...
    @property
    def proxy_protocol(self) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...

@final
class TunMap:
    """A service address of a TUN interface.

    A packet to ``address`` goes to ``service`` with ``destination``, of the same family, in its place.
    """

    def __new__(cls, *, address: str, service: bytes, destination: str) -> TunMap: ...
    @property
    def address(self) -> str: ...
    @property
    def service(self) -> bytes: ...
    @property
    def destination(self) -> str: ...
    def __eq__(self, other: object, /) -> bool: ...

@final
class Totals:
    """Totals of one connection."""

    def __new__(
        cls,
        *,
        received_datagrams: int = 0,
        received_bytes: int = 0,
        sent_datagrams: int = 0,
        sent_bytes: int = 0,
        dropped: int = 0,
    ) -> Totals: ...
    @property
    def received_datagrams(self) -> int: ...
    @property
    def received_bytes(self) -> int: ...
    @property
    def sent_datagrams(self) -> int: ...
    @property
    def sent_bytes(self) -> int: ...
    @property
    def dropped(self) -> int: ...

@disjoint_base
class Command:
    """An instruction to the engine; without effect if its connection is gone."""

    @final
    class SetService(Command):
        """Replace the connectors of a service; no targets removes it."""

        def __new__(cls, service: bytes, targets: list[Target]) -> Command.SetService: ...
        __match_args__ = ("service", "targets")
        @property
        def service(self) -> bytes: ...
        @property
        def targets(self) -> list[Target]: ...

    @final
    class SetAgent(Command):
        """Replace the services that an agent may reach, in order of registration; ``identity`` is SHA-256 of its public
        key."""

        def __new__(cls, conn: int, services: list[bytes], identity: bytes | None = None) -> Command.SetAgent: ...
        __match_args__ = ("conn", "services", "identity")
        @property
        def conn(self) -> int: ...
        @property
        def services(self) -> list[bytes]: ...
        @property
        def identity(self) -> bytes | None: ...

    @final
    class SetLimits(Command):
        """Set the rates of a limiter, and attach a connection to it; 0 is unlimited.

        Each way has its own buckets of a quarter of a second; packets beyond them are dropped as ``rate_limited``.
        Repeating it changes the rates at once. A limiter outlives its connections until its buckets are full again.
        """

        def __new__(
            cls,
            conn: int,
            limiter: int,
            identity_class: str,
            bytes_per_second: int = 0,
            packets_per_second: int = 0,
        ) -> Command.SetLimits: ...
        __match_args__ = ("conn", "limiter", "identity_class", "bytes_per_second", "packets_per_second")
        @property
        def conn(self) -> int: ...
        @property
        def limiter(self) -> int: ...
        @property
        def identity_class(self) -> str: ...
        @property
        def bytes_per_second(self) -> int: ...
        @property
        def packets_per_second(self) -> int: ...

    @final
    class SendDatagram(Command):
        def __new__(cls, conn: int, data: bytes) -> Command.SendDatagram: ...
        __match_args__ = ("conn", "data")
        @property
        def conn(self) -> int: ...
        @property
        def data(self) -> bytes: ...

    @final
    class SendDatagrams(Command):
        def __new__(cls, conn: int, data: list[bytes]) -> Command.SendDatagrams: ...
        __match_args__ = ("conn", "data")
        @property
        def conn(self) -> int: ...
        @property
        def data(self) -> list[bytes]: ...

    @final
    class SendSignal(Command):
        """Send one signaling frame whole; one that finds no room is dropped, with ``Event.SignalDropped``."""

        def __new__(cls, conn: int, payload: bytes, to_agent: bool) -> Command.SendSignal: ...
        __match_args__ = ("conn", "payload", "to_agent")
        @property
        def conn(self) -> int: ...
        @property
        def payload(self) -> bytes: ...
        @property
        def to_agent(self) -> bool: ...

    @final
    class EndSignaling(Command):
        """End the stream that a client signals on; its connection goes on."""

        def __new__(cls, conn: int) -> Command.EndSignaling: ...
        __match_args__ = ("conn",)
        @property
        def conn(self) -> int: ...

    @final
    class LookUpRoute(Command):
        """Ask for the connector of an agent's packets and keep the choice; answered by ``Event.RouteFound``."""

        def __new__(cls, request: int, agent: int, service: bytes) -> Command.LookUpRoute: ...
        __match_args__ = ("request", "agent", "service")
        @property
        def request(self) -> int: ...
        @property
        def agent(self) -> int: ...
        @property
        def service(self) -> bytes: ...

    @final
    class Introduce(Command):
        """Note that an agent sends packets to a connector past this server: the answers come by it."""

        def __new__(cls, agent: int, connector: int) -> Command.Introduce: ...
        __match_args__ = ("agent", "connector")
        @property
        def agent(self) -> int: ...
        @property
        def connector(self) -> int: ...

    @final
    class Separate(Command):
        """Take an ``Introduce`` back."""

        def __new__(cls, agent: int, connector: int) -> Command.Separate: ...
        __match_args__ = ("agent", "connector")
        @property
        def agent(self) -> int: ...
        @property
        def connector(self) -> int: ...

    @final
    class Close(Command):
        def __new__(cls, conn: int, code: int, reason: str) -> Command.Close: ...
        __match_args__ = ("conn", "code", "reason")
        @property
        def conn(self) -> int: ...
        @property
        def code(self) -> int: ...
        @property
        def reason(self) -> str: ...

    @final
    class SetServerTls(Command):
        def __new__(cls, tls: ServerTls) -> Command.SetServerTls: ...
        __match_args__ = ("tls",)
        @property
        def tls(self) -> ServerTls: ...

    @final
    class SetAccepting(Command):
        def __new__(cls, accepting: bool) -> Command.SetAccepting: ...
        __match_args__ = ("accepting",)
        @property
        def accepting(self) -> bool: ...

    @final
    class Connect(Command):
        """Open a client connection, answered by ``Event.Connected`` or ``Event.ConnectFailed``."""

        def __new__(cls, request: int, config: ConnectConfig) -> Command.Connect: ...
        __match_args__ = ("request", "config")
        @property
        def request(self) -> int: ...
        @property
        def config(self) -> ConnectConfig: ...

    @final
    class JoinReply(Command):
        """Reply to an ``Event.JoinRequest``, by at most 16,384 bytes; without effect once its client is given up.

        A ``refused`` one is a failure of its source, as is a request that is too large, and a join that ends after a
        second without one. Five in a minute close joining to the source for a minute, and relaying not.
        """

        def __new__(cls, request: int, data: bytes, refused: bool = False) -> Command.JoinReply: ...
        __match_args__ = ("request", "data", "refused")
        @property
        def request(self) -> int: ...
        @property
        def data(self) -> bytes: ...
        @property
        def refused(self) -> bool: ...

    @final
    class Ask(Command):
        """Ask a server to join, by at most 16,384 bytes; answered by ``Event.Answered`` or ``Event.ConnectFailed``.

        It has a connection of its own, with the ALPN ``ztna-join/1`` and a transport for it: of ``config`` count the
        addresses, the name, ``tls``, ``handshake_timeout_ms`` and ``max_udp_payload``. A client's certificate is shown
        without the rest of its chain. Without an answer it ends 15 s after the handshake.
        """

        def __new__(cls, request: int, config: ConnectConfig, data: bytes) -> Command.Ask: ...
        __match_args__ = ("request", "config", "data")
        @property
        def request(self) -> int: ...
        @property
        def config(self) -> ConnectConfig: ...
        @property
        def data(self) -> bytes: ...

    @final
    class CancelConnect(Command):
        """Give a ``Connect`` or an ``Ask`` up: no event answers it any more."""

        def __new__(cls, request: int) -> Command.CancelConnect: ...
        __match_args__ = ("request",)
        @property
        def request(self) -> int: ...

    @final
    class Rebind(Command):
        """Move a client connection to a new local port (RFC 9000 section 9)."""

        def __new__(cls, conn: int) -> Command.Rebind: ...
        __match_args__ = ("conn",)
        @property
        def conn(self) -> int: ...

    @final
    class Inspect(Command):
        """Ask for a connection's transport state, answered by ``Event.Inspected``."""

        def __new__(cls, conn: int) -> Command.Inspect: ...
        __match_args__ = ("conn",)
        @property
        def conn(self) -> int: ...

    @final
    class OpenForwards(Command):
        """Open a tunnel of local sockets, answered by ``Event.TunnelOpened`` or ``Event.TunnelFailed``.

        Packets enter and leave the engine on a client's side through a tunnel. The caller chooses its id and never uses
        that again. A tunnel outlives relay connections, so its flows survive a reconnect.
        """

        def __new__(
            cls, tunnel: int, forwards: list[Forward], source_v4: str, source_v6: str
        ) -> Command.OpenForwards: ...
        __match_args__ = ("tunnel", "forwards", "source_v4", "source_v6")
        @property
        def tunnel(self) -> int: ...
        @property
        def forwards(self) -> list[Forward]: ...
        @property
        def source_v4(self) -> str: ...
        @property
        def source_v6(self) -> str: ...

    @final
    class OpenBackends(Command):
        """Open a tunnel of backends, or replace those of an open one; answered as ``OpenForwards``.

        Flows of unchanged services go on. With ``try_once`` the TCP addresses that are new are tried
        once, and ``Event.TunnelNotice`` says how that went.
        """

        def __new__(cls, tunnel: int, services: list[Backend], try_once: bool = False) -> Command.OpenBackends: ...
        __match_args__ = ("tunnel", "services", "try_once")
        @property
        def tunnel(self) -> int: ...
        @property
        def services(self) -> list[Backend]: ...
        @property
        def try_once(self) -> bool: ...

    @final
    class OpenTun(Command):
        """Open a tunnel on a TUN device, which is duplicated; answered as ``OpenForwards``.

        The device has no packet information (IFF_NO_PI). With ``own`` packets pass unwrapped and untouched both
        ways, from the relay only to these addresses and from those of the networks ``agents`` (by default a relay's
        own pools) or about packets to them: a connector. Otherwise packets go to the service of their
        destination's map, others to ``default_service``, else they are answered "host unreachable"; from the relay
        those pass that come from a map's destination, with a ``default_service`` all. ``source`` is the inner IPv4
        address from which the tunnel asks services for their connectors.
        """

        def __new__(
            cls,
            tunnel: int,
            fd: int,
            maps: list[TunMap] = ...,
            default_service: bytes | None = None,
            own: list[str] | None = None,
            agents: list[str] | None = None,
            source: str | None = None,
        ) -> Command.OpenTun: ...
        __match_args__ = ("tunnel", "fd", "maps", "default_service", "own", "agents", "source")
        @property
        def tunnel(self) -> int: ...
        @property
        def fd(self) -> int: ...
        @property
        def maps(self) -> list[TunMap]: ...
        @property
        def default_service(self) -> bytes | None: ...
        @property
        def own(self) -> list[str] | None: ...
        @property
        def agents(self) -> list[str] | None: ...
        @property
        def source(self) -> str | None: ...

    @final
    class SetTunnelServices(Command):
        """Replace the acknowledged services of a tunnel's present connection; traffic to others is refused."""

        def __new__(cls, tunnel: int, services: list[bytes]) -> Command.SetTunnelServices: ...
        __match_args__ = ("tunnel", "services")
        @property
        def tunnel(self) -> int: ...
        @property
        def services(self) -> list[bytes]: ...

    @final
    class AttachTunnel(Command):
        """Let a client connection carry a tunnel; a closing connection releases its tunnel by itself.

        From then on IP packets of the connection go to the tunnel, and all else still to ``Event.Datagrams``. With
        ``sends`` the tunnel sends on it. A connection that has received beside the one that sent takes over without a
        loss, and the other one goes on receiving; any other is a new beginning, after an interruption.
        """

        def __new__(cls, tunnel: int, conn: int, sends: bool = True) -> Command.AttachTunnel: ...
        __match_args__ = ("tunnel", "conn", "sends")
        @property
        def tunnel(self) -> int: ...
        @property
        def conn(self) -> int: ...
        @property
        def sends(self) -> bool: ...

    @final
    class CloseTunnel(Command):
        """Close a tunnel and all its flows."""

        def __new__(cls, tunnel: int) -> Command.CloseTunnel: ...
        __match_args__ = ("tunnel",)
        @property
        def tunnel(self) -> int: ...

@disjoint_base
class Event:
    """An event of the engine. Each connection has exactly one ``Connected`` and later exactly one ``Closed``."""

    @final
    class Connected(Event):
        def __new__(
            cls,
            conn: int,
            request: int | None,
            remote: tuple[str, int],
            certificates: list[bytes],
            handshake_us: int,
        ) -> Event.Connected: ...
        __match_args__ = ("conn", "request", "remote", "certificates", "handshake_us")
        @property
        def conn(self) -> int: ...
        @property
        def request(self) -> int | None: ...
        @property
        def remote(self) -> tuple[str, int]: ...
        @property
        def certificates(self) -> list[bytes]: ...
        @property
        def handshake_us(self) -> int: ...

    @final
    class HandshakeFailed(Event):
        """A failed attempt to connect; ``cause`` and ``code`` as in ``ConnectFailed``. Sampled; counters are exact."""

        def __new__(
            cls, remote: tuple[str, int], reason: str, cause: str = ..., code: int = 0
        ) -> Event.HandshakeFailed: ...
        __match_args__ = ("remote", "reason", "cause", "code")
        @property
        def remote(self) -> tuple[str, int]: ...
        @property
        def reason(self) -> str: ...
        @property
        def cause(self) -> str: ...
        @property
        def code(self) -> int: ...

    @final
    class JoinRequest(Event):
        """A client asks to join, by at most 16,384 bytes; ``Command.JoinReply`` answers it, within 10 s.

        ``certificate`` is the one it showed, DER: TLS has proven its key, and neither its chain nor its dates have been
        looked at. Each request is to be answered, since one of 32 places is held until then.
        """

        def __new__(
            cls, request: int, remote: tuple[str, int], certificate: bytes | None, data: bytes
        ) -> Event.JoinRequest: ...
        __match_args__ = ("request", "remote", "certificate", "data")
        @property
        def request(self) -> int: ...
        @property
        def remote(self) -> tuple[str, int]: ...
        @property
        def certificate(self) -> bytes | None: ...
        @property
        def data(self) -> bytes: ...

    @final
    class Answered(Event):
        """The answer to ``Command.Ask``, and the chain that the server has shown, DER, its own certificate first."""

        def __new__(cls, request: int, certificates: list[bytes], data: bytes) -> Event.Answered: ...
        __match_args__ = ("request", "certificates", "data")
        @property
        def request(self) -> int: ...
        @property
        def certificates(self) -> list[bytes]: ...
        @property
        def data(self) -> bytes: ...

    @final
    class ConnectFailed(Event):
        """``Command.Connect`` did not lead to a connection, or ``Command.Ask`` to an answer.

        ``cause``: port_closed, silent, peer (with its ``code``), unknown_issuer, wrong_name (with the ``names`` of
        the certificate), expired, not_yet_valid, wrong_purpose, authority_as_peer, bad_certificate, no_certificate
        or other. ``reason`` is the text of TLS, QUIC or the peer.
        """

        def __new__(
            cls, request: int, reason: str, cause: str = ..., code: int = 0, names: list[str] = ...
        ) -> Event.ConnectFailed: ...
        __match_args__ = ("request", "reason", "cause", "code", "names")
        @property
        def request(self) -> int: ...
        @property
        def reason(self) -> str: ...
        @property
        def cause(self) -> str: ...
        @property
        def code(self) -> int: ...
        @property
        def names(self) -> list[str]: ...

    @final
    class AddressChanged(Event):
        def __new__(cls, conn: int, remote: tuple[str, int]) -> Event.AddressChanged: ...
        __match_args__ = ("conn", "remote")
        @property
        def conn(self) -> int: ...
        @property
        def remote(self) -> tuple[str, int]: ...

    @final
    class ObservedAddress(Event):
        def __new__(cls, conn: int, address: tuple[str, int]) -> Event.ObservedAddress: ...
        __match_args__ = ("conn", "address")
        @property
        def conn(self) -> int: ...
        @property
        def address(self) -> tuple[str, int]: ...

    @final
    class ReservedAddresses(Event):
        """An agent with a proven identity has come, for which these inner addresses are reserved for good.

        ``identity`` is SHA-256 of its public key. ``known_addresses`` of the next engine must contain them.
        """

        def __new__(cls, identity: bytes, addresses: list[str]) -> Event.ReservedAddresses: ...
        __match_args__ = ("identity", "addresses")
        @property
        def identity(self) -> bytes: ...
        @property
        def addresses(self) -> list[str]: ...

    @final
    class Control(Event):
        """A registration DATAGRAM (0x10 or 0x11) at a server, not yet parsed."""

        def __new__(cls, conn: int, data: bytes) -> Event.Control: ...
        __match_args__ = ("conn", "data")
        @property
        def conn(self) -> int: ...
        @property
        def data(self) -> bytes: ...

    @final
    class Signal(Event):
        """The payload of a signaling frame at a server, not yet decoded."""

        def __new__(cls, conn: int, payload: bytes) -> Event.Signal: ...
        __match_args__ = ("conn", "payload")
        @property
        def conn(self) -> int: ...
        @property
        def payload(self) -> bytes: ...

    @final
    class SignalEnded(Event):
        """The stream that a client signals on has ended; it may open another."""

        def __new__(cls, conn: int, reason: str) -> Event.SignalEnded: ...
        __match_args__ = ("conn", "reason")
        @property
        def conn(self) -> int: ...
        @property
        def reason(self) -> str: ...

    @final
    class SignalDropped(Event):
        """A frame for a client was dropped whole, since too much waits for it already."""

        def __new__(cls, conn: int) -> Event.SignalDropped: ...
        __match_args__ = ("conn",)
        @property
        def conn(self) -> int: ...

    @final
    class RouteFound(Event):
        """The answer to ``Command.LookUpRoute``; ``conflict`` is why the two cannot be introduced to each other."""

        def __new__(cls, request: int, connector: int | None, conflict: str | None) -> Event.RouteFound: ...
        __match_args__ = ("request", "connector", "conflict")
        @property
        def request(self) -> int: ...
        @property
        def connector(self) -> int | None: ...
        @property
        def conflict(self) -> str | None: ...

    @final
    class Datagrams(Event):
        """DATAGRAMs at a client connection, oldest first."""

        def __new__(cls, conn: int, data: list[bytes]) -> Event.Datagrams: ...
        __match_args__ = ("conn", "data")
        @property
        def conn(self) -> int: ...
        @property
        def data(self) -> list[bytes]: ...

    @final
    class Inspected(Event):
        def __new__(
            cls,
            conn: int,
            rtt_us: int,
            mtu: int,
            max_datagram: int,
            cwnd: int,
            sent_packets: int,
            lost_packets: int,
            received_packets: int,
            totals: Totals,
        ) -> Event.Inspected: ...
        __match_args__ = (
            "conn",
            "rtt_us",
            "mtu",
            "max_datagram",
            "cwnd",
            "sent_packets",
            "lost_packets",
            "received_packets",
            "totals",
        )
        @property
        def conn(self) -> int: ...
        @property
        def rtt_us(self) -> int: ...
        @property
        def mtu(self) -> int: ...
        @property
        def max_datagram(self) -> int: ...
        @property
        def cwnd(self) -> int: ...
        @property
        def sent_packets(self) -> int: ...
        @property
        def lost_packets(self) -> int: ...
        @property
        def received_packets(self) -> int: ...
        @property
        def totals(self) -> Totals: ...

    @final
    class Closed(Event):
        """``cause``: local, application, peer, transport, idle_timeout, reset or panic."""

        def __new__(
            cls,
            conn: int,
            cause: str,
            code: int,
            reason: str,
            duration_us: int,
            totals: Totals,
        ) -> Event.Closed: ...
        __match_args__ = ("conn", "cause", "code", "reason", "duration_us", "totals")
        @property
        def conn(self) -> int: ...
        @property
        def cause(self) -> str: ...
        @property
        def code(self) -> int: ...
        @property
        def reason(self) -> str: ...
        @property
        def duration_us(self) -> int: ...
        @property
        def totals(self) -> Totals: ...

    @final
    class DatagramLimit(Event):
        """The largest DATAGRAM payload of a client's connection, when known and on each change.

        At most one a second for each connection; 0 where the server takes none.
        """

        def __new__(cls, conn: int, max_datagram: int) -> Event.DatagramLimit: ...
        __match_args__ = ("conn", "max_datagram")
        @property
        def conn(self) -> int: ...
        @property
        def max_datagram(self) -> int: ...

    @final
    class TunnelOpened(Event):
        """A tunnel is open; the bound addresses are in the order of its forwards."""

        def __new__(cls, tunnel: int, addresses: list[tuple[str, int]]) -> Event.TunnelOpened: ...
        __match_args__ = ("tunnel", "addresses")
        @property
        def tunnel(self) -> int: ...
        @property
        def addresses(self) -> list[tuple[str, int]]: ...

    @final
    class TunnelFailed(Event):
        """A tunnel could not be opened, or its device or sockets failed; it is closed."""

        def __new__(cls, tunnel: int, reason: str) -> Event.TunnelFailed: ...
        __match_args__ = ("tunnel", "reason")
        @property
        def tunnel(self) -> int: ...
        @property
        def reason(self) -> str: ...

    @final
    class TunnelNotice(Event):
        """The state of a part of a tunnel's service: when first known, on changes, and a lasting failure now and then.

        ``subject`` is ``connector`` (of an agent's service), ``flow`` (a connection from an agent's port was refused),
        ``backend`` (of a connector) or ``port`` (of an agent); the last two have an ``address``. ``error`` ends a
        sentence about it, and is None without a fault.
        """

        def __new__(
            cls,
            tunnel: int,
            subject: str,
            service: bytes,
            address: tuple[str, int] | None,
            error: str | None,
        ) -> Event.TunnelNotice: ...
        __match_args__ = ("tunnel", "subject", "service", "address", "error")
        @property
        def tunnel(self) -> int: ...
        @property
        def subject(self) -> str: ...
        @property
        def service(self) -> bytes: ...
        @property
        def address(self) -> tuple[str, int] | None: ...
        @property
        def error(self) -> str | None: ...

    @final
    class Failed(Event):
        """The engine cannot go on; nothing more follows."""

        def __new__(cls, reason: str) -> Event.Failed: ...
        __match_args__ = ("reason",)
        @property
        def reason(self) -> str: ...
