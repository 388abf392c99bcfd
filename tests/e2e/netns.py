"""Networks of namespaces: hosts, links, routers with NAT, and what goes wrong on the way.

Every name begins with the number of the process that made it, so that two test runs never meet, and one that was
killed is cleared away by the next.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_interface
from pathlib import Path

TOOLS = ("ip", "nft", "conntrack", "ping", "curl")
_PREFIX = "ztna-test-"


class Nat(enum.Enum):
    """What a router does with UDP, in the words of RFC 3489 section 5."""

    PUBLIC = "public"
    """Nothing: the host behind it has an address of the internet."""
    FULL_CONE = "full cone"
    ADDRESS_RESTRICTED = "address-restricted"
    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC = "symmetric"


class Host:
    """One network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.within = ("ip", "netns", "exec", name)
        """What the command line of a program in it begins with."""

    def run(self, *words: str | Path, timeout: float = 60.0) -> str:
        """Run a program to its end; returns what it printed. Raises ``AssertionError`` when it fails."""
        command = [*self.within, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def ip(self, command: str) -> str:
        """``ip`` with the words of ``command``."""
        return _ip("-n", self.name, *command.split())

    def nft(self, rules: str) -> None:
        """Apply a file of nftables commands."""
        self.run("nft", rules)

    def route(self, destination: str, via: str) -> None:
        """Send packets for ``destination`` through the router ``via``."""
        self.ip(f"route replace {destination} via {via}")

    def udp(self, address: str = "0.0.0.0") -> socket.socket:
        """A socket of this process on a port of this host."""
        made = []

        def make() -> None:
            # Python has no function for it before 3.12. It moves the thread, and what a thread opens stays where it is.
            with Path(f"/run/netns/{self.name}").open() as namespace:
                assert _libc.setns(namespace.fileno(), 0) == 0
            made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        made[0].bind((address, 0))
        return made[0]

    def forward(self) -> None:
        """Be a router."""
        self.set("net.ipv4.ip_forward", 1)
        self.set("net.ipv6.conf.all.forwarding", 1)

    def set(self, setting: str, value: int) -> None:
        """Change a setting of the kernel that each namespace has for itself."""
        self.run("sh", "-c", f"echo {value} > /proc/sys/{setting.replace('.', '/')}")

    def masquerade(self, interface: str, ports: tuple[int, int]) -> None:
        """Translate UDP and TCP that leaves through ``interface`` to its address and these ports; again: to others."""
        self.nft(
            "add table ip nat; delete table ip nat; add table ip nat;"
            "add chain ip nat out { type nat hook postrouting priority 100; };"
            f"add rule ip nat out oifname {interface} meta l4proto {{ tcp, udp }} masquerade to :{ports[0]}-{ports[1]};"
            f"add rule ip nat out oifname {interface} masquerade"
        )

    def nat(self, kind: Nat, outside: str, address: str, inside: str) -> None:
        """Be a NAT of this kind for the one host ``inside``; ``outside`` is the interface that has ``address``.

        A router that lets a datagram from a stranger in to itself gives the tuple away to it: conntrack then takes
        another port for the host's own probes. So those that let only the known in drop the others.
        """
        if kind is Nat.PUBLIC:
            return
        translation = "masquerade fully-random" if kind is Nat.SYMMETRIC else f"snat to {address}"
        self.nft(
            f"add table ip nat; add chain ip nat out {{ type nat hook postrouting priority 100; }};"
            f"add rule ip nat out oifname {outside} {translation}"
        )
        if kind in (Nat.FULL_CONE, Nat.ADDRESS_RESTRICTED):
            self.nft(
                f"add chain ip nat in {{ type nat hook prerouting priority -100; }};"
                f"add rule ip nat in iifname {outside} meta l4proto udp dnat to {inside}"
            )
        if kind is not Nat.FULL_CONE:
            hook = "forward" if kind is Nat.ADDRESS_RESTRICTED else "input"
            self.nft(f"add table ip strangers; add chain ip strangers met {{ type filter hook {hook} priority 0; }}")
        if kind is Nat.ADDRESS_RESTRICTED:
            self.nft(
                "add set ip strangers talked { type ipv4_addr; flags dynamic,timeout; timeout 60s; };"
                f"add rule ip strangers met oifname {outside} update @talked {{ ip daddr }};"
                f"add rule ip strangers met iifname {outside} ip saddr != @talked counter drop"
            )
        elif kind is not Nat.FULL_CONE:
            self.nft(f"add rule ip strangers met iifname {outside} meta l4proto udp counter drop")

    def strangers(self) -> int:
        """How many datagrams :meth:`nat` has kept out."""
        return self._counted("ip strangers met")

    def forget_flows(self) -> None:
        """Lose the state of the NAT, as one that is restarted does."""
        self.run("conntrack", "-F")

    def lose(self, percent: int) -> None:
        """Drop that share of the UDP datagrams that come in, at random."""
        self.nft(
            "add table inet loss;"
            "add chain inet loss in { type filter hook prerouting priority -300; };"
            f"add rule inet loss in meta l4proto udp numgen random mod 100 < {percent} counter drop"
        )

    def lost(self) -> int:
        """How many datagrams :meth:`lose` has dropped."""
        return self._counted("inet loss in")

    def _counted(self, chain: str) -> int:
        words = self.run("nft", "list", "chain", *chain.split()).split()
        return int(words[words.index("packets") + 1])


class Network:
    """The hosts of one test and the links between them. :meth:`remove` takes all away again."""

    def __init__(self) -> None:
        self._hosts: list[Host] = []

    def host(self) -> Host:
        """A new host with nothing but its loopback."""
        host = Host(f"{_PREFIX}{os.getpid()}-{next(_numbers)}")
        _ip("netns", "add", host.name)
        self._hosts.append(host)
        host.ip("link set lo up")
        host.set("net.ipv6.conf.all.keep_addr_on_down", 1)
        return host

    def link(self, left: Host, right: Host, addresses: Sequence[tuple[str, str]], *, mtu: int = 1500) -> str:
        """Connect two hosts by a cable; returns the name of the interface, the same at both ends.

        ``addresses`` has pairs of addresses with prefix lengths, the left one's first.
        """
        name = f"e{next(_numbers)}"
        left.ip(f"link add {name} mtu {mtu} type veth peer name {name} mtu {mtu} netns {right.name}")
        for place, host in enumerate((left, right)):
            for pair in addresses:
                # Without "nodad" an IPv6 address cannot be used for its first second.
                nodad = " nodad" if ip_interface(pair[place]).version == 6 else ""
                host.ip(f"addr add {pair[place]} dev {name}{nodad}")
            host.ip(f"link set {name} up")
        return name

    def remove(self) -> None:
        """End what still runs in the hosts and remove them."""
        for host in self._hosts:
            _remove(host.name)
        self._hosts.clear()


def missing() -> str | None:
    """Why networks cannot be built here; None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in TOOLS:
        if shutil.which(tool) is None:
            return f"{tool} is not installed (make system-packages)"
    network = Network()
    try:
        host = network.host()
        host.masquerade("lo", (1024, 2048))
        host.forget_flows()
    except AssertionError as error:
        return f"this kernel or container has no namespaces, or no nftables in them: {error}"
    finally:
        network.remove()
    return None


def remove_abandoned() -> None:
    """Remove the networks of test runs that were killed."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0] if line.strip() else ""
        if name.startswith(_PREFIX) and not Path(f"/proc/{name.removeprefix(_PREFIX).split('-')[0]}").exists():
            _remove(name)


def sockets_of(pid: int, kind: int) -> Iterator[socket.socket]:
    """The sockets of ``kind`` that another process has open: what is done to one is done to the process's own."""
    process = os.pidfd_open(pid)
    try:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            if not str(fd.readlink()).startswith("socket:"):
                continue
            # pidfd_getfd(2), which Python has no function for.
            sock = socket.socket(fileno=_libc.syscall(438, process, int(fd.name), 0))
            if sock.type == kind and sock.family in (socket.AF_INET, socket.AF_INET6):
                yield sock
            else:
                sock.close()
    finally:
        os.close(process)


_libc = ctypes.CDLL(None)
_numbers = itertools.count(1)


def _remove(name: str) -> None:
    for pid in _ip("netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "del", name)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout
