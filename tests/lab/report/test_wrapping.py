# SPDX-License-Identifier: Apache-2.0
"""Lines break between words, and a figure keeps its unit."""

from __future__ import annotations

import re

import made_up_reports
import pytest

from splitee_lab.report.conclusion import conclusion
from splitee_lab.report.wrapping import wrapped

CASES = made_up_reports.reports()


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("case", CASES)
def test_wrapped_conclusion_fits_a_terminal_and_keeps_figures_with_units(case: str, width: int) -> None:
    text = conclusion(CASES[case])
    lines = wrapped(text, width).split("\n")
    assert " ".join(lines) == text
    assert all(len(line) <= width for line in lines if " " in line)
    assert not re.search(r"[0-9±]\n(%|MB|MiB|points?|images?|[0-9])", "\n".join(lines))
