# SPDX-License-Identifier: Apache-2.0
"""The link to the broker: MQTT v5 with QoS 1, endless reconnection, bounded in both directions."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from splitee.errors import BrokerRefused, BrokerUnreachable, ConfigError
from splitee.log_limits import SELDOM, FirstFew
from splitee.mqtt.address import BrokerAddress, TlsFiles
from splitee.mqtt.backoff import delays, tries
from splitee.mqtt.connection import CONNECT_LIMIT, Connection, log_exceptions, packet_properties
from splitee.mqtt.event_queue import EventQueue, Key
from splitee.mqtt.events import Connected, Disconnected, Event, Message, Woken
from splitee.mqtt.in_flight import IN_FLIGHT, InFlight
from splitee.mqtt.meter import Meter, headers_of
from splitee.mqtt.pace import QUOTA_REASONS, Pace
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.mqtt.refusals import TryFailed

__all__ = ["BrokerAddress", "Connected", "Disconnected", "Event", "Link", "Message", "TlsFiles"]

ENVELOPE = 1024  # bytes of a packet set aside for its header, topics and properties
INBOX_BYTES = 256 << 20
STABLE = 30.0  # seconds that a connection lasts before its loss counts as a first one again
TAKEOVER_PAUSE = 5.0  # seconds, at least, before reconnecting after another client has taken over the id
KEEP_ALIVE = 15  # seconds: a connection that is dead, and does not show it, is noticed within twice as many
SESSION_EXPIRY = 60  # seconds within which a client can resume its session after a broken connection
RETAINED_FOR = 60 * 365 * 86400  # seconds; a broker that counts them down tells how old a retained message is
STOP_CHECK_EVERY = 0.2  # seconds between two checks whether to stop
SHORT_CONNECTION = 5.0  # seconds: a paced connection that ends sooner counts as another refusal
PACED_WINDOW = 2  # publications in flight at a broker that limits them: a reconnect sends them all at once
FILTERS = 200  # in a packet: of the longest names, they take 34 KB
FRUITLESS = 3  # connections in a row without one acknowledgement before what is in flight counts as poison

log = logging.getLogger(__name__)


class Link:
    """One client of the broker; `publish` may be called from any thread, `receive` from one.

    `meter` counts each message: a published one once, however often MQTT sends it again after a
    reconnect, and each received one, admitted or not.

    The broker's acknowledgement says nothing about the reader. A message counts as received when its reader
    confirms it in a message of its own. After a `Connected`, send again all messages that are not confirmed.
    `Connected` comes when the subscriptions are in force, before any message of the new connection.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        will: tuple[str, bytes] | None = None,
        tls: TlsFiles | None = None,
        keepalive: int = KEEP_ALIVE,
        session_expiry: int = 0,
        max_packet: int = 1 << 20,
        capacity: int = 4096,
        capacity_bytes: int = INBOX_BYTES,
        key: Key = lambda _message: None,
        admits: Callable[[str], bool] = lambda _topic: True,
        read_delay: float = 0.0,
    ) -> None:
        """`will`: topic and payload that the broker retains when this side vanishes. `keepalive`: seconds.

        `session_expiry`: seconds for which the broker keeps subscriptions and their queue while the
        connection is broken; 0: not at all. The session of a killed process takes the broker's memory for
        this time, unless the next process has the same id.
        `max_packet`: bytes of the largest packet to send. `capacity`, `capacity_bytes`: events to hold for
        `receive`, and their bytes. `key`: as for `EventQueue`. `admits`: whether a message on a
        topic is taken; called on the network thread. `read_delay`: seconds for which incoming data may wait
        to be read together; this saves most of the CPU time of a viewer of a large fleet.
        """
        if not client_id or set(client_id) & set("/+#$"):
            # MQTT allows them, but rumqttd 0.20 stops serving everybody when it meets one.
            raise ConfigError(f"client id {client_id!r}: expected a name without / + # $")
        self.address = address
        self._client_id = client_id
        self._limit = self._max_packet = max_packet
        self._admits = admits
        self._filters: dict[str, None] = {}
        self._subscribing: dict[int, list[str]] = {}
        self._subscriptions = threading.Condition()
        self._sending = threading.Lock()
        self._in_flight = InFlight()
        self._inbox = EventQueue(capacity, capacity_bytes, key)
        self._fresh = True
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._pauses = delays()
        self._log_tries = FirstFew(SELDOM)
        self._pace = Pace()
        self._log_refused = RateLimiter()
        self._refused_topic = ""
        self._resend_pending = False  # a `Connected` waits by which the reader sends again what was refused
        self.refused = 0
        self.meter: Meter | None = None
        self._connection = Connection(
            address,
            tls,
            client_id,
            keepalive,
            session_expiry,
            self._closing,
            self._on_accepted,
            self._in_flight.stop,
            read_delay,
        )
        self._client = self._connection.client
        self._client.on_message = log_exceptions(self._on_message)
        self._client.on_publish = log_exceptions(self._on_publish)
        self._client.on_subscribe = log_exceptions(self._on_subscribe)
        if will is not None:
            kept = packet_properties(PacketTypes.WILLMESSAGE, MessageExpiryInterval=RETAINED_FOR)
            self._client.will_set(will[0], will[1], qos=1, retain=True, properties=kept)
        if address.tls:
            self._connection.use_tls((tls or TlsFiles()).context())
        elif tls is not None and tls != TlsFiles():
            secure = "mqtts" if address.path is None else "wss"
            raise ConfigError(f"TLS files are given, but {address} is a plain connection: use {secure}://")

    @property
    def connected(self) -> bool:
        return self._in_flight.up

    @property
    def alive(self) -> bool:
        """Whether the network thread runs, connected or not."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def max_packet(self) -> int:
        """Size in bytes of the largest payload within our limit and the broker's."""
        return self._max_packet - ENVELOPE

    @property
    def window(self) -> int:
        """Largest number of unacknowledged publications: 20, or the broker's Receive Maximum if less."""
        return self._in_flight.window

    @property
    def part_size(self) -> int:
        """Size in bytes for the parts of a larger message: about one second of the link's throughput."""
        return min(self.max_packet, self._in_flight.speed.part)

    @property
    def speed(self) -> float | None:
        """The link's recent throughput in bytes per second; None: not known yet."""
        return self._in_flight.speed.rate

    @property
    def busy(self) -> float:
        """Seconds so far in which something that was published was on its way to the broker."""
        return self._in_flight.busy

    @property
    def cpu(self) -> float:
        """CPU seconds of the running network thread; 0 if the system does not report them."""
        known = self.alive and hasattr(time, "pthread_getcpuclockid")
        if not known or self._thread is None or self._thread.ident is None:
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    @property
    def dropped(self) -> int:
        """Events lost because nobody received them in time."""
        return self._inbox.dropped

    def open(self, timeout: float | None, stop: Callable[[], bool] = lambda: False) -> None:
        """Connects and subscribes, trying for `timeout` seconds (None: for ever).

        When `stop` returns True first, it returns without a connection.

        Raises BrokerUnreachable (no response in time) or BrokerRefused (by the broker or TLS).
        """
        started = time.monotonic()
        reason = "closed"

        def wait(seconds: float) -> None:
            until = time.monotonic() + seconds
            while not stop() and (left := until - time.monotonic()) > 0:
                if self._closing.wait(min(left, STOP_CHECK_EVERY)):
                    return

        for pause in tries(timeout, delays(), wait):
            if stop():
                return
            if self._closing.is_set():
                break
            left = CONNECT_LIMIT if timeout is None else started + timeout - time.monotonic()
            try:
                self._connection.connect(min(CONNECT_LIMIT, max(1.0, left)))
            except TryFailed as failure:
                reason = str(failure)
                if pause > 0 and self._log_tries.due():
                    log.warning(
                        "broker %s not reachable (%s); next try in %.1f s", self.address, reason, pause
                    )
                continue
            log.info("connected to broker %s as %s", self.address, self._client_id)
            self._thread = threading.Thread(target=self._serve, name=f"link {self._client_id}", daemon=True)
            self._thread.start()
            with self._subscriptions:
                self._subscriptions.wait_for(lambda: not self._subscribing, CONNECT_LIMIT)
            return
        raise BrokerUnreachable(
            f"no broker at {self.address} within {time.monotonic() - started:.0f} s ({reason}): "
            "start it, or correct the address"
        )

    def close(self, offline_message: tuple[str, bytes] | None = None) -> None:
        """Publish the offline message retained, wait for all acknowledgements, and disconnect.

        If the broker does not acknowledge within seconds, the last will is published instead.
        """
        delivered = self.connected and self.flush(CONNECT_LIMIT)
        if delivered and offline_message is not None:
            delivered = self.publish(*offline_message, retain=True) and self.flush(CONNECT_LIMIT)
        if self.connected and not delivered:
            log.warning(
                "broker %s: closing with %d messages unacknowledged", self.address, len(self._in_flight)
            )
        self._closing.set()
        self._connection.disconnect(with_will=not delivered)
        if self._thread is not None:
            self._thread.join(CONNECT_LIMIT)
        self._in_flight.stop()

    def subscribe(self, *filters: str) -> None:
        """Subscribe now and at every connection. For filters that the broker denies see `receive`."""
        with self._subscriptions:
            self._filters.update(dict.fromkeys(filters))
            if self.connected:
                self._send_subscribe(filters)

    def unsubscribe(self, *filters: str) -> None:
        """Unsubscribe from topics; messages already on their way still come."""
        with self._subscriptions:
            for name in filters:
                self._filters.pop(name, None)
            if self.connected:
                for names in _packets(filters):
                    self._client.unsubscribe(names)

    def receive(self, timeout: float | None) -> Event | None:
        """The next event; None when `timeout` seconds are over. BrokerRefused: a subscription was denied."""
        event = self._inbox.get(timeout)
        if isinstance(event, Connected):
            self._resend_pending = False  # what is refused from here on may have been sent again by then
        if isinstance(event, Message):
            log.debug("received %s, %d bytes", event.topic, len(event.payload))
        return event

    def wake(self) -> None:
        """Make `receive` return a `Woken`, so that its caller can also wait for other threads."""
        self._inbox.put(Woken())

    def publish(
        self,
        topic: str,
        payload: bytes | memoryview | bytearray,
        *,
        retain: bool = False,
        expiry: int | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
    ) -> bool:
        """Publish with QoS 1.

        Waits while 20 (or the broker's Receive Maximum) messages are unacknowledged, or as many bytes as the
        link carries in 4 seconds, so that no message waits much longer than that.

        `expiry`: seconds after which the broker may forget it. False: not connected, nothing was kept.
        ValueError: larger than `max_packet`; such a message would end every connection from here on.
        """
        body = bytes(payload)
        envelope = len(topic.encode()) + len((response_topic or "").encode()) + len(correlation or b"")
        if len(body) > self.max_packet or envelope > ENVELOPE - 64:
            raise ValueError(
                f"message on {topic[:200]}: expected at most {self.max_packet} bytes, with topics and "
                f"correlation of at most {ENVELOPE - 64}, but it has {len(body)} and {envelope}"
            )
        properties = packet_properties(
            PacketTypes.PUBLISH,
            MessageExpiryInterval=RETAINED_FOR if retain and expiry is None else expiry,
            ResponseTopic=response_topic,
            CorrelationData=correlation,
        )
        with self._sending:
            self._in_flight.wait_while_up(self._pace.reserve())
            if not self._in_flight.wait_for_room(topic, len(body)):
                return False
            sent = self._client.publish(topic, body, qos=1, retain=retain, properties=properties)
            if sent.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                return False
            self._in_flight.sent(sent.mid)
            if self.meter is not None:
                self.meter.published(topic, len(body), headers_of(topic, len(body), properties))
        log.debug("published %s, %d bytes", topic, len(body))
        return True

    def flush(self, timeout: float | None) -> bool:
        """Wait until the broker has acknowledged everything published; False after `timeout` seconds."""
        return self._in_flight.wait_until_empty(timeout)

    # What follows runs on the network thread, and during `open` on the caller's.

    def _serve(self) -> None:
        """Runs the connection, and makes it again whenever it is lost, until `close`."""
        fruitless = 0
        while True:
            started, before = time.monotonic(), self._in_flight.acknowledged
            reason = self._connection.run()
            self._in_flight.stop()
            if self._closing.is_set():
                return
            if time.monotonic() - started > STABLE:
                self._pauses, self._log_tries = delays(), FirstFew(SELDOM)
            if not self._inbox.release():
                self._inbox.put(Disconnected(reason))
            # If the broker closes the connection in the middle of a packet, its reason is not read.
            is_paced = self._pace.pause > 0 and time.monotonic() - started < SHORT_CONNECTION
            if reason in QUOTA_REASONS or is_paced:
                if self._slow_down(reason):
                    self._pauses = delays()
                self._drop_in_flight("they would be sent again at once, faster than it takes them")
            stuck = len(self._in_flight) > 0 and before == self._in_flight.acknowledged
            fruitless = fruitless + 1 if stuck else 0
            if reason == "packet too large" or fruitless >= FRUITLESS:
                self._drop_in_flight("the broker may hang up because of one of them")
                fruitless = 0
            if not self._reconnect(reason):
                return

    def _reconnect(self, reason: str) -> bool:
        """Tries until it is connected; False when `close` came first.

        Pauses keep growing while connections are short-lived. Two clients with the same id disconnect each
        other, and not every broker reports this (Mosquitto 2.0.11 does not).
        """
        for jitter in self._pauses:
            pause = jitter + (TAKEOVER_PAUSE if reason == "session taken over" else 0.0)
            if self._log_tries.due():
                log.warning("broker %s: %s; next try in %.1f s", self.address, reason, pause)
            if self._closing.wait(pause):
                break
            try:
                self._connection.connect(CONNECT_LIMIT)
            except (TryFailed, BrokerRefused) as failure:
                reason = str(failure)
                continue
            log.info("connected to broker %s again", self.address)
            return True
        return False

    def _slow_down(self, reason: str) -> bool:
        """Publish less often from now on. False: the pace was lowered already."""
        if not self._pace.slow_down():
            return False
        self._in_flight.narrow(PACED_WINDOW)
        log.warning(
            "broker %s: %s; from now on %.1f s between two messages",
            self.address,
            reason,
            self._pace.pause,
        )
        return True

    def _drop_in_flight(self, reason: str) -> None:
        """Drops what is in flight; the layer above sends again what its peer has not confirmed."""
        with self._sending:
            dropped = self._client.drop_out_messages()
            if dropped:
                topics = ", ".join(sorted({message.topic for message in dropped}))
                log.warning("dropped %d unacknowledged messages (%s): %s", len(dropped), topics, reason)
            self._in_flight.clear()

    def _on_accepted(self, session_present: bool, properties: Properties) -> None:
        packet = min(self._limit, getattr(properties, "MaximumPacketSize", self._limit))
        most = PACED_WINDOW if self._pace.pause else IN_FLIGHT
        window = min(most, getattr(properties, "ReceiveMaximum", IN_FLIGHT))
        if packet < self._max_packet or window < len(self._in_flight):
            self._drop_in_flight("the broker's limits are lower than before")
        self._max_packet = packet
        self._inbox.hold()
        self._fresh = not session_present
        if self._pace.pause:
            self._pace.settle()
        with self._subscriptions:  # until the link is up: a new filter is sent here or by its own caller
            self._subscribing.clear()
            if self._filters:
                self._send_subscribe(tuple(self._filters))
            self._in_flight.start(window)
            if not self._filters:
                self._inbox.release(Connected(self._fresh))

    def _send_subscribe(self, filters: tuple[str, ...]) -> None:
        """The caller holds `_subscriptions`."""
        options = SubscribeOptions(qos=1)
        for names in _packets(filters):
            _, number = self._client.subscribe([(topic, options) for topic in names])
            if number is not None:
                self._subscribing[number] = names

    def _on_subscribe(
        self, _client: Client, _data: Any, number: int, reasons: list[ReasonCode], _properties: Properties
    ) -> None:
        with self._subscriptions:
            filters = self._subscribing.pop(number, [])
            if not self._subscribing:
                self._inbox.release(Connected(self._fresh))
            self._subscriptions.notify_all()
        for topic, reason in zip(filters, reasons, strict=False):
            if reason.is_failure:
                words = reason.getName().lower()
                self._inbox.put(BrokerRefused(f"broker {self.address} denies reading {topic}: {words}"))

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        topic, payload, properties = message.topic, bytes(message.payload), message.properties
        if self.meter is not None:
            self.meter.received(topic, len(payload), headers_of(topic, len(payload), properties))
        if not self._admits(topic):
            return
        self._inbox.put(
            Message(
                topic=topic,
                payload=payload,
                retained=message.retain,
                response_topic=getattr(properties, "ResponseTopic", None),
                correlation=getattr(properties, "CorrelationData", None),
                age=_age(message),
            )
        )

    def _on_publish(
        self, _client: Client, _data: Any, number: int, reason: ReasonCode, _properties: Properties
    ) -> None:
        topic = self._in_flight.acknowledge(number)
        if not reason.is_failure:
            return
        if reason.getName().lower() in QUOTA_REASONS:
            self._slow_down(reason.getName().lower())
            if not self._resend_pending:
                self._resend_pending = True
                self._inbox.put(Connected(fresh=True))  # so that its reader sends again what is not confirmed
            return
        self.refused += 1
        if self._log_refused.due() or topic != self._refused_topic:
            self._refused_topic = topic
            log.warning("broker refuses what is published on %s: %s", topic, reason.getName().lower())


def _packets(filters: Sequence[str]) -> Iterator[list[str]]:
    """The filters in groups that packets hold: a broker hangs up at one that is larger than it takes."""
    for start in range(0, len(filters), FILTERS):
        yield list(filters[start : start + FILTERS])


def _age(message: MQTTMessage) -> int | None:
    """Seconds since a retained message was published; None: under 1, or the broker does not count them."""
    left = getattr(message.properties, "MessageExpiryInterval", RETAINED_FOR)
    return RETAINED_FOR - left if message.retain and left < RETAINED_FOR else None
