"""A step that reads from its state how the parameters are cut.

Inside `jax.jit` an array no longer says where it lies, so the specs are read from the arguments
before, and the step is compiled once for each way the parameters are cut.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from signax import _specs, _step_inputs
from signax._shards import _cut, _given


class StepOfShards:
    """`step(state, batch)`, jitted; like a jitted function it has `lower`."""

    def __init__(self, step: Callable, mesh: Mesh, axes: tuple[str, ...]):
        self._step, self._mesh, self._axes = step, mesh, axes
        self._jitted: dict[Any, Any] = {}  # one for each way that parameters were cut

    def __call__(self, state: Any, batch: Any) -> Any:
        return self._for(state)(state, batch)

    def lower(self, state: Any, batch: Any) -> Any:
        """Lowers the step for these arguments, or for their `jax.ShapeDtypeStruct`."""
        return self._for(state).lower(state, batch)

    def _for(self, state: Any) -> Any:
        _step_inputs.require_train_state(state)
        cut = _given.cut_of(state.params, self._mesh, self._axes)
        assert cut is not None  # a mesh without other axes has a plain jitted step
        treedef = jax.tree.structure(state.params)
        specs = jax.tree.leaves(_cut.specs_of(cut, state.params), is_leaf=_specs.is_spec)
        found = (treedef, tuple(specs))
        if found not in self._jitted:
            step = functools.partial(self._step, param_specs=treedef.unflatten(specs))
            self._jitted[found] = jax.jit(step, donate_argnums=0)
        return self._jitted[found]
