"""A step as it is called: what only the arrays themselves tell is read before `jax.jit` hides it.

Inside `jax.jit` an array no longer says whether its memory is still its own, from which process it
comes, nor how it is cut over devices.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import Mesh

from signax import _processes, _specs, _step_inputs
from signax._shards import _cut, _given

_EARLIER = (
    "signax: this state was given to a step before, which has taken its memory for the new state"
    " (it donates it). Go on with what that call returned, state, metrics = step(state, batch);"
    " to keep a state, copy it before the call: jax.tree.map(jnp.copy, state). If that call was"
    " interrupted, go on from a checkpoint or make the state again."
)


class CalledStep:
    """`step(state, batch)`, jitted and donating its state; like a jitted function it has `lower`.

    Args:
      step: The step to be jitted.
      mesh: The workers' mesh, or None if they are simulated.
      axes: The workers' axes if the parameters may be cut over others as they lie: the step then
        takes `param_specs=` and is compiled once for each way.
    """

    def __init__(self, step: Callable, mesh: Mesh | None, axes: tuple[str, ...] | None = None):
        self._step, self._mesh, self._axes = step, mesh, axes
        self._jitted: dict[Any, Any] = {}  # one for each way that parameters were cut
        self._is_compared = not _processes.share(mesh)
        functools.update_wrapper(self, step)

    def __call__(self, state: Any, batch: Any) -> Any:
        _require_alive(state)
        if not self._is_compared:
            self._compare(batch)
        return self._for(state)(state, batch)

    def lower(self, state: Any, batch: Any) -> Any:
        """Lowers the step for these arguments, or for their `jax.ShapeDtypeStruct`."""
        return self._for(state).lower(state, batch)

    def _cache_size(self) -> int:
        return sum(jitted._cache_size() for jitted in self._jitted.values())

    def _compare(self, batch: Any) -> None:
        """Once: what comes first shows how the user's loader shares the examples out."""
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(batch)):
            return
        _processes.require_same_batch(batch)
        self._is_compared = True

    def _for(self, state: Any) -> Any:
        found, arguments = None, {}
        if self._axes is not None:
            assert self._mesh is not None
            _step_inputs.require_train_state(state)
            cut = _given.cut_of(state.params, self._mesh, self._axes)
            assert cut is not None  # the mesh has other axes
            treedef = jax.tree.structure(state.params)
            specs = jax.tree.leaves(_cut.specs_of(cut, state.params), is_leaf=_specs.is_spec)
            found = (treedef, tuple(specs))
            arguments = {"param_specs": treedef.unflatten(specs)}
        if found not in self._jitted:
            step = functools.partial(self._step, **arguments) if arguments else self._step
            self._jitted[found] = jax.jit(step, donate_argnums=0)
        return self._jitted[found]


def _require_alive(state: Any) -> None:
    """JAX says that a buffer was deleted or, on several CPU devices, ends the process (0.10)."""
    for leaf in jax.tree.leaves(state):
        # Not isinstance(leaf, jax.Array), which takes longer than all of this.
        if hasattr(leaf, "is_deleted") and not isinstance(leaf, Tracer) and leaf.is_deleted():
            raise RuntimeError(_EARLIER)
