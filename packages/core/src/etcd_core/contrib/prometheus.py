"""Metrics for Prometheus: requests as they end, everything else when it is scraped.

Counts arrive on the thread ``etcd-telemetry``; gauges are read from :mod:`etcd_core.vitals` in the
thread that scrapes, without I/O. Needs the extra ``prometheus``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from .. import forking, telemetry, vitals
from .measures import BUCKETS, MEASURES, Measure

__all__ = ["exposition", "install", "uninstall"]


class _Gauges(Collector):
    """Reads the vitals of this process when it is asked."""

    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Name the metrics, so that a registry can refuse others of the same names."""
        return (_family(measure) for measure in MEASURES)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return all gauges as they are now."""
        # First of our collectors, so the counts of a parent process are gone before they are read.
        self._calls.begin_anew_after_fork()
        now = vitals.read()
        for measure in MEASURES:
            family = _family(measure)
            for labels, value in measure.values(now).items():
                family.add_metric(labels, value)
            yield family


def _family(measure: Measure) -> GaugeMetricFamily:
    return GaugeMetricFamily(measure.metric, measure.text, labels=measure.labels)


class _Calls:
    """Counts requests; a listener of the telemetry."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.total = Counter(
            "etcd_client_rpcs",
            "Requests that ended, by method and outcome ('ok' or the name of the error).",
            ("method", "outcome"),
            registry=None,
        )
        self.seconds = Histogram(
            "etcd_client_rpc_duration_seconds",
            "Seconds from the first attempt of a request to its end.",
            ("method",),
            buckets=BUCKETS,
            registry=None,
        )
        self.retries = Counter(
            "etcd_client_rpc_retries",
            "Attempts after the first one, by method and the reason why the one before failed.",
            ("method", "reason"),
            registry=None,
        )

    @property
    def metrics(self) -> tuple[Counter | Histogram, ...]:
        """All of them."""
        return self.total, self.seconds, self.retries

    def __call__(self, event: telemetry.TelemetryEvent) -> None:
        """Count one event."""
        self.begin_anew_after_fork()
        if isinstance(event, telemetry.CallRetried):
            self.retries.labels(event.method, event.reason).inc()
        else:
            self.total.labels(event.method, event.outcome).inc()
            self.seconds.labels(event.method).observe(event.seconds)

    def begin_anew_after_fork(self) -> None:
        """Forget what a parent process counted; with a file per process the library does."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            if not _multiprocess():
                for metric in self.metrics:
                    metric.clear()


class _Installation:
    """What one registry was given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        calls = _Calls()
        self.gauges = _Gauges(calls)
        self._registry = registry
        self._registered: list[Collector] = []
        try:
            for collector in (self.gauges, *calls.metrics):
                registry.register(collector)
                self._registered.append(collector)
        except BaseException:
            self._leave()
            raise
        self._observation = telemetry.observe(calls)

    def remove(self) -> None:
        """Take everything back."""
        self._observation.cancel()
        self._leave()

    def _leave(self) -> None:
        for collector in self._registered:
            self._registry.unregister(collector)


_installed: dict[CollectorRegistry, _Installation] = {}
_lock = threading.Lock()


def install(registry: CollectorRegistry = REGISTRY) -> None:
    """Have ``registry`` show the metrics of this process. Idempotent per registry.

    Does no I/O and starts no thread, so it may be called before a fork: a worker begins with counts
    of its own. Safe to use from any thread.

    Args:
        registry: Where the metrics go.

    Raises:
        ValueError: The registry has other metrics of these names.

    Example:
        >>> install()
        >>> body, content_type = exposition()
    """
    with _lock:
        if registry not in _installed:
            _installed[registry] = _Installation(registry)


def uninstall(registry: CollectorRegistry = REGISTRY) -> None:
    """Undo :func:`install`; the counts are lost. Idempotent; safe to use from any thread."""
    with _lock:
        installation = _installed.pop(registry, None)
    if installation is not None:
        installation.remove()


def exposition(registry: CollectorRegistry = REGISTRY) -> tuple[bytes, str]:
    """Return the body and the content type for a scrape: all that ``registry`` holds.

    No I/O, but in the multiprocess mode of ``prometheus_client``, where it reads the files of all
    processes: then counts are of all of them, and the gauges of the process that answers. Safe to
    use from any thread.
    """
    installation = _installed.get(registry)
    if _multiprocess():
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        if installation is not None:
            registry.register(installation.gauges)
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _multiprocess() -> bool:
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


class _ModuleState:
    """Resets this module's lock in a forked child: another thread may have held it."""

    def after_fork_in_child(self) -> None:
        global _lock
        _lock = threading.Lock()


_module_state = _ModuleState()
forking.track(_module_state)
