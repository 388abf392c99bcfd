"""The values of the chart and their schema: it names every value, and refuses all else."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from tools.render_chart import CHART

from tests.chart.manifests import NAMES, Manifest, merged, values

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


def faults(given: Manifest) -> list[str]:
    """What the schema says of values that are laid over the defaults."""
    found = jsonschema.Draft7Validator(SCHEMA).iter_errors(merged(values(), given))
    return [f"{error.json_path}: {error.message}" for error in found]


def nested(path: str, value: Any) -> Manifest:
    """``a.b`` as objects within objects."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_what_the_tests_render(name: str) -> None:
    assert faults(values(name)) == []


def objects(schema: Manifest, found: Any, path: str = "") -> list[tuple[str, Manifest, Manifest]]:
    """Each object of the values with the schema that has its keys."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    if not isinstance(found, dict) or "properties" not in schema:
        return []
    within = [
        each for key, part in schema["properties"].items() for each in objects(part, found.get(key), f"{path}.{key}")
    ]
    return [(path, schema, found), *within]


def test_it_has_every_value_and_no_other() -> None:
    for path, schema, found in objects(SCHEMA, values()):
        known = set(schema["properties"]) - {"global"}
        assert schema["additionalProperties"] is False, path
        # An absent one would be another's default.
        if path.rpartition(".")[2] not in {"resources", "affinity"}:
            assert set(found) == known == set(schema["required"]), path


@pytest.mark.parametrize(
    "path",
    [
        "servre",
        "image.tagg",
        "server.replica",
        "server.service.externalTrafficPolicy",
        "server.persistence.sizes",
        "server.podDisruptionBudget.minAvailable",
        "server.resources.request",
        "server.affinity.nodeAfinity",
        "connector.token.secret",
        "connector.persistence.claim",
        "networkPolicy.from",
        "serviceMonitor.label",
    ],
)
def test_a_misspelt_key_is_refused(path: str) -> None:
    above, _, key = path.rpartition(".")
    assert faults(nested(path, "x")) == [
        f"$.{above}".removesuffix(".") + f": Additional properties are not allowed ('{key}' was unexpected)"
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("server.replicas", 0),
        ("server.replicas", 2),
        ("server.replicas", "1"),
        ("server.drainGraceSeconds", 301),
        ("server.drainGraceSeconds", "5s"),
        ("server.publicAddress", "relay.example.com"),
        ("server.publicAddress", ["a,b"]),
        ("server.publicAddress", [""]),
        ("server.service.type", "loadbalancer"),
        ("server.service.port", 0),
        ("server.service.ipFamilies", ["IPv4", "IPv4"]),
        ("server.service.annotations", {"a": True}),
        ("server.persistence.size", "1 GB"),
        ("server.persistence.size", "-1Gi"),
        ("server.persistence.accessMode", "ReadWriteMany"),
        ("server.podDisruptionBudget.maxUnavailable", -1),
        ("server.podLabels", {"app.kubernetes.io/name": "other"}),
        ("server.tolerations", [{"efect": "NoSchedule"}]),
        ("connector.enabled", "yes"),
        ("connector.services", ["web"]),
        ("connector.services", ["web=http://a:80"]),
        ("connector.token.value", "a token"),
        ("image.digest", "sha256:abc"),
        ("image.pullPolicy", "always"),
        ("ipFamily", "ipv6"),
        ("logLevel", "INFO"),
        ("networkPolicy.adminFrom", [{}]),
        ("networkPolicy.adminFrom", [{"nameSpaceSelector": {}}]),
        ("serviceMonitor.interval", "30"),
        ("fullnameOverride", "Relay"),
        ("fullnameOverride", "a" * 41),
    ],
)
def test_a_wrong_value_is_refused(path: str, value: object) -> None:
    assert faults(nested(path, value))


def test_two_relays_are_refused_with_the_reason() -> None:
    (fault,) = faults(nested("server.replicas", 2))
    assert "server.replicas must be 1: keys, identities and inner addresses are in one volume" in fault
