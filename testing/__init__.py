"""For tests of plugins: a real host on the embedded model, and ways to look at what it makes.

The fixtures `latentwire_host`, `latentwire_client` and `latentwire_clock` are there in every pytest run, without an
import; see `fixtures.py`. docs/plugins/testing.md shows all of it at work. Importing this imports none of torch.
"""

from .clock import FakeClock
from .compare import assert_same_latents, assert_same_picture, difference
from .faults import fault_in, out_of_memory, with_nan
from .hosts import Served, plugin, running_host, serving
from .jobs import Events, Generated, call, generate

__all__ = [
    "Events",
    "FakeClock",
    "Generated",
    "Served",
    "assert_same_latents",
    "assert_same_picture",
    "call",
    "difference",
    "fault_in",
    "generate",
    "out_of_memory",
    "plugin",
    "running_host",
    "serving",
    "with_nan",
]
