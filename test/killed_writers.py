# SPDX-License-Identifier: Apache-2.0
"""Kills processes that save a map, at random moments: `killed_writers.py FOLDER TIMES`; says what was found each time.

The writers are children of this process, so that starting one costs a millisecond.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from saved_maps import made_up, save

from recon_ros.mapping.folder import read_map

SIZES = (3, 6)


def main(folder: Path, times: int) -> None:
    maps = [made_up(size) for size in SIZES]
    started = time.perf_counter()
    for data in maps:
        save(data, folder)
    duration = time.perf_counter() - started
    rng = random.Random(1)
    for _ in range(times):
        writer = os.fork()
        if writer == 0:
            while True:
                for data in maps:
                    save(data, folder)
        time.sleep(rng.uniform(0.0, 2 * duration))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        is_in_place = folder.exists()
        print("keyframes", len(read_map(folder).keyframes), "in place" if is_in_place else "aside", flush=True)
    save(maps[0], folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
