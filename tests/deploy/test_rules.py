"""The alerts, the dashboard and their documents: they agree with the code, and with each other."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config.counted import Kind
from domain.alarms import AlarmCode
from domain.sessions import CALLERS_FAULTS
from entrypoints.metrics.page import all_metrics
from entrypoints.metrics.reference import page as metrics_page
from tests.docs.pages import ROOT, anchors, pages

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "wearon.rules.yml"
RULE_TESTS = sorted(PROMETHEUS.glob("*.test.yml"))
DASHBOARD = ROOT / "deploy" / "grafana" / "wearon.json"
PROMTOOL_SECONDS = 300

_NAME = re.compile(r"\bwearon[_:][a-zA-Z0-9_:]+")
_SELECTOR = re.compile(r"\b(wearon_\w+)\s*\{([^}]*)\}")
_BY = re.compile(r"\bby \(([^)]*)\)")
_LEGEND = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")
_OF_HISTOGRAM = re.compile(r"_(bucket|sum|count)$")
_OF_TARGET = {"job", "instance", "le"}


def rules() -> list[dict[str, Any]]:
    groups = msgspec.yaml.decode(RULES.read_bytes())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def queries() -> Iterator[tuple[str, str]]:
    """Every expression, and the text that is made of its labels."""
    for rule in rules():
        yield rule["expr"], " ".join(rule.get("annotations", {}).values())
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


def labels_by_name() -> dict[str, set[str]]:
    """Of all series that there are, with those of recording rules, which have none."""
    labels = {metric.name: set(metric.labels) for metric in all_metrics()}
    for metric in all_metrics():
        if metric.kind is Kind.HISTOGRAM:
            of_bucket = {f"{metric.name}_bucket": {*metric.labels, "le"}}
            labels |= of_bucket
    return labels | {rule["record"]: set() for rule in rules() if "record" in rule}


def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        if "CI" in os.environ:
            pytest.fail("promtool is missing; Debian's package is called prometheus")
        pytest.skip("promtool is not installed")
    return program


def checked(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [promtool(), *arguments],
        cwd=PROMETHEUS,
        capture_output=True,
        text=True,
        check=False,
        timeout=PROMTOOL_SECONDS,
    )


def test_configuration_is_what_prometheus_reads() -> None:
    result = checked("check", "config", "prometheus.example.yml")

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.name)
def test_alerts_fire_when_they_should(file: Path) -> None:
    """And are silent in an idle month, and in nights with three jobs of which one fails."""
    result = checked("test", "rules", file.name)

    assert result.returncode == 0, result.stdout + result.stderr


def test_rules_and_dashboard_know_every_metric_and_no_other() -> None:
    used = {name for expr, _ in queries() for name in _NAME.findall(expr)}

    known = labels_by_name()
    assert used <= known.keys()
    plain = {_OF_HISTOGRAM.sub("", name) for name in used}
    assert {metric.name for metric in all_metrics()} <= plain
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert recorded <= used


def test_rules_and_dashboard_use_labels_that_the_metrics_have() -> None:
    known = labels_by_name()
    for expr, text in queries():
        of_query = set().union(*(known[name] for name in _NAME.findall(expr)), _OF_TARGET)
        for name, selector in _SELECTOR.findall(expr):
            asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert asked <= known[name] | _OF_TARGET, expr
        for group in _BY.findall(expr):
            assert {label.strip() for label in group.split(",")} <= of_query, expr
        assert set(_LEGEND.findall(text)) <= of_query, text


def test_callers_own_faults_are_those_of_the_code() -> None:
    excluded = [
        set(codes.split("|"))
        for expr, _ in queries()
        for codes in re.findall(r'code!~"([^"]*)"', expr)
    ]

    assert excluded
    assert all(codes == {code.value for code in CALLERS_FAULTS} for codes in excluded)


def test_every_alarm_has_an_alert_and_a_paragraph() -> None:
    alerted = [
        code
        for alert in alerts()
        for code in re.findall(r'wearon_alarm\{code="(\w+)"\}', alert["expr"])
    ]
    headings = anchors(pages()["docs/runbook.md"])

    assert sorted(alerted) == sorted(AlarmCode)
    assert {code.anchor for code in AlarmCode} <= headings
    assert {alert["annotations"]["runbook"] for alert in alerts()} <= headings
    assert {alert["labels"]["severity"] for alert in alerts()} == {"page", "warn"}


def test_every_alert_that_pages_for_an_alarm_does_so_within_five_minutes() -> None:
    waits = {alert["alert"]: alert["for"] for alert in alerts() if "wearon_alarm" in alert["expr"]}
    pages_ = {alert["alert"] for alert in alerts() if alert["labels"]["severity"] == "page"}

    assert {name: wait for name, wait in waits.items() if name in pages_ and wait > "1m"} == {}


def test_page_of_metrics_is_that_of_the_code() -> None:
    assert pages()["docs/metrics.md"] == metrics_page()


@pytest.mark.parametrize("page", ["docs/metrics.md", "docs/runbook.md"])
def test_pages_name_metrics_that_exist(page: str) -> None:
    known = labels_by_name()

    named = {_OF_HISTOGRAM.sub("", name) for name in _NAME.findall(pages()[page])}

    assert named <= known.keys()
