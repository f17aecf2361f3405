"""What a server counts, for Prometheus: https://prometheus.io/docs/instrumenting/exposition_formats."""

from concurrent.futures import Future

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rabbitllm.batching import Batch
from rabbitllm.text import Answer

SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
"""Edges of histograms: a pass from disk takes minutes, one from memory a tenth of a second."""


class Metrics:
    """Counters of one server's answers, and gauges of its batch."""

    def __init__(self, batch: Batch) -> None:
        self._registry = registry = CollectorRegistry()
        running = Gauge("rabbitllm_running", "Sequences that share passes", registry=registry)
        running.set_function(lambda: len(batch.begun))
        waiting = Gauge("rabbitllm_waiting", "Sequences that wait for room", registry=registry)
        waiting.set_function(lambda: len(batch.waiting))
        held = Gauge("rabbitllm_cache_columns", "Tokens of the longest one", registry=registry)
        held.set_function(lambda: batch.held_columns)
        passes = Gauge("rabbitllm_passes", "Passes over the weights so far", registry=registry)
        passes.set_function(lambda: batch.passes)
        if (device := batch.model.device).type == "cuda":
            peak = Gauge(
                "rabbitllm_peak_device_bytes",
                "The most that torch has held on the device, unused memory included",
                registry=registry,
            )
            peak.set_function(lambda: torch.cuda.max_memory_reserved(device))
        self._answers = Counter(
            "rabbitllm_answers", "Answers that are over, by why", ["reason"], registry=registry
        )
        self._prompt = Counter(
            "rabbitllm_prompt_tokens", "Tokens of prompts of these", registry=registry
        )
        self._new = Counter("rabbitllm_new_tokens", "Tokens of these", registry=registry)
        self._first = Histogram(
            "rabbitllm_first_token_seconds",
            "From the request to the first token",
            buckets=SECONDS,
            registry=registry,
        )

    def count(self, answer: "Future[Answer]") -> None:
        """Counts an answer that is over."""
        if answer.cancelled():
            self._answers.labels("cancelled").inc()
        elif answer.exception():
            self._answers.labels("error").inc()
        else:
            said = answer.result()
            self._answers.labels(said.finish_reason).inc()
            self._prompt.inc(said.prompt_tokens)
            self._new.inc(said.new_tokens)
            self._first.observe(said.first_seconds)

    def text(self) -> bytes:
        """All of them, in the text format."""
        return generate_latest(self._registry)
