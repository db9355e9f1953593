# SPDX-License-Identifier: Apache-2.0
"""The report's page and tables: complete, without injected HTML, without resources from elsewhere."""

from __future__ import annotations

import io
import itertools
import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import made_up_reports
import msgspec
import numpy as np
import pytest
from demo_reports import server_report
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from splitee import __version__
from splitee.errors import MalformedMessage, StateError
from splitee.protocol.fleet import DeviceMetrics, Metrics
from splitee_lab.report.conclusion import conclusion
from splitee_lab.report.demo_page import (
    choices_table,
    complete,
    page,
    read_history,
    read_report,
    table,
    write,
)
from splitee_lab.report.demo_report import BaselineResult, DeviceChoice, Report
from splitee_lab.report.inference_table import inference_table
from splitee_lab.report.notes import notes
from splitee_lab.report.plots import Colours, Line, over_rounds, spread
from splitee_server.rounds.class_report import ClassReport, class_report
from splitee_server.rounds.evaluation import Score

BASELINES = BaselineResult(0.9, {"pi-1": 0.71, "pi-2": 0.72}, {"pi-1": 0.55, "pi-2": 0.64})


def history(*ids: str, rounds: int = 3) -> list[Metrics]:
    return [
        Metrics(
            run="r1",
            round=number,
            rounds=rounds,
            seconds=25.0 * number,
            devices={
                device: DeviceMetrics(
                    cut=3 + 2 * (index % 2),
                    stage="layer",
                    train_samples=2000,
                    exit_loss=1 / number,
                    trunk_loss=2 / number,
                    exit_accuracy=0.6 - 0.1 / number,
                    trunk_accuracy=0.8 - 0.1 / number,
                )
                for index, device in enumerate(ids)
            },
            batches_trained=62 * number,
            duplicates_dropped=0,
        )
        for number in range(1, rounds + 1)
    ]


def completed(
    folder: Path, report: dict[str, Any], baselines: BaselineResult | None, **found: Any
) -> dict[str, Any]:
    """`found`: further fields of the report."""
    path = folder / "server.json"
    path.write_text(json.dumps(report))
    facts = {"network": "resnet18", "data": "builtin:x", "broker": "mosquitto"}
    return complete(path, baselines=baselines, **facts, **found)


class Page(HTMLParser):
    """The ids, references, tags and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == [], "tags that are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name in ("href", "src", "xlink:href"):
                self.references.append(str(value))
            self.references += re.findall(r"url\(([^)]*)\)", str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_has_the_servers_fields_the_broker_and_the_baselines(tmp_path: Path) -> None:
    given_report = server_report("pi-1", "pi-2") | {"a_later_field": 1}
    report = completed(tmp_path, given_report, BASELINES, compute_share={"pi-1": 0.33})
    assert isinstance(write(tmp_path, report), Report)
    written = json.loads((tmp_path / "report.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", written.pop("ended"))
    assert written == given_report | {
        "network": "resnet18",
        "data": "builtin:x",
        "broker": "mosquitto",
        "version": __version__,
        "compute_share": {"pi-1": 0.33},
        "baselines": {
            "centralized_accuracy": 0.9,
            "alone_accuracy": {"pi-1": 0.71, "pi-2": 0.72},
            "alone_exit_accuracy": {"pi-1": 0.55, "pi-2": 0.64},
        },
    }
    assert msgspec.convert(written, Report) == msgspec.structs.replace(
        read_report(tmp_path / "report.json"), ended=""
    )


def test_page_states_the_run_and_its_results_before_the_details(tmp_path: Path) -> None:
    raw = server_report("pi-1", "pi-2")
    typed = write(
        tmp_path,
        completed(
            tmp_path,
            raw,
            BASELINES,
            client_averaging="layerwise",
            machine="Raspberry Pi 5, 4 cores",
            history=history("pi-1", "pi-2"),
        ),
    )
    shown = Page((tmp_path / "report.html").read_text())
    sentences = conclusion(typed).replace(" %", "\N{NO-BREAK SPACE}%")
    order = [
        "Adaptive accuracy79.0 %",
        sentences,
        "Adaptive over alone+7.5 points",
        "How to read this",
        "Devices",
    ]
    assert [shown.text.index(words) for words in order] == sorted(map(shown.text.index, order))
    header = shown.text[: shown.text.index(order[0])]
    for words in (
        *("resnet18", "sequential, by step", "client averaging layerwise", "builtin:x", "codec fp16"),
        *("broker mosquitto", "seed 1", "Raspberry Pi 5, 4 cores", f"Hetero-SplitEE {__version__}"),
        *("3 rounds in 1 min 15 s", f"{typed.ended[:10]} {typed.ended[11:16]}"),
    ):
        assert words in header
    assert "1,234 of 1,234 batches trained, 7 duplicate batches dropped, 4 messages rejected" in shown.text
    assert shown.tags.count("svg") == 6


def test_cards_show_gains_and_losses_with_their_levels(tmp_path: Path) -> None:
    write(tmp_path, completed(tmp_path, server_report("pi-1", "pi-2"), BASELINES))
    shown = Page((tmp_path / "report.html").read_text()).text
    for figure, levels in (
        ("Adaptive over alone+7.5 points", "+7.0 to +8.0 by device; 79.0 against 71.5 %"),
        ("Adaptive over alone-exit+19.5 points", "+15.0 to +24.0 by device; 79.0 against 59.5 %"),
        ("Trunk over alone+9.5 points", "+9.0 to +10.0 by device; 81.0 against 71.5 %"),
        ("Exit over alone-exit+1.5 points", "-3.0 to +6.0 by device; 61.0 against 59.5 %"),
        ("Trunk against centralized-9.0 points", "-9.0 by device; 81.0 against 90.0 %"),
    ):
        assert figure in shown
        assert levels in shown


@pytest.mark.parametrize("baselines", [None, BaselineResult(0.9, {"pi-1": 0.71, "pi-2": 0.72})])
def test_page_begins_with_accuracies_with_or_without_baselines(
    tmp_path: Path, baselines: BaselineResult | None
) -> None:
    """The second case is a report from before devices trained their exits alone."""
    raw = completed(tmp_path, server_report("pi-1", "pi-2"), baselines)
    if baselines is not None:
        del raw["baselines"]["alone_exit_accuracy"]
    write(tmp_path, raw)
    shown = Page((tmp_path / "report.html").read_text()).text
    levels = ("Adaptive accuracy79.0 %", "Exit accuracy61.0 %", "Trunk accuracy81.0 %", "Offloaded images")
    places = [shown.index(level) for level in levels]
    assert places == sorted(places) and places[-1] < shown.index("How to read this") < shown.index("Devices")
    assert ("Adaptive over alone+7.5 points" in shown) == (baselines is not None)
    assert "Exit over alone-exit" not in shown
    assert "Compute" not in shown and "MiB" not in shown, "what is not known is left out"


def evaluation(classes: int = 3, images: int = 60, name: str = "class") -> ClassReport:
    """The classes of a device whose trunk is always right, and whose exit predicts the next class."""
    labels, score = np.arange(images) % classes, Score()
    score.add(labels, (labels + 1) % classes, np.arange(images, dtype="f4") / images, labels, 0.5)
    names = tuple(f"{name} {index}" for index in range(classes))
    return class_report("r1", 3, {"pi-1": score}, classes, names)


def test_page_shows_each_class_with_its_images_and_confusions(tmp_path: Path) -> None:
    raw = completed(tmp_path, server_report("pi-1"), None, history=history("pi-1"), classes=evaluation())
    write(tmp_path, raw)
    html = (tmp_path / "report.html").read_text()
    shown = Page(html)
    assert shown.tags.count("svg") == 7
    assert "class 045.0 % of 20 images" in shown.text  # the device's weakest
    assert "class 0 for class 1: 11 of 20 (55.0 %)" in shown.text
    (confusion,) = re.findall(r'<svg [^>]*aria-label="confusion".*?</svg>', html, re.DOTALL)
    found = Page(confusion).text.split("\n")
    assert [line.strip() for line in found].count("class 0") == 2  # a row and a column
    assert len(shown.ids) == len(set(shown.ids))


@pytest.mark.parametrize(("classes", "drawn"), [(2, 2), (30, 20), (300, 0)])
def test_most_confused_of_many_classes_are_drawn(classes: int, drawn: int, tmp_path: Path) -> None:
    made = evaluation(classes, 10 * classes, "<b>")
    write(tmp_path, completed(tmp_path, server_report("pi-1"), None, classes=made))
    html = (tmp_path / "report.html").read_text()
    plots = re.findall(r'<svg [^>]*aria-label="confusion".*?</svg>', html, re.DOTALL)
    assert len(plots) == int(drawn > 0)
    names = [
        line for plot in plots for line in Page(plot).text.split("\n") if line.strip().startswith("<b> ")
    ]
    assert len(names) == 2 * drawn, "a row and a column"
    shown = Page(html).text
    assert ("The 20 classes with the most wrong predictions" in shown) == (classes == 30)
    assert "<b> 1" in shown


def test_page_loads_no_other_resources_and_its_ids_are_unique(tmp_path: Path) -> None:
    ran = history("pi-1", "pi-2")
    write(tmp_path, completed(tmp_path, server_report("pi-1", "pi-2"), BASELINES, history=ran))
    shown = Page((tmp_path / "report.html").read_text())
    assert not {"script", "link", "img", "iframe"} & set(shown.tags)
    assert len(shown.ids) == len(set(shown.ids)) > 0
    assert shown.references
    assert {reference.strip("'\"") for reference in shown.references} <= {f"#{name}" for name in shown.ids}


def test_texts_of_a_report_cannot_inject_html(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>$\\frac{1}{0}$&amp;'
    raw = server_report(evil, "pi-2")
    raw["devices"][0]["stage"] = "<b>stage</b>"
    alone = {evil: 0.7, "pi-2": 0.7}
    texts = {name: f"<i>{name}</i>" for name in ("client_averaging", "machine")}
    found: dict[str, Any] = {
        "compute_share": {evil: 0.3},
        "peak_memory": {evil: 1},
        "history": history("pi-2"),  # whose devices have the ids that topics allow
        "choices": [DeviceChoice(evil, 0.3, 430, 3, "<i>reason</i>")],
    }
    report = completed(tmp_path, raw, BaselineResult(0.9, alone, alone), **texts, **found)
    report |= {name: f"<i>{name}</i>" for name in ("network", "data", "broker", "codec", "weights_sha256")}
    write(tmp_path, report)
    shown = Page((tmp_path / "report.html").read_text())
    assert not {"script", "i"} & set(shown.tags)
    assert shown.tags.count("b") == 12  # the headline figures
    for text in (evil, "<b>stage</b>", "<i>machine</i>", "<i>client_averaging</i>", "<i>reason</i>"):
        assert text in shown.text
    for name in ("network", "data", "broker", "codec", "weights_sha256"):
        assert f"<i>{name}</i>" in shown.text


@pytest.mark.parametrize("devices", [1, 2, 12])
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_page_shows_any_number_of_devices_and_rounds_without_baselines(
    tmp_path: Path, devices: int, rounds: int
) -> None:
    ids = [f"pi-{number}" for number in range(devices)]
    ran = history(*ids, rounds=rounds)
    write(tmp_path, completed(tmp_path, server_report(*ids), None, history=ran))
    shown = Page((tmp_path / "report.html").read_text())
    assert "Centralized" not in shown.text
    assert shown.tags.count("svg") == (6 if rounds else 2)


def test_device_that_was_never_evaluated_is_shown(tmp_path: Path) -> None:
    raw = server_report("pi-1", "pi-2")
    for name in ("exit_accuracy", "trunk_accuracy", "adaptive_accuracy", "offload_share"):
        raw["devices"][1][name] = None
    typed = write(tmp_path, completed(tmp_path, raw, BASELINES, history=history("pi-1")))
    assert "pi-2" in Page(page(typed)).text


def test_page_is_the_same_for_the_same_report(tmp_path: Path) -> None:
    typed = write(tmp_path, completed(tmp_path, server_report("pi-1"), None, history=history("pi-1")))
    assert page(typed) == page(typed)


def test_terminal_table_does_not_interpret_names_as_markup(tmp_path: Path) -> None:
    report = completed(tmp_path, server_report("[red]pi[/red]"), None)
    output = io.StringIO()
    Console(width=120, file=output).print(table(write(tmp_path, report)))
    shown = output.getvalue()
    assert "[red]pi[/red]" in shown
    assert "81.0" in shown
    assert "gain" not in shown


def test_terminal_table_fits_80_columns(tmp_path: Path) -> None:
    output = io.StringIO()
    report = write(tmp_path, completed(tmp_path, server_report("pi-1", "pi-2"), BASELINES))
    Console(width=80, file=output).print(table(report))
    header, first, _, note = output.getvalue().splitlines()  # no cell is folded, and none cut short
    assert header.split()[-3:] == ["alone", "alone-exit", "gain"]
    assert first.split() == ["pi-1", "3", "layer1.1", "61.0", "81.0", "79.0", "25.0", "71.0", "55.0", "+8.0"]
    assert note.strip() == "In %, on held-out images; gain: adaptive over alone, in points"


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_missing_or_broken_report_is_refused_with_its_path(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "server.json"
    if content is not None:
        path.write_text(content)
    for read in (partial(complete, network="n", data="d", broker="b"), read_report):
        with pytest.raises(StateError, match=re.escape(str(path))):
            read(path)


def test_report_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    report = completed(tmp_path, server_report("pi-1"), None)
    with pytest.raises(StateError, match=r"cannot write .*report\.json: No such file"):
        write(tmp_path / "removed", report)


def test_history_keeps_the_last_line_of_each_round(tmp_path: Path) -> None:
    first, second, third = history("pi-1")
    again = Metrics(
        run="r1", round=2, rounds=3, seconds=99.0, devices={}, batches_trained=1, duplicates_dropped=0
    )
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"\n".join(metrics.encode() for metrics in (third, first, second, again)))
    assert read_history(path) == [first, again, third]
    path.write_bytes(b"{}\n")
    with pytest.raises(MalformedMessage):
        read_history(path)


def drawn(lines: list[Line], references: dict[str, float] | None = None) -> str:
    colours = Colours([line.cut for line in lines])
    return Page(over_rounds("plot", lines, references or {}, colours, share=True)).text


def test_lines_that_coincide_are_drawn_as_one_and_named() -> None:
    learnt = {1: 0.7, 2: 0.8, 3: 0.85}
    one, other = Line("pi-1", 3, learnt), Line("pi-2", 5, learnt)
    third = Line("pi-3", 7, {number: value + 0.03 for number, value in learnt.items()})
    assert "all 2 devices" in drawn([one, other]) and "pi-2" not in drawn([one, other])
    assert "pi-1 and pi-2" in drawn([one, other, third]) and "pi-3, cut 7" in drawn([one, other, third])
    assert "pi-1, cut 3" in drawn([one, third]) and "all" not in drawn([one, third])


@pytest.mark.parametrize(("first", "is_outside"), [(0.1, True), (0.7, False), (0.79, False)])
def test_untrained_first_round_does_not_stretch_the_axis(first: float, is_outside: bool) -> None:
    shown = drawn([Line("pi-1", 3, {1: first, 2: 0.8, 3: 0.85, 4: 0.86})], {"alone": 0.75})
    assert ("round 1: 10 %" in shown) == is_outside
    ticks = re.findall(r"^\s*([0-9.]+) %$", shown, re.MULTILINE)
    assert ticks and min(map(float, ticks)) > 60, "the axis begins where the lines are"


@given(st.lists(st.floats(0, 1), max_size=10).map(sorted))
def test_labels_of_lines_keep_their_distance(wanted: list[float]) -> None:
    gap = 0.07
    placed = spread(wanted, gap)
    assert len(placed) == len(wanted)
    assert all(upper - lower >= gap - 1e-9 for lower, upper in itertools.pairwise(placed))
    assert all(position <= 1 for position in placed)
    if all(upper - lower >= gap for lower, upper in itertools.pairwise(wanted)):
        assert placed == wanted


@pytest.mark.parametrize("case", ["sequential", "profile", "twelve-devices", "long-names"])
@pytest.mark.parametrize("width", [80, 120])
def test_tables_are_not_cut_off_on_a_terminal(case: str, width: int) -> None:
    report = made_up_reports.reports()[case]
    output = io.StringIO()
    console = Console(width=width, file=output)
    for one in (table(report), inference_table(report.inference), choices_table(report.choices)):
        console.print(one)
    lines = output.getvalue().splitlines()
    assert "…" not in output.getvalue()
    assert max(map(len, lines)) <= width
    text = "".join(output.getvalue().split())
    assert all(text.count(device.id) >= 2 for device in report.devices) or case == "long-names"


def test_notes_state_the_threshold_and_weakest_class_of_each_device() -> None:
    report = made_up_reports.report(devices=2)
    lines = notes(report)
    assert len(lines) == 2
    assert re.fullmatch(
        r"pi-2: threshold 0\.450, chosen on 1,000 images; weakest class \S+ \d\d\.\d % \(.* 100 images\)",
        lines[1],
    )
    (old,) = notes(msgspec.structs.replace(made_up_reports.report(devices=1), inference=[], classes=None))
    assert old == "pi-1: threshold 0.400, the run's"
