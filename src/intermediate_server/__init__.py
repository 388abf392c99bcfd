"""The intermediate server of a zero-trust network: a QUIC relay between agents and connectors."""
