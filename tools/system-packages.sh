#!/usr/bin/env bash
# Install what the tests of networks, systemd's units, the image and the packages use and the machine lacks. Never an
# error: those tests skip with the reason.
set -euo pipefail

packages=()
need() { command -v "$1" >/dev/null || [[ -x /usr/sbin/$1 || -x /sbin/$1 ]] || packages+=("$2"); }
need ip iproute2
need iptables iptables
need nft nftables
need conntrack conntrack
need tc iproute2
need ping iputils-ping
need curl curl
need pgrep procps
need iperf3 iperf3
need systemd-analyze systemd
need buildah buildah
need mmdebstrap mmdebstrap
need rpm rpm

if ((${#packages[@]} == 0)); then
  exit 0
fi
if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
  echo "not installed, tests that need them will skip: ${packages[*]}"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || true
apt-get install -y -qq --no-install-recommends "${packages[@]}" ||
  echo "could not install ${packages[*]}; tests that need them will skip"
