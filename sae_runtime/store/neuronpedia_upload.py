"""A feature store sent to Neuronpedia, or to an instance of one's own, by its client `neuronpedia`."""

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from sae_runtime.bundle.extras import require
from sae_runtime.core.printable import printable
from sae_runtime.core.progress import progress_bar
from sae_runtime.store.neuronpedia_files import BATCH, Place, short, tokens_of
from sae_runtime.store.open_store import Store
from sae_runtime.store.records import StoredFeature

KEY = "NEURONPEDIA_API_KEY"
_SECONDS = 120.0  # that the server may be silent; the client itself would wait without end


def upload(
    store: Store, place: Place, *, create: bool = False, start: int = 0, url: str | None = None, progress: bool = False
) -> int:
    """Send the features of a store that are active on some token, in batches of 128.

    The key is that of the environment, NEURONPEDIA_API_KEY. Neuronpedia lets the maker of a source set alone add
    features to it.

    Args:
        store: the store.
        place: where the features go.
        create: make the source set first.
        start: the first feature to send, to go on where an earlier upload ended.
        url: the API of another instance, such as http://localhost:3000/api; None: Neuronpedia's own.
        progress: show progress on stderr.

    Returns:
        The number of features that were sent.

    Raises:
        ImportError: the client is not installed.
        OSError: the server cannot be reached or refuses a batch; the message names the feature to go on from.
        ValueError: there is no key, or `start` or `url` are not sound.
    """
    if not os.environ.get(KEY):
        raise ValueError(f"an upload needs the key of your account at Neuronpedia; put it into {KEY}")
    if not 0 <= start < len(store):
        raise ValueError(f"--start is a feature from 0 to {len(store) - 1}, got {start}")
    if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc):
        raise ValueError(f"the URL of an API begins with http:// or https://, got {url!r}")
    require("neuronpedia")
    live = [feature for feature in range(start, len(store)) if store.count[feature]]
    with _client(url) as (features, source_sets):
        if create:
            with _refusals(place, None):
                source_sets.new(place.source_set, place.model, store.description.hook)
        with progress_bar(len(live), "features", shown=progress) as bar:
            for begin in range(0, len(live), BATCH):
                numbers = live[begin : begin + BATCH]
                batch = [_feature(store.feature(one), place) for one in numbers]
                with _refusals(place, numbers[0]):
                    features.upload_batch(place.model, place.source, batch)
                bar.update(len(batch))
    return len(live)


@contextlib.contextmanager
def _client(url: str | None) -> Iterator[tuple[Any, Any]]:
    """The client's requests for features and source sets, which do not print and do not wait without end."""
    from neuronpedia.requests.base_request import NPRequest
    from neuronpedia.requests.feature_request import FeatureRequest
    from neuronpedia.requests.source_set_request import SourceSetRequest

    before = NPRequest.BASE_URL
    NPRequest.BASE_URL = before if url is None else url.rstrip("/")
    try:
        requests = FeatureRequest(), SourceSetRequest()
        for request in requests:
            request.send_request = functools.partial(request.send_request, timeout=_SECONDS)
        with contextlib.redirect_stdout(io.StringIO()):
            yield requests
    finally:
        NPRequest.BASE_URL = before


@contextlib.contextmanager
def _refusals(place: Place, first: int | None) -> Iterator[None]:
    """Let an error of the client or the server in the block be one sentence that says how to go on."""
    again = f"go on by --start {first}"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("" if first is None else again) from None
    except Exception as error:  # the client's own classes, those of requests, and what a strange answer makes of it
        name = type(error).__name__
        what = {
            "NPRateLimitError": "Neuronpedia's limit of requests was reached; wait a while",
            "NPUnauthorizedError": f"Neuronpedia does not know the key in {KEY}",
            "NPInvalidResponseError": "the server's answer is not JSON",
            "JSONDecodeError": "the server refused it, with an answer that is not JSON",
        }.get(name, f"{' '.join(printable(error).split())[:300] or name}")
        if first is None:
            raise OSError(f"the source set {place.source_set} was not made: {what}") from error
        raise OSError(
            f"the upload to {place.model}/{place.source} ended before feature {first}: {what}; {again}"
        ) from error


def _feature(one: StoredFeature, place: Place) -> Any:
    from neuronpedia.np_activation import Activation
    from neuronpedia.np_explanation import Explanation
    from neuronpedia.np_feature import Feature, Logit

    of = {"modelId": place.model, "source": place.source, "index": one.feature}
    activations = []
    for context in one.contexts:
        band = one.bands[context.band]
        share = band.count / max(one.count, 1)
        values = [short(value) for value in context.values.tolist()]
        band_of = {"quantileMin": short(band.low), "quantileMax": short(band.high), "quantileFraction": share}
        activations.append(Activation(**of, tokens=tokens_of(context), values=values, **band_of))
    named = one.label is not None and one.label_source != "top tokens"
    return Feature(
        **of,
        density=one.density,
        top_logits=None if one.promoted is None else [Logit(text, short(value)) for text, value in one.promoted],
        bottom_logits=None if one.suppressed is None else [Logit(text, short(value)) for text, value in one.suppressed],
        explanations=[Explanation(**of, text=one.label)] if named else [],
        activations=activations,
    )
