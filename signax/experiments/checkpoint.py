"""The newest state of a run, kept by Orbax."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp

from signax.experiments import cluster
from signax.experiments.errors import UsageError


class Checkpoints:
    """The checkpoint of one work directory: the train state with every worker's memory."""

    def __init__(self, workdir: Path):
        self._folder = workdir / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self._folder.absolute(), options=options)

    @property
    def latest_step(self) -> int:
        """The step of the checkpoint, 0 where there is none."""
        return self._manager.latest_step() or 0

    def save(self, step: int, state: Any) -> None:
        """Writes the state, all of it or nothing."""
        if step != self.latest_step:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: Any) -> Any:
        """Returns the newest state, with types and shardings of `like`; `like` if none is kept.

        Raises:
          UsageError: it cannot be read.
        """
        step = self.latest_step
        if not step:
            return like
        abstract = jax.tree.map(_abstract, like)
        hook = sys.unraisablehook
        sys.unraisablehook = _quiet(hook)
        try:
            (self._folder / str(step) / "default").stat()  # Orbax would ask for other arguments
            state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:  # whatever the broken file made of JSON, zarr or a tree
            if cluster.as_lost(error) is not error:
                raise
            self._refuse(step, error)
        sys.unraisablehook = hook
        return state

    def _refuse(self, step: int, error: Exception) -> NoReturn:
        folder = self._folder / str(step)
        earlier = [other for other in self._manager.all_steps() if other < step]
        go_on = "There is no earlier one: start the run again with --overwrite."
        if earlier:
            go_on = f"Delete {folder} to go on from the one before, of step {max(earlier):,}."
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"the checkpoint {folder} cannot be read: it is damaged, or another version wrote it."
            f" {go_on} ({type(error).__name__}: {reason})"
        ) from error

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._manager.close()


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _quiet(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`sys.unraisablehook` without the reads that are under way when one has failed.

    Each would print a page when it ends. That may be after the failure has been told, so it stays.
    """

    def quiet(event: Any) -> None:
        if str(event.exc_value) != "Event loop is closed":
            hook(event)

    return quiet
