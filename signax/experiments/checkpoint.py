"""The newest state of a run, kept by Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoint of one work directory: the train state with every worker's memory."""

    def __init__(self, workdir: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)

    @property
    def latest_step(self) -> int:
        """The step of the checkpoint, 0 where there is none."""
        return self._manager.latest_step() or 0

    def save(self, step: int, state: Any) -> None:
        """Writes the state, all of it or nothing."""
        if step != self.latest_step:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: Any) -> Any:
        """Returns the newest state, with types and shardings of `like`; `like` if none is kept."""
        if not self.latest_step:
            return like
        abstract = jax.tree.map(_abstract, like)
        return self._manager.restore(self.latest_step, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._manager.close()


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
