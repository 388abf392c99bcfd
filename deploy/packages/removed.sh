#!/bin/sh
# After a removal. What the services keep in /var/lib stays, since it holds keys, and so do their users, who own it.
set -e
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
