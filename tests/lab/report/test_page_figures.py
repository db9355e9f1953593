# SPDX-License-Identifier: Apache-2.0
"""Every figure that a page shows is one of report.json's, or follows from them as the page says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean

import made_up_reports
import msgspec
import pytest

from splitee.cli.words import MIB, interval
from splitee_lab.report.demo_page import page, read_report
from splitee_lab.report.demo_report import Report

CASES = made_up_reports.reports()
FIGURE = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
NAMES = re.compile(
    r"Cut \d+, after \S+|\(?cut \d+\)?|\blayer\d\.\d\b|pi-\d+|\S*0001\b|resnet18|fp16|95 %|seed \d+|"
    r"SHA-256|axis does not begin at 0|round 1:"
)


class Text(HTMLParser):
    """What a reader sees of a page, a line for each element; without the axes' ticks."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._hidden = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        is_tick = tag == "g" and re.search(r"-[xy]tick_", dict(attrs).get("id") or "") is not None
        if self._hidden or tag in ("style", "title") or is_tick:
            self._hidden += tag not in ("meta", "path", "use")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= bool(self._hidden) and tag not in ("meta", "path", "use")

    def handle_data(self, data: str) -> None:
        if data.strip() and not self._hidden:
            self.lines.append(" ".join(data.split()))


def figures_of(report: Report) -> Iterator[str]:
    """Every figure of the report as pages write it."""
    plain = msgspec.to_builtins(report)
    numbers = list(_numbers(plain))
    for number in numbers:
        yield from (f"{number:,.0f}", f"{number:.3f}", f"{number:.1f}", f"{number:.2f}")
        yield from (f"{100 * number:.1f}", f"{100 * number:.0f}")
        yield from (f"{number / 1e6:.1f}", f"{number / 1e3:.1f}", f"{number / MIB:,.0f}")
    yield from FIGURE.findall(" ".join((report.machine, report.version, report.ended)))
    yield from FIGURE.findall(" ".join(choice.reason for choice in report.choices))
    minutes, seconds = divmod(round(report.seconds), 60)
    yield from (str(minutes), str(seconds), str(len(report.devices)))


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int | float):
        yield value


def derived_figures(report: Report) -> Iterator[str]:
    """Figures that follow: means over devices, points of gain, intervals, shares of a confusion matrix."""
    served = report.inference
    columns = [
        [one.local.accuracy for one in served],
        [one.trunk_accuracy or 0 for one in served],
        [one.adaptive.accuracy for one in served],
        [one.adaptive.offload_share for one in served],
    ]
    compared: list[list[float]] = []
    if report.baselines:
        alone, alone_exit = report.baselines.alone_accuracy, report.baselines.alone_exit_accuracy
        compared = [[of[one.id] for one in served] for of in (alone, alone_exit)]
        compared.append([report.baselines.centralized_accuracy] * len(served))
    for cut in (None, *{one.cut for one in served}):
        places = [place for place, one in enumerate(served) if cut in (None, one.cut)]
        for column in (*columns, *compared):
            yield f"{100 * mean(column[place] for place in places):.1f}"
        yield str(len(places))
    for reached in columns:
        for baseline in compared:
            pairs = [*zip(reached, baseline, strict=True), (mean(reached), mean(baseline))]
            for one, other in pairs:
                points = round(round(100 * one, 1) - round(100 * other, 1), 1)
                yield from (f"{points:+.1f}", f"{abs(points):.1f}", f"{points + 0:.1f}")
    yield from (f"{device.traffic.up.payload / 1e6:.1f}" for device in report.devices)
    for one in served:
        yield from FIGURE.findall(interval(one.adaptive.accuracy, one.images))
    low, high = FIGURE.findall(interval(mean(columns[2]), served[0].images))
    yield from {f"{(float(high) - float(low)) / 2 + nudge:.1f}" for nudge in (-0.04, 0, 0.04)}
    assert report.classes is not None
    for row in report.classes.fleet.adaptive.confusion or []:
        yield f"{sum(row):,}"
        yield from (f"{100 * count / sum(row):.1f}" for count in row if sum(row))
    for found in report.classes.fleet.adaptive.classes:
        for figure in (found.recall, found.precision):
            if figure.share is not None:
                yield from FIGURE.findall(interval(figure.share, figure.images))
    yield from map(str, range(1, len(report.devices) + 1))  # "7 of 12 devices gain"


def unexplained_figures(html: str, report: Report) -> dict[str, str]:
    """Figures of a page that are not the report's and do not follow from them, each with its text."""
    allowed = {*figures_of(report), *derived_figures(report)}
    return {
        figure: line
        for line in Text(html).lines
        for figure in FIGURE.findall(NAMES.sub(" ", line))
        if figure not in allowed and figure.lstrip("+") not in allowed
    }


@pytest.mark.parametrize("case", CASES)
def test_every_figure_of_the_page_comes_from_the_report(case: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(made_up_reports.as_json(CASES[case]))
    report = read_report(path)
    html = page(report)
    assert unexplained_figures(html, report) == {}
    card = re.search(r"<b>([^<]+)</b>", html)
    assert card is not None
    wrong = html.replace(card[1], "+123.4 points")
    assert unexplained_figures(wrong, report) == {"+123.4": "+123.4 points"}, "a wrong one is seen"


@pytest.mark.parametrize("case", CASES)
def test_row_of_each_device_shows_its_own_figures(case: str) -> None:
    """The figures are those of the model in service, at the threshold in force."""
    report = CASES[case]
    html = page(report)
    [table] = re.findall(r"<h2>Devices</h2>.*?</table>", html, re.DOTALL)
    rows = re.findall(r'<tr>\s*<th class="name" scope="row">(.*?)</tr>', table, re.DOTALL)
    count = len(report.devices)
    assert [row.partition("<")[0] for row in rows[count:]] == (["Mean"] if count > 1 else [])
    for one, row in zip(report.inference, rows[:count], strict=True):
        cells = dict(re.findall(r'data-label="([^"]+)"[^>]*>([^<]*)', row))
        assert row.startswith(f"{one.id}<")
        assert cells["Exit"] == f"{100 * one.local.accuracy:.1f} %"
        assert cells["Trunk"] == f"{100 * (one.trunk_accuracy or 0):.1f} %"
        assert cells["Adaptive"] == f"{100 * one.adaptive.accuracy:.1f} %"
        assert cells["Offload"] == f"{100 * one.adaptive.offload_share:.1f} %"
        assert cells["Threshold"] == f"{one.threshold:.3f}"
        assert f"adaptive, {one.threshold:.3f}" in html
        if report.baselines:
            assert cells["Alone"] == f"{100 * report.baselines.alone_accuracy[one.id]:.1f} %"
            assert cells["Alone-exit"] == f"{100 * report.baselines.alone_exit_accuracy[one.id]:.1f} %"
        (device,) = (device for device in report.devices if device.id == one.id)
        assert cells["Sent"] == f"{device.traffic.up.payload / 1e6:.1f} MB"
        assert cells["Memory"] == f"{report.peak_memory[one.id] / MIB:,.0f} MiB"
    assert f"{report.threshold:.3f}" not in " ".join(Text(html).lines), "the run's threshold is not in force"
