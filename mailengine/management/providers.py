"""Providers as the commands show them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..reporting.providers import ProviderReport


def provider_lines(reports: Iterable[ProviderReport]) -> list[str]:
    """A line for each provider, and below it what else there is to say."""
    reports = list(reports)
    width = max((len(report.alias) for report in reports), default=0)
    lines = []
    for report in reports:
        detail = f", {report.detail}" if report.detail else ""
        lines.append(f"provider {report.alias:<{width}}  {report.state}{detail}")
        lines += [f"{'':<{width + 9}}  {line}" for line in _more(report)]
    return lines


def _more(report: ProviderReport) -> Iterator[str]:
    if report.trouble is not None:
        yield f"{report.trouble.what} {report.trouble.mend}"
    if report.own_weight is not None or report.own_rate:
        switches = {"weight": report.own_weight, "rate": report.own_rate or None}
        yield "set here: " + ", ".join(f"{name} {value}" for name, value in switches.items() if value is not None)
    if report.limits:
        yield "; ".join(map(str, report.limits))
    traffic = report.traffic
    if traffic.total:
        share = f" ({report.percent} % of all mail)" if report.share else ""
        given = f"{traffic.sent_today:,} sent today, {traffic.accepted:,} in 24 hours{share}"
        others = {"refused": traffic.refused, "failed": traffic.failed}
        yield ", ".join([given, *(f"{number:,} {name}" for name, number in others.items() if number)])
