# SPDX-License-Identifier: Apache-2.0
"""Errors for the user: each is an exception with one line and one exit code."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal


class ExitCode(IntEnum):
    """The exit status of every `splitee` command; docs/reference/exit-codes.md is made from these.

    Attributes:
        is_final: a restart cannot fix it, so a service is not started again.
    """

    help: str
    is_final: bool

    def __new__(cls, value: int, help: str, is_final: bool = False) -> ExitCode:
        member = int.__new__(cls, value)
        member._value_ = value
        member.help = help
        member.is_final = is_final
        return member

    OK = 0, "success"
    INTERNAL = 1, "a defect in splitee: please report it with the log"
    CONFIG = 2, "a flag, a SPLITEE_* variable or a key of the settings file is wrong", True
    UNREACHABLE = 3, "no broker was reached within --connect-timeout"
    REFUSED = 4, "the broker refused: no permission, no MQTT v5, or a missing feature; or it is a web server"
    DATA = 5, "the images are missing, empty, unreadable, or of one class only"
    NETWORK = 6, "the network or the cut: an unknown name, or a cut out of range"
    VERSION = 7, "device and server speak different protocol versions"
    ID_IN_USE = 8, "another device has started with this id, or another server serves this fleet", True
    REJECTED = 9, "the server refused this device: its class names or shapes differ from the fleet's"
    STATE = 10, "the state directory is not writable, full, in use, or of another run; or a path is refused"
    STALLED = 11, "no server runs, or none replied within --patience or --wait"
    EXTRA = 12, "this command needs an extra that is not installed, such as hetero-splitee[train]", True
    CHILD = 13, "a process that this command started has failed"
    MODEL = 14, "a model is missing, damaged or unlike its manifest; or a release has failed on a device"
    UNTRUSTED = 15, "TLS: this machine does not trust the broker's certificate: authority, name or clock"
    CERT_MISSING = 16, "TLS: the broker requires a certificate, and this client sent none"
    CERT_FOREIGN = 17, "TLS: the broker does not know the authority of this client's certificate"
    CERT_EXPIRED = 18, "TLS: this client's certificate has expired, or is not valid yet by the broker's clock"
    CERT_REVOKED = 19, "TLS: this client's certificate has been revoked"
    NO_CUT = (
        20,
        "no cut fits the memory of this device, or --cpu-share; or --budget is too short to measure one",
    )
    DIVERGED = 21, "training diverged: a value is not finite or exceeds the bounds; lower the learning rate"
    DISMISSED = 22, "this device was dismissed: the fleet continues without it (splitee dismiss --undo)", True
    RANK_LOST = 23, "another rank of this server has failed or does not respond; torchrun restarts all ranks"
    SOFTWARE = (
        24,
        "software for a device is damaged, not signed, for another machine or not newer, or does not start",
    )
    PAIRING = 25, "pairing: the code is wrong, has expired or had too many wrong tries, or the name is taken"


class Terminated(SystemExit):
    """A signal unwinds the stack; unlike another SystemExit, it is never treated as a defect."""


class Unwinding(Exception):
    """Leaves the current work on purpose; not an error."""


class SpliteeError(Exception):
    """One line for the user: what was expected, what came, what to do."""

    exit_code = ExitCode.INTERNAL


class ConfigError(SpliteeError):
    exit_code = ExitCode.CONFIG


class BrokerUnreachable(SpliteeError):
    exit_code = ExitCode.UNREACHABLE


class BrokerRefused(SpliteeError):
    exit_code = ExitCode.REFUSED


class BrokerUntrusted(BrokerRefused):
    exit_code = ExitCode.UNTRUSTED


class CertificateMissing(BrokerRefused):
    exit_code = ExitCode.CERT_MISSING


class CertificateForeign(BrokerRefused):
    exit_code = ExitCode.CERT_FOREIGN


class CertificateExpired(BrokerRefused):
    exit_code = ExitCode.CERT_EXPIRED


class CertificateRevoked(BrokerRefused):
    exit_code = ExitCode.CERT_REVOKED


class DataError(SpliteeError):
    exit_code = ExitCode.DATA


class NetworkError(SpliteeError):
    exit_code = ExitCode.NETWORK


class VersionMismatch(SpliteeError):
    exit_code = ExitCode.VERSION


class IdInUse(SpliteeError):
    exit_code = ExitCode.ID_IN_USE


class Rejected(SpliteeError):
    exit_code = ExitCode.REJECTED


class Dismissed(SpliteeError):
    exit_code = ExitCode.DISMISSED


class NoCutFits(SpliteeError):
    exit_code = ExitCode.NO_CUT


class StateError(SpliteeError):
    exit_code = ExitCode.STATE


class StateInUse(StateError):
    """Another process uses it."""


class Stalled(SpliteeError):
    exit_code = ExitCode.STALLED


class ExtraMissing(SpliteeError):
    exit_code = ExitCode.EXTRA


class ChildFailed(SpliteeError):
    exit_code = ExitCode.CHILD


class RankLost(SpliteeError):
    exit_code = ExitCode.RANK_LOST


class PairingEnded(SpliteeError):
    exit_code = ExitCode.PAIRING


class ModelError(SpliteeError):
    exit_code = ExitCode.MODEL


class SoftwareError(SpliteeError):
    exit_code = ExitCode.SOFTWARE


class Diverged(SpliteeError):
    exit_code = ExitCode.DIVERGED


Reason = Literal[
    "malformed",
    "oversized",
    "foreign",
    "unknown",
    "retained",
    "untrainable",
    "flood",
    "quarantined",
    "dismissed",
    "unhandled",
]
"""Why a message is rejected.

In this order: it does not fit its topic; it is too large; it belongs to another run; its device has not
joined; the broker has retained it although its topic must not be retained; it is a batch whose loss or
gradient is out of bounds; its device sends more messages than it ever needs to; its device is in quarantine;
its device was dismissed; or it raised an unforeseen error.
"""


class MalformedMessage(SpliteeError):
    """A payload that does not fit its topic; it is counted and reported, and changes nothing."""

    def __init__(self, message: str, reason: Reason = "malformed") -> None:
        super().__init__(message)
        self.reason: Reason = reason
