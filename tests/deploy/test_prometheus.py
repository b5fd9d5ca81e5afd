"""Promises of the alert rules and the dashboard in deploy/: they are well-formed, and name what there is.

That each alert fires in the state it is for is in `tests.integration.test_alerts`.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from qanat.base.events import Events
from qanat.base.request_head import RequestHead
from qanat.monitor.metrics import Metrics
from tests.support.machine.programs import require_program
from tests.support.snapshots import client, server, session, summing

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus-rules.yml"
UNIT_TEST = Path(__file__).with_name("prometheus-rules.test.yml")
NOT_OURS = {"up", "ALERTS"}


def promtool(*arguments: object) -> None:
    run = subprocess.run(
        [require_program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    return found


def dashboard_expressions() -> Iterator[str]:
    """Each expression of the dashboard, with Grafana's variables replaced."""
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    found = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    found += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    for expression in found:
        yield expression.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$job", ".*")


def exported() -> set[str]:
    """The name of every sample that a server or a client exports."""
    head = RequestHead("GET", "/metrics", (("host", "localhost"),), "1.1", b"")
    names: set[str] = set()
    for snapshot in (server(session("a")), client(session("a", peer="wss://b/"), urls=("wss://b/",))):
        text = Metrics(summing(snapshot), Events(), 50).answer(head).body.decode()
        for family in text_string_to_metric_families(text):
            names |= {sample.name for sample in family.samples}
    return names


def named_in(expression: str) -> set[str]:
    """The metrics that an expression names."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"|\b(?:by|without|on|ignoring)\s*\([^)]*\)|\[[^]]*\]', "", expression)
    return set(re.findall(r"\b(?:qanat|process|python)_[a-z0-9_]+|\bup\b|\bALERTS\b", bare))


def test_the_rules_are_well_formed_and_each_has_a_test() -> None:
    promtool("check", "rules", RULES)
    tested = UNIT_TEST.read_text()
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names) >= 15
    assert not [name for name in names if name not in tested]
    for rule in alerts():
        assert {"summary", "description"} == set(rule["annotations"])
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


def test_the_rules_fire_on_what_they_are_for_alone() -> None:
    promtool("test", "rules", UNIT_TEST)


def test_rules_and_dashboard_name_only_what_is_exported() -> None:
    known = exported() | NOT_OURS
    expressions = [*(rule["expr"] for rule in alerts()), *dashboard_expressions()]
    assert len(expressions) > 50
    for expression in expressions:
        named = named_in(expression)
        assert named, expression
        assert named <= known, expression


def test_the_dashboards_expressions_can_be_evaluated(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(dashboard_expressions())]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


def test_the_dashboard_shows_every_metric_of_ours_but_what_another_one_has() -> None:
    shown = set().union(*map(named_in, dashboard_expressions()))
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in exported() if name.startswith("qanat_")}
    unseen = families - {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert unseen <= {
        "qanat_info",  # the choice of instances
        "qanat_connections_limit",
        *(name for name in families if name.startswith(("qanat_client_", "qanat_server_"))),
    }


@pytest.mark.parametrize("key", ["id", "title"])
def test_its_panels_can_be_told_apart(key: str) -> None:
    values = [panel[key] for panel in panels() if panel["type"] != "row"]
    assert len(set(values)) == len(values) or key == "title"
    assert all(values)
    assert not any(panel["gridPos"]["x"] + panel["gridPos"]["w"] > 24 for panel in panels())
