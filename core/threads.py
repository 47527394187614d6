"""Worker threads that leave the cores to the engine.

torch's CPU kernels run on OpenMP, which gives every thread that calls one a team of its own. As soon as the teams
together have more threads than the machine has cores, all of them sleep between kernels in place of waiting awake, and
waking up costs more than a small kernel takes: on two cores, forwards of the embedded model ran three times slower. So
a thread beside the engine's computes alone.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def workers(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of threads that compute alone."""
    return ThreadPoolExecutor(count, name, initializer=compute_alone)


def compute_alone() -> None:
    """Let this thread's kernels run on one core, for as long as it lives; the other threads' are not touched."""
    cores = torch.get_num_threads()
    if cores == 1:
        return
    torch.set_num_threads(1)
    # what threads yet to come begin with was set as well; only a thread's own call puts that right
    thread = threading.Thread(target=torch.set_num_threads, args=(cores,))
    thread.start()
    thread.join()
