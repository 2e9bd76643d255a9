"""What Optax's own tests ask of every optimizer, asked of ours: alone and bound to an axis.

The checks of Optax's `alias_test`, `contrib/_common_test` and `sharding_test`, written anew against
the public API. Those that test_optimizers.py makes are not repeated: abstract `init`, one trace,
convergence on the workers' axis, injected hyperparameters of one worker, the accumulator's dtype.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import signax
from named_algorithms import OPTIMIZERS, every, every_kind
from workers import WORKERS, map_workers, worker_mesh

M = 2
bound = pytest.mark.parametrize("axis_name", [None, WORKERS], ids=["alone", "bound"])
PARABOLA = np.array([-1.0, 10.0, 1.0]), np.array([1.0, -1.0, 1.0])  # start and optimum


def types(axis_name: str | None, fn: Callable, *args: Any) -> Any:
    """The shapes and dtypes that `fn` returns on one worker, traced and not compiled."""
    if axis_name is None:
        return abstract(jax.eval_shape(fn, *args))
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((M, *x.shape), x.dtype), args)
    out = jax.eval_shape(jax.vmap(fn, axis_name=WORKERS), *rows)
    return abstract(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), out))


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def make(name: str, learning_rate: Any, axis_name: str | None, **kwargs: Any):
    return OPTIMIZERS[name].make(learning_rate, axis_name=axis_name, **kwargs)


def gradient(x: jax.Array) -> jax.Array:
    return 2 * (x - PARABOLA[1].astype(x.dtype))


# alias_test, _common_test


@every_kind
def test_one_worker_finds_the_minimum_of_the_parabola(name: str):
    """From Optax's start, eleven away, with a learning rate that falls to zero."""
    tx = make(name, optax.linear_schedule(0.1, 0.0, 2000), None)

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(gradient(x), state, x)
        return (optax.apply_updates(x, updates), state), None

    start = jnp.asarray(PARABOLA[0], jnp.float32)
    run = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), length=2000)[0][0])
    # Optax's own tolerance. Where R stays at the first gradient's 22, a coordinate still moves with
    # variance gamma R / 4 when the last time constant R / 2 gamma begins, at gamma = 0.033: 0.43^2.
    tolerance = 4 * 0.43 if "running" in name else 0.03
    np.testing.assert_allclose(run(start), PARABOLA[1], rtol=0.03, atol=tolerance)


@every
def test_the_state_can_be_mapped_like_the_parameters(name: str):
    tx = make(name, 0.1, None)
    p = {"a": jnp.ones(3), "b": jnp.ones(())}
    state = tx.init(p)
    same = optax.tree.map_params(tx, lambda x: x, state)
    assert jax.tree.structure(same) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, same, state)


@every
@bound
def test_update_takes_extra_arguments_that_it_does_not_know(name: str, axis_name: str | None):
    tx = make(name, 0.1, axis_name)  # as it is: without `optax.with_extra_args_support`

    def step(x):
        return tx.update(gradient(x), tx.init(x), x, an_argument_that_nobody_expects=1)[0]

    assert types(axis_name, step, jnp.ones(3)) == ((3,), jnp.float32)


@every_kind
def test_injected_hyperparameters_on_an_axis_give_the_same_update_and_state(name: str):
    plain = make(name, 0.5, WORKERS)
    injected = optax.inject_hyperparams(lambda learning_rate: make(name, learning_rate, WORKERS))(
        learning_rate=0.5
    )

    def both(x):
        return [tx.update(gradient(x), tx.init(x), x) for tx in (plain, injected)]

    rows = jnp.stack([jnp.arange(3.0)] * M)
    (expected, state), (updates, injected_state) = map_workers("vmap", both, M)(rows)
    np.testing.assert_array_equal(updates, expected)
    jax.tree.map(np.testing.assert_array_equal, injected_state.inner_state, state)


@every_kind
@bound
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_step_keeps_dtypes_through_a_cond(name: str, dtype: str, axis_name: str | None):
    """Both branches of a `cond` must have one type: any drift of a dtype is an error."""
    with jax.enable_x64(dtype == "float64"):
        tx = make(name, 0.5, axis_name)
        value = jnp.asarray(1.0, jnp.float16)  # another dtype, on purpose

        def step(x):
            state = tx.init(x)
            updates, state = jax.lax.cond(
                jnp.sum(jnp.ones(3)) > 0,
                lambda: tx.update(gradient(x), state, x, value=value),
                lambda: (x, state),
            )
            return optax.apply_updates(x, updates), updates

        x = jnp.asarray(PARABOLA[0], dtype)
        assert types(axis_name, step, x) == abstract((x, x))


@every_kind
def test_accumulation_by_optax_waits_for_its_last_micro_batch(name: str):
    """Alone. Around a link `MultiSteps` hides a branch: `make_train_step(accumulate_steps=k)`."""
    tx = optax.MultiSteps(make(name, 0.5, None), 2)
    x = jnp.array([1.0, 2.0], jnp.bfloat16)
    update, state = jax.jit(tx.update), tx.init(x)
    first, state = update(x, state, x)
    assert first.dtype == x.dtype
    np.testing.assert_array_equal(first, jnp.zeros_like(x))
    second, state = update(x, state, x)
    assert np.asarray(second, np.float32).any()


# sharding_test


def cut_parameters() -> jax.Array:
    """Parameters of one worker, cut over a mesh in Explicit mode, where JAX types shardings."""
    sharding = NamedSharding(jax.sharding.get_mesh(), jax.P(None, "x"))
    return jnp.ones((2, 8, 4), jnp.float16, out_sharding=sharding)


def layout(tree: Any) -> Any:
    typed = jax.tree.map(jax.typeof, tree)
    return jax.tree.map(lambda t: (t.shape, t.dtype, t.weak_type, t.sharding.spec), typed)


@every
def test_the_state_of_sharded_parameters_keeps_its_sharding_type(name: str):
    tx = make(name, 0.5, None)
    with jax.set_mesh(jax.make_mesh((8,), ("x",), (AxisType.Explicit,))):
        x = cut_parameters()

        def types(x):
            state = tx.init(x)
            updates, new = tx.update(x, state, x)
            assert layout(updates) == layout(x)
            assert layout(new) == layout(state)

        jax.make_jaxpr(types)(x)


@pytest.mark.parametrize("name", ["sign_sgd coins", "ssdm"])
def test_sharded_parameters_take_the_same_step(name: str):
    tx = make(name, 0.5, None)
    whole = jnp.ones((2, 8, 4), jnp.float16)
    expected, _ = jax.jit(tx.update)(whole, tx.init(whole), whole)
    with jax.set_mesh(jax.make_mesh((8,), ("x",), (AxisType.Explicit,))):
        x = cut_parameters()
        state = jax.jit(tx.init)(x)
        updates, new = jax.jit(tx.update)(x, state, x)
        assert jax.typeof(updates) == jax.typeof(x)
        assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
    np.testing.assert_array_equal(updates, expected)


# One row for memory on the workers, one for slices on the servers. The others have these layouts
# too, and take a minute to compile.
KINDS = ("signum", "double_squeeze")


@pytest.mark.parametrize(
    "name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS]
)
def test_the_state_on_a_mesh_of_workers_keeps_its_shardings(name: str):
    tx = make(name, 0.5, WORKERS)
    mesh = worker_mesh(M)
    step = signax.make_train_step(lambda x, batch: jnp.sum((x[None] - batch) ** 2), tx, mesh)
    state = signax.init_train_state(jnp.zeros(3), tx, mesh)
    before = jax.tree.map(lambda x: (x.sharding, x.shape, x.dtype), state)
    after = jax.tree.map(lambda x: (x.sharding, x.shape, x.dtype), step(state, jnp.ones((M, 3)))[0])
    assert after == before
