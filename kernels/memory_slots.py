"""The fields of a memory slot: a row of the table of addresses of memory tokens.

This module does not import Triton, since tables are also built without it.
"""

from __future__ import annotations

from typing import NamedTuple


class Slot(NamedTuple):
    """The tokens of a map, or the pointer tokens of an object; `Slot()` is an unused slot."""

    tokens_address: int = 0
    """Address of the tokens [num_tokens, memory_dim]."""
    added_address: int = 0
    """Address of the encoding that is added to pointer tokens for their keys, same shape; else 0.

    For a map, which has 0, position and temporal row are added, and the keys are rotated.
    """
    first_key: int = 0
    """Row of the first key among the keys of all objects."""
    num_tokens: int = 0
    """0 for an unused slot."""
    temporal_row: int = 0
    """Row of the temporal encodings, for a map."""


SLOT_FIELDS = len(Slot._fields)
SLOT_TOKENS_ADDRESS = Slot._fields.index("tokens_address")
SLOT_ADDED_ADDRESS = Slot._fields.index("added_address")
SLOT_FIRST_KEY = Slot._fields.index("first_key")
SLOT_NUM_TOKENS = Slot._fields.index("num_tokens")
SLOT_TEMPORAL_ROW = Slot._fields.index("temporal_row")
