"""Whether a command was refused at once: in 5 s, or where the machine is slow in 2.5 imports of torch and Ray.

An import of both takes 1.9 s on the two cores where the limit was set, so the two are the same there; a cluster that
was started first takes longer than either.
"""

import subprocess
import sys
import time

LIMIT_S = 5.0
LIMIT_IMPORTS = 2.5


def is_at_once(seconds: float) -> bool:
    """Whether `seconds`, the wall time of a whole command just ended, are few enough."""
    if seconds < LIMIT_S:
        return True
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, ray"], check=True)
    return seconds < LIMIT_IMPORTS * (time.monotonic() - start)
