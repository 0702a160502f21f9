"""Every form (tile size or algorithm) that an op's Triton kernels offer gives the right result, in
the interpreter.
"""

from __future__ import annotations

import pytest

from tests.ops.triton_tools import interpret

PROGRAM = """
import importlib
import torch
from sam2_fast.kernels.choices import trying
from sam2_fast.ops.core import registry
from sam2_fast.proving.case import Case
from sam2_fast.proving.rules import rule_of
from sam2_fast.proving.rules import Call

OP = "{op}"
module = importlib.import_module(f"tests.ops.test_{{OP}}")
rest = {{"hiera_block": (1e-6,), "rope_attention": (3,)}}.get(OP, ())
implementations = registry.all_implementations()
kernel, reference = (implementations[OP, backend].run for backend in ("triton", "torch"))
tried = set()
for arguments in {cases}:
    inputs = module.case(*arguments) if isinstance(arguments, tuple) else module.case(**arguments)
    if hasattr(module, "cast"):
        inputs = module.cast(inputs, torch.float16)
    else:
        inputs = (*(x.half() for x in inputs[:3]), *inputs[3:])
    case = Case(reference, rule_of(OP), Call((*inputs, *rest), {{}}))
    with trying() as trial:
        assert case.check(kernel).reason is None
    for choice, (default, forms) in trial.choices.items():
        for form in forms:
            if form != default and (choice[0], form) not in tried:
                with trying({{choice: form}}):
                    outcome = case.check(kernel)
                assert outcome.reason is None, (arguments, choice, form, outcome)
                tried.add((choice[0], form))
names = {{name for name, _ in tried}}
assert names == {choices}, names
"""
# For each op: arguments of `case`, and the names of the choices between forms.
CASES = {
    "window_attention": (
        "[(16, 16, 2, 24, 0, False), (16, 8, 2, 12, 4, False), (16, 16, 2, 12, 16, True)]",
        "{'window'}",
    ),
    "hiera_block": (
        "[(16, 16, 16, 16, 1, 8, False), (16, 12, 12, 24, 4, 4, True)]",
        "{'window', 'linear', 'mlp'}",
    ),
    "memory_attention": ('[{"side": 4}]', "{'attend', 'linear'}"),
    "memory_encoder": (
        '[{"objects": 1, "height": 2, "width": 2, "logits": (8, 8), "blocks": 1}]',
        "{'down', 'depthwise', 'linear'}",
    ),
    "rope_attention": ("[(4, 2, 3)]", "{'attend'}"),
}


@pytest.mark.proves(
    "interpreted",
    "window_attention:triton",
    "hiera_block:triton",
    "memory_attention:triton",
    "memory_encoder:triton",
    "rope_attention:triton",
)
@pytest.mark.parametrize("op", CASES)
def test_every_form_is_right(op: str) -> None:
    pytest.importorskip("triton")
    cases, choices = CASES[op]
    interpret(PROGRAM.format(op=op, cases=cases, choices=choices))
