# SPDX-License-Identifier: Apache-2.0
"""The page's data and actions as HTTP requests: replies, refusals, and events for all browsers."""

from __future__ import annotations

import csv
import io
import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from labels import write_images, write_model
from PIL import Image
from sites import served
from waiting import until

from splitee_device.inference.unsure_images import GUESS
from splitee_device.labelling.class_names import NONE_OF_THESE
from splitee_device.labelling.labeller import Labeller
from splitee_device.labelling.page import MOST_AT_ONCE, LabelPage
from splitee_device.labelling.scores import Scores
from splitee_web.listening import ListenOptions

HERE = ListenOptions("127.0.0.1", 0)


class Client:
    """A browser without a window."""

    def __init__(self, url: str) -> None:
        self.url = url

    def request(self, path: str, body: object = None, **headers: str) -> tuple[int, bytes, HTTPMessage]:
        """POST where there is a body."""
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, None if body is None else data, headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers

    def json(self, path: str, body: object = None) -> Any:
        return json.loads(self.request(path, body)[1])

    def images(self, order: str = "both", count: int = 100) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.json(f"/images?order={order}&count={count}")["images"]
        return found

    def state(self) -> dict[str, Any]:
        with self.events() as events:
            found: dict[str, Any] = next(events)[1]
            return found

    @contextmanager
    def events(self) -> Iterator[Iterator[tuple[str, Any]]]:
        with urllib.request.urlopen(f"{self.url}events", timeout=60) as stream:  # noqa: S310
            yield self._read(stream)

    @staticmethod
    def _read(stream: Iterator[bytes]) -> Iterator[tuple[str, Any]]:
        name = ""
        for line in stream:
            key, _, value = line.decode().strip().partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                yield name, json.loads(value)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """`data` with the classes a and b, ten images in `new`, a model."""
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
    write_images(tmp_path / "new", 10)
    write_model(tmp_path / "model")
    return tmp_path


@contextmanager
def page_of(place: Path, *, model: bool = True) -> Iterator[Client]:
    scores = Scores(place / "model" if model else None, None, 1)
    with closing(Labeller(place / "data", [place / "new"], scores.guess)) as labeller:
        scores.open(labeller)
        with served(LabelPage(labeller, scores).make_app(HERE), HERE) as url:
            client = Client(url)
            until(lambda: client.state()["unscored"] == 0)
            yield client


def test_uncertain_images_come_first_with_the_models_predictions(place: Path) -> None:
    with page_of(place) as client:
        images = client.images("uncertain")
        entropies = [image["entropy"] for image in images]
        assert entropies == sorted(entropies, reverse=True)
        for image in images:
            shares = [guess["probability"] for guess in image["guesses"]]
            assert shares == sorted(shares, reverse=True)
            assert sum(shares) == pytest.approx(1, abs=1e-5)
        for order in ("unlike", "both", "nonsense"):
            assert {image["id"] for image in client.images(order)} == {image["id"] for image in images}
        assert len(client.images(count=3)) == 3


def test_images_have_no_predictions_without_a_model(place: Path) -> None:
    with page_of(place, model=False) as client:
        images = client.images()
        assert len(images) == 10
        assert all((image["guesses"], image["entropy"]) == ([], None) for image in images)
        assert client.state()["model"] == ""


def test_label_and_undo_of_one_browser_are_sent_to_the_others(place: Path) -> None:
    with page_of(place) as client, client.events() as events:
        assert next(events)[0] == "state"
        [one, two, *_] = [image["id"] for image in client.images()]
        client.json("/label", {"images": [one, two], "label": "a", "browser": "x"})
        name, data = next(event for event in events if event[0] != "folders")
        assert (name, sorted(data["images"]), data["label"]) == ("labelled", sorted([one, two]), "a")
        assert data["state"]["classes"][0] == {"name": "a", "shown": "a", "images": 2}
        again = client.json("/label", {"images": [one], "label": "b", "browser": "y"})
        assert (again["images"], again["already"]) == ([], {one: "a"})
        client.json("/undo", {"browser": "x"})
        name, data = next(event for event in events if event[0] != "folders")
        assert (name, len(data["restored"])) == ("undone", 2)


def test_added_deleted_and_changed_images_are_noticed(place: Path) -> None:
    with page_of(place) as client:
        before = {image["name"]: image["id"] for image in client.images()}
        (place / "new" / "0000.png").unlink()
        write_images(place / "new", 1, start=50, name="0001.png")
        write_images(place / "new", 1, start=60)
        until(lambda: {image["name"] for image in client.images()} >= {"0060.png"})
        after = {image["name"]: image["id"] for image in client.images()}
        assert "0000.png" not in after
        assert after["0001.png"] != before["0001.png"]
        for identifier in (before["0000.png"], before["0001.png"], "nonsense"):
            assert client.request(f"/image/{identifier}/small")[0] == 404


def test_small_and_large_images_are_served_as_jpeg(place: Path) -> None:
    with page_of(place) as client:
        [image] = client.images(count=1)
        for size, side in (("small", 224), ("large", 896)):
            status, data, headers = client.request(f"/image/{image['id']}/{size}")
            assert (status, headers["Content-Type"]) == (200, "image/jpeg")
            assert Image.open(io.BytesIO(data)).size == (side, side)


def test_broken_image_is_reported_and_can_be_labelled_none_of_these(place: Path) -> None:
    (place / "new" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much")
    with page_of(place) as client:
        [broken] = [image for image in client.images() if image["name"] == "broken.png"]
        assert not broken["readable"]
        status, reply, _ = client.request(f"/image/{broken['id']}/small")
        assert (status, b"expected an image" in reply) == (422, True)
        assert client.json("/label", {"images": [broken["id"]], "label": None})["images"] == [broken["id"]]


def test_prediction_that_a_device_kept_with_an_image_is_shown(place: Path) -> None:
    guess = {"label": "old\u202e", "probability": 0.5, "entropy": 0.9, "time": 1.0}
    (place / "new" / GUESS.format("0000.png")).write_text(json.dumps(guess))
    (place / "new" / GUESS.format("0001.png")).write_text("{" * 2000)
    with page_of(place) as client:
        kept = {image["name"]: image["kept"] for image in client.images()}
        assert kept.pop("0000.png") == "old\\u202e 50%"
        assert set(kept.values()) == {None}


def test_new_class_is_last_until_a_restart_and_an_invalid_name_is_refused(place: Path) -> None:
    with page_of(place) as client:
        assert client.json("/classes", {"name": "Aa"})["shown"] == "Aa"
        assert [one["name"] for one in client.state()["classes"]] == ["a", "b", "Aa"]
        status, reply, _ = client.request("/classes", {"name": "../x"})
        assert (status, "cannot be called" in json.loads(reply)["failed"]) == (409, True)
    with page_of(place) as client:
        assert [one["name"] for one in client.state()["classes"]] == ["Aa", "a", "b"]


def test_labels_csv_lists_every_labelled_image_without_formulas(place: Path) -> None:
    """Also those that were in a class folder before, of which no prediction is known."""
    (place / "data" / "=1+1").mkdir()
    write_images(place / "data" / "b", 1, start=77)
    with page_of(place) as client:
        one, two, none, *_ = client.images()
        client.json("/label", {"images": [one["id"], two["id"]], "label": "=1+1"})
        client.json("/label", {"images": [none["id"]], "label": None})
        status, data, headers = client.request("/labels.csv")
        assert (status, "attachment" in headers["Content-Disposition"]) == (200, True)
    rows = {row["file"]: row for row in csv.DictReader(io.StringIO(data.decode()))}
    assert {file: row["label"] for file, row in rows.items()} == {
        "b/0077.png": "b",
        f"'=1+1/{one['name']}": "'=1+1",
        f"'=1+1/{two['name']}": "'=1+1",
        f"{NONE_OF_THESE}/{none['name']}": "",
    }
    assert rows.pop("b/0077.png")["guess"] is None
    assert all(float(row["time"]) > 1e9 and row["guess"] in ("a", "b") for row in rows.values())


def test_learning_curve_is_measured_again_after_new_labels(place: Path) -> None:
    for name in "ab":
        write_images(place / "data" / name, 8, start=ord(name) * 100)
    with page_of(place) as client:
        first = client.json("/enough")
        assert (first["images"], len(first["curve"]) > 1) == (16, True)
        client.json("/label", {"images": [client.images()[0]["id"]], "label": "a"})
        assert client.json("/enough")["images"] == 17


def test_learning_curve_is_measured_again_after_two_labels_were_exchanged(place: Path) -> None:
    """The number of images of each class stays."""
    for name in "ab":
        write_images(place / "data" / name, 8, start=ord(name) * 100)
    with page_of(place) as client:
        one, other = (image["id"] for image in client.images()[:2])
        curves = []
        for of_a, of_b in ((one, other), (other, one)):
            client.json("/label", {"images": [of_a], "label": "a"})
            client.json("/label", {"images": [of_b], "label": "b"})
            curves.append(client.json("/enough")["curve"])
            client.json("/undo", {})
            client.json("/undo", {})
    assert curves[0] != curves[1]


def test_scores_of_images_that_have_gone_are_forgotten(place: Path) -> None:
    """A device that keeps uncertain images deletes old ones for as long as the page runs."""
    scores = Scores(place / "model", None, 1)
    with closing(Labeller(place / "data", [place / "new"], scores.guess)) as labeller:
        scores.open(labeller)
        thread = threading.Thread(target=scores.run, args=(lambda _gone: None,))
        thread.start()
        try:
            first, *others = labeller.images()
            until(lambda: all(scores.score(image.identifier) for image in (first, *others)))
            first.path.unlink()
            until(lambda: scores.score(first.identifier) is None)
            assert all(scores.score(image.identifier) for image in others)
        finally:
            scores.close()
            thread.join()


def test_page_takes_a_new_model_that_is_put_into_service(place: Path) -> None:
    """A store of models switches by a link."""
    (place / "models").mkdir()
    (place / "models" / "current").symlink_to(place / "model")
    scores = Scores(place / "models", None, 1)
    with closing(Labeller(place / "data", [place / "new"])) as labeller:
        scores.open(labeller)
        with served(LabelPage(labeller, scores).make_app(HERE), HERE) as url:
            client = Client(url)
            until(lambda: client.images()[-1]["entropy"] is not None)
            write_model(place / "other", seed=7)
            (place / "models" / "new").symlink_to(place / "other")
            before = {image["id"]: image["entropy"] for image in client.images()}
            (place / "models" / "new").rename(place / "models" / "current")
            until(
                lambda: {one["id"]: one["entropy"] for one in client.images()}.items().isdisjoint(
                    before.items()
                )
            )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"[" * 100_000,
        {"images": [], "label": "a"},
        {"images": [1], "label": "a"},
        {"images": ["x"], "label": 1},
        {"images": ["x"] * (MOST_AT_ONCE + 1), "label": "a"},
        {"images": ["x"], "label": "a", "browser": "x" * 65},
        {"images": ["x"], "label": "a", "more": 1},
    ],
)
def test_malformed_request_is_refused(place: Path, body: object) -> None:
    with page_of(place) as client:
        assert client.request("/label", body)[0] == 400
        assert client.json("/label", {"images": ["x"], "label": "../new"})["failed"]
        assert client.json("/label", {"images": ["x"], "label": "a"})["gone"] == ["x"]
        assert len(list((place / "new").iterdir())) == 10


def test_label_request_from_another_site_is_refused(place: Path) -> None:
    with page_of(place) as client:
        [image] = client.images(count=1)
        body = {"images": [image["id"]], "label": "a"}
        assert client.request("/label", body, Origin="https://elsewhere.example")[0] == 403
        assert list((place / "data" / "a").iterdir()) == []
