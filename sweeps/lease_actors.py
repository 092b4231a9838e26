"""Ray Tune's keeper of actors, where a result that does not arrive is the failure of the lease that it belongs to."""

from __future__ import annotations

from typing import Any

import ray
from ray.air.execution._internal import RayActorManager


class LeaseActors(RayActorManager):
    """A result of more than 100 KB goes through Ray's object store, where it may be lost, or for which there may be no room.

    Ray then raises another error than for a task that failed or an actor that died, and Tune's own keeper ends the driver at it.
    """

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        """Tell who waits for the result."""
        known = (ray.exceptions.RayActorError, ray.exceptions.RayTaskError)
        if isinstance(exception, ray.exceptions.RayError) and not isinstance(exception, known):
            tracked_actor_task._on_error(tracked_actor_task._tracked_actor, exception)
        else:
            super()._actor_task_failed(tracked_actor_task, exception)
