"""Integers of a memory slot: a row of the table that says where the tokens of a memory are.

Free of Triton, since tables are built where it is not installed, too.
"""

from __future__ import annotations

from typing import NamedTuple


class Slot(NamedTuple):
    """A map's tokens, or the pointer tokens of an object; `Slot()` is one that is not in use."""

    tokens_address: int = 0
    """Address of the tokens [num_tokens, memory_dim]."""
    added_address: int = 0
    """Address of what is added to the tokens for their keys, of the same shape; 0 for a map, whose
    keys get position and temporal row, and are rotated."""
    first_key: int = 0
    """Row of the first key among the keys of all objects."""
    num_tokens: int = 0
    """0 for a slot that is not in use."""
    temporal_row: int = 0
    """Row of the temporal table, for a map."""


SLOT_FIELDS = len(Slot._fields)
SLOT_TOKENS_ADDRESS = Slot._fields.index("tokens_address")
SLOT_ADDED_ADDRESS = Slot._fields.index("added_address")
SLOT_FIRST_KEY = Slot._fields.index("first_key")
SLOT_NUM_TOKENS = Slot._fields.index("num_tokens")
SLOT_TEMPORAL_ROW = Slot._fields.index("temporal_row")
