"""Ways in which torch records, transforms or intercepts operations.

Each is a function of a module, example inputs and other inputs: it records the module with the
example and returns the outputs for the other inputs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Tensors = tuple[Tensor, ...]


class Module(nn.Module):
    """A function as a module that returns a tuple."""

    def __init__(self, function: Callable[..., Any], owner: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.owner = function, owner
        # exporters set the mode of all modules, and restore that of the outermost one
        self.training = owner is None or owner.training

    def forward(self, *tensors: Tensor) -> Tensors:
        output = self.function(*tensors)
        return (output,) if isinstance(output, Tensor) else tuple(output)


class OperatorNames(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class PassThrough(TorchFunctionMode):
    """Intercepts every function of torch and changes none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def jit_trace(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    return torch.jit.trace(module, example, check_trace=False)(*other)


def onnx_torchscript(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    torch.onnx.export(module, example, file, dynamo=False)
    return _run_onnx(file.getvalue(), other)


def onnx_dynamo(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    program = torch.onnx.export(module, example, dynamo=True, verbose=False, optimize=False)
    assert program is not None
    return _run_onnx(program.model_proto.SerializeToString(), other)


def _run_onnx(model: bytes, tensors: Tensors) -> Sequence[Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options)
    names = [value.name for value in session.get_inputs()]
    return [
        torch.from_numpy(x)
        for x in session.run(None, {n: t.numpy() for n, t in zip(names, tensors, strict=True)})
    ]


def export(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    return torch.export.export(module, example).module()(*other)


def export_strict(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    torch._dynamo.reset()
    return torch.export.export(module, example, strict=True).module()(*other)


def compiled(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    torch._dynamo.reset()
    program = torch.compile(module, backend="aot_eager", fullgraph=True)
    program(*example)
    return program(*other)


def traced_fx(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    return make_fx(module)(*example)(*other)


def traced_fx_symbolic(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    return make_fx(module, tracing_mode="fake", _allow_non_fake_inputs=True)(*example)(*other)


def counted(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    with FlopCounterMode(display=False):
        return module(*other)


def dispatched(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    with OperatorNames():
        return module(*other)


def watched(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    with PassThrough():
        return module(*other)


def functionalized(module: nn.Module, example: Tensors, other: Tensors) -> Sequence[Tensor]:
    return torch.func.functionalize(module)(*other)


ONNX = {"onnx, torchscript": onnx_torchscript, "onnx, dynamo": onnx_dynamo}
RECORDERS = {
    "torch.jit.trace": jit_trace,
    "torch.export": export,
    "torch.export, strict": export_strict,
    "torch.compile": compiled,
    "make_fx": traced_fx,
    "make_fx, fake tensors": traced_fx_symbolic,
    "FlopCounterMode": counted,
    "TorchDispatchMode": dispatched,
    "TorchFunctionMode": watched,
    "functionalize": functionalized,
    **ONNX,
}
