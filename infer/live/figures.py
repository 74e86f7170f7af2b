"""What Prometheus reads: a registry of each server's own, so that several can run in one process."""

from collections.abc import Iterable
from typing import Any

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


class Figures:
    """Counters of a desk, and gauges that are read from it when they are asked for.

    Args:
      desk: the server's.
    """

    def __init__(self, desk: Any):
        self._desk, self.registry = desk, prometheus_client.CollectorRegistry()
        count = {
            name: prometheus_client.Counter(f"avatar_{name}", text, registry=self.registry)
            for name, text in (
                ("opened", "calls opened"),
                ("ended", "calls ended"),
                ("refused", "calls refused because the queue was full"),
                ("denied", "requests without a valid token"),
            )
        }
        self.opened, self.ended, self.refused, self.denied = count.values()
        self._frames, self._stalls, self._dropped = 0, 0, 0  # of calls that are over
        self.registry.register(self)

    def over(self, call: Any) -> None:
        """Counts a call that has ended."""
        self.ended.inc()
        self._frames += call.pace.frames
        self._stalls += call.pace.stalls
        self._dropped += call.line.dropped

    def collect(self) -> Iterable[Any]:
        """What the calls say now."""
        desk = self._desk
        calls = list(desk.active.values())
        yield GaugeMetricFamily("avatar_seats", "seats", desk.limits.seats)
        yield GaugeMetricFamily("avatar_active", "calls with a seat", len(calls))
        yield GaugeMetricFamily("avatar_queued", "calls that wait", len(desk.queue))
        yield GaugeMetricFamily("avatar_ready", "1 if a new call would be seated at once", int(not desk.ready))
        yield GaugeMetricFamily("avatar_fps", "frames a second of all calls", sum(call.fps for call in calls))
        behind = max((call.behind_s for call in calls), default=0.0)
        yield GaugeMetricFamily("avatar_behind_seconds", "from a block's sound to its frames, the worst call", behind)
        draw = max((call.part.draw_s for call in calls if call.part), default=0.0)
        yield GaugeMetricFamily("avatar_draw_seconds", "to draw a block, the worst call", draw)
        known = [call for call in desk.calls.values() if call.state != "ended"]
        frames = self._frames + sum(call.pace.frames for call in known)
        yield CounterMetricFamily("avatar_frames", "frames shown", frames)
        stalls = self._stalls + sum(call.pace.stalls for call in known)
        yield CounterMetricFamily("avatar_stalls", "pictures that stood", stalls)
        lost = self._dropped + sum(call.line.dropped for call in known)
        yield CounterMetricFamily("avatar_dropped_samples", "sound that came too late", lost)

    def describe(self) -> Iterable[Any]:
        """Nothing is known before it is asked for."""
        return []

    def text(self) -> bytes:
        """The exposition format."""
        return prometheus_client.generate_latest(self.registry)
