"""Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 64)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "prosparse_requests", "Requests by endpoint and HTTP status.", ["endpoint", "status"], registry=registry
        )
        self._prompt = Counter("prosparse_prompt_tokens", "Prompt tokens.", registry=registry)
        self._cached = Counter(
            "prosparse_cached_prompt_tokens", "Prompt tokens copied from the prefix cache.", registry=registry
        )
        self._generated = Counter("prosparse_generated_tokens", "Generated tokens.", registry=registry)
        self._first = Histogram(
            "prosparse_time_to_first_token_seconds",
            "Seconds from arrival to the first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._steps = Histogram(
            "prosparse_decode_step_seconds", "Seconds of a decode step.", buckets=_STEP_SECONDS, registry=registry
        )
        self._rows = Histogram(
            "prosparse_decode_step_rows", "Sequences per decode step.", buckets=_ROWS, registry=registry
        )

    def watch(self, name: str, help_text: str, read: Callable[[], int]) -> None:
        """Add a gauge whose value is read when the metrics are."""
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def request(self, endpoint: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(endpoint, str(status)).inc()

    def prompt(self, tokens: int, cached: int) -> None:
        """Count a prompt."""
        self._prompt.inc(tokens)
        self._cached.inc(cached)

    def first_token(self, seconds: float) -> None:
        """Count a first token."""
        self._first.observe(seconds)
        self._generated.inc()

    def step(self, rows: int, seconds: float) -> None:
        """Count a decode step."""
        self._steps.observe(seconds)
        self._rows.observe(rows)
        self._generated.inc(rows)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
