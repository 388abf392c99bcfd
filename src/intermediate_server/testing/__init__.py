"""A relay, connectors, agents and applications as real processes: for tests of your own, and for the lab.

The pieces need nothing but this package; the pytest fixtures over them are in ``intermediate_server.testing.plugin``.
"""

from intermediate_server.testing.lab import Lab, Step
from intermediate_server.testing.programs import Agent, Application, Connector, Program, ProgramError, Relay

__all__ = ["Agent", "Application", "Connector", "Lab", "Program", "ProgramError", "Relay", "Step"]
