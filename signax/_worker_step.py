"""The step as one worker runs it, in whatever mapping: gradient, chain, parameters, metrics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from signax import _local_updates, _loss, _workers

Metrics = dict[str, jax.Array]
Step = Callable[["TrainState", Any], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
    """What a step takes and gives back; save all of it and training resumes bit for bit."""

    step: jax.Array  # int32[]
    params: Any  # equal on all workers
    opt_state: Any  # worker-local leaves stacked: `state_specs`
    # Such as BatchNorm statistics. Float leaves are averaged over the workers; PRNG keys stay, and
    # the loss sees one of its own for each step and worker.
    model_state: Any = None
    key: jax.Array | None = None  # for dropout: each step and worker gets a key of its own


def local_value_and_grad(
    loss_fn: Callable, axis_name: _workers.AxisName, *, has_aux: bool = False
) -> Callable:
    """`jax.value_and_grad` of this worker's own loss, in any mapping.

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)`, the worker's own loss (no `pmean` inside), or
        with `has_aux` a pair of it and anything.
      axis_name: The workers' axis or a tuple of axes.
      has_aux: As for `jax.value_and_grad`.

    Returns:
      A function like `loss_fn` that returns its value and the gradient of this worker alone.

    Raises:
      ValueError: When called, if an axis is not bound, or if JAX types the loss as equal on all
        workers: it was averaged over them, and its gradient would be divided by M.

    Example:
      >>> loss = lambda x, target: (x - target) ** 2 / 2
      >>> grad = signax.local_value_and_grad(loss, "workers")
      >>> _, g = jax.vmap(grad, (None, 0), axis_name="workers")(0.0, jnp.array([1.0, -3.0]))
      >>> print(g)
      [-1.  3.]
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)

    def local(params, *args, **kwargs):
        value, gradient = value_and_grad(_workers.as_varying(params, axis_name), *args, **kwargs)
        _require_own_loss(value[0] if has_aux else value, axis_name)
        # A parameter that the loss does not use has a zero that JAX types as the same everywhere.
        return value, _workers.as_varying(gradient, axis_name)

    return local


def _require_own_loss(loss: Any, axis_name: _workers.AxisName) -> None:
    """Of a loss that was averaged over the workers JAX's gradient is 1/M of a worker's own."""
    missing = _workers.tracked_axes(axis_name) - _workers.varying_axes(loss)
    if missing:
        axis = ", ".join(sorted(map(repr, missing)))
        raise ValueError(
            f"signax: the loss is the same on every worker of the axis {axis}: loss_fn averages it"
            " there (lax.pmean or psum), so each worker's gradient would be divided by their"
            " number. Return the worker's own loss; the step reports the mean over the workers as"
            ' metrics["loss"].'
        )


def make_worker_step(
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    axes: tuple[str, ...],
    has_aux: bool,
    accumulate_steps: int,
    local_steps: int,
) -> Step:
    """The step as one worker runs it."""
    tx = optax.with_extra_args_support(tx)
    one_gradient = local_value_and_grad(_loss.uniform(loss_fn, has_aux), axes, has_aux=True)

    def gradient(params, batch, model_state, key):
        return _accumulate(one_gradient, params, model_state, batch, key, accumulate_steps, axes)

    if local_steps == 1:
        descend = _one_gradient(gradient, tx, axes)
    else:
        assert isinstance(tx, _local_updates.LocalUpdates)
        descend = _many_gradients(gradient, tx, axes, local_steps)

    def worker_step(state, batch):
        key = state.key
        if key is not None:
            key = jax.random.fold_in(
                jax.random.fold_in(key, state.step), _workers.worker_index(axes)
            )
        model_state = _of_this_worker(state.model_state, state.step, axes)
        updates, opt_state, model_state, metrics = descend(state, model_state, batch, key)
        params = optax.apply_updates(state.params, updates)
        num_abstained = [x for _, x in optax.tree.get_all_with_path(opt_state, "num_abstained")]
        if num_abstained:
            totals = [_total_where_varying(x) for x in num_abstained]
            metrics["num_abstained"] = jnp.max(jnp.array(totals)).astype(jnp.float32)
        model_state = _average_model_state(model_state, state.model_state, axes)
        return TrainState(state.step + 1, params, opt_state, model_state, state.key), metrics

    return worker_step


def _one_gradient(gradient: Callable, tx: Any, axes: tuple[str, ...]) -> Callable:
    """One gradient on each worker, then the chain."""

    def descend(state, model_state, batch, key):
        (loss, (model_state, aux)), grads = gradient(state.params, batch, model_state, key)
        metrics = _mean_over_finite({"loss": loss} | aux, axes)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=metrics["loss"])
        return updates, opt_state, model_state, metrics

    return descend


def _many_gradients(
    gradient: Callable, tx: _local_updates.LocalUpdates, axes: tuple[str, ...], num_steps: int
) -> Callable:
    """A round: inner steps on each worker alone, then the outer chain on how far it came."""

    def descend(state, model_state, batch, key):
        def one_step(here, item):
            (params, inner_state, model_state), (i, batch) = here, item
            step_key = None if key is None else jax.random.fold_in(key, i)
            (loss, (model_state, aux)), grads = gradient(params, batch, model_state, step_key)
            updates, inner_state = tx.inner.update(grads, inner_state, params, value=loss)
            params = optax.apply_updates(params, updates)
            return (params, inner_state, model_state), {"loss": loss} | aux

        start = _workers.as_varying(state.params, axes)
        batches = jax.tree.map(lambda x: x.reshape(num_steps, -1, *x.shape[1:]), batch)
        (end, inner_state, model_state), rows = jax.lax.scan(
            one_step,
            (start, state.opt_state.inner_state, model_state),
            (jnp.arange(num_steps), batches),
        )
        means = jax.tree.map(lambda x: jnp.mean(x.astype(jnp.float32), axis=0), rows)
        metrics = _mean_over_finite(means, axes)
        way = jax.tree.map(jnp.subtract, start, end)
        updates, opt_state = _local_updates.exchange(
            tx.outer, way, inner_state, state.opt_state, state.params, value=metrics["loss"]
        )
        return updates, opt_state, model_state, metrics

    return descend


def _accumulate(gradient, params, model_state, batch, key, num_steps, axes):
    """The mean loss, metrics and gradient over `num_steps` micro-batches, one after the other."""
    if num_steps == 1:
        return gradient(params, batch, model_state, key)
    batches = jax.tree.map(lambda x: x.reshape(num_steps, -1, *x.shape[1:]), batch)

    def on_micro_batch(model_state, i, micro_batch):
        micro_key = None if key is None else jax.random.fold_in(key, i)
        (loss, (model_state, aux)), grads = gradient(params, micro_batch, model_state, micro_key)
        return model_state, (loss, aux, grads)

    def add(carry, item):
        model_state, total = carry
        model_state, new = on_micro_batch(model_state, *item)
        return (model_state, jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, new)), None

    first = jax.tree.map(lambda x: x[0], batches)
    like = jax.eval_shape(on_micro_batch, model_state, 0, first)[1]
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype if x.dtype == jnp.float64 else jnp.float32), like
    )
    carry = (model_state, _workers.as_varying(zeros, axes))
    (model_state, total), _ = jax.lax.scan(add, carry, (jnp.arange(num_steps), batches))
    mean = lambda t, x: (t / num_steps).astype(x.dtype if _is_float(x) else t.dtype)  # noqa: E731
    loss, aux, grads = jax.tree.map(mean, total, like)
    return (loss, (model_state, aux)), grads


def _mean_over_finite(values: Metrics, axes: tuple[str, ...]) -> Metrics:
    """Each scalar's mean over the workers where it is finite, in one psum."""
    stacked = jnp.stack([jnp.asarray(x).astype(jnp.float32) for x in values.values()])
    is_finite = jnp.isfinite(stacked)
    sums = jnp.concatenate([jnp.where(is_finite, stacked, 0.0), is_finite.astype(jnp.float32)])
    total, count = jnp.split(jax.lax.psum(_workers.as_varying(sums, axes), axes), 2)
    return dict(zip(values, total / count, strict=True))


def _total_where_varying(num_abstained: jax.Array) -> jax.Array:
    """After an exact mean inside each host, every host has a number of its own."""
    axes = tuple(_workers.varying_axes(num_abstained))
    return jax.lax.psum(num_abstained, axes) if axes else num_abstained


def _of_this_worker(model_state: Any, step: jax.Array, axes: tuple[str, ...]) -> Any:
    """What the loss sees. A key that all workers share would drop the same units on all of them."""

    def own_key(key):
        return jax.random.fold_in(jax.random.fold_in(key, step), _workers.worker_index(axes))

    def own(x):
        if _is_key(x):  # one, or one for each of a model's repeated layers
            return jax.vmap(own_key)(x.reshape(-1)).reshape(x.shape)
        return _workers.as_varying(x, axes) if _is_float(x) else x

    return jax.tree.map(own, model_state)


def _average_model_state(new: Any, old: Any, axes: tuple[str, ...]) -> Any:
    """Float leaves: the mean over the workers where the leaf is finite, or else the old value."""

    def average(path, new, old):
        new = jnp.asarray(new)
        if _is_key(old):
            return old
        if not _is_float(new):
            _require_alike(path, new)
            return new
        is_finite = jnp.all(jnp.isfinite(new))
        total, count = jax.lax.psum(
            (jnp.where(is_finite, new, jnp.zeros_like(new)), is_finite.astype(new.dtype)), axes
        )
        return jnp.where(count > 0, total / jnp.maximum(count, 1), old)

    return jax.tree_util.tree_map_with_path(average, new, old)


def _require_alike(path: Any, leaf: jax.Array) -> None:
    if _workers.varying_axes(leaf):
        axes = ", ".join(sorted(map(str, _workers.varying_axes(leaf))))
        raise ValueError(
            f"signax: loss_fn returns a model_state whose leaf {jax.tree_util.keystr(path)}"
            f" ({leaf.dtype}) differs between the workers over {axes}: only float leaves are"
            " averaged. Return the same number on all workers, such as a count of steps, or a"
            " float."
        )


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)
