"""The manifests that the chart makes: valid, and what they promise. They are files, so this needs no helm."""

from __future__ import annotations

import tomllib
from copy import deepcopy
from typing import Any

import kubernetes_validate
import pytest
from tools.render_chart import CHART, ROOT, VALUES, mark, rendered

from intermediate_server.config import Settings
from intermediate_server.config.clients import ConnectorSettings
from tests.chart.manifests import (
    NAMES,
    Manifest,
    component,
    container,
    manifests,
    of_kind,
    one,
    pod,
    read,
    values,
    variables,
    workloads,
)

OLDEST, NEWEST = "1.27", "1.37"
SECRETS = "/run/secrets/intermediate-server"
STATE = "/var/lib/intermediate-server"

every = pytest.mark.parametrize("name", NAMES)


@every
def test_they_are_those_of_this_chart(name: str) -> None:
    source = VALUES / f"{name}.yaml"
    first, _, _ = rendered(source).read_text(encoding="utf-8").partition("\n")
    assert f"{first}\n" == mark(source), "run: make chart"


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@every
def test_kubernetes_has_every_key_of_them(name: str, version: str) -> None:
    unknown = set()
    for manifest in manifests(name):
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(manifest["kind"])
    assert unknown <= {"ServiceMonitor"}


def test_a_misspelt_key_would_be_refused() -> None:
    manifest = deepcopy(one("defaults", "StatefulSet", "relay-intermediate-server"))
    pod(manifest)["terminationGracePeriodSecond"] = pod(manifest).pop("terminationGracePeriodSeconds")
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriodSecond"):
        kubernetes_validate.validate(manifest, NEWEST, strict=True)


def test_its_version_is_that_of_the_package() -> None:
    package = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]["version"]
    (chart,) = read(CHART / "Chart.yaml")
    assert (chart["version"], chart["appVersion"], chart["kubeVersion"]) == (package, package, f">={OLDEST}.0-0")
    for workload in workloads("defaults"):
        assert container(workload)["image"] == f"intermediate-server:{package}"


@every
def test_pods_may_do_little(name: str) -> None:
    for workload in workloads(name):
        assert pod(workload)["automountServiceAccountToken"] is False
        assert pod(workload)["enableServiceLinks"] is False
        assert pod(workload)["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert container(workload)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod(workload))
        assert not any("hostPath" in volume or "hostPort" in volume for volume in pod(workload).get("volumes", []))


@every
def test_only_the_state_can_be_written(name: str) -> None:
    for workload in workloads(name):
        mounts = container(workload)["volumeMounts"]
        assert [mount["mountPath"] for mount in mounts if not mount.get("readOnly")] == [STATE]
        assert not any("subPath" in mount for mount in mounts), "a subPath never changes"
        for variable in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
            assert variables(workload)[variable].startswith(f"{STATE}/")


@every
def test_secrets_are_files(name: str) -> None:
    for manifest in manifests(name):
        assert "ztj1_" not in str(manifest) or manifest["kind"] == "Secret"
    for workload in workloads(name):
        assert all(set(each) == {"name", "value"} for each in container(workload)["env"])
        for volume in pod(workload)["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o400
                (mount,) = (each for each in container(workload)["volumeMounts"] if each["name"] == volume["name"])
                assert mount["mountPath"] == SECRETS


@every
def test_the_relay_sees_the_addresses_of_its_clients(name: str) -> None:
    for service in (each for each in of_kind(name, "Service") if each["spec"].get("clusterIP") != "None"):
        assert service["spec"]["externalTrafficPolicy"] == "Local"
        assert service["spec"]["publishNotReadyAddresses"] is True
        assert [port["protocol"] for port in service["spec"]["ports"]] == ["UDP"]
        assert "admin" not in str(service["spec"]["ports"])


@every
def test_there_is_time_to_drain(name: str) -> None:
    for workload in (each for each in workloads(name) if component(each) == "server"):
        drain = int(variables(workload)["ZTNA_DRAIN_GRACE"].removesuffix("s"))
        assert drain == values(name)["server"]["drainGraceSeconds"]
        # It waits for the drain, and then at most a few seconds for the rest.
        assert pod(workload)["terminationGracePeriodSeconds"] >= drain + 10


@every
def test_what_is_selected_and_named_is_there(name: str) -> None:
    labels = {component(each): each["spec"]["template"]["metadata"]["labels"] for each in workloads(name)}
    ports = {component(each): {port["name"] for port in container(each)["ports"]} for each in workloads(name)}
    selectors = [(each, each["spec"]["selector"]) for each in of_kind(name, "Service")]
    for kind in ("StatefulSet", "Deployment", "PodDisruptionBudget"):
        selectors += [(each, each["spec"]["selector"]["matchLabels"]) for each in of_kind(name, kind)]
    selectors += [(each, each["spec"]["podSelector"]["matchLabels"]) for each in of_kind(name, "NetworkPolicy")]
    for manifest, selector in selectors:
        (selected,) = (part for part, found in labels.items() if selector.items() <= found.items())
        assert selected == manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        rules = [manifest["spec"], *manifest["spec"].get("ingress", [])]
        used = {port.get("targetPort", port.get("port")) for rule in rules for port in rule.get("ports", [])}
        assert used <= ports[selected]
    for workload in workloads(name):
        volumes = {each["name"]: each for each in pod(workload).get("volumes", [])}
        claims = {each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in container(workload)["volumeMounts"]} == {*volumes, *claims}
        if claim := volumes.get("state", {}).get("persistentVolumeClaim"):
            assert one(name, "PersistentVolumeClaim", claim["claimName"])
        if "config" in volumes:
            assert one(name, "ConfigMap", volumes["config"]["configMap"]["name"])
    for manifest in manifests(name):
        assert manifest["metadata"]["namespace"] == "ztna"
        assert len(manifest["metadata"]["name"]) <= 57


@every
def test_variables_are_settings(name: str) -> None:
    known = {
        "server": ("ZTNA_", {*Settings.model_fields}),
        "connector": ("ZTNA_CONNECTOR_", {*ConnectorSettings.model_fields}),
    }
    for workload in workloads(name):
        prefix, fields = known[component(workload)]
        names = set(variables(workload)) - {"STATE_DIRECTORY", "RUNTIME_DIRECTORY"}
        assert {variable.removeprefix(prefix).lower() for variable in names} <= fields


@every
def test_health_is_asked_where_the_kubelet_reaches_it(name: str) -> None:
    anywhere = "::" if values(name)["ipFamily"] == "IPv6" else "0.0.0.0"
    probes = {
        "server": {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"},
        # A connector whose relay is away is not restarted: it comes back by itself.
        "connector": {"livenessProbe": "/metrics", "readinessProbe": "/healthz"},
    }
    for workload in workloads(name):
        found = {key: each["httpGet"] for key, each in container(workload).items() if key.endswith("Probe")}
        assert found == {key: {"path": path, "port": "admin"} for key, path in probes[component(workload)].items()}
        (bound,) = (text for key, text in variables(workload).items() if key.endswith("METRICS_BIND"))
        assert bound == anywhere


@every
def test_nothing_but_the_udp_port_is_open(name: str) -> None:
    monitoring = values(name)["networkPolicy"]["adminFrom"]
    for policy in of_kind(name, "NetworkPolicy"):
        part = policy["metadata"]["labels"]["app.kubernetes.io/component"]
        expected: list[Manifest] = [{"ports": [{"port": "quic", "protocol": "UDP"}]}] if part == "server" else []
        if monitoring:
            expected.append({"from": monitoring, "ports": [{"port": "admin", "protocol": "TCP"}]})
        assert (policy["spec"]["policyTypes"], policy["spec"].get("ingress", [])) == (["Ingress"], expected)


def test_a_volume_keeps_the_state() -> None:
    (relay,) = of_kind("defaults", "StatefulSet")
    assert relay["spec"]["replicas"] == 1
    (claim,) = relay["spec"]["volumeClaimTemplates"]
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    # What changes with each version would forbid an upgrade.
    assert "app.kubernetes.io/version" not in claim["metadata"]["labels"]
    (kept,) = of_kind("cluster", "Deployment")
    assert kept["spec"]["strategy"] == {"type": "Recreate"}
    (many,) = of_kind("connectors", "Deployment")
    assert (many["spec"]["replicas"], many["spec"]["strategy"]) == (3, {"type": "RollingUpdate"})
    assert not of_kind("connectors", "PersistentVolumeClaim")


def test_nothing_is_installed_that_is_off() -> None:
    assert {each["metadata"]["labels"]["app.kubernetes.io/component"] for each in manifests("connectors")} == {
        "connector"
    }
    assert not of_kind("defaults", "Deployment") and not of_kind("defaults", "ServiceMonitor")


def test_prometheus_finds_the_admin_services() -> None:
    (monitor,) = of_kind("everything", "ServiceMonitor")
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    selected = [each for each in of_kind("everything", "Service") if selector <= each["metadata"]["labels"].items()]
    assert [each["metadata"]["name"] for each in selected] == ["relay-admin", "relay-connector-admin"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert {endpoint["port"]} == {port["name"] for each in selected for port in each["spec"]["ports"]}


def test_everything_reaches_its_place() -> None:
    """Each value that is no switch is another than its default, and is found again."""
    text = str(manifests("everything"))
    given, default = flat(values("everything")), flat(values())
    switches = {"enabled", "replicas", "type", "port", "nodePort", "value", "ipFamily"}
    same = {key for key, value in given.items() if default.get(key) == value}
    assert {key.rpartition(".")[2] for key in same} <= switches
    # A digest comes in place of the tag; durations and counts have units or another name.
    for key in set(given) - same - {"image.tag", "server.drainGraceSeconds"}:
        assert str(given[key]).strip() in text or repr(given[key])[1:-1] in text, key


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves by their paths."""
    if isinstance(tree, dict) and tree:
        return {
            path: leaf
            for key, value in tree.items()
            for path, leaf in flat(value, f"{prefix}.{key}" if prefix else key).items()
        }
    if isinstance(tree, list) and tree:
        return {path: leaf for at, item in enumerate(tree) for path, leaf in flat(item, f"{prefix}[{at}]").items()}
    return {prefix: tree}
