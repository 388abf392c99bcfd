"""Deprecated name of :mod:`intermediate_server.client.service_address`."""

from intermediate_server.client.service_address import service_addresses

virtual_addresses = service_addresses
