"""The operator's class names, from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitee.errors import ConfigError
from splitee_server.members.class_names import read_class_names


def test_a_name_a_line_in_the_order_of_the_labels(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("glass\n  paper \n\nmétal\n", encoding="utf-8")
    assert read_class_names(file, 10) == ("glass", "paper", "métal")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"glass\n", r"expected 2 to 3 different names \(--num-classes 3\), found 1"),
        (b"a\nb\nc\nd\n", "found 4"),
        (b"a\nb\na\n", r"found 3 \(2 different\)"),
        (b"a\n\xff\n", "expected a class name a line"),
        (b"a\n" + b"x" * 201, "expected a class name a line"),
    ],
)
def test_what_is_no_list_of_classes(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_class_names(file, 3)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_class_names(tmp_path / "none.txt", 3)
