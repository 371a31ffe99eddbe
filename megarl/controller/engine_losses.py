"""What losing engines costs a step."""

from dataclasses import dataclass

from megarl.telemetry.metrics import Metrics, declared


@dataclass
class EngineLosses:
    """Since the last `collect`."""

    restarts: int = 0
    """Engines that were started again."""
    regenerated: int = 0
    """Responses sampled again because they had not come."""
    compared: int = 0
    """Responses that had, sampled once more to be compared."""
    different: int = 0
    """Those among them with other tokens than the first time."""

    def collect(self) -> Metrics:
        """As metrics of the step, and start anew; none where no engine was lost."""
        if not self.restarts:
            return {}
        metrics = declared(
            {
                "rollout/restarts": self.restarts,
                "rollout/regenerated": self.regenerated,
                "rollout/regenerated_compared": self.compared,
                "rollout/regenerated_differences": self.different,
            }
        )
        self.restarts = self.regenerated = self.compared = self.different = 0
        return metrics
