# SPDX-License-Identifier: Apache-2.0
"""The page on which a person labels: its data, its actions, and the changes that every browser receives."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web

from splitee.cli.plain_text import plain
from splitee.errors import DataError, SpliteeError
from splitee_device.inference.unsure_images import kept_guess
from splitee_device.labelling.labelled import as_csv
from splitee_device.labelling.labeller import Labeller, Outcome
from splitee_device.labelling.scores import Order, Scores
from splitee_device.labelling.thumbnails import Thumbnails
from splitee_device.labelling.unlabelled import Unlabelled, image_at
from splitee_web.listening import ListenOptions
from splitee_web.site import STREAMS, make_app

STATIC = Path(__file__).with_name("static")
MOST_SHOWN = 2000  # images that a browser gets at a time
MOST_AT_ONCE = 1000  # images of one action
CACHE_HEADERS = {"Cache-Control": "private, max-age=600"}  # an image's identifier changes with its file

Browser = Annotated[str, msgspec.Meta(max_length=64)]
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ToLabel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Images, by their identifiers, and their class; None: none of these."""

    images: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MOST_AT_ONCE)]
    label: str | None
    browser: Browser = ""


class ToUndo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    browser: Browser = ""


class NewClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(max_length=1000)]


class LabelPage:
    """The routes of one labeller; moves and decoding each run in a thread, one at a time."""

    def __init__(self, labeller: Labeller, scores: Scores) -> None:
        self._labeller = labeller
        self._scores = scores
        self._thumbnails = Thumbnails()
        self._actions = ThreadPoolExecutor(1, "actions")
        self._decoding = ThreadPoolExecutor(1, "decoding")  # a large image takes much memory
        self._order = sorted(labeller.classes)  # the order of classes and their keys; new ones come last
        self._enough_lock = asyncio.Lock()
        self._enough: tuple[object, bytes] = None, b""

    def make_app(self, where: ListenOptions) -> web.Application:
        app = make_app(where, STATIC)
        app.router.add_get("/events", self._events)
        app.router.add_get("/images", self._images)
        app.router.add_get("/image/{identifier}/{size:small|large}", self._image)
        app.router.add_post("/label", _refusing(self._label))
        app.router.add_post("/undo", _refusing(self._undo))
        app.router.add_post("/classes", _refusing(self._new_class))
        app.router.add_get("/labels.csv", _refusing(self._csv))
        app.router.add_get("/enough", _refusing(self._is_enough))
        app.cleanup_ctx.append(self._scoring)
        return app

    def state(self) -> dict[str, Any]:
        """What a browser shows besides the images."""
        labeller = self._labeller
        self._order += sorted(labeller.classes.keys() - set(self._order))
        return {
            "classes": [
                {"name": name, "shown": plain(name), "images": labeller.classes[name]}
                for name in self._order
                if name in labeller.classes
            ],
            "none": labeller.none,
            "unlabelled": len(labeller.unlabelled),
            "unscored": sum(self._scores.score(image) is None for image in labeller.unlabelled.copy())
            - len(self._scores.unreadable & labeller.unlabelled.keys()),
            "undoable": labeller.undoable,
            "model": plain(self._scores.model_description),
            "data": plain(str(labeller.data)),
        }

    async def _scoring(self, app: web.Application) -> AsyncIterator[None]:
        """Keeps scores up to date while the page is served."""
        loop = asyncio.get_running_loop()

        def changed(gone: set[str]) -> None:
            loop.call_soon_threadsafe(self._send_event, app, "folders", {"gone": sorted(gone)})

        thread = threading.Thread(target=self._scores.run, args=(changed,), name="scores")
        thread.start()
        yield
        self._scores.close()
        await asyncio.to_thread(thread.join)
        self._actions.shutdown()
        self._decoding.shutdown()

    def _send_event(self, app: web.Application, name: str, data: dict[str, Any]) -> None:
        app[STREAMS].send(name, _encode({**data, "state": self.state()}))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await request.app[STREAMS].respond(request, lambda: [("state", _encode(self.state()))])

    async def _images(self, request: web.Request) -> web.StreamResponse:
        """The first images in the requested order."""
        order: Order = "both"
        if request.query.get("order") in ("uncertain", "unlike"):
            order = "uncertain" if request.query["order"] == "uncertain" else "unlike"
        count = request.query.get("count", "60")
        is_number = count.isascii() and count.isdigit() and len(count) <= len(str(MOST_SHOWN))
        most = min(int(count), MOST_SHOWN) if is_number else MOST_SHOWN
        images = self._labeller.images()
        ordered = await asyncio.to_thread(self._scores.order, images, order)
        by_identifier = {image.identifier: image for image in images}
        shown = [self._shown(by_identifier[identifier]) for identifier in ordered[:most]]
        return _json({"images": shown})

    def _shown(self, image: Unlabelled) -> dict[str, Any]:
        score, kept = self._scores.score(image.identifier), kept_guess(image.path)
        guesses = score.guesses if score is not None else ()
        return {
            "id": image.identifier,
            "name": plain(image.name),
            "readable": image.identifier not in self._scores.unreadable,
            "guesses": [
                {"label": label, "shown": plain(label), "probability": share} for label, share in guesses
            ],
            "entropy": score.entropy if guesses and score is not None else None,
            "kept": None if kept is None else plain(f"{kept.label} {kept.probability:.0%}"),
        }

    async def _image(self, request: web.Request) -> web.StreamResponse:
        image = self._labeller.unlabelled.get(request.match_info["identifier"])
        if image is None or image_at(image.path) != image:
            raise web.HTTPNotFound(text="this image is no longer there\n")
        make = self._thumbnails.small if request.match_info["size"] == "small" else self._thumbnails.large
        try:
            data = await self._in(self._decoding, make, image)
        except DataError as error:
            raise web.HTTPUnprocessableEntity(text=f"{plain(str(error))}\n") from None
        return web.Response(body=data, content_type="image/jpeg", headers=CACHE_HEADERS)

    async def _label(self, request: web.Request) -> web.StreamResponse:
        wanted = await _read(request, ToLabel)
        outcome = await self._in(self._actions, self._labeller.label, wanted.images, wanted.label)
        return self._respond(request, "labelled", outcome, wanted.browser)

    async def _undo(self, request: web.Request) -> web.StreamResponse:
        wanted = await _read(request, ToUndo)
        outcome = await self._in(self._actions, self._labeller.undo)
        return self._respond(request, "undone", outcome, wanted.browser)

    async def _new_class(self, request: web.Request) -> web.StreamResponse:
        wanted = await _read(request, NewClass)
        await self._in(self._actions, self._labeller.add_class, wanted.name)
        self._send_event(request.app, "folders", {"gone": []})
        return _json({"name": wanted.name, "shown": plain(wanted.name), "state": self.state()})

    def _respond(self, request: web.Request, name: str, outcome: Outcome, browser: str) -> web.Response:
        """Reports an action's outcome to its browser, and the changes to the others."""
        event: dict[str, Any] = {
            "images": outcome.moved,
            "gone": outcome.gone,
            "label": outcome.label,
            "shown": plain(outcome.label or ""),
            "browser": browser,
        }
        if name == "undone":
            back = map(self._labeller.unlabelled.get, outcome.moved[:MOST_SHOWN])
            event["restored"] = [self._shown(image) for image in back if image is not None]
        if outcome.moved or outcome.gone:
            self._send_event(request.app, name, event)
        already = {image: label and plain(label) for image, label in outcome.already.items()}
        return _json({**event, "already": already, "failed": plain(outcome.failed), "state": self.state()})

    async def _csv(self, _request: web.Request) -> web.StreamResponse:
        text = await asyncio.to_thread(as_csv, self._labeller.data, self._labeller.steps())
        headers = {"Content-Disposition": 'attachment; filename="labels.csv"'}
        return web.Response(text=text, content_type="text/csv", headers=headers)

    async def _is_enough(self, _request: web.Request) -> web.StreamResponse:
        """Computed again if labels or the model have changed; takes seconds."""
        async with self._enough_lock:
            steps = tuple(step.number for step in self._labeller.steps())
            of = steps, tuple(sorted(self._labeller.classes.items())), self._scores.model_description
            if self._enough[0] != of:
                enough = await asyncio.to_thread(self._scores.enough)
                self._enough = (
                    of,
                    _encode(_plain({**msgspec.to_builtins(enough), "model": self._scores.model_description})),
                )
            return web.Response(body=self._enough[1], content_type="application/json")

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)


def _refusing(handler: Handler) -> Handler:
    """Reports a user's mistake, or a failure of a folder, as one line."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except SpliteeError as error:
            return _json({"failed": plain(str(error))}, 409)

    return handle


async def _read(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.convert(json.loads(await request.read()), kind)  # json, for names that are no UTF-8
    except (ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(text=f"{plain(str(error)[:300])}\n") from None


def _plain(value: Any) -> Any:
    """A value of JSON, with texts that are safe to show on a page."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return plain(value) if isinstance(value, str) else value


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _json(value: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=_encode(value), content_type="application/json", status=status)
