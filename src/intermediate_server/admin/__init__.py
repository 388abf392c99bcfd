"""Health and metrics over HTTP, on loopback unless configured otherwise."""

from intermediate_server.errors import SERVER, needs

with needs(SERVER):
    from intermediate_server.admin.http import AdminServer, create_app
    from intermediate_server.admin.metrics import ServerCollector
    from intermediate_server.admin.operations import Numbers, Operations
    from intermediate_server.admin.status import Status

__all__ = ["AdminServer", "Numbers", "Operations", "ServerCollector", "Status", "create_app"]
