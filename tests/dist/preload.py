"""What ranks need, imported where they are forked from."""

import megarl.policy.worker
import megarl.reshard.receiver  # noqa: F401
from megarl.reshard.row_sums import compile_copy, compile_sums

compile_sums()
compile_copy()
