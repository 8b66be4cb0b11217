"""Run graphs under one runtime: `python run.py NAME < calls.json > answers.json`; run.mjs does the same in JavaScript.

Calls are {name: {"graph": path, "feed": {input: [type, shape, numbers]}}}. An answer is {"outputs": {output: [shape,
numbers]}}, or {"refused": reason}. It needs nothing but numpy and the runtime.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Feed = dict[str, Any]
NOT_FED = "it feeds no input that has a default"


def onnxruntime_cpu(graph: str, feed: Feed) -> Mapping[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))


def openvino_cpu(graph: str, feed: Feed) -> Mapping[str, Any]:
    import openvino

    model = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    if feed.keys() - {name for value in model.inputs for name in value.get_names()}:
        raise ValueError(NOT_FED)
    result = model(feed)
    return {name: result[value] for value in model.outputs for name in value.get_names()}


def reference(graph: str, feed: Feed) -> Mapping[str, Any]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(graph)
    # The evaluator does not know that an input with an initializer may be left out.
    wanted = {value.name for value in model.graph.input} - feed.keys()
    defaults = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in wanted}
    outputs: Any = ReferenceEvaluator(model).run(None, {**defaults, **feed})
    return dict(zip([value.name for value in model.graph.output], outputs, strict=True))


RUNTIMES: dict[str, Callable[[str, Feed], Mapping[str, Any]]] = {
    "onnxruntime": onnxruntime_cpu,
    "openvino": openvino_cpu,
    "reference": reference,
}


def answer(runtime: str, graph: str, feed: Mapping[str, Any]) -> dict[str, Any]:
    arrays = {name: np.array(numbers, kind).reshape(shape) for name, (kind, shape, numbers) in feed.items()}
    try:
        outputs = RUNTIMES[runtime](graph, arrays)
    except Exception as error:  # each runtime has exceptions of its own
        return {"refused": " ".join(str(error).split())}
    return {"outputs": {name: [list(value.shape), value.ravel().tolist()] for name, value in outputs.items()}}


if __name__ == "__main__":
    calls = json.load(sys.stdin)
    sys.stdout.write(json.dumps({name: answer(sys.argv[1], **call) for name, call in calls.items()}))
