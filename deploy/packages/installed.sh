#!/bin/sh
# After an installation or an upgrade: a service that runs goes on until it is restarted.
set -e

# Each service alone reads its settings. dpkg names the version that was there before, and keeps owner and mode of a
# file over an upgrade; rpm gives a count, and lays each unchanged file down anew.
case "$1 $2" in
  "configure " | [1-9]*) fresh=yes ;;
  *) fresh=no ;;
esac
if command -v systemd-sysusers >/dev/null; then
  systemd-sysusers intermediate-server.conf
  for pair in config:intermediate-server agent:intermediate-server-agent connector:intermediate-server-connector; do
    file=/etc/intermediate-server/${pair%%:*}.toml
    if [ "$fresh" = yes ] && [ "$(stat --format=%U:%G:%a "$file")" = root:root:644 ]; then
      chgrp "${pair#*:}" "$file"
      chmod 0640 "$file"
    fi
  done
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
