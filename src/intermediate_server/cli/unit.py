"""``unit``: prints a systemd unit for the program as it is installed here. ``deploy/`` holds the same as files."""

from __future__ import annotations

import os
import re
import shlex
import site
import stat
import sys
import sysconfig
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

from intermediate_server.cli import commands
from intermediate_server.errors import ConfigError

PROGRAM = "intermediate-server"
HIDDEN = ("/home", "/root", "/run/user")
"""Directories that ``ProtectHome=`` takes from a service."""
OWN = ("/tmp/", "/var/tmp/")  # noqa: S108  nothing is written there
"""Directories of which ``PrivateTmp=`` gives the service its own."""
ANYWHERE = Path("/opt/intermediate-server")
"""Where the documents install it for the whole host."""

KINDS = {
    "server": "intermediate-server.service",
    "agent": "intermediate-server-agent.service",
    "connector": "intermediate-server-connector.service",
    "socket": "intermediate-server.socket",
    "tun": "tun.conf",
}
"""What can be printed, and the file's name."""
CLIENTS = ("agent", "connector")

HEADER = """\
# {title}
#   {program} unit {kind} > {where}
#   systemctl daemon-reload && systemctl enable --now {name}
"""

SERVER_HEADER = """\
# Settings are read from /etc/intermediate-server/config.toml where there is one. The service is a user of its own, so
# the file must be readable for everyone; secrets are not in it.
"""

CLIENT_HEADER = """\
# Settings are read from /etc/intermediate-server/{kind}.toml. The service is a user of its own, so the file must be
# readable for everyone; secrets are not in it. Put certificate, key and CA beside it, and remove the # of the lines
# about credentials below.
"""

UNIT = """\
[Unit]
Description={description}
Documentation=man:systemd.exec(5)
{before}{starts}

[Service]
# It says when it is ready, how it is, when it reloads and ends, and that its engine and its loop still turn.
Type=notify
NotifyAccess=main
WatchdogSec=30
# A revocation list of hundreds of megabytes takes its time.
TimeoutStartSec=5min
{run}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec={pause}
KillSignal=SIGTERM
TimeoutStopSec=30

# A user that exists only while the service runs, unless the host has one of this unit's name; what it keeps is in
# /var/lib/{state}.
DynamicUser=yes
StateDirectory={state}
StateDirectoryMode=0700
ConfigurationDirectory=intermediate-server
{directories}WorkingDirectory=/var/lib/{state}
UMask=0077

{credentials}
# A core dump would hold private keys.
LimitCORE=0
{limits}
# Nothing is asked of the kernel but sockets and one's own files.
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
MemoryDenyWriteExecute=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RemoveIPC=yes
KeyringMode=private

ProtectSystem=strict
{home}
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
DevicePolicy=closed

[Install]
WantedBy=multi-user.target
"""

SERVER_CREDENTIALS = """\
# Certificates of your own: systemd reads them as root and hands them over in memory, and the files stay root's (0600).
# Remove the # of these lines, and leave cert, key and ca-cert out of config.toml. systemd copies them at the start:
# after a renewal restart, or with systemd 260 let RefreshOnReload copy them again at "systemctl reload".
#LoadCredential=cert.pem:/etc/intermediate-server/cert.pem
#LoadCredential=key.pem:/etc/intermediate-server/key.pem
#LoadCredential=ca.pem:/etc/intermediate-server/ca.pem
#Environment=ZTNA_CERT=%d/cert.pem ZTNA_KEY=%d/key.pem ZTNA_CA_CERT=%d/ca.pem
#RefreshOnReload=credentials
"""

CLIENT_CREDENTIALS = """\
# Certificate and key: systemd reads them as root and hands them over in memory, and the files stay root's (0600).
# Remove the # of these lines, and leave cert, key and ca-cert out of {program}.toml. systemd copies them at the start:
# after a renewal restart, or with systemd 260 let RefreshOnReload copy them again at "systemctl reload".
#LoadCredential=cert.pem:/etc/intermediate-server/{program}.pem
#LoadCredential=key.pem:/etc/intermediate-server/{program}.key
#LoadCredential=ca.pem:/etc/intermediate-server/ca.pem
#Environment=ZTNA_{PROGRAM}_CERT=%d/cert.pem ZTNA_{PROGRAM}_KEY=%d/key.pem ZTNA_{PROGRAM}_CA_CERT=%d/ca.pem
#RefreshOnReload=credentials
"""

JOIN_HEADER = """\
# Put the token that 'token create' has printed on the relay into /etc/intermediate-server/{kind}.token, mode 0600. It
# is used at the first start, and may be removed then. Settings are read from /etc/intermediate-server/{kind}.toml,
# which may be empty and must be readable for everyone: the service is a user of its own.
"""

JOIN_CREDENTIALS = """\
# systemd reads the token as root and hands it over in memory; the blank one stands for a file that is gone. What a join
# makes is the profile in the state directory, which renews itself.
LoadCredential=join-token:/etc/intermediate-server/{program}.token
SetCredential=join-token:\\x20
"""

SOCKET = """\
[Unit]
Description=UDP port of the intermediate server
Documentation=man:systemd.socket(5)

[Socket]
# systemd keeps the port open while the service restarts: packets wait in its buffer, and nobody is told that the port
# is closed. These addresses take the place of bind and port in config.toml.
# A port alone is one of IPv6 and IPv4, and of IPv4 where the kernel has no IPv6.
ListenDatagram=4433
BindIPv6Only=both
FileDescriptorName=quic
ReceiveBuffer=4M
SendBuffer=4M
# Packets that cannot be taken are for the service to count.
FlushPending=no

[Install]
WantedBy=sockets.target
"""

TUN = """\
[Service]
# A TUN interface needs its device, and CAP_NET_ADMIN in the host's own user namespace.
CapabilityBoundingSet=CAP_NET_ADMIN
AmbientCapabilities=CAP_NET_ADMIN
PrivateUsers=no
PrivateDevices=no
DeviceAllow=/dev/net/tun rw
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the program lies, and what of it a service without a home directory must be given."""

    program: str
    bound: tuple[Path, ...] = field(default=())

    @classmethod
    def of_this_program(cls) -> Place:
        """As pip, pipx or uv has installed what runs now. Raises ``ConfigError``."""
        try:
            found = distribution(PROGRAM)
        except PackageNotFoundError:
            raise ConfigError("the program is not installed; install it with pip, pipx or uv first") from None
        if site.ENABLE_USER_SITE and str(found.locate_file("")).startswith(site.getusersitepackages()):
            raise ConfigError(
                "the program is installed with pip --user, which a service of another user cannot see; install it with"
                " pipx or uv, or into an environment: python3 -m venv /opt/intermediate-server"
            )
        scripts = [Path(str(found.locate_file(file))) for file in found.files or () if file.name == PROGRAM]
        program = next(iter(scripts), Path(sysconfig.get_path("scripts")) / PROGRAM)
        program = Path(os.path.normpath(program))
        if not program.is_file():
            raise ConfigError(f"{program} is not there; install the program with pip, pipx or uv again")
        # The environment, and an interpreter of uv or pyenv, which lies beside it.
        parts = dict.fromkeys(Path(part).resolve() for part in (sys.prefix, sys.base_prefix))
        return cls(str(program), tuple(part for part in parts if str(part).startswith(HIDDEN)))

    def unreadable(self) -> Path | None:
        """The first directory above the program that only its owner may enter, if a service would have to."""
        if self.bound:
            return next((part for part in self.bound if not part.stat().st_mode & stat.S_IXOTH), None)
        return next((part for part in Path(self.program).parents if not part.stat().st_mode & stat.S_IXOTH), None)


def register(app: commands.Group) -> None:
    """Add the commands of this module."""
    app.command("unit")(unit)


def unit(
    kind: Annotated[str, commands.Argument(metavar="|".join(KINDS), help="The program, or what goes beside its unit.")],
    join: Annotated[
        bool, commands.Option("--join", help="For an agent or a connector: join by a token at the first start.")
    ] = False,
) -> None:
    """Print a systemd unit, with the path of this program; its first lines say where to put it.

    socket is for a relay whose port is open from boot on, tun is a drop-in for agent and connector with --tun.
    """
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is no unit; there are {', '.join(KINDS)}")
    if join and kind not in CLIENTS:
        raise ConfigError("--join is for an agent or a connector")
    place = Place.of_this_program()
    closed = place.unreadable()
    if closed is not None:
        commands.echo(f"warning: {closed} can be entered by its owner only, and the service is another user", err=True)
    if place.program.startswith(OWN):
        commands.echo(
            f"warning: the service does not see {place.program}, since it has a /tmp and a /var/tmp of its own; install"
            f" the program into an environment elsewhere: python3 -m venv {ANYWHERE}",
            err=True,
        )
    commands.echo(render(kind, place, join=join), nl=False)


def render(kind: str, place: Place, *, join: bool = False) -> str:
    """The file of a kind."""
    name = KINDS[kind]
    where = f"/etc/systemd/system/{name}"
    if kind == "tun":
        where, name = "/etc/systemd/system/intermediate-server-agent.service.d/tun.conf", KINDS["agent"]
        title = "For --tun of an agent; for a connector put it into intermediate-server-connector.service.d."
    else:
        title = "Install, as root:"
    asked = f"{kind} --join" if join else kind
    header = HEADER.format(title=title, program=shlex.quote(place.program), kind=asked, where=where, name=name)
    if kind == "tun":
        header = header.replace("enable --now", "restart").replace(
            "#   ", f"#   mkdir -p {Path(where).parent}\n#   ", 1
        )
        return header + TUN
    if kind == "socket":
        return header + SOCKET
    if kind == "server":
        return header + SERVER_HEADER + _server(place)
    return header + (JOIN_HEADER if join else CLIENT_HEADER).format(kind=kind) + _client(kind, place, join=join)


def _word(path: str | Path) -> str:
    """A path as a word of a unit's line (systemd.syntax(7)): no specifier, and quoted. Raises ``ConfigError``."""
    text = str(path)
    if re.search(r"""["'\\\x00-\x1f]""", text):
        raise ConfigError(
            f"systemd starts no program whose path has a quote or a backslash in it, as {text!r} has; install it into"
            f" another environment: python3 -m venv {ANYWHERE}"
        )
    text = text.replace("%", "%%")
    return f'"{text}"' if re.search("[ :;]", text) else text


def _server(place: Place) -> str:
    program = _word(place.program)
    return UNIT.format(
        description="Intermediate server: zero-trust QUIC relay",
        # The first start makes certificates, which takes a clock that is right.
        before="After=network-online.target time-sync.target\nWants=network-online.target time-sync.target\n",
        starts="StartLimitIntervalSec=60\nStartLimitBurst=10",
        pause=1,
        run=f"ExecStartPre={program} check-config\nExecStart={program} serve",
        state="intermediate-server",
        directories='# For audit-log = "/var/log/intermediate-server/audit.jsonl".\n'
        "LogsDirectory=intermediate-server\nLogsDirectoryMode=0700\n",
        credentials=SERVER_CREDENTIALS,
        limits="# Every connection is memory and a share of the socket buffers, not a descriptor.\nLimitNOFILE=65536\n"
        "MemoryMax=4G\nTasksMax=128\nOOMPolicy=stop\n"
        "# Sockets that the server hands over stay open over a restart, with the packets that wait in them.\n"
        "FileDescriptorStoreMax=16\n",
        home=_home(place),
    )


def _client(kind: str, place: Place, *, join: bool) -> str:
    flag = " --join auto" if join else ""
    state = f"intermediate-server-{kind}"
    return UNIT.format(
        description=f"Intermediate server: {kind}",
        before="After=network-online.target\nWants=network-online.target\n",
        starts="# It is not given up: relay, network or clock may be right only long after a power cut.\n"
        "StartLimitIntervalSec=0",
        pause=5,
        run=f"ExecStart={_word(place.program)} {kind}{flag} --config /etc/intermediate-server/{kind}.toml",
        state=state,
        directories=f"RuntimeDirectory={state}\nRuntimeDirectoryMode=0700\n",
        credentials=(JOIN_CREDENTIALS if join else CLIENT_CREDENTIALS).format(program=kind, PROGRAM=kind.upper()),
        limits="# Each flow has a socket.\nLimitNOFILE=65536\nTasksMax=128\n",
        home=_home(place),
    )


def _home(place: Place) -> str:
    if not place.bound:
        return "ProtectHome=yes"
    # The program lies in somebody's home directory: the service sees that part of it alone.
    return f"ProtectHome=tmpfs\nBindReadOnlyPaths={' '.join(map(_word, place.bound))}"
