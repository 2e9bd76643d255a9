"""One method on M simulated workers, for all seeds and learning rates at once, in one program.

    seeds ──> learning rates ──> workers     three nested `jax.vmap`
    points ──> steps                         a `lax.scan` over the points where metrics are taken,
                                             a loop of as many steps as lie between two of them

All learning rates of a seed see the same batches.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import signax
from signax.experiments.batches import Batches

Method = Callable[[Any], optax.GradientTransformation]
_CHUNKS = 20  # calls of the compiled program: how often the progress bar moves


class Sweep(NamedTuple):
    """What is run: everything but the learning rates and seeds."""

    loss_fn: Callable
    make_params: Callable[[jax.Array], Any]
    batches: Batches
    method: Method
    num_workers: int
    metrics: Mapping[str, Callable[[Any], Any]]
    axis_name: str


def run_sweep(
    sweep: Sweep,
    learning_rates: np.ndarray,
    seeds: np.ndarray,
    points: np.ndarray,
    on_steps: Callable[[int], Any],
) -> dict[str, np.ndarray]:
    """Runs to the last of `points` and returns each metric: [learning rate, seed, point, ...]."""
    rates, arrays = jnp.asarray(learning_rates, jnp.float32), sweep.batches.arrays
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    specs = _specs(sweep, learning_rates[0], keys[0])
    options = _compiler_options()
    start = jax.jit(partial(_start, sweep, specs), compiler_options=options)
    advance = jax.jit(partial(_advance, sweep, specs), donate_argnums=0, compiler_options=options)
    carry, rows = start(rates, keys), []
    for windows in _chunks(points):
        carry, row = advance(carry, arrays, rates, keys, windows)
        rows.append(jax.device_get(row))
        on_steps(int(windows[-1, 1] - windows[0, 0]))
    stacked = jax.tree.map(lambda *x: np.concatenate(x)[: len(points)], *rows)
    return {name: np.moveaxis(x, [0, 1, 2], [2, 1, 0]) for name, x in stacked.items()}


def _compiler_options() -> dict[str, Any]:
    """LLVM's level 1 compiles a step in 0.7 s instead of 1.8 s and runs it as fast (on a CPU)."""
    is_chosen = jax.config.read("jax_disable_most_optimizations")
    is_cpu = jax.default_backend() == "cpu"
    return {"xla_backend_optimization_level": 1} if is_cpu and not is_chosen else {}


def _chunks(points: np.ndarray) -> list[np.ndarray]:
    """Windows (start, stop) up to each point, in chunks of one size; the last has empty ones."""
    windows = np.stack([[0, *points[:-1]], points], axis=1).astype(np.int32)
    size = -(-len(windows) // _CHUNKS)
    padding = -len(windows) % size
    windows = np.concatenate([windows, np.full((padding, 2), points[-1], np.int32)])
    return list(windows.reshape(-1, size, 2))


def _specs(sweep: Sweep, learning_rate: float, key: jax.Array) -> Any:
    """Which leaves of the optimizer's state are each worker's own: found once, on real numbers."""
    params = jax.eval_shape(sweep.make_params, key)
    mesh = jax.sharding.AbstractMesh(
        (sweep.num_workers,), (sweep.axis_name,), axis_types=(jax.sharding.AxisType.Auto,)
    )
    return signax.state_specs(sweep.method(float(learning_rate)), params, mesh)


def _start(sweep: Sweep, specs: Any, rates: jax.Array, keys: jax.Array) -> Any:
    def one_run(key, rate):
        params = sweep.make_params(_params_key(key))
        tx = sweep.method(rate)
        state = signax.init_train_state(
            params, tx, sweep.num_workers, state_specs=specs, axis_name=sweep.axis_name
        )
        return state._replace(opt_state=_fold_into_keys(state.opt_state, key))

    states = jax.vmap(lambda key: jax.vmap(lambda rate: one_run(key, rate))(rates))(keys)
    return states, jax.vmap(sweep.batches.init)(keys)


def _advance(sweep, specs, carry, arrays, rates, keys, windows):
    def one_run(rate, state, batch):
        step = signax.simulate_train_step(
            sweep.loss_fn,
            sweep.method(rate),
            sweep.num_workers,
            axis_name=sweep.axis_name,
            state_specs=specs,
        )
        state, metrics = step(state, batch)
        return state, metrics["loss"]

    def one_seed(states, memory, key, step):
        batch, memory = sweep.batches.take(arrays, memory, _data_key(key), step)
        states, loss = jax.vmap(one_run, (0, 0, None))(rates, states, batch)
        return states, memory, loss

    def one_step(step, carry):
        states, memory, total = carry
        states, memory, loss = jax.vmap(one_seed, (0, 0, 0, None))(states, memory, keys, step)
        return states, memory, total + loss

    def one_window(carry, window):
        start, stop = window
        total = jnp.zeros((len(keys), len(rates)))
        states, memory, total = jax.lax.fori_loop(start, stop, one_step, (*carry, total))
        return (states, memory), _measure(sweep, states.params, total / (stop - start))

    return jax.lax.scan(one_window, carry, windows)


def _params_key(key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 0)


def _data_key(key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 1)


def _measure(sweep: Sweep, params: Any, loss: jax.Array) -> dict[str, jax.Array]:
    measure = lambda params: {name: fn(params) for name, fn in sweep.metrics.items()}  # noqa: E731
    return {"loss": loss} | jax.vmap(jax.vmap(measure))(params)


def _fold_into_keys(opt_state: Any, seed_key: jax.Array) -> Any:
    """Coins of its own for each seed: folds the seed into every key that the state holds."""
    seed = jax.random.key_data(seed_key)[-1]

    def fold(path, leaf):
        if not str(getattr(path[-1], "name", "") if path else "").endswith("key"):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(leaf, seed)
        return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(leaf), seed))

    return jax.tree_util.tree_map_with_path(fold, opt_state)
