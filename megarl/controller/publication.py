"""New weights from the policy to the engines.

Invariant: an engine has the old weights until it has all of the new ones; a publication that fails changes none. One
that shares its GPUs (`controller.turns`) has none when it begins, and does not sample before all engines have the new
ones.
"""

import logging

from megarl.controller.parts import PublishingParts
from megarl.reshard.signals import TransportError
from megarl.rollout.failures import EngineLost
from megarl.telemetry.metrics import Metrics, merge

_log = logging.getLogger(__name__)


async def publish_weights(version: int, parts: PublishingParts, *, anew: bool = False) -> Metrics:
    """Publish and install `version`; a publication that fails is tried once more over new connections, and again with
    every engine that is lost meanwhile, as often as the pool starts one again.

    anew: not over the connections that there are, which a new engine has not.

    Raises:
        TransportError: the second attempt failed too, or the peers could not be connected again. Begins with that
            cause, which is a dead worker where there is one, and names the first too.
    """
    first: TransportError | None = None
    while True:
        try:
            if anew:
                await parts.turns.make_room()
                if await _restore(parts):
                    first = None  # what it failed of is not there any more
            await parts.turns.to_publication(anew=anew)
            if anew:
                await parts.connect()
            published = await _publish(version, parts)
            await parts.turns.to_engines()
            return published
        except EngineLost as lost:
            _log.warning("%s. Publishing once more when it is back", lost)
        except Exception as error:
            if first is not None:
                raise TransportError(
                    f"{error}\nThat ended a second attempt; the first ended because {first}"
                ) from error
            if not isinstance(error, TransportError):
                raise
            _log.warning("%s. Connecting anew to try once more", error)
            first = error
        anew = True


async def _restore(parts: PublishingParts) -> int:
    """Every engine runs; how many were started again for that."""
    with parts.reporter.phase("restart"):
        restarted = await parts.pool.restore()
    parts.engine_losses.restarts += restarted
    return restarted


async def _publish(version: int, parts: PublishingParts) -> Metrics:
    await parts.pool.receive_weights(version)
    sent = await parts.policy.publish_weights(version)
    return merge(sent, await parts.pool.adopt_weights(version))
