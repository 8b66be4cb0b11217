"""The text of `/metrics`: requests, queue, batches and what each SAE gives, for Prometheus."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from sae_runtime.serve.counting import Counts, Histogram
from sae_runtime.serve.live import Key
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.watching import Watched

_OF_SAE = ("model", "version", "sae")
_TOTALS = {
    "tokens": "Tokens that an SAE encoded by its own rule",
    "matches": "Active features of all these tokens",
    "saturated": "Tokens that filled all slots, so that they were encoded twice",
    "redone": "Tokens of which the fast encoder was not certain",
    "sampled": "Tokens on which the explained variance was measured",
    "edits": "Edits that callers asked for and got",
}
_LARGEST = {
    "largest_edit": "Largest activation that an edit set or added",
    "largest_multiple": "The same in multiples of the feature's largest activation",
    "largest_factor": "Largest factor of an edit",
}
_FIGURES = {
    "l0": "Active features of a token",
    "explained_variance": "1 - FVU, on a sample of the rows",
    "saturated": "Share of the tokens that filled all slots",
    "silent": "Features that should have been active by now and were not",
}


class Metrics:
    """What `/metrics` shows.

    Args:
        plane: what is served.

    Attributes:
        http: requests by route and code. A route is the form of a path and no path, which a caller makes up.

    >>> from sae_runtime.serve.catalogue import open_all
    >>> from sae_runtime.serve.live import Live
    >>> loaded = open_all([f"mine={bundle_path}"])
    >>> plane = Plane(loaded, watcher=Live(loaded))
    >>> 'sae_runtime_l0{model="mine",of="recent",sae="mine",version="1"}' in Metrics(plane).text().decode()
    False
    >>> answer = plane.infer("mine.encode", {"x": x})
    >>> 'sae_runtime_l0{model="mine",of="recent",sae="mine",version="1"}' in Metrics(plane).text().decode()
    True
    >>> plane.close()
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, plane: Plane) -> None:
        self.http = Counts()
        self._plane = plane
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """The text for Prometheus."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The families of numbers, as prometheus_client asks for them."""
        plane = self._plane
        yield _gauge("ready", "Whether new requests are taken", float(plane.ready))
        yield _gauge("waiting_requests", "Requests that wait or run", plane.admission.waiting)
        yield _gauge("waiting_bytes", "Bytes of these requests", plane.admission.waiting_bytes)
        yield _outcomes("http_requests", "Answers by route and code", ("route", "code"), self.http.outcomes())
        yield _histogram("http_seconds", "Seconds of a request", "route", self.http.histograms()["seconds"])
        live = plane.watcher
        if live is not None:
            yield from _work(live.counts)
            yield from _saes(live.saes)


def _work(counts: Counts) -> Iterator[Metric]:
    names = ("operation", "outcome")
    yield _outcomes("requests", "Requests that were accepted, by how they ended", names, counts.outcomes())
    said = {
        "seconds": ("request_seconds", "Seconds from a request to its answer, waiting included"),
        "requests": ("batch_requests", "Requests that share a batch"),
        "rows": ("batch_rows", "Rows or texts of a batch"),
    }
    found = counts.histograms()
    for kind, (name, help) in said.items():
        yield _histogram(name, help, "operation", found[kind])


def _saes(saes: Mapping[Key, Watched]) -> Iterator[Metric]:
    """Counters, largest edits, and the recent figures beside those of the manifest."""
    keys = {key: [key[0], str(key[1]), key[2]] for key in saes}
    totals = {key: one.totals() for key, one in saes.items()}
    for name, help in _TOTALS.items():
        counter = CounterMetricFamily(f"sae_runtime_{name}", help, labels=_OF_SAE)
        for key, labels in keys.items():
            counter.add_metric(labels, getattr(totals[key], name))
        yield counter
    for name, help in _LARGEST.items():
        gauge = GaugeMetricFamily(f"sae_runtime_{name}", f"{help}, since the start", labels=_OF_SAE)
        for key, labels in keys.items():
            gauge.add_metric(labels, getattr(totals[key], name))
        yield gauge
    figures = {(key, of): getattr(one, of)() for key, one in saes.items() for of in ("recent", "expected")}
    for name, help in _FIGURES.items():
        suffix = {"saturated": "saturated_share", "silent": "silent_features"}.get(name, name)
        gauge = GaugeMetricFamily(f"sae_runtime_{suffix}", help, labels=(*_OF_SAE, "of"))
        for (key, of), found in figures.items():
            if (value := getattr(found, name)) is not None:
                gauge.add_metric([*keys[key], "manifest" if of == "expected" else of], value)
        yield gauge


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"sae_runtime_{name}", help, value=value)


def _outcomes(name: str, help: str, labels: tuple[str, str], found: Mapping[tuple[str, str], int]) -> Metric:
    counter = CounterMetricFamily(f"sae_runtime_{name}", help, labels=labels)
    for key, number in sorted(found.items()):
        counter.add_metric(list(key), number)
    return counter


def _histogram(name: str, help: str, label: str, found: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(f"sae_runtime_{name}", help, labels=(label,))
    for key, one in sorted(found.items()):
        ends, below, buckets = [*map(str, one.limits), "+Inf"], 0, list[Any]()
        for end, number in zip(ends, one.below, strict=True):
            below += number
            buckets.append((end, below))
        family.add_metric([key], buckets, one.total)
    return family
