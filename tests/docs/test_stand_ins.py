"""The stand-ins of systemctl and docker: what pages rely on, and that they refuse what would fail elsewhere too."""

from __future__ import annotations

from pathlib import Path

from tests.docs import page
from tests.docs.conftest import Hosts
from tests.docs.run import Run

UNITS = r"""
```console
# intermediate-server unit server > /etc/systemd/system/intermediate-server.service
# systemctl enable --now intermediate-server
Created symlink ...multi-user.target.wants/intermediate-server.service → ...
# systemctl status intermediate-server
● intermediate-server.service - Intermediate server: zero-trust QUIC relay
     Loaded: loaded (/etc/systemd/system/intermediate-server.service; enabled; preset: enabled)
     Active: active (running) since ...
   Main PID: ...
     Status: "listening on [::]:4433; 0 connections, 0 services"
...
# stat --dereference --format '%a %u' /var/lib/intermediate-server | grep -v ' 0$'
700 ...
# readlink /var/lib/intermediate-server
private/intermediate-server
# pkill -KILL -f 'intermediate-server serve'
# intermediate-server healthcheck
server: ok
# install -d /etc/systemd/system/intermediate-server.service.d
# cd /etc/systemd/system/intermediate-server.service.d
# printf '[Service]\nLoadCredential=key.pem:/etc/key.pem\nEnvironment=ZTNA_KEY=%%d/key.pem\n' > key.conf
# systemctl restart intermediate-server
# intermediate-server healthcheck
server: ok
# systemctl daemon-reload
```

<!-- status 1 -->
```console
# systemctl restart intermediate-server
Job for intermediate-server.service failed because the control process exited with error code.
See "systemctl status intermediate-server.service" and "journalctl -xeu intermediate-server.service" for details.
```

<!-- status 1 -->
```console
# journalctl --unit intermediate-server --output cat --lines 1
intermediate-server.service: Failed to start: ... '/etc/key.pem'
# rm key.conf && systemctl daemon-reload
# echo 'prot = 1' > /etc/intermediate-server/config.toml
# systemctl start intermediate-server
...
```

<!-- status 3 -->
```console
# systemctl is-active intermediate-server
failed
```

<!-- status 1 -->
```console
$ systemctl start intermediate-server
Failed: Interactive authentication required.
```

<!-- status 5 -->
```console
# systemctl start other
Unit other.service not found.
```
"""

CONTAINERS = r"""
```console
# cd intermediate-server/deploy
# docker compose up --detach server
...
# docker compose exec -T server id --user
10001
# docker compose exec -T server getent hosts server
127.0.0.1       server
```

<!-- status 1 -->
```console
# docker compose exec -T server touch /opt/x
touch: cannot touch '/opt/x': Read-only file system
```

<!-- status 2 -->
```console
# docker compose exec -T server getent hosts application
```

<!-- status 1 -->
```console
# docker compose exec -T agent id
service "agent" is not running
```
"""


def run(text: str, directory: Path, hosts: Hosts) -> None:
    path = directory / "page.md"
    path.write_text(text, encoding="utf-8")
    read = page.read(path)
    assert read.faults == []
    Run(read, hosts(read.hosts)).all()


def test_units(hosts: Hosts, tmp_path: Path) -> None:
    run(UNITS, tmp_path, hosts)


def test_containers(hosts: Hosts, tmp_path: Path) -> None:
    run(CONTAINERS, tmp_path, hosts)
