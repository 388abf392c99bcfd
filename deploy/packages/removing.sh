#!/bin/sh
# Before a removal, which dpkg calls "remove" and rpm "0"; an upgrade is called otherwise.
set -e
if [ -d /run/systemd/system ] && { [ "$1" = remove ] || [ "$1" = 0 ]; }; then
  systemctl disable --now intermediate-server.socket intermediate-server.service \
    intermediate-server-agent.service intermediate-server-connector.service
fi
