"""The machine that ran a benchmark. Ratios between programs differ between processors, so results
contain the kind of processor, its instruction set and the rate of its matrix products.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Options, dtypes, matrix_peak
from sam2_fast.ops.core.native import isas

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "connected-components-3d",
    "openvino",
    "onnxruntime",
    "transformers",
)

# Vendor, family, first and last model: microarchitecture. Others are named by their numbers.
ARCHITECTURES = (
    ("AuthenticAMD", 23, 0x00, 0x2F, "Zen"),
    ("AuthenticAMD", 23, 0x30, 0xFF, "Zen 2"),
    ("AuthenticAMD", 25, 0x10, 0x1F, "Zen 4"),
    ("AuthenticAMD", 25, 0x60, 0x7F, "Zen 4"),
    ("AuthenticAMD", 25, 0xA0, 0xAF, "Zen 4"),
    ("AuthenticAMD", 25, 0x00, 0xFF, "Zen 3"),
    ("AuthenticAMD", 26, 0x00, 0xFF, "Zen 5"),
    ("GenuineIntel", 6, 85, 85, "Skylake or Cascade Lake"),
    ("GenuineIntel", 6, 106, 108, "Ice Lake"),
    ("GenuineIntel", 6, 143, 143, "Sapphire Rapids"),
    ("GenuineIntel", 6, 173, 174, "Granite Rapids"),
    ("GenuineIntel", 6, 207, 207, "Emerald Rapids"),
)


def architecture(vendor: str, family: int, model: int) -> str:
    """The microarchitecture's name, or "family F, model M" if it is not in the table."""
    for known_vendor, known_family, first, last, name in ARCHITECTURES:
        if (vendor, family) == (known_vendor, known_family) and first <= model <= last:
            return name
    return f"family {family}, model {model}"


def machine(options: Options) -> dict[str, Any]:
    """Processor, device, threads and versions: enough to repeat a measurement, and nothing that
    identifies the machine.
    """
    is_cuda = options.device.type == "cuda"
    versions = {package: installed(package) for package in PACKAGES}
    return {
        "processor": processor(),
        "device": torch.cuda.get_device_name(options.device) if is_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": load_average(),
        "python": platform.python_version(),
        "versions": {package: number for package, number in versions.items() if number},
        "command": " ".join(["python -m benchmarks.run", *_public_arguments()]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def processor() -> dict[str, Any]:
    """Vendor, family, model and microarchitecture of the processor, and the instruction set that
    the library's kernels use on it (None without the native module).
    """
    fields = _cpuinfo()
    vendor = fields.get("vendor_id", platform.machine())
    family, model = int(fields.get("cpu family", 0)), int(fields.get("model", 0))
    instruction_sets = isas()
    return {
        "name": fields.get("model name", platform.processor() or platform.machine()),
        "vendor": vendor,
        "family": family,
        "model": model,
        "architecture": architecture(vendor, family, model),
        "instruction_set": instruction_sets[-1] if instruction_sets else None,
    }


def matrix_peaks(options: Options) -> dict[str, float]:
    """GFLOP/s of a large matrix product, by the dtypes that are measured on the device."""
    return {
        str(dtype).removeprefix("torch."): round(matrix_peak(options.device, dtype), 1)
        for dtype in dtypes(options)
    }


def headline(description: dict[str, Any]) -> str:
    """One line about a machine, from what `machine` returns together with `matrix_peak`."""
    peaks = ", ".join(f"{name} {rate:,.0f}" for name, rate in description["matrix_peak"].items())
    device = description["device"]
    if device == "cpu":
        kind = description["processor"]
        device = (
            f"{kind['name']}, {kind['architecture']}, {kind['instruction_set']}, "
            f"{description['threads']} threads"
        )
    return f"{device}; matrix product, GFLOP/s: {peaks}"


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def load_average() -> float:
    """The load average of the last minute. If it exceeds the number of cores, other work was
    running and the medians are too high.
    """
    return round(os.getloadavg()[0], 1)


def _public_arguments() -> list[str]:
    """Arguments of the command line without `--json FILE`, which has no effect on a result."""
    arguments = sys.argv[1:]
    return [
        argument
        for i, argument in enumerate(arguments)
        if not argument.startswith("--json") and (i == 0 or arguments[i - 1] != "--json")
    ]


def installed(package: str) -> str | None:
    """The version of a package, or None if the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
