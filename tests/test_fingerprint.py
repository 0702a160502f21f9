"""Every change of a model changes its fingerprint, in C++ and in Python."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sam2_fast.ops.core import state
from sam2_fast.ops.core.native import native
from sam2_fast.recording.fingerprint import Fingerprint


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2)))


def write_parameter(m: nn.Sequential) -> None:
    with torch.no_grad():
        m[0].weight.mul_(1.0)


def replace_memory(m: nn.Sequential) -> None:
    m[0].bias.data = m[0].bias.data.clone()


def replace_parameter(m: nn.Sequential) -> None:
    m[2][0].weight = nn.Parameter(m[2][0].weight.detach())


def replace_module(m: nn.Sequential) -> None:
    m[2][0] = nn.Linear(4, 2)


def write_buffer(m: nn.Sequential) -> None:
    m[1].running_mean.add_(0)


def remove_parameter(m: nn.Sequential) -> None:
    m[0].bias = None


def exchange_parameters(m: nn.Sequential) -> None:
    m[1].weight, m[1].bias = m[1].bias, m[1].weight


CHANGES = [
    write_parameter,
    replace_memory,
    replace_parameter,
    replace_module,
    write_buffer,
    remove_parameter,
    exchange_parameters,
]


@pytest.fixture(params=["native", "python"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(state, "native", lambda: None)
    elif native() is None:
        pytest.skip("the native module is not built")


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_detected(change: Callable[[nn.Sequential], None]) -> None:
    m = model()
    before = Fingerprint(m)
    m.eval()(torch.zeros(1, 4))
    assert before.same(m)
    change(m)
    assert not before.same(m)
    assert Fingerprint(m).same(m)


@pytest.mark.usefixtures("implementation")
def test_another_model_with_the_same_tensors_has_another_fingerprint() -> None:
    m = model()
    assert not Fingerprint(m).same(nn.Sequential(*m))


@pytest.mark.usefixtures("implementation")
def test_tensors_of_inference_mode_are_compared_without_a_version() -> None:
    with torch.inference_mode():
        m = model()
    fingerprint = Fingerprint(m)
    assert fingerprint.same(m)
    replace_memory(m)
    assert not fingerprint.same(m)


def test_the_native_functions_refuse_arguments_of_other_types() -> None:
    if (compiled := native()) is None:
        pytest.skip("the native module is not built")
    tensor = torch.zeros(1)
    with pytest.raises(ValueError, match="equal lengths"):
        compiled.same_members([{}], [], [])
    with pytest.raises(TypeError, match="dictionaries"):
        compiled.same_members([1], ["a"], [1])
    address = torch._C.TensorBase.data_ptr
    version = torch._C.TensorBase._version
    with pytest.raises(TypeError, match="address, version"):
        compiled.same_tensors(len, version, [tensor], [1], [0])
    with pytest.raises(TypeError, match="address, version"):
        compiled.same_tensors(address, address, [tensor], [1], [0])
    with pytest.raises(TypeError, match="instances"):
        compiled.same_tensors(address, version, [1], [1], [0])
    with pytest.raises(ValueError, match="equal lengths"):
        compiled.same_tensors(address, version, [tensor], [], [])
    with pytest.raises(TypeError, match="dictionaries"):
        compiled.same_instances([1], [int], [1], bytes(4), [])
