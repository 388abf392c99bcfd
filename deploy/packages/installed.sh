#!/bin/sh
# After an installation or an upgrade: a service that runs goes on until it is restarted.
set -e

# dpkg names the version that was there before; rpm counts those that are there now.
first=no
case "$1 $2" in
  "configure " | "1 ") first=yes ;;
esac

if command -v systemd-sysusers >/dev/null; then
  systemd-sysusers intermediate-server.conf
  # Each service alone reads its settings. An administrator may change that: upgrades leave it alone.
  if [ "$first" = yes ]; then
    for pair in config:intermediate-server agent:intermediate-server-agent connector:intermediate-server-connector; do
      file=/etc/intermediate-server/${pair%%:*}.toml
      chgrp "${pair#*:}" "$file"
      chmod 0640 "$file"
    done
  fi
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
