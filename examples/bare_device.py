# SPDX-License-Identifier: Apache-2.0
"""A device that needs only an MQTT client, msgpack and NumPy, written from docs/reference/protocol.md alone.

It joins, keeps to the window, resends, starts again with a new attempt, ends its rounds and is evaluated. Its
features are made up: the direction of the class plus noise. Its exit predicts the class whose direction has
the largest inner product with them. Its weights never change, so the run must have `client_averaging: none`.
`splitee cuts NETWORK` lists the shape of the features at a cut.

    python examples/bare_device.py --broker HOST:1883 --fleet home --id pi-1 --cut 3 --classes a,b
"""

import argparse
import hashlib
import json
import math
import queue
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgpack
import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

PROTOCOL = 1
CODECS = {"fp16": "<f2", "fp32": "<f4"}
BATCH = 64  # images per batch in evaluation
SILENCE = 15.0  # seconds without a message of the server until the device sends a request
PACKET, OVERHEAD = 1 << 20, 1024  # bytes of a packet, and of its topic and headers at most
READ = ("run", "round", "devices/{id}/status", "devices/{id}/inbox/#")
KEY = ("run", "attempt", "round", "phase")
Message = dict[str, Any]
log = partial(print, file=sys.stderr, flush=True)


class Model:
    """Replaces images, client network and exit: generates features, and predicts from them."""

    def __init__(self, device: str, shape: list[int], classes: int) -> None:
        self.seed, self.shape = device.encode(), shape
        random = np.random.default_rng(0)
        self.directions = random.standard_normal((classes, math.prod(shape)), dtype=np.float32)
        head = f"exit.directions torch.{self.directions.dtype} {self.directions.shape}"  # as PyTorch names it
        self.digest = hashlib.sha256(head.encode() + self.directions.tobytes()).hexdigest()

    def batch(self, size: int, *numbers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features, labels and the exit's probabilities; equal numbers give equal batches."""
        random = np.random.default_rng([*self.seed, *numbers])
        labels = random.integers(len(self.directions), size=size)
        features = self.directions[labels] + random.standard_normal((size, self.directions.shape[1]))
        logits = features @ self.directions.T / math.sqrt(self.directions.shape[1])
        exps = np.exp(logits - logits.max(axis=1, keepdims=True)) + 1e-12
        return features.reshape(size, *self.shape), labels, exps / exps.sum(axis=1, keepdims=True)


@dataclass
class Phase:
    """A phase that the device takes part in. `kept`: the unacknowledged batches, by step."""

    key: Message
    steps: int
    room: int
    acked: int = 0
    next: int = 0
    done: bool = False  # its round-done is published
    sent: int = 0  # bytes
    kept: dict[int, bytes] = field(default_factory=dict)
    scores: list[tuple[float, float]] = field(default_factory=list)  # loss and accuracy of the exit
    began: float = field(default_factory=time.monotonic)


class Device:
    """The MQTT client's thread puts events into a queue, from which `run` takes them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.id, self.instance = options, options.id, time.time_ns()
        self.root, self.own = f"splitee/v1/{options.fleet}/", f"devices/{options.id}/"
        self.model = Model(options.id, options.features, len(options.classes))
        self.events: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        self.packet, self.last_received, self.next_status = PACKET, time.monotonic(), 0.0
        self.spec: Message = {}
        self.opening: Message = {}
        self.participation: Message = {}  # this device's part in a phase
        self.forget_run()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.will_set(self.root + self.own + "status", json.dumps(self.status("offline")), 1, True)
        put = self.events.put
        self.client.on_connect = lambda _c, _u, _f, reason, props: put((self.on_connect, (reason, props)))
        self.client.on_disconnect = lambda *_: put((log, ("the connection is lost: waits for the broker",)))
        self.client.on_message = lambda _c, _u, packet: put((self.on_message, (packet.topic, packet.payload)))

    def forget_run(self) -> None:
        self.joined, self.attempt, self.committed = False, 0, 0
        self.phase: Phase | None = None
        self.pending: Message = {}  # the round of a published round-done that is not yet decided

    def publish(self, topic: str, message: Message | bytes, retain: bool = False) -> mqtt.MQTTMessageInfo:
        """Publish a message, in parts if it does not fit a packet."""
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        piece, number = self.packet - OVERHEAD, time.time_ns()
        count = math.ceil(len(data) / piece)
        for index in range(count):
            part = msgpack.packb([number, index, count, len(data), data[index * piece : (index + 1) * piece]])
            info = self.client.publish(self.root + self.own + topic, part if count > 1 else data, 1, retain)
        return info

    def status(self, state: str) -> Message:
        phase = self.phase
        doing = {"train": "training", "evaluate": "evaluating"}[phase.key["phase"]] if phase else "waiting"
        message = {"state": state, "instance": self.instance, "time": time.time(), "doing": doing}
        return message | ({"step": phase.acked, "steps": phase.steps} if phase else {})

    def request(self) -> None:
        """Request to take part, or request an acknowledgement."""
        self.last_received, options = time.monotonic(), self.options
        profile = {"protocol": PROTOCOL, "instance": self.instance, "version": "bare 1", "cut": options.cut}
        profile |= {"train_samples": options.train, "held_out_samples": options.held_out}
        if not self.joined:
            self.publish("profile", profile | {"class_names": options.classes}, retain=True)
        self.publish("sync", {"run": self.spec["run"], "instance": self.instance})

    def make_batch(self, phase: Phase, train: bool) -> bytes:
        step, codec, held_out = phase.next, self.spec.get("codec", "fp16"), self.options.held_out
        size = self.spec.get("batch_size", 32) if train else min(BATCH, held_out - step * BATCH)
        features, labels, probabilities = self.model.batch(size, phase.key["round"] if train else 0, step)
        kind = "<u1" if self.spec["num_classes"] <= 256 else "<u2"
        predictions, losses = probabilities.argmax(axis=1), -np.log(probabilities[np.arange(size), labels])
        phase.scores.append((float(losses.mean()), float((predictions == labels).mean())))
        tensor = {"codec": codec, "shape": features.shape, "data": features.astype(CODECS[codec]).tobytes()}
        message = phase.key | {"step": step, "features": tensor, "labels": labels.astype(kind).tobytes()}
        if not train:
            entropy = -(probabilities * np.log(probabilities)).sum(axis=1) / math.log(probabilities.shape[1])
            message["exit_labels"] = predictions.astype(kind).tobytes()
            message["exit_entropy"] = entropy.clip(0, 1).astype("<f2").tobytes()
        return bytes(msgpack.packb(message))

    def send(self, phase: Phase) -> None:
        """Send the batches that the window allows, and round-done after the last batch of a round."""
        train, window = phase.key["phase"] == "train", self.spec.get("window_bytes", 1 << 24)
        end = min(phase.steps, phase.acked + phase.room)
        while phase.next < end and sum(map(len, phase.kept.values())) < window:
            batch = phase.kept[phase.next] = self.make_batch(phase, train)
            self.publish("features", batch)
            phase.next, phase.sent = phase.next + 1, phase.sent + len(batch)
        if train and phase.next == phase.steps and not phase.done:
            self.publish_round_done(phase)

    def publish_round_done(self, phase: Phase) -> None:
        loss, accuracy = np.mean(phase.scores or [(0, 0)], axis=0).tolist()
        self.pending = {name: phase.key[name] for name in ("run", "attempt", "round")}
        message = self.pending | {"digest": self.model.digest, "batches": phase.steps, "bytes": phase.sent}
        message |= {"loss": loss, "accuracy": accuracy, "seconds": time.monotonic() - phase.began}
        self.publish("round-done", msgpack.packb(message))
        phase.done = True
        log(f"waits for the commit of round {phase.key['round']}")

    def follow(self) -> None:
        """Begin, continue or leave a phase, by the last opening."""
        opening = self.opening
        if not self.joined or opening.get("run") != self.spec["run"] or opening["attempt"] < self.attempt:
            return
        if opening["attempt"] > self.attempt:
            self.attempt, self.pending, self.phase = opening["attempt"], {}, None
        if opening["phase"] == "finished":
            print(f"finished: {self.committed} rounds committed")
            sys.exit(0)
        key = {name: opening[name] for name in KEY}
        own = (
            self.participation.get("part")
            if key == {name: self.participation.get(name) for name in KEY}
            else None
        )
        if self.phase and self.phase.key == key and (own or self.phase.done):
            return
        self.phase = None
        if own and own.get("weights"):
            sys.exit("the run wants this device's weights, which has none to send")
        if own and key["phase"] in ("train", "evaluate"):
            self.phase = Phase(key, own["steps"], self.participation.get("room", 0))
            log(f"round {key['round']}, {key['phase']}: waits for {own['steps']} batches to be acknowledged")
            self.send(self.phase)

    def on_run(self, message: Message) -> None:
        protocol, codec = message["protocol"], message.get("codec", "fp16")
        if protocol != PROTOCOL or codec not in CODECS:
            sys.exit(f"the run has protocol {protocol}, codec {codec}; this device 1, {' or '.join(CODECS)}")
        is_new, self.spec = message["run"] != self.spec.get("run"), message
        if is_new:
            log(f"run {message['run']}: waits for the server's plan")
            self.forget_run()
            self.request()

    def on_round(self, message: Message) -> None:
        self.last_received, self.opening = time.monotonic(), message
        self.follow()

    def on_inbox_ack(self, message: Message) -> None:
        self.last_received, phase = time.monotonic(), self.phase
        if not phase or phase.key != {name: message[name] for name in KEY}:
            return
        phase.room, phase.acked = message.get("room", 0), max(phase.acked, message["step"])
        phase.next = max(phase.next, phase.acked)
        phase.kept = {step: batch for step, batch in phase.kept.items() if step >= phase.acked}
        if message.get("resend"):
            phase.done = False
            for batch in phase.kept.values():
                self.publish("features", batch)
        self.send(phase)

    def on_inbox_participation(self, message: Message) -> None:
        self.last_received, self.participation = time.monotonic(), message
        if not message.get("part"):  # dropped from the phase
            self.settle(message, message["round"], None)
        self.follow()

    def on_inbox_plan(self, message: Message) -> None:
        own = message["instance"] == self.instance and message["run"] == self.spec.get("run")
        if not own or message["attempt"] < self.attempt:
            return
        if message["cut"] != self.options.cut:
            sys.exit(f"the server has this device at cut {message['cut']}, not {self.options.cut}")
        committed = message.get("committed", 0)
        self.settle(message, committed, message.get("trained"))
        self.joined, self.committed = True, max(self.committed, committed)
        self.follow()

    def settle(self, message: Message, committed: int, digest: str | None) -> None:
        """Decide whether the pending round counts, if the message is about it."""
        if self.pending == {"run": message["run"], "attempt": message["attempt"], "round": committed}:
            counts, self.pending = digest == self.model.digest, {}
            self.committed = committed if counts else self.committed
            log(f"round {committed} is committed{'' if counts else ' without this device'}")

    def on_inbox_error(self, message: Message) -> None:
        if message.get("instance", 0) in (0, self.instance):
            if message.get("fatal"):
                sys.exit(f"the server refuses this device: {message['message']}")
            log(f"the server did not take a message: {message['message']}")

    def on_status(self, message: Message) -> None:
        if message["instance"] > self.instance:
            sys.exit(f"another process has the id {self.id}")

    def on_connect(self, reason: ReasonCode, properties: Properties) -> None:
        if reason.is_failure:
            sys.exit(f"the broker refuses this device: {reason}")
        self.next_status, self.packet = 0.0, min(PACKET, getattr(properties, "MaximumPacketSize", PACKET))
        self.client.subscribe([(self.root + topic.format(id=self.id), 1) for topic in READ])
        log("connected" if self.spec else "connected: waits for a run")
        if self.spec:
            self.request()

    def on_message(self, topic: str, payload: bytes) -> None:
        name = topic.removeprefix(self.root).removeprefix(self.own).replace("/", "_")
        if payload and (handler := getattr(self, f"on_{name}", None)):
            try:
                handler(json.loads(payload))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                log(f"{topic}: rejected, {error!r}")

    def turn(self) -> None:
        """Handle the next event, or publish the status every second."""
        try:
            handler, arguments = self.events.get(timeout=max(0.0, self.next_status - time.monotonic()))
            handler(*arguments)
        except queue.Empty:
            self.next_status = time.monotonic() + 1
            if self.client.is_connected():
                self.publish("status", self.status("online"), retain=True)
                if self.spec and time.monotonic() - self.last_received > SILENCE:
                    self.request()

    def run(self) -> None:
        host, _, port = self.options.broker.rpartition(":")
        self.client.connect_async(host, int(port))
        self.client.loop_start()
        try:
            while True:
                self.turn()
        finally:
            if self.client.is_connected():
                self.publish("status", self.status("offline"), retain=True).wait_for_publish(5)
            self.client.disconnect()
            self.client.loop_stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="A device of a fleet with made-up features.")
    for name in ("--broker", "--fleet", "--id"):
        parser.add_argument(name, required=True)
    parser.add_argument("--cut", required=True, type=int)
    parser.add_argument("--classes", required=True, type=lambda text: text.split(","))
    parser.add_argument("--features", default=[16], type=lambda text: [int(size) for size in text.split(",")])
    parser.add_argument("--train", default=330, type=int, help="images for training")
    parser.add_argument("--held-out", default=100, type=int, help="images for evaluation")
    Device(parser.parse_args()).run()


if __name__ == "__main__":
    main()
