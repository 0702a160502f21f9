"""Limits and rates of the GPU architectures that kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass

REGISTERS = 65536
"""32-bit registers of a multiprocessor, the same on all architectures."""
RESERVED_SHARED = 1024
"""Bytes of shared memory that the driver reserves per resident block."""


@dataclass(frozen=True)
class Architecture:
    """One compute capability, with the rates of one card of it."""

    capability: int  # 80, 89, 90, 120
    card: str
    multiprocessors: int
    shared_bytes: int  # per multiprocessor
    threads: int  # resident per multiprocessor
    blocks: int  # resident per multiprocessor
    matrix_tflops: float  # dense bfloat16 products accumulated in float32, TFLOP/s
    bandwidth_tbs: float  # of GPU memory, TB/s
    clock_ghz: float
    measured: bool = False  # whether the two rates were measured or are from the data sheet

    def resident_blocks(self, registers: int, shared: int, warps: int) -> int:
        """Blocks of a kernel that are resident on a multiprocessor at the same time.

        registers: per thread. shared: bytes per block. warps: per block.
        """
        per_warp = -(-registers // 8) * 8 * 32  # a thread's registers are allocated in eights
        by_registers = REGISTERS // (per_warp * warps) if registers else self.blocks
        by_shared = self.shared_bytes // (shared + RESERVED_SHARED)
        return min(by_registers, by_shared, self.threads // (32 * warps), self.blocks)


ARCHITECTURES = {
    80: Architecture(80, "A100 SXM 80 GB", 108, 164 << 10, 2048, 32, 312.0, 2.04, 1.41),
    89: Architecture(89, "RTX 4090", 128, 100 << 10, 1536, 24, 165.0, 1.01, 2.52),
    # Rates of 8192^3 bfloat16 products on random data, and of device-to-device copies, for which
    # bytes read and written are both counted.
    90: Architecture(90, "H100 SXM 80 GB", 132, 228 << 10, 2048, 32, 790.0, 3.0, 1.755, True),
    120: Architecture(120, "RTX 5090", 170, 100 << 10, 1536, 24, 209.0, 1.79, 2.41),
}
