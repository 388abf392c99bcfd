"""Somebody typing over TCP: one byte at a time, each echoed; prints how long each took, in seconds, as JSON."""

from __future__ import annotations

import json
import socket
import sys
import time

KEYS, PAUSE = 100, 0.05


def main(host: str, port: str) -> None:
    """Type ``KEYS`` bytes, 20 a second."""
    took = []
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(KEYS):
            begun = time.monotonic()
            connection.sendall(bytes([number]))
            if connection.recv(1) != bytes([number]):
                raise SystemExit(f"another byte than the {number}th came back")
            took.append(time.monotonic() - begun)
            time.sleep(max(0.0, PAUSE - took[-1]))
    json.dump(took, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
