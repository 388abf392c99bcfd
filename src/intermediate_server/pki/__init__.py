"""Certificates: the development CA, certificates issued from it, and the identity in a certificate."""

from intermediate_server.pki.anchors import Anchors
from intermediate_server.pki.authority import Authority, Issued
from intermediate_server.pki.development import (
    DevelopmentFiles,
    Secrets,
    ensure_development,
    ensure_secrets,
    host_names_and_addresses,
    temporary_secrets,
)
from intermediate_server.pki.inspect import Description, describe, identity_of
from intermediate_server.pki.material import ServerMaterial, load_server_material
from intermediate_server.pki.revocation import CertificateId, Revocations, certificate_ids, load_revocations

__all__ = [
    "Anchors",
    "Authority",
    "CertificateId",
    "Description",
    "DevelopmentFiles",
    "Issued",
    "Revocations",
    "Secrets",
    "ServerMaterial",
    "certificate_ids",
    "describe",
    "ensure_development",
    "ensure_secrets",
    "host_names_and_addresses",
    "identity_of",
    "load_revocations",
    "load_server_material",
    "temporary_secrets",
]
