# SPDX-License-Identifier: Apache-2.0
"""Labels move images: undone after a restart, finished after a kill, no image lost on a full disk."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from commands import refusal
from file_limit import room_for
from labels import contents, not_writable, write_images
from open_files import open_to_all

from splitee.errors import DataError, ExitCode, StateError
from splitee_device.data.images import open_data
from splitee_device.labelling.class_names import NONE_OF_THESE, WORKSPACE
from splitee_device.labelling.journal import FILE, Journal
from splitee_device.labelling.labeller import Labeller


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """`data` with the classes a and b, and ten images in `new`."""
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
    write_images(tmp_path / "new", 10)
    return tmp_path


def opened(place: Path) -> Labeller:
    return Labeller(place / "data", [place / "new"])


def first(labeller: Labeller, count: int) -> list[str]:
    return [image.identifier for image in labeller.images()][:count]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_labelled_images_move_into_their_class_and_are_counted(place: Path) -> None:
    with closing(opened(place)) as labeller:
        outcome = labeller.label(first(labeller, 2), "a")
        assert (len(outcome.moved), outcome.failed) == (2, "")
        assert labeller.classes == {"a": 2, "b": 0}
        assert names(place / "data" / "a") == ["0000.png", "0001.png"]
        labeller.scan()
        assert (labeller.classes["a"], len(labeller.images())) == (2, 8)


def test_images_labelled_none_of_these_move_to_a_hidden_folder_that_training_skips(place: Path) -> None:
    with closing(opened(place)) as labeller:
        labeller.label(first(labeller, 3), None)
        assert labeller.none == 3
        labeller.scan()
        assert labeller.none == 3
        assert len(names(place / "data" / NONE_OF_THESE)) == 3
        assert labeller.classes == {"a": 0, "b": 0}
        for name in "ab":
            labeller.label(first(labeller, 3), name)
    assert NONE_OF_THESE.startswith(".")
    trained_on = open_data(str(place / "data"), input_shape=(3, 8, 8))
    assert trained_on.class_names == ("a", "b")
    assert len(trained_on.train) + len(trained_on.held_out) == 6


def test_moved_image_gets_a_number_if_its_name_is_taken(place: Path) -> None:
    for number in range(2):
        write_images(place / "new" / f"{number}", 1, start=100 + number, name="same.png")
        (place / "data" / "a" / "same.png").write_bytes(b"was here")
    before = contents(place)
    with closing(opened(place)) as labeller:
        same = [image.identifier for image in labeller.images() if image.name == "same.png"]
        assert len(labeller.label(same, "a").moved) == 2
    assert names(place / "data" / "a") == ["same-2.png", "same-3.png", "same.png"]
    assert contents(place).keys() == before.keys()


def test_undo_reverses_labels_step_by_step_also_after_a_restart(place: Path) -> None:
    before = contents(place)
    with closing(opened(place)) as labeller:
        labeller.label(first(labeller, 3), "a")
        labeller.label(first(labeller, 2), None)
        labeller.label(first(labeller, 1), "b")
        assert labeller.undo().label == "b"
    with closing(opened(place)) as labeller:
        assert labeller.undoable == 2
        back = labeller.undo()
        assert (back.label, len(back.moved)) == (None, 2)
        assert set(back.moved) <= labeller.unlabelled.keys()
        labeller.undo()
        assert labeller.undo().failed == "nothing to undo"
        assert labeller.classes == {"a": 0, "b": 0}
    assert contents(place) == before


def test_undo_into_a_folder_that_is_gone_fails_and_can_be_repeated_once_it_is_back(place: Path) -> None:
    """Labelling has emptied the folder, and somebody has removed it."""
    write_images(place / "new" / "day", 2, start=50)
    with closing(opened(place)) as labeller:
        of_day = [image for image in labeller.images() if image.path.parent.name == "day"]
        labeller.label([image.identifier for image in of_day], "a")
        (place / "new" / "day").rmdir()
        outcome = labeller.undo()
        assert outcome.failed == f"there is no folder {place / 'new' / 'day'} any more"
        assert (outcome.moved, outcome.gone, labeller.undoable) == ([], [], 1)
        (place / "new" / "day").mkdir()
        assert len(labeller.undo().moved) == 2
    assert names(place / "new" / "day") == ["0050.png", "0051.png"]


def test_second_label_is_refused_with_the_first_also_after_a_restart(place: Path) -> None:
    with closing(opened(place)) as labeller:
        [image] = first(labeller, 1)
        labeller.label([image], "a")
        assert labeller.label([image], "b").already == {image: "a"}
    with closing(opened(place)) as labeller:
        assert labeller.label([image], "b").already == {image: "a"}
        assert names(place / "data" / "b") == []


def test_deleted_or_replaced_image_is_reported_and_not_moved(place: Path) -> None:
    with closing(opened(place)) as labeller:
        deleted, replaced, sound = first(labeller, 3)
        (place / "new" / "0000.png").unlink()
        write_images(place / "new", 1, start=77, name="0001.png")
        outcome = labeller.label([deleted, replaced, sound], "a")
        assert (outcome.gone, outcome.moved) == ([deleted, replaced], [sound])


def test_label_and_undo_fail_on_a_full_disk_and_move_no_image(place: Path) -> None:
    with closing(opened(place)) as labeller:
        labeller.label(first(labeller, 1), "a")
        journal = (place / "data" / WORKSPACE / FILE).read_bytes()
        before = contents(place)
        with room_for(0):
            outcome = labeller.label(first(labeller, 4), "b")
            undone = labeller.undo()
        assert "cannot write" in outcome.failed and "cannot write" in undone.failed
        assert (outcome.moved, undone.moved) == ([], [])
        assert contents(place) == before
        assert (place / "data" / WORKSPACE / FILE).read_bytes() == journal
        assert len(labeller.label(first(labeller, 4), "b").moved) == 4


def test_labels_and_new_classes_fail_if_the_data_folder_is_unwritable(public_path: Path) -> None:
    (public_path / "data" / "a").mkdir(parents=True)
    write_images(public_path / "new", 3)
    open_to_all(public_path)
    before = contents(public_path)
    with not_writable(public_path / "data"), closing(opened(public_path)) as labeller:
        assert len(labeller.images()) == 3
        outcome = labeller.label(first(labeller, 2), "a")
        assert "Permission denied" in outcome.failed
        assert outcome.moved == []
        with pytest.raises(StateError, match="Permission denied"):
            labeller.add_class("new")
    assert contents(public_path) == before


def test_images_in_an_unwritable_folder_are_not_labelled_and_stay_there(public_path: Path) -> None:
    (public_path / "data" / "a").mkdir(parents=True)
    write_images(public_path / "new", 3)
    before = contents(public_path)
    for path in (public_path / "data", public_path / "data" / "a"):
        path.chmod(0o777)
    with not_writable(public_path / "new"), closing(opened(public_path)) as labeller:
        outcome = labeller.label(first(labeller, 2), "a")
        assert "Permission denied" in outcome.failed
        assert labeller.undoable == 0
        assert names(public_path / "data" / "a") == []
    assert contents(public_path) == before


def test_label_step_interrupted_by_a_kill_is_finished_at_the_next_start(place: Path) -> None:
    before = contents(place)
    with closing(opened(place)) as labeller:
        images = labeller.images()[:4]
        step = labeller._plan(images, "a")
        labeller._opened().append(step)
        moved, reserved = step.images[0], step.images[1]
        (place / "new" / "0000.png").rename(place / "data" / moved.target)
        (place / "data" / reserved.target).touch()
    with closing(opened(place)) as labeller:
        assert names(place / "data" / "a") == ["0000.png", "0001.png", "0002.png", "0003.png"]
        assert contents(place).keys() == before.keys()
        assert len(labeller.undo().moved) == 4
    assert contents(place) == before


@pytest.mark.parametrize("end", ["before the move", "while the name was held", "after the move"])
def test_image_that_took_the_old_name_meanwhile_is_not_labelled(place: Path, end: str) -> None:
    """After the move, somebody has deleted the labelled image."""
    old, target = place / "new" / "0000.png", place / "data" / "a" / "0000.png"
    with closing(opened(place)) as labeller:
        if end == "after the move":
            labeller.label(first(labeller, 1), "a")
            target.unlink()
        else:
            labeller._opened().append(labeller._plan(labeller.images()[:1], "a"))
            old.unlink()
    if end == "while the name was held":
        target.touch()
    [other] = write_images(place / "new", 1, start=77, name=old.name)
    content = other.read_bytes()
    with closing(opened(place)) as labeller:
        assert (labeller.classes["a"], names(place / "data" / "a")) == (0, [])
        assert old.read_bytes() == content and old in [image.path for image in labeller.images()]
        assert labeller.undoable == 0


def test_torn_and_damaged_journal_lines_are_ignored(place: Path) -> None:
    with closing(opened(place)) as labeller:
        labeller.label(first(labeller, 1), "a")
    journal = place / "data" / WORKSPACE / FILE
    whole = journal.read_bytes()
    journal.write_bytes(b'{"number": -1}\r{\n' + whole + b'{"number": 2, "time": 1, "images": [')
    with closing(opened(place)) as labeller:
        assert labeller.undoable == 1
        labeller.label(first(labeller, 1), "b")
    with closing(opened(place)) as labeller:
        assert labeller.undoable == 2


def test_second_process_that_labels_a_folder_is_refused_while_the_first_runs(place: Path) -> None:
    command = [sys.executable, "-m", "splitee", "label", "--data", place / "data"]
    command += ["--unlabelled", place / "new", "--listen", "127.0.0.1:0"]
    with closing(opened(place)):
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode == ExitCode.STATE, second.stderr
        assert "is being labelled by another process" in refusal(second.stderr)
        with pytest.raises(StateError, match="another process"):
            opened(place)
    opened(place).close()


def test_undo_that_fails_halfway_tells_what_it_moved_and_can_be_repeated(place: Path) -> None:
    """Here a file has taken the place of a folder."""
    write_images(place / "new" / "sub", 2, start=50)
    before = contents(place)
    with closing(opened(place)) as labeller:
        labelled = [
            image for image in labeller.images() if image.name in ("0000.png", "0050.png", "0051.png")
        ]
        labeller.label([image.identifier for image in labelled], "a")
        (place / "new" / "sub").rename(place / "away")
        (place / "new" / "sub").write_bytes(b"a file in the folder's place")
        outcome = labeller.undo()
        assert [labeller.unlabelled[moved].name for moved in outcome.moved] == ["0000.png"]
        assert "sub" in outcome.failed and outcome.gone == []
        assert names(place / "data" / "a") == ["0050.png", "0051.png"]
        assert (labeller.classes["a"], labeller.undoable) == (2, 1)
        (place / "new" / "sub").unlink()
        (place / "away").rename(place / "new" / "sub")
        assert len(labeller.undo().moved) == 2
        assert (labeller.classes["a"], labeller.undoable) == (0, 0)
    assert contents(place) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "without spaces"),
        (" a", "without spaces"),
        (".hidden", "passes over"),
        ("lost+found", "passes over"),
        ("a/b", "no /"),
        ("a\\b", "no /"),
        ("..", "passes over"),
        ("new\nline", "printable"),
        ("right\u202eleft", "printable"),
        ("A", "there is the class a"),
        ("Train", "a part of a data set"),
        ("x" * 201, "at most 200"),
        ("€" * 100, "255 bytes"),
    ],
)
def test_invalid_class_name_is_refused(place: Path, name: str, said: str) -> None:
    with closing(opened(place)) as labeller, pytest.raises(DataError, match=said):
        labeller.add_class(name)
    assert names(place / "data") == [WORKSPACE, "a", "b"]


@pytest.mark.parametrize(
    "name", ["none", "<script>alert(1)</script>".replace("/", "|"), "Größe 10, 爱", "-rf", "=1+1"]
)
def test_new_class_takes_labels_and_an_unknown_class_is_refused(place: Path, name: str) -> None:
    with closing(opened(place)) as labeller:
        labeller.add_class(name)
        assert len(labeller.label(first(labeller, 1), name).moved) == 1
        assert labeller.classes[name] == 1
        with pytest.raises(DataError, match="no such class"):
            labeller.label(first(labeller, 1), "../new")


def test_images_with_names_not_in_utf_8_are_labelled_and_undone(place: Path) -> None:
    odd = Path(str(place / "new" / "caf\udce9.png"))
    (place / "new" / "0000.png").rename(odd)
    with closing(opened(place)) as labeller:
        images = [image.identifier for image in labeller.images() if image.path == odd]
        assert labeller.label(images, "a").moved == images
    with closing(opened(place)) as labeller:
        assert labeller.undo().moved
    assert odd.exists()


def test_links_hidden_files_and_text_files_are_not_shown(place: Path, tmp_path: Path) -> None:
    (place / "new" / "link.png").symlink_to(place / "new" / "0000.png")
    (place / "new" / "notes.txt").write_text("x")
    (place / "new" / ".hidden.png").write_bytes(b"x")
    with closing(opened(place)) as labeller:
        assert len(labeller.images()) == 10


@pytest.mark.parametrize("folder", ["data", "data/a", "."])
def test_nested_data_and_unlabelled_folders_are_refused(place: Path, folder: str) -> None:
    with pytest.raises(DataError, match="within each other"):
        Labeller(place / "data", [place / folder])


def test_journal_has_one_line_for_each_label_and_undo(place: Path) -> None:
    with closing(opened(place)) as labeller:
        labeller.label(first(labeller, 5), "a")
        labeller.undo()
    with closing(Journal(place / "data")) as journal:
        assert journal.steps == {}
        assert journal.next_number == 3
    assert len((place / "data" / WORKSPACE / FILE).read_bytes().splitlines()) == 2
