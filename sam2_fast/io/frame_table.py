"""The frames of a video file in order of time: how each is located, when it is shown, and the rate.

A frame is located by its time stamp if the stamps of all frames differ, else by its position.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

NTSC = (Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001), Fraction(120000, 1001))


class PacketInfo(NamedTuple):
    """What a packet of the video stream says without being decoded."""

    pts: int | None
    is_key: bool
    is_corrupt: bool


class FrameTable(NamedTuple):
    """times: [N] time stamps, or positions if not `timed`. keys: frames that can be seeked to."""

    times: list[int]
    keys: list[int]
    timed: bool


def from_packets(packets: Sequence[PacketInfo]) -> FrameTable | None:
    """The table if every packet is a frame; None if the packets do not identify the frames."""
    stamps = [packet.pts for packet in packets if packet.pts is not None]
    if not packets or len(set(stamps)) != len(packets):
        return None
    if not packets[0].is_key or packets[0].pts != min(stamps):
        return None
    return _table(stamps, packets)


def from_frames(stamps: Sequence[int | None], packets: Sequence[PacketInfo]) -> FrameTable:
    """The table of frames that were counted by decoding. stamps: of the frames, in their order."""
    times = [time for time in stamps if time is not None]
    if len(set(times)) != len(stamps) or times != sorted(times):
        return FrameTable(list(range(len(stamps))), [0], False)
    return _table(times, packets)


def _table(stamps: Iterable[int], packets: Sequence[PacketInfo]) -> FrameTable:
    times = sorted(stamps)
    number_at = {time: number for number, time in enumerate(times)}
    keys = {number_at[p.pts] for p in packets if p.is_key and p.pts in number_at}
    return FrameTable(times, sorted(keys | {0}), True)


def seconds_of(
    stamps: Sequence[int | None], time_base: Fraction, start: float | None
) -> list[float] | None:
    """Seconds of each frame from the start of the video; None unless all frames have a stamp.

    start: of the container in seconds, or None; the first frame if it is earlier.
    """
    if not stamps or any(stamp is None for stamp in stamps):
        return None
    ticks = [stamp for stamp in stamps if stamp is not None]
    if any(later < earlier for earlier, later in itertools.pairwise(ticks)):
        return None
    offset = 0.0
    if start is not None:
        offset = float(ticks[0] * time_base) - start
        offset = 0.0 if offset < 2e-6 else offset  # FFmpeg rounds the start to a microsecond
    return [float((tick - ticks[0]) * time_base) + offset for tick in ticks]


def frame_rate(
    ticks: Sequence[int] | None, time_base: Fraction, nominal: Iterable[Fraction | None]
) -> float | None:
    """Frames per second: the mean over the stamps of all frames.

    A rate that agrees with every stamp within its rounding is returned exactly: one of the header,
    a whole number or one of television.
    ticks: stamps of all frames in order, or None; without two different ones, the first nominal
        rate counts.
    nominal: the rates in the header.
    """
    rates = [rate for rate in nominal if rate]
    if ticks is None or len(ticks) < 2 or ticks[-1] <= ticks[0]:
        return float(rates[0]) if rates else None
    mean = (len(ticks) - 1) / ((ticks[-1] - ticks[0]) * time_base)
    if mean in rates and ticks[-1] - ticks[0] == (len(ticks) - 1) * (ticks[1] - ticks[0]):
        return float(mean)
    reference = rates[0] if rates and _is_near(rates[0], mean) else mean
    usual = sorted((Fraction(max(1, round(mean))), *NTSC), key=lambda rate: abs(rate - reference))
    written = [rate for rate in rates if rate.denominator in (1, 1001)]
    for rate in (*written, *usual, *rates):  # FFmpeg estimates those that are not written
        if _agrees(ticks, 1 / (rate * time_base), mean, rate):
            return float(rate)
    return float(mean)


def _is_near(rate: Fraction, mean: Fraction) -> bool:
    return abs(mean / rate - 1) < Fraction(1, 10)


def _agrees(ticks: Sequence[int], period: Fraction, mean: Fraction, rate: Fraction) -> bool:
    """Whether frames of a constant period, in ticks, have these stamps; each may be rounded."""
    if not _is_near(rate, mean):
        return False
    step = float(period)
    return all(abs(tick - ticks[0] - number * step) <= 1.001 for number, tick in enumerate(ticks))
