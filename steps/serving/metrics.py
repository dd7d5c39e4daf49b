"""What Prometheus reads at /metrics: names as vLLM has them, with the version of the model as a label."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from steps.serving.generation import Generation
from steps.serving.models import Models

LABELS = ("model_name", "version")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)


class Metrics:
    """The counters and histograms of one server."""

    def __init__(self, models: Models) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(models))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vllm:{name}", text, (*LABELS, *labels), registry=self._registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", text, LABELS, registry=self._registry, buckets=buckets)

        self._prompt = counter("prompt_tokens", "Tokens of the prompts of answered requests.")
        self._generated = counter("generation_tokens", "Tokens generated.")
        self._success = counter("request_success", "Choices by the reason why they ended.", "finished_reason")
        self._first = histogram("time_to_first_token_seconds", "Until a stream's first token.", SECONDS)
        text = "Mean time between two tokens of a stream."
        self._token = histogram("request_time_per_output_token_seconds", text, TOKEN_SECONDS)
        self._latency = histogram("e2e_request_latency_seconds", "From a request to its whole answer.", SECONDS)
        # vLLM has no name for these.
        self._responses = Counter("slm:responses", "Responses by status.", ("path", "status"), registry=self._registry)
        self._switches = Counter("slm:version_switches", "Versions that took over.", registry=self._registry)
        self._traces = {
            outcome: Counter(f"slm:traces_{outcome}", f"Traces {outcome}.", registry=self._registry)
            for outcome in ("written", "lost")
        }

    def observe(self, generation: Generation) -> None:
        """Count a request that has ended, answered or not."""
        now = time.monotonic()
        target = generation.served.target
        labels = (target.name, target.version or "")
        reasons = [output.finish_reason for output in generation.outputs]
        tokens = generation.completion_tokens
        self._generated.labels(*labels).inc(tokens)
        for reason in reasons:
            known = reason if reason in ("stop", "length") else "abort" if reason == "cancelled" else "error"
            self._success.labels(*labels, known).inc()
        if not all(reason in ("stop", "length") for reason in reasons):
            return
        self._prompt.labels(*labels).inc(generation.prompt_tokens)
        self._latency.labels(*labels).observe(now - generation.started)
        if generation.first_token is not None:
            self._first.labels(*labels).observe(generation.first_token - generation.started)
            if len(reasons) == 1 and tokens > 1:
                self._token.labels(*labels).observe((now - generation.first_token) / (tokens - 1))

    def count_response(self, path: str, status: int) -> None:
        """Count a response."""
        self._responses.labels(path, str(status)).inc()

    def count_switch(self) -> None:
        """Count a version that took over."""
        self._switches.inc()

    def count_traces(self, outcome: str, number: int) -> None:
        """Count a *number* of traces whose *outcome* is "written" or "lost"."""
        self._traces[outcome].inc(number)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class EngineCollector(Collector):
    """What the engine said last of itself."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges and counters of the model that answers now."""
        waiting = GaugeMetricFamily("slm:answers_unfinished", "Answers that clients wait for.")
        waiting.add_metric((), self._models.unfinished)
        yield waiting
        served = self._models.current
        if served is None:
            return
        stats = served.model.engine.stats
        labels = (served.target.name, served.target.version or "")
        for kind, name, key, text in (
            (GaugeMetricFamily, "vllm:num_requests_running", "running", "Sequences that are being generated."),
            (GaugeMetricFamily, "vllm:num_requests_waiting", "waiting", "Sequences that wait for room."),
            (GaugeMetricFamily, "slm:kv_cache_tokens", "kv_cache", "KV cache reserved by batches, in tokens."),
            (GaugeMetricFamily, "slm:prefix_cache_tokens", "prefix_cache", "Size of the prefix cache, in tokens."),
            (CounterMetricFamily, "vllm:prefix_cache_hits", "prefix_cache_hit_tokens", "Prompt tokens found there."),
            (CounterMetricFamily, "slm:prefill_tokens", "prompt_tokens", "Prompt tokens computed, padding included."),
        ):
            metric = kind(name, text, labels=LABELS)
            metric.add_metric(labels, stats.get(key, 0))
            yield metric
