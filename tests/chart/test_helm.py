"""The chart by helm itself, where ``make deploy-check`` has built it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tools.render_chart import CHART, ROOT, VALUES, mark, render, rendered

from tests.chart import manifests
from tests.chart.manifests import NAMES


@pytest.fixture
def helm() -> Path:
    found = manifests.helm()
    if found is None:
        pytest.skip("helm is not built: make deploy-check builds it")
    return found


def run(helm: Path, command: str, *arguments: str | Path) -> tuple[int, str]:
    """Exit status, and all that helm prints. No cluster is asked, whatever the user has."""
    words = [helm, command, *arguments]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_what_it_renders(helm: Path, name: str) -> None:
    source = VALUES / f"{name}.yaml"
    assert rendered(source).read_text(encoding="utf-8") == mark(source) + render(helm, source), "run: make chart"


@pytest.mark.parametrize("name", NAMES)
def test_it_has_no_complaint(helm: Path, name: str) -> None:
    status, text = run(helm, "lint", "--strict", CHART, "--values", VALUES / f"{name}.yaml")
    assert (status, "[WARNING]" in text, "[ERROR]" in text) == (0, False, False), text


PAGE = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
CONNECTOR = ("connector.enabled=true", "connector.services={web=tcp://web:80}", "connector.token.existingSecret=x")


REFUSED: list[tuple[list[str], str]] = [
    (["server.replicas=2"], "server.replicas must be 1: keys, identities and inner addresses are in one volume"),
    (["server.replcas=1"], "additional properties 'replcas' not allowed"),
    (["server.service.externalTrafficPolicy=Cluster"], "'externalTrafficPolicy' not allowed"),
    (["server.enabled=false"], "nothing to install: set server.enabled or connector.enabled"),
    (["server.config=port = 5000"], "port has no effect here, since the chart sets it: always 4433"),
    (['server.config=drain-grace = "1m"'], "drain-grace has no effect here, since the chart sets it: server.drain"),
    (["server.config=not toml"], "server.config is no TOML: "),
    (["connector.enabled=true"], "connector.services is empty: name at least one service"),
    ([*CONNECTOR, "connector.token.existingSecret="], "connector.token.existingSecret is empty: name the secret"),
    ([*CONNECTOR, "connector.token.value=ztj1_x"], "connector.token: give existingSecret or value, not both"),
    ([*CONNECTOR, "connector.replicas=2"], "several cannot share the profile in one volume; set connector.persist"),
]


def test_no_setting_that_the_chart_makes_is_lost_in_a_file(helm: Path) -> None:
    """A variable goes before the file, so a key of the file that has a variable must be refused."""
    options = [word for each in ("server.certificateSecret=x", "server.publicAddress={a}") for word in ("--set", each)]
    status, text = run(helm, "template", "relay", CHART, *options)
    assert status == 0, text
    made = {name.lower().replace("_", "-") for name in re.findall(r"name: ZTNA_(?!CONNECTOR_)(\w+)", text)}
    assert {"port", "admin-hosts", "cert"} <= made
    for key in made:
        status, text = run(helm, "template", "relay", CHART, *options, "--set-string", f'server.config={key} = "x"')
        assert (status, f"server.config: {key} has no effect here" in text) == (1, True), key


def refusal(helm: Path, given: list[str]) -> str:
    """What helm says of values that it does not take."""
    options = [word for each in given for word in ("--set", each)]
    status, text = run(helm, "template", "relay", CHART, *options)
    assert status == 1
    return text


@pytest.mark.parametrize(("given", "reason"), REFUSED)
def test_what_cannot_work_is_refused_with_the_reason(helm: Path, given: list[str], reason: str) -> None:
    assert reason in refusal(helm, given)


NOTES = """apiVersion: v1
kind: ConfigMap
metadata: { name: notes }
data:
  text: {{ include "notes" . | quote }}
"""
"""To print them takes an installation, and that a cluster; so they become a manifest."""


def notes(helm: Path, directory: Path, *arguments: str | Path) -> str:
    """What is printed after an installation."""
    chart = directory / "chart"
    shutil.copytree(CHART, chart, dirs_exist_ok=True)
    text = (chart / "templates/NOTES.txt").read_text(encoding="utf-8")
    (chart / "templates/notes.yaml").write_text(
        f'{{{{- define "notes" }}}}{text}{{{{- end }}}}{NOTES}', encoding="utf-8"
    )
    command = ["relay", chart, "--namespace", "ztna", "--show-only", "templates/notes.yaml", *arguments]
    status, printed = run(helm, "template", *command)
    assert status == 0, printed
    return str(YAML(typ="safe").load(printed)["data"]["text"])


def test_its_notes_say_how_to_make_the_first_token(helm: Path, tmp_path: Path) -> None:
    text = notes(helm, tmp_path)
    assert (
        "kubectl --namespace ztna exec relay-intermediate-server-0 -- intermediate-server token create web --role agent"
        in text
    )
    assert "create secret generic relay-intermediate-server-connector-token --from-file=token=/dev/stdin" in text
    assert "WARNING: server.publicAddress is empty" in text
    assert "WARNING" not in notes(helm, tmp_path, "--set", "server.publicAddress={relay.example.com}")


def test_notes_of_a_connector_alone_name_its_secret(helm: Path, tmp_path: Path) -> None:
    text = notes(helm, tmp_path, "--values", VALUES / "connectors.yaml")
    assert "The connector office-connector joins by the secret office-connector-token" in text
    assert "statefulset" not in text


def test_the_answers_on_the_page_are_given(helm: Path) -> None:
    said = " ".join(refusal(helm, given) for given, _ in REFUSED)
    table = re.findall(
        r"^\| .* \| `(.+)` \|$", PAGE.partition("| given | answer |")[2].partition("\n\n")[0], re.MULTILINE
    )
    assert len(table) == 5
    for answer in table:
        assert all(part in said for part in answer.split("...")), answer


def test_the_files_of_the_page_are_taken(helm: Path, tmp_path: Path) -> None:
    files = re.findall(r'^```(?:yaml|toml)(?: title="([^"]+)")?\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["relay.yaml", "", "relay.toml"]
    for name, text in files:
        (tmp_path / (name or "connector.yaml")).write_text(text, encoding="utf-8")
    given = [word for name in ("relay.yaml", "connector.yaml") for word in ("--values", tmp_path / name)]
    settings = f"server.config={tmp_path}/relay.toml"
    status, text = run(helm, "template", "relay", CHART, *given, "--set-file", settings)
    assert status == 0, text
    assert "registry.example.com/intermediate-server:" in text and "lease-grace" in text
    assert "secretName: relay-intermediate-server-connector-token" in text


def test_the_page_makes_the_secret_as_the_notes_do(helm: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"^\$ (kubectl .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert " ".join(block.split()) in " ".join(notes(helm, tmp_path).split())
