"""Processes for ranks: forked from a server that has imported the policy once, instead of by each of them again.

The import takes ten seconds of a core; a suite starts some hundred ranks. A process begins with the server's
environment, which is the test process's at the first start of one.
"""

import multiprocessing
import os
from multiprocessing.context import ForkServerContext


def fork_context() -> ForkServerContext:
    """Its server ends with this process."""
    context = multiprocessing.get_context("forkserver")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context.set_forkserver_preload(["tests.dist.preload"])
    return context
