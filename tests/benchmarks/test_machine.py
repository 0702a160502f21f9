"""What results say about the machine that they were measured on."""

from __future__ import annotations

import pytest
import torch

from benchmarks.machine import architecture, headline, machine
from benchmarks.timing import Options
from sam2_fast.ops.core.native import isas


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [
        ("AuthenticAMD", 25, 17, "Zen 4"),
        ("AuthenticAMD", 25, 1, "Zen 3"),
        ("AuthenticAMD", 26, 2, "Zen 5"),
        ("GenuineIntel", 6, 143, "Sapphire Rapids"),
        ("GenuineIntel", 6, 3, "family 6, model 3"),
    ],
)
def test_microarchitectures_are_named_by_family_and_model(
    vendor: str, family: int, model: int, name: str
) -> None:
    assert architecture(vendor, family, model) == name


def test_a_description_has_the_processor_and_the_instruction_set_of_the_kernels() -> None:
    description = machine(Options(torch.device("cpu")))
    processor = description["processor"]
    assert {"name", "vendor", "family", "model", "architecture"} < set(processor)
    assert processor["instruction_set"] == (isas()[-1] if isas() else None)
    line = headline({**description, "matrix_peak": {"float32": 463.72, "bfloat16": 1936.0}})
    assert processor["architecture"] in line
    assert line.endswith("matrix product, GFLOP/s: float32 464, bfloat16 1,936")
