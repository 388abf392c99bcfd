"""The pods of the chart as processes, in the place of a kubelet.

Each has a network of its own and a root that is read-only, with the mounts, variables, user and groups of its manifest,
and no capability. Volumes have the owners and modes that a kubelet gives them. Images, limits and seccomp are not here.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import intermediate_server
from intermediate_server.testing import Program
from tests.chart.manifests import Manifest, container, pod, variables
from tests.e2e.netns import Host, Network
from tests.integration.commands import PATIENCE

WORLD = 0o777
"""The mode of volumes of some provisioners, such as local paths; those are root's, too."""
EMPTY = 0o2777
"""The mode of an ``emptyDir`` with ``fsGroup``."""


class Volume:
    """Files of a ConfigMap or a Secret, which change at once as a kubelet has them change; or a directory to write."""

    def __init__(self, directory: Path, *, group: int, mode: int | None = None) -> None:
        """``mode`` is that of a directory to write; by default the group may, as ``fsGroup`` has it."""
        self.directory = directory
        self._group = group
        self._writes = 0
        directory.mkdir(parents=True)
        if mode is None:
            os.chown(directory, 0, group)
        directory.chmod(0o2775 if mode is None else mode)

    def write(self, files: Mapping[str, str], mode: int = 0o644) -> None:
        """Replace all files. What only the owner may read the group may read too, by ``fsGroup``."""
        self._writes += 1
        made = self.directory / f"..{self._writes}"
        made.mkdir(mode=0o755)
        for name, text in files.items():
            path = made / name
            path.write_text(text, encoding="utf-8")
            path.chmod(mode | (mode & 0o400) >> 3)
            os.chown(path, 0, self._group)
            if not (link := self.directory / name).is_symlink():
                link.symlink_to(f"..data/{name}")
        link = self.directory / "..new"
        link.symlink_to(made.name)
        link.rename(self.directory / "..data")


class Pod:
    """A pod of a workload: what runs in it, and where it is asked for health."""

    def __init__(
        self, host: Host, address: str, workload: Manifest, volumes: Mapping[str, Volume], directory: Path
    ) -> None:
        """``directory`` has its name, and is where its root is mounted, in a namespace that nobody else sees."""
        self.host = host
        self.address = address
        self.workload = workload
        self.volumes = volumes
        self._root = directory
        directory.mkdir()
        self.names: dict[str, str] = {}
        """Addresses by name, since there is no name server."""

    def port(self, name: str) -> int:
        """A port of the container by its name."""
        (found,) = (each["containerPort"] for each in container(self.workload)["ports"] if each["name"] == name)
        return int(found)

    def url(self, probe: str) -> str:
        """What the kubelet gets for a probe."""
        asked = container(self.workload)[probe]["httpGet"]
        return f"http://{self.address}:{self.port(asked['port'])}{asked['path']}"

    async def start(self) -> Program:
        """Start what the manifest says."""
        return await self.exec(*container(self.workload)["args"])

    async def exec(self, *arguments: str) -> Program:
        """Start a command of the image as ``kubectl exec`` does."""
        return await Program.start(*arguments, env=self._environment(), within=self._within())

    def run(self, *words: str) -> str:
        """Another program in this pod, to its end."""
        return self.host.run(*self._within()[len(self.host.within) :], *words)

    def _environment(self) -> dict[str, str]:
        """What the image sets, so far as it matters, and what the manifest does."""
        source = Path(intermediate_server.__file__).parents[1]
        return {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONPATH": str(source), **variables(self.workload)}

    def _within(self) -> tuple[str, ...]:
        return (*self.host.within, "unshare", "--mount", "--uts", "sh", "-euc", self._script(), "sh")

    def _script(self) -> str:
        """Makes the root, and goes on as the user within it."""
        source = Path(intermediate_server.__file__).parents[1]
        trees = ["/usr", sys.base_prefix, sys.prefix, str(source)]
        lines = [f"hostname {self._root.parent.name}", f"root={shlex.quote(str(self._root))}"]
        lines += ["mount -t tmpfs -o mode=0755,nosuid root $root"]
        lines += [_bound(tree, tree, "ro") for tree in dict.fromkeys(trees)]
        for name in ("bin", "lib", "lib64", "sbin"):
            path = Path("/", name)
            if path.is_symlink():
                lines.append(f"ln -s {path.readlink()} $root/{name}")
            elif path.exists():
                lines.append(_bound(str(path), str(path), "ro"))
        for device in ("null", "urandom"):
            lines.append(
                f"mkdir -p $root/dev && touch $root/dev/{device} && mount --bind /dev/{device} $root/dev/{device}"
            )
        lines += ["mkdir $root/proc && mount --rbind /proc $root/proc", "mkdir -p $root/etc"]
        lines.append("[ ! -e /etc/ld.so.cache ] || cp /etc/ld.so.cache $root/etc")
        hosts = "".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **self.names}.items())
        lines.append(f"printf %s {shlex.quote(hosts)} > $root/etc/hosts")
        lines.append("echo hosts: files > $root/etc/nsswitch.conf")
        for mount in container(self.workload)["volumeMounts"]:
            flag = "ro" if mount.get("readOnly") else "rw"
            lines.append(_bound(str(self.volumes[mount["name"]].directory), mount["mountPath"], flag))
        context = pod(self.workload)["securityContext"]
        least = f"--reuid {context['runAsUser']} --regid {context['runAsGroup']} --groups {context['fsGroup']}"
        return "\n".join(
            [
                *lines,
                "mount -o remount,ro $root",
                f'exec chroot $root setpriv {least} --no-new-privs --bounding-set=-all --inh-caps=-all "$@"',
            ]
        )


def _bound(source: str, place: str, flag: str) -> str:
    """A directory of this host at a place of the root."""
    source, place = shlex.quote(source), f'"$root"{shlex.quote(place)}'
    return f"mkdir -p {place} && mount --bind {source} {place} && mount -o remount,bind,nosuid,{flag} {place}"


class Node:
    """The host between all pods; it asks for their health."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.host = network.host()
        self.host.forward()
        self._hosts = 0

    def attach(self) -> tuple[Host, str, str]:
        """A new host behind this one, and its addresses."""
        self._hosts += 1
        made, v4, v6 = self._network.host(), f"10.1.{self._hosts}", f"fd00:1:{self._hosts}:"
        self._network.link(self.host, made, [(f"{v4}.1/24", f"{v4}.2/24"), (f"{v6}:1/64", f"{v6}:2/64")])
        for prefix in (f"{v4}.", f"{v6}:"):
            made.route("default", f"{prefix}1")
        return made, f"{v4}.2", f"{v6}:2"

    def pod(self, workload: Manifest, directory: Path, *, state_mode: int | None = None, family: str = "IPv4") -> Pod:
        """A pod that is not started, with empty volumes; ``family`` is that of its primary address."""
        names = {"state", *(volume["name"] for volume in pod(workload)["volumes"])}
        group = pod(workload)["securityContext"]["fsGroup"]
        volumes = {
            name: Volume(directory / name, group=group, mode=state_mode if name == "state" else None) for name in names
        }
        host, v4, v6 = self.attach()
        return Pod(host, v4 if family == "IPv4" else f"[{v6}]", workload, volumes, directory / "root")

    async def until_healthy(self, asked: Pod, program: Program) -> None:
        """Wait for each probe of a pod, in the order of a kubelet."""
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe in container(asked.workload):
                await until(partial(self.get, asked.url(probe)), program)

    def get(self, url: str, *options: str) -> str:
        """A page; raises ``AssertionError`` where there is none."""
        usual = ("--silent", "--show-error", "--fail", "--globoff", "--max-time", "10")
        return self.host.run("curl", *usual, *options, url)


async def until(ask: Callable[[], object], program: Program) -> None:
    """Repeat a question until it has an answer, while the program runs."""
    problem: AssertionError | None = None
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not program.ended:
                try:
                    await asyncio.to_thread(ask)
                    return
                except AssertionError as error:
                    problem = error
                    await asyncio.sleep(0.1)
    raise AssertionError(f"{problem}; {program.lines[-20:]}")
