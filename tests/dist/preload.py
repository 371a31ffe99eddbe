"""What ranks need, imported where they are forked from."""

import megarl.policy.worker
import megarl.reshard.receiver  # noqa: F401
from megarl.reshard.row_sums import compile_row_sums

compile_row_sums()
