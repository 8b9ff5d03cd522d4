"""The output of a run: tables for people, JSON for programs, and a chart."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

from entrypoints.cli.output import print_table
from tests.bench.figures import Finding, Round

_LEFT, _WIDTH, _LINE, _TOP = 440, 420, 26, 40
_FULL = 1.5
"""The fraction of an aim at which the chart ends."""
_MET, _MISSED = "#2a7f4f", "#b3402a"


def machine() -> dict[str, Any]:
    """Facts about the machine that the figures depend on."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "processors_usable": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "load_before": round(os.getloadavg()[0], 2),
    }


def print_facts(facts: Mapping[str, Any]) -> None:
    print_table(("FACT", "VALUE"), list(facts.items()))
    sys.stdout.write("\n")


def print_findings(findings: Sequence[Finding]) -> None:
    rows = [
        (
            finding.name,
            _short(finding.value),
            f"{_short(min(finding.values))}..{_short(max(finding.values))}",
            str(finding.aim),
            "met" if finding.is_met else "MISSED",
            finding.title,
        )
        for finding in findings
    ]
    print_table(("ROW", "MEDIAN", "SPREAD", "AIM", "", "MEANING"), rows)
    sys.stdout.write("\n")


def print_slots(rounds: Sequence[Round]) -> None:
    """The medians that the ratios are computed from, in their units."""
    rows = [
        (slot, name, _short(median(round_[slot][name] for round_ in rounds)))
        for slot in rounds[0]
        for name, value in rounds[0][slot].items()
        if isinstance(value, int | float)
    ]
    print_table(("SLOT", "FIGURE", "MEDIAN"), rows)
    sys.stdout.write("\n")


def as_document(
    facts: Mapping[str, Any], findings: Sequence[Finding], rounds: Sequence[Round]
) -> dict[str, Any]:
    """All results as JSON, with every round as measured."""
    return {
        "facts": dict(facts),
        "findings": [
            {
                "name": finding.name,
                "title": finding.title,
                "value": finding.value,
                "values": list(finding.values),
                "aim": str(finding.aim),
                "met": finding.is_met,
            }
            for finding in findings
        ],
        "rounds": list(rounds),
    }


def chart(findings: Sequence[Finding]) -> str:
    """An SVG with one bar per finding: its length is the fraction reached of the aim, which is a
    vertical line."""
    height = _TOP + _LINE * len(findings) + 20
    aim_x = _x(1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 120}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{aim_x}" y="24" text-anchor="middle">aim</text>',
    ]
    for number, finding in enumerate(findings):
        parts += _bar(finding, _TOP + _LINE * number)
    parts.append(
        f'<line x1="{aim_x}" y1="30" x2="{aim_x}" y2="{height - 16}" stroke="black"'
        ' stroke-dasharray="4 3"/>'
    )
    return "\n".join([*parts, "</svg>", ""])


def _bar(finding: Finding, top: int) -> list[str]:
    reached = [finding.aim.fraction_reached_by(value) for value in finding.values]
    middle = top + 9
    colour = _MET if finding.is_met else _MISSED
    length = round(_x(finding.aim.fraction_reached_by(finding.value)) - _LEFT, 1)
    return [
        f'<text x="{_LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(finding.title)}</text>',
        f'<rect x="{_LEFT}" y="{top}" width="{length}" height="18" fill="{colour}"/>',
        f'<line x1="{_x(min(reached))}" y1="{middle}" x2="{_x(max(reached))}" y2="{middle}"'
        ' stroke="#888"/>',
        f'<text x="{_LEFT + _WIDTH + 8}" y="{top + 13}">'
        f"{_short(finding.value)} ({escape(str(finding.aim))})</text>",
    ]


def _x(reached: float) -> float:
    return round(_LEFT + _WIDTH * min(max(reached, 0.0), _FULL) / _FULL, 1)


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
