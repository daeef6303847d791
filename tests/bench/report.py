"""The figures as Markdown, ready for README.md in this folder."""

from typing import Any


def markdown(found: dict[str, Any]) -> str:
    """Return the tables."""
    machine, figures = found["machine"], found["comparisons"][0]["figures"]
    head = (
        f"{machine['database']}, Python {machine['python']}, {machine['cores']} cores; "
        f'`sync.attendees = "{machine["attendees"]}"`. Each with its ratio to the floor.'
    )
    columns = ["floor", *(name for name in ("syncd", "dlt") if name in figures)]
    if "old" in figures:
        revision, versions = machine["against"], machine["versions"]
        head += f" syncd {versions['syncd']}, as it is here, against {revision} ({versions['old']})."
        columns = ["floor", revision, "syncd", f"syncd ÷ {revision}"]
    lines = [
        head,
        "",
        f"| events × attendees, network | | {' | '.join(columns)} |",
        "|---|---|" + "--:|" * len(columns),
    ]
    for comparison in found["comparisons"]:
        lines += _rows(comparison)
    return "\n".join([*lines, "", *_alone(found)] if "rest" in found else lines)


BESIDE = {
    "first import": ("floor with log", "the log of changes filled too, s", ("old", "syncd")),
    "nothing changed": ("requests alone", "its requests alone, s", ("syncd",)),
}
"""The other floors that phases have, how their rows are called, and whose floors they are."""
OF_VERSIONS = {"median_s": "s, median", "cpu_s": "s of CPU, start and end too"}
"""What is shown only where two versions of syncd are compared."""


def _rows(comparison: dict[str, Any]) -> list[str]:
    figures = comparison["figures"]
    programs = [name for name in ("old", "syncd", "dlt") if name in figures]
    account = f"{comparison['events']} × {comparison['attendees']}, {comparison['latency_ms']} ms"
    rows = []
    for phase, floor in figures["floor"].items():
        of = {name: figures[name][phase] for name in programs}
        rows.append(_row(f"{phase}, s", "seconds", floor, of))
        if phase in BESIDE:
            other, title, whose = BESIDE[phase]
            beside = {name: each if name in whose else None for name, each in of.items()}
            rows.append(_row(title, "seconds", figures[other][phase], beside))
        if "old" in of:
            rows += [_row(f"{phase}, {what}", name, floor, of) for name, what in OF_VERSIONS.items()]
        rows.append(_row(f"{phase}, requests", "requests", floor, of))
        if phase == "first import" or "old" in of:
            rows.append(_row(f"{phase}, MiB at most", "peak_mib", floor, of))
    return [f"| {'' if n else account} | {' | '.join(row)} |" for n, row in enumerate(rows)]


def _row(title: str, name: str, floor: dict[str, float], of: dict[str, dict[str, float] | None]) -> list[str]:
    shown = round if name in ("requests", "peak_mib") else _number
    row = [title, str(shown(floor[name]))]
    row += [
        f"{shown(each[name])} (× {_number(each[name] / floor[name])})" if each else "" for each in of.values()
    ]
    if "old" in of:
        old, new = of["old"], of["syncd"]
        row.append(f"{new[name] / old[name]:.2f}" if old and new else "")
    return row


def _alone(found: dict[str, Any]) -> list[str]:
    largest, tenth = found["comparisons"][-1], found["tenth"]
    peak = max(
        each["figures"]["syncd"]["first import"]["peak_mib"]
        for each in found["comparisons"]
        if each["events"] == largest["events"]
    )
    status, rest = found["status"], found["rest"]
    account = f"{largest['events']} × {largest['attendees']}"
    small = f"{tenth['events']} × {tenth['attendees']}"
    figures = {
        f"peak memory of a first import, {account} ÷ {small}": f"{peak:.0f} ÷ {tenth['peak_mib']:.0f} MiB "
        f"= {peak / tenth['peak_mib']:.2f}",
        "`status` during that import: half of the answers, and 99 %, within": f"{status['p50_ms']:.1f} ms, "
        f"{status['p99_ms']:.1f} ms",
        "memory at rest: 10 s after the start, 10 s after that import": f"{rest['idle_mib']:.1f} MiB, "
        f"{status['after_mib']:.1f} MiB",
        "`syncctl status` ÷ `python -c pass`": f"{1000 * rest['syncctl_s']:.0f} ÷ "
        f"{1000 * rest['python_s']:.0f} ms = {rest['syncctl_s'] / rest['python_s']:.1f}",
    }
    return ["| syncd alone | |", "|---|--:|", *(f"| {what} | {value} |" for what, value in figures.items())]


def _number(value: float) -> str:
    """Return two significant digits, or the whole number from ten on."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"
