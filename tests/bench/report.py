"""The figures as Markdown, ready for the README."""

from typing import Any


def markdown(found: dict[str, Any]) -> str:
    """Return the tables."""
    machine = found["machine"]
    with_dlt = "dlt" in found["comparisons"][0]["figures"]
    head = (
        f"{machine['database']}, Python {machine['python']}, {machine['cores']} cores; "
        f'`sync.attendees = "{machine["attendees"]}"`. Each with its ratio to the floor.'
    )
    dlt = " dlt |" if with_dlt else ""
    lines = [
        head,
        "",
        f"| events × attendees, network | | floor | syncd |{dlt}",
        "|---|---|--:|--:|" + "--:|" * with_dlt,
    ]
    for comparison in found["comparisons"]:
        lines += _rows(comparison)
    return "\n".join([*lines, "", *_alone(found)])


BESIDE = {
    "first import": ("floor with log", "the log of changes filled too, s"),
    "nothing changed": ("requests alone", "its requests alone, s"),
}
"""The other floors that phases have, and how their rows are called."""


def _rows(comparison: dict[str, Any]) -> list[str]:
    figures = comparison["figures"]
    programs = [name for name in ("syncd", "dlt") if name in figures]
    account = f"{comparison['events']} × {comparison['attendees']}, {comparison['latency_ms']} ms"
    rows = []
    for phase, floor in figures["floor"].items():
        of = {name: figures[name][phase] for name in programs}
        rows.append(_row(f"{phase}, s", "seconds", floor, of))
        if phase in BESIDE:
            other, title = BESIDE[phase]
            rows.append(_row(title, "seconds", figures[other][phase], {"syncd": of["syncd"]}))
        rows.append(_row(f"{phase}, requests", "requests", floor, of))
        if phase == "first import":
            rows.append(_row(f"{phase}, MiB at most", "peak_mib", floor, of))
    width = len(programs) + 1
    return [
        f"| {'' if n else account} | {' | '.join([*row, ''][: width + 1])} |" for n, row in enumerate(rows)
    ]


def _row(title: str, name: str, floor: dict[str, float], of: dict[str, dict[str, float]]) -> list[str]:
    shown = _number if name == "seconds" else round
    ratios = [f"{shown(each[name])} (× {_number(each[name] / floor[name])})" for each in of.values()]
    return [title, str(shown(floor[name])), *ratios]


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
