"""Metrics through OpenTelemetry's API: requests as they end, everything else at each collection.

Requests are recorded on the thread ``etcd-telemetry``; gauges are read from
:mod:`etcd_core.vitals` in the thread of the metric reader, without I/O. Needs the extra
``opentelemetry``, and in the program an SDK that exports.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from .. import __version__, forking, telemetry, vitals
from .measures import BUCKETS, MEASURES, Measure

__all__ = ["install", "uninstall"]


class _Instruments:
    """The instruments of one provider. The API cannot take one back, so they are silenced."""

    def __init__(self, meter: Meter) -> None:
        self._observation: telemetry.Observation | None = None
        self._calls = meter.create_counter(
            "etcd.client.rpcs",
            unit="{call}",
            description="Requests that ended.",
        )
        self._seconds = meter.create_histogram(
            "etcd.client.rpc.duration",
            unit="s",
            description="Seconds from the first attempt of a request to its end.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._retries = meter.create_counter(
            "etcd.client.rpc.retries",
            unit="{retry}",
            description="Attempts after the first one.",
        )
        for measure in MEASURES:
            meter.create_observable_gauge(
                measure.instrument,
                callbacks=[self._reader(measure)],
                unit=measure.unit,
                description=measure.text,
            )

    def start(self) -> None:
        """Begin to record. Idempotent."""
        if self._observation is None:
            self._observation = telemetry.observe(self._record)

    def stop(self) -> None:
        """Record nothing more. Idempotent."""
        observation, self._observation = self._observation, None
        if observation is not None:
            observation.cancel()

    def _record(self, event: telemetry.TelemetryEvent) -> None:
        attributes = {"rpc.method": event.method}
        if isinstance(event, telemetry.CallRetried):
            self._retries.add(1, {**attributes, "etcd.reason": event.reason})
            return
        if event.outcome != "ok":
            attributes["error.type"] = event.outcome
        self._calls.add(1, attributes)
        self._seconds.record(event.seconds, attributes)

    def _reader(self, measure: Measure) -> Callable[[CallbackOptions], Iterator[Observation]]:
        names = [f"etcd.{label}" for label in measure.labels]

        def read(options: CallbackOptions) -> Iterator[Observation]:
            if self._observation is None:
                return
            for labels, value in measure.values(vitals.read()).items():
                yield Observation(value, dict(zip(names, labels, strict=True)))

        return read


_installed: dict[MeterProvider | None, _Instruments] = {}
_lock = threading.Lock()


def install(meter_provider: MeterProvider | None = None) -> None:
    """Have the metrics of this process recorded. Idempotent per provider.

    Does no I/O and starts no thread. Safe to use from any thread. In a forked child it goes on; the
    API gives no way to set counts back, so what they begin with there is the SDK's matter.

    Args:
        meter_provider: Where the instruments are made; left out, the global one, whether it was set
            before or is set later.

    Example:
        >>> install()
    """
    key = _key(meter_provider)
    with _lock:
        instruments = _installed.get(key)
        if instruments is None:
            meter = metrics.get_meter("etcd_core", __version__, key)
            instruments = _installed[key] = _Instruments(meter)
        instruments.start()


def uninstall(meter_provider: MeterProvider | None = None) -> None:
    """Undo :func:`install`: nothing more is recorded. Idempotent; safe to use from any thread."""
    with _lock:
        instruments = _installed.get(_key(meter_provider))
    if instruments is not None:
        instruments.stop()


def _key(meter_provider: MeterProvider | None) -> MeterProvider | None:
    """Return None for the global provider, by whichever name it goes."""
    return None if meter_provider is metrics.get_meter_provider() else meter_provider


class _ModuleState:
    """Resets this module's lock in a forked child: another thread may have held it."""

    def after_fork_in_child(self) -> None:
        global _lock
        _lock = threading.Lock()


_module_state = _ModuleState()
forking.track(_module_state)
