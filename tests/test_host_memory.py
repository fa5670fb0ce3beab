"""Freed memory is used again: the system is not asked for it anew."""

import subprocess
import sys

PROGRAM = """
import resource, sys, threading
import torch
from scpo_ray.host_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**25)  # 128 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    if sys.argv[1] == "keep":
        keep_freed_memory()
    faults()
    print(faults())

worker = threading.Thread(target=work)  # as Ray Train's is
worker.start()
worker.join()
"""


def page_faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


def test_large_tensors_find_the_memory_of_those_before_them():
    assert page_faults("keep") < 100 < page_faults("leave")
