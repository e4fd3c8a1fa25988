"""The bench's figures as a table of medians and ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import attrs

from tests.bench.workloads import Measurement, Workload

#: Workload, the yardstick's name, and the least part of its rate that ``reverse`` should reach.
FLOORS = (
    ("small", "h11 relay", 0.8),
    ("1 MiB", "raw relay", 0.7),
    ("idle", "bare trait", 0.9),
    ("hit", "h11 server", 0.4),
    ("hit", "proxied", 1.0),
    ("h2 TLS", "hypercorn", 1.5),
)

#: What is measured against the yardsticks, where that is not ``reverse``.
SUBJECTS = {"idle": "chain"}
YARDSTICKS = (*dict.fromkeys(name for _, name, _ in FLOORS), "disk")


@attrs.frozen
class Row:
    """One target under one workload, over all rounds."""

    workload: Workload
    target: str
    rounds: Sequence[Measurement]

    @property
    def rate(self) -> float:
        """The median of the responses a second."""
        return median(each.rate for each in self.rounds)

    @property
    def cpu(self) -> float | None:
        """The median of the processor time a response, in microseconds."""
        known = [each.cpu for each in self.rounds if each.cpu is not None]
        return median(known) if known else None


def subject(workload: str) -> str:
    """Return what a workload's ratios are about."""
    return SUBJECTS.get(workload, "reverse")


def ratio(rows: Mapping[tuple[str, str], Row], workload: str, other: str) -> float:
    """Return subject / other: the median over the rounds of what was measured side by side."""
    ours, theirs = rows[workload, subject(workload)].rounds, rows[workload, other].rounds
    return median(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))


def render(rows: Sequence[Row]) -> str:
    """Return the table as text."""
    known = {(row.workload.name, row.target): row for row in rows}
    lines = [f"{'load':<7}{'through':<14}{'responses/s':>12}{'MiB/s':>9}{'spread':>8}{'CPU us':>9}"]
    for row in rows:
        rates = [each.rate for each in row.rounds]
        spread = (max(rates) - min(rates)) / row.rate
        mib = row.rate * len(row.workload.body) / (1 << 20)
        cpu = "-" if row.cpu is None else f"{row.cpu:.0f}"
        lines.append(
            f"{row.workload.name:<7}{row.target:<14}{row.rate:>12.0f}{mib:>9.1f}"
            f"{spread:>8.0%}{cpu:>9}"
        )
    lines += ["", f"{'load':<7}{'ratio':<22}{'measured':>9}{'floor':>7}"]
    floors = {(workload, other): floor for workload, other, floor in FLOORS}
    for workload in dict.fromkeys(row.workload.name for row in rows):
        for other in [name for kind, name in known if kind == workload and name in YARDSTICKS]:
            floor = floors.get((workload, other))
            measured = ratio(known, workload, other)
            verdict = "" if floor is None else f"{floor:>7.2f}"
            if floor is not None and measured < floor:
                verdict += "  below"
            named = f"{subject(workload)} / {other}"
            lines.append(f"{workload:<7}{named:<22}{measured:>9.2f}{verdict}")
    return "\n".join(lines)
