"""Inference engines as peers: OpenVINO (float32, bfloat16), ONNX Runtime (float32, dynamic int8).

Engines that are not installed are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def all_of(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, quantised: bool = True
) -> dict[str, Callable[[], Tensor]]:
    """Name -> a function that runs `module` in that engine and returns its first output.

    path: file for the ONNX model. quantised: whether to add ONNX Runtime with dynamic int8.
    """
    functions: dict[str, Callable[[], Tensor]] = {}
    if find_spec("openvino"):
        for precision in ("f32", "bf16"):
            functions[f"OpenVINO{' bfloat16' if precision == 'bf16' else ''}"] = openvino(
                module, inputs, precision
            )
    if find_spec("onnxruntime") and find_spec("onnx"):
        torch.onnx.export(module, inputs, str(path), opset_version=17, dynamo=False)
        functions["ONNX Runtime"] = onnxruntime(path, inputs)
        if quantised:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            small = path.with_suffix(".int8.onnx")
            quantize_dynamic(
                str(path),
                str(small),
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm"],
            )
            functions["ONNX Runtime int8"] = onnxruntime(small, inputs)
    return functions


def openvino(module: nn.Module, inputs: tuple[Tensor, ...], precision: str) -> Callable[[], Tensor]:
    """A function that runs the traced and converted module, with as many threads as torch uses."""
    import openvino as ov

    model = ov.convert_model(torch.jit.trace(module, inputs, check_trace=False))
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = ov.Core().compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    arrays = [x.numpy() for x in inputs]

    def run() -> Tensor:
        return torch.from_numpy(request.infer(arrays)[0].copy())

    return run


def onnxruntime(path: Path, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """A function that runs the ONNX model, with as many threads as torch uses."""
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Idle threads that spin would occupy the cores while the other implementations are timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    arrays = {x.name: value.numpy() for x, value in zip(session.get_inputs(), inputs, strict=True)}

    def run() -> Tensor:
        return torch.from_numpy(session.run(None, arrays)[0])

    return run
