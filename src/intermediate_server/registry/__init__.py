"""The registry: pure state that turns registrations into route changes."""

from intermediate_server.registry.changes import LEAVING, Change, RegistryFull, SetAgent, SetService, Target
from intermediate_server.registry.registry import Counts, Registry

__all__ = ["LEAVING", "Change", "Counts", "Registry", "RegistryFull", "SetAgent", "SetService", "Target"]
