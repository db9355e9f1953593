# SPDX-License-Identifier: Apache-2.0
"""A demo's conclusion in words: what each device gains or loses by joining, and for what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from statistics import mean

from splitee.cli.words import MIB, from_to, images, megabytes, percent
from splitee.statistics import share_interval
from splitee_lab.report.demo_report import Report
from splitee_lab.report.figures import figures, means
from splitee_lab.report.gains import (
    Comparison,
    adaptive_over_alone,
    adaptive_over_alone_exit,
    exit_over_alone_exit,
    trunk_against_centralized,
    trunk_over_alone,
)
from splitee_lab.report.traffic import total

MOST_NAMED = 4  # devices; more are counted
KINDS: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    ("gain", "over", lambda points: points > 0),
    ("lose", "against", lambda points: points < 0),
    ("stay level", "with", lambda points: points == 0),
)


def conclusion(report: Report) -> str:
    """A few sentences on the figures, the gain or loss first.

    If there are no baselines, they say so, and give the accuracies.
    """
    found = adaptive_over_alone(report)
    sentences = [*_gains(report, found)] if found is not None else [_without_comparison(report)]
    missing = [device for device, found in figures(report).items() if found.adaptive is None]
    if missing and len(missing) < len(report.devices):
        verb = "was" if len(missing) == 1 else "were"
        sentences.append(f"{_names(missing, len(report.devices))} {verb} not evaluated.")
    return " ".join([*sentences, *_certainty(report)])


def _gains(report: Report, joined: Comparison) -> Iterator[str]:
    offload = means(report, lambda found: found.offload)
    offloaded = "" if offload is None else f", with {percent(offload)} of images offloaded"
    yield (
        f"By joining, {_who_gains(report, joined, 'training the whole network alone')} "
        f"(adaptive {joined.levels}{offloaded}), {_costs(report, 'that compute')}."
    )
    adaptive, exits = adaptive_over_alone_exit(report), exit_over_alone_exit(report)
    if adaptive is not None and exits is not None:
        yield (
            f"Adaptively, {_who_gains(report, adaptive, 'the same stages and exit trained alone')} "
            f"({adaptive.levels}); by the exit, without the server, {_who_gains(report, exits)} "
            f"({percent(exits.mean_reached)})."
        )
    if (trunk := trunk_against_centralized(report)) is not None:
        yield _of_trunk(report, trunk)


def _of_trunk(report: Report, trunk: Comparison) -> str:
    subject = "The trunk" if len(set(trunk.points.values())) == 1 else "By device, the trunk"
    sentence = f"{subject} is {_distance(trunk)} centralized training ({trunk.levels})"
    alone = trunk_over_alone(report)
    if alone is None:
        return f"{sentence}."
    return f"{sentence} and {_distance(alone)} the whole network alone ({percent(alone.mean_baseline)})."


def _without_comparison(report: Report) -> str:
    figures = (
        ("adaptive", means(report, lambda found: found.adaptive)),
        ("exit", means(report, lambda found: found.exit)),
        ("trunk", means(report, lambda found: found.trunk)),
    )
    reached = [f"{name} {percent(value)}" for name, value in figures if value is not None]
    if not reached:
        return "No device was evaluated, so what joining gains is not known."
    why = "no baselines were trained" if report.baselines is None else "no device has figures to compare"
    return (
        f"What joining gains is not known, because {why}. On average the devices reach {', '.join(reached)}, "
        f"{_costs(report, 'the compute of training the whole network')}."
    )


def _who_gains(report: Report, found: Comparison, alternative: str = "") -> str:
    """ "every device gains 2.3 points over ALTERNATIVE", "pi-1 gains ... over ..., but pi-2 loses ..."."""
    clauses = []
    for verb, preposition, belongs in KINDS:
        some = {device: abs(value) for device, value in found.points.items() if belongs(value)}
        if some:
            much = f" {from_to(some.values(), _tenths)} points" if any(some.values()) else ""
            clauses.append((f"{_subject(report, some, verb)}{much}", f" {preposition} {alternative}"))
    (first, than), *others = clauses
    rest = [f"{' and' if place else ', but'} {said}" for place, (said, _) in enumerate(others)]
    return f"{first}{than if alternative else ''}{''.join(rest)}"


def _subject(report: Report, devices: Collection[str], verb: str) -> str:
    """ "every device gains", "pi-1 and pi-2 gain", "7 of 12 devices gain"."""
    first, _, rest = verb.partition(" ")
    total = len(report.devices)
    is_singular = len(devices) in (1, total)
    return " ".join(filter(None, [_names(devices, total), f"{first}s" if is_singular else first, rest]))


def _distance(trunk: Comparison) -> str:
    """ "2.1 points under", "0.4 points under to 0.3 points above", "level with"."""
    low, high = min(trunk.points.values()), max(trunk.points.values())
    if low == high == 0:
        return "level with"
    if low < 0 < high:
        return f"{-low:.1f} points under to {high:.1f} points above"
    side = "under" if low < 0 else "above"
    return f"{from_to((abs(low), abs(high)), _tenths)} points {side}"


def _costs(report: Report, compute: str) -> str:
    """What a device spends: "for 33 to 81 % of the compute, 512 MiB of memory and 11.4 to 36.1 MB sent"."""
    spent = []
    if shares := report.compute_share.values():
        spent.append(f"{from_to(shares, lambda share: f'{100 * share:.0f}')} % of {compute}")
    if peaks := report.peak_memory.values():
        limits = [choice.memory for choice in report.choices]
        allowed = f" of {from_to(limits, '{:,}'.format)} MiB allowed" if limits else ""
        spent.append(f"{from_to((peak / MIB for peak in peaks), '{:,.0f}'.format)} MiB of memory{allowed}")
    spent.append(f"{from_to((total(device) for device in report.devices), megabytes)} MB sent")
    *most, last = spent
    return f"for {', '.join(most)} and {last}" if most else f"for {last}"


def _certainty(report: Report) -> Iterator[str]:
    """The interval of an accuracy by chance alone; a demo's devices hold out the same images."""
    known = [
        (found.images, found.adaptive)
        for found in figures(report).values()
        if found.images and found.adaptive is not None
    ]
    if not known:
        return
    count = min(held_out for held_out, _ in known)
    low, high = share_interval(mean(share for _, share in known), count)
    yield (
        f"Each accuracy rests on {images(count)} held out, in one run: "
        f"± {50 * (high - low):.1f} points (95 %)."
    )


def _names(devices: Collection[str], total: int) -> str:
    if len(devices) == total > 1:
        return "every device"
    if len(devices) > MOST_NAMED:
        return f"{len(devices)} of {total} devices"
    *most, last = devices
    return f"{', '.join(most)} and {last}" if most else last


def _tenths(value: float) -> str:
    return f"{value:.1f}"
