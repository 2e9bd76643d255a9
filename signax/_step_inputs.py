"""What a step refuses before it is compiled: a batch that cannot be shared, a state of others."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from signax import _layout, _local_updates, _specs, _worker_step
from signax._shards import _cut


def require_divisible(
    batch: Any, mesh: Any, axes: tuple[str, ...], accumulate_steps: int, local_steps: int
) -> None:
    num_workers = _specs.num_rows(PartitionSpec(axes), mesh)
    shares = num_workers * accumulate_steps * local_steps
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        size = jnp.shape(leaf)[0] if jnp.ndim(leaf) else None
        if not size or size % shares:
            parts = f"{num_workers} workers"
            if accumulate_steps > 1:
                parts += f" x accumulate_steps={accumulate_steps}"
            if local_steps > 1:
                parts += f" x local_steps={local_steps}"
            raise ValueError(
                f"signax: the batch leaf {jax.tree_util.keystr(path) or '(the whole batch)'} has"
                f" {'no leading axis' if size is None else f'{size} rows'}, which {parts} cannot"
                " share equally. The leading axis is the global batch: drop or pad the last rows."
            )


def require_steps(tx: Any, accumulate_steps: int, local_steps: int) -> None:
    """Refuses numbers of steps that mean nothing, and local steps without an optimizer for them."""
    for name, number in {"accumulate_steps": accumulate_steps, "local_steps": local_steps}.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"signax: {name}={number!r}: must be an integer, 1 or more.")
    if local_steps > 1 and not isinstance(tx, _local_updates.LocalUpdates):
        raise ValueError(
            f"signax: local_steps={local_steps} needs an optimizer for the steps that a worker"
            " takes alone beside the one for what is exchanged after them: make both with"
            " signax.local_updates(inner, outer), such as signax.local_updates(optax.sgd(0.1),"
            " signax.sign_sgd(0.01, axis_name=...)), and put no other wrapper around it."
        )


def require_train_state(state: Any) -> None:
    if not isinstance(state, _worker_step.TrainState):
        raise TypeError(
            f"signax: the step was given a {type(state).__name__} as its state; it takes the"
            " signax.TrainState of signax.init_train_state. A checkpoint that is restored without a"
            " target comes back as plain dicts and lists, in which the optimizer cannot tell its"
            " memories apart. Give the restore a target: in Orbax,"
            " args=StandardRestore(signax.init_train_state(params, tx, mesh))."
        )


def as_laid_out(state: _worker_step.TrainState, layout: _layout.Layout, mesh: Any) -> Any:
    """The new state, its leaves cut over the axes inside a worker as those of the old one."""
    if layout.cut is None:
        return state
    laid_out = jax.lax.with_sharding_constraint(
        (state.params, state.opt_state),
        _specs.as_shardings((_cut.specs_of(layout.cut, state.params), layout.specs), mesh),
    )
    return state._replace(params=laid_out[0], opt_state=laid_out[1])


def require_stacked(opt_state: Any, layout: _layout.Layout, mesh: Any) -> None:
    """Refuses a state in which worker-local leaves are not there once for each worker."""
    expected, specs = layout.state, layout.specs
    if jax.tree.structure(opt_state) != jax.tree.structure(expected):
        raise ValueError(
            "signax: the optimizer state does not belong to this optimizer: it has the structure"
            f" {jax.tree.structure(opt_state)}, and the optimizer's is"
            f" {jax.tree.structure(expected)}. Make it with signax.init_train_state (or"
            " signax.init_opt_state) and the same tx."
        )
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    wanted = zip(
        jax.tree.leaves(expected), jax.tree.leaves(specs, is_leaf=_specs.is_spec), strict=True
    )
    for (path, leaf), (want, spec) in zip(leaves, wanted, strict=True):
        is_local = _specs.is_local(spec, layout.axes)
        num_rows = _specs.num_rows(spec, mesh) if is_local else None
        shape = want.shape if num_rows is None else (num_rows, *want.shape)
        if jnp.shape(leaf) == shape:
            continue
        where = (
            f"signax: the optimizer state at {jax.tree_util.keystr(path)} has shape"
            f" {jnp.shape(leaf)}"
        )
        if num_rows is not None and jnp.shape(leaf) == want.shape:
            raise ValueError(
                f"{where}: one copy, where each of the {num_rows} workers needs its own (shape"
                f" {shape}). tx.init alone does not know the workers: make the state with"
                " signax.init_train_state(params, tx, mesh) or signax.init_opt_state(tx, params,"
                " mesh)."
            )
        if num_rows is not None and jnp.shape(leaf)[1:] == want.shape:
            raise ValueError(
                f"{where}: the state of {jnp.shape(leaf)[0]} workers, given to {num_rows}. To go on"
                " with another number of workers use signax.change_num_workers(state, tx, mesh)."
            )
        raise ValueError(
            f"{where}, but these parameters need {shape}. Make the state with"
            " signax.init_train_state and the parameters that you train."
        )
