"""Progress bars without effects on the rest of the process."""

from __future__ import annotations

import threading
from typing import Any

from tqdm import tqdm


class Bar(tqdm):
    """A `tqdm` bar that starts no monitor thread and creates no lock of `multiprocessing`.

    That lock would fix the start method of processes before the program can choose one.
    """

    monitor_interval = 0
    _lock: Any = threading.RLock()
