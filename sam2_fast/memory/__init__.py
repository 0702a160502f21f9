"""The memories of objects: their data, and rules on integers that select them."""

from sam2_fast.memory.bank import MemoryBank as MemoryBank
from sam2_fast.memory.frame_memory import FrameMemory as FrameMemory
from sam2_fast.memory.frame_memory import compact as compact
