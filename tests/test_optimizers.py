"""Optax's own contract, for every named algorithm: one table, every generic property over it."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import reference
import signax
from daily import daily
from named_algorithms import (
    KINDS,
    LINF,
    NUM_WORKERS,
    OPTIMIZERS,
    abstract,
    every,
    every_kind,
    gradients,
    init_on_workers,
    one_worker,
    params,
)
from workers import WORKERS, map_workers, worker_mesh


@every
def test_init_takes_abstract_parameters_and_gives_the_same_state(name: str):
    tx = OPTIMIZERS[name].make(0.1, axis_name=WORKERS)
    init = functools.partial(init_on_workers, tx) if OPTIMIZERS[name].init_needs_axis else tx.init
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params())
    state = jax.eval_shape(init, shapes)
    concrete = init(params())
    assert jax.tree.structure(state) == jax.tree.structure(concrete)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, concrete)


# Under pmap, one row for each way to the network and back: a count of votes, one of drawn signs, a
# sum of scaled signs with memory on the servers, a dense mean.
WITH_PMAP = ("sign_sgd", "ssdm", "double_squeeze", "dense_sgd")
BOUND = [(name, "shard_map") for name in OPTIMIZERS] + [(name, "pmap") for name in WITH_PMAP]


@pytest.mark.parametrize(("name", "mapping"), daily(BOUND, [(name, "shard_map") for name in KINDS]))
def test_update_keeps_types_and_replicas(name: str, mapping: str):
    """Bound to an axis, as under vmap, with extra arguments."""
    tx = OPTIMIZERS[name].make(0.1, axis_name=WORKERS)
    start = init_on_workers(tx, params())
    p = jax.tree.map(lambda x: jnp.stack([x] * NUM_WORKERS), params())
    results = {}
    for way in ("vmap", mapping):
        fn = map_workers(
            way, lambda g, s, p: tx.update(g, s, p, value=1.0, unknown=None), NUM_WORKERS
        )
        state, before = start, abstract(start)
        for step in range(2):
            updates, state = fn(gradients(NUM_WORKERS, step), state, p)
            assert abstract(state) == before, way
            assert abstract(updates) == abstract(p), way
            for leaf in jax.tree.leaves(updates):  # replicas
                np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
        results[way] = updates
    for a, b in zip(*map(jax.tree.leaves, results.values()), strict=True):
        if OPTIMIZERS[name].sums_floats:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        elif name != "ssdm of the paper":  # its l2 norm may differ in the last bit
            np.testing.assert_array_equal(a, b)


@every_kind
def test_a_jitted_step_is_traced_once(name: str):
    tx = OPTIMIZERS[name].make(0.1)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    p, state = params(), tx.init(params())
    before = abstract(state)
    for k in range(3):
        p, state = step(p, state, one_worker(gradients(1, k)))
    assert abstract(state) == before
    counts = [int(count) for _, count in optax.tree.get_all_with_path(state, "count")]
    assert all(0 < count <= 3 for count in counts)  # one_bit_adam has a part for its first steps
    chex.clear_trace_counter()


@every_kind
@pytest.mark.parametrize("dtype", daily([jnp.bfloat16, jnp.float32], [jnp.bfloat16]))
def test_updates_keep_the_dtype_of_the_gradients(name: str, dtype: Any):
    tx = OPTIMIZERS[name].make(0.5)
    p, g = params(dtype), one_worker(gradients(1, 0, dtype))
    updates, state = jax.jit(tx.update)(g, tx.init(p), p)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, p)
    assert abstract(state) == abstract(tx.init(p))
    if OPTIMIZERS[name].is_ternary:
        for leaf in jax.tree.leaves(updates):
            assert set(np.unique(np.asarray(leaf, np.float32))) <= {-0.5, 0.0, 0.5}


@every_kind
def test_hyperparameters_may_be_injected_and_scheduled(name: str):
    row = OPTIMIZERS[name]
    fixed = {
        "learning_rate": 0.5,
        "beta": 0.5,
        "b1": 0.5,
        "b2": 0.75,
        "noise_scale": 0.5,
        "alpha": 0.5,
        "momentum": 0.5,
        "key": 3,
    }
    chosen = {h: fixed[h] for h in row.hyperparams}
    schedules = chosen | {"learning_rate": optax.constant_schedule(0.5)}

    def make(**hyperparams):
        return row.make(hyperparams.pop("learning_rate"), **hyperparams)

    plain = make(**chosen)
    # inject_hyperparams reads the signature: give it one with exactly these parameters
    code = f"lambda {', '.join(chosen)}: make({', '.join(f'{h}={h}' for h in chosen)})"
    injected = optax.inject_hyperparams(eval(code, {"make": make}))(**schedules)
    p, g = params(), [one_worker(gradients(1, k)) for k in range(3)]
    states = plain.init(p), injected.init(p)
    before = abstract(states[1])
    update = jax.jit(plain.update), jax.jit(chex.assert_max_traces(injected.update, n=1))
    for k in range(3):
        (a, s0), (b, s1) = (f(g[k], s, p) for f, s in zip(update, states, strict=True))
        states = s0, s1
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert abstract(states[1]) == before
    chex.clear_trace_counter()


def test_an_injected_key_changes_the_draws():
    g = jnp.append(jnp.full(500, 0.1), 1.0)

    def first_update(key):
        tx = optax.inject_hyperparams(signax.ssdm, static_args=("scale",))(0.1, key=key, scale=LINF)
        return np.asarray(jax.jit(lambda g: tx.update(g, tx.init(g), g)[0])(g))

    np.testing.assert_array_equal(first_update(1), first_update(jnp.int32(1)))
    assert not np.array_equal(first_update(1), first_update(2))


@pytest.mark.parametrize("is_injected", [False, True])
def test_a_schedule_of_the_learning_rate_is_followed(is_injected: bool):
    schedule = optax.piecewise_constant_schedule(1.0, {2: 0.5})
    make = optax.inject_hyperparams(signax.sign_sgd) if is_injected else signax.sign_sgd
    tx, g = make(schedule), jnp.ones(1)
    state, seen = tx.init(g), []
    for _ in range(4):
        update, state = tx.update(g, state, g)  # injected, weight_decay=0 may be traced: params
        seen.append(float(update[0]))
    assert seen == [-1.0, -1.0, -0.5, -0.5]


@every_kind
def test_leaves_of_every_kind_pass(name: str):
    tx = OPTIMIZERS[name].make(0.1)
    tree = {
        "none": None,
        "masked": optax.MaskedNode(),
        "empty dict": {},
        "empty": jnp.zeros((0,)),
        "no rows": jnp.zeros((3, 0, 2)),
        "scalar": jnp.ones(()),
        "vector": [jnp.ones(3), (jnp.ones((1, 1)),)],
    }
    updates, state = jax.jit(tx.update)(tree, tx.init(tree))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, tree)
    assert abstract(state) == abstract(tx.init(tree))


@every_kind
def test_python_floats_and_weak_types_pass(name: str):
    tx = OPTIMIZERS[name].make(0.25)
    tree = {"a": 2.0, "b": jnp.asarray(-3.0)}  # both weakly typed
    state = tx.init(tree)
    for _ in range(2):
        updates, state = tx.update(tree, state)
    assert float(updates["a"]) < 0 < float(updates["b"])


@pytest.mark.parametrize("name", [n for n, row in OPTIMIZERS.items() if row.equals])
@pytest.mark.parametrize("axis_name", [None, WORKERS])
def test_one_worker_equals_optax_exactly(name: str, axis_name: str | None):
    row = OPTIMIZERS[name]
    ours, theirs = row.make(0.1, axis_name=axis_name), row.equals(0.1)
    update = ours.update
    if axis_name:
        update = jax.vmap(update, in_axes=0, axis_name=axis_name)
    add = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[None], tree)  # noqa: E731
    update, expected_update = jax.jit(update), jax.jit(theirs.update)
    p = params()
    state, expected_state = ours.init(p), theirs.init(p)
    state = add(state) if axis_name else state
    for step in range(10):  # fresh random gradients at every step, some of them zero
        g = one_worker(gradients(1, step))
        g["kernel"] = g["kernel"].at[step % 3, 0].set(0.0)
        expected, expected_state = expected_update(g, expected_state)
        updates, state = update(add(g), state) if axis_name else update(g, state)
        updates = one_worker(updates) if axis_name else updates
        jax.tree.map(np.testing.assert_array_equal, updates, expected)


@every_kind
def test_weight_decay_is_decoupled_and_masked(name: str):
    make = OPTIMIZERS[name].make
    p, g = params(), one_worker(gradients(1))
    by_tree = {"kernel": True, "bias": False}
    by_function = lambda p: jax.tree.map(jnp.ndim, p)  # noqa: E731
    txs = [make(0.5), *(make(0.5, weight_decay=0.25, mask=m) for m in (by_tree, by_function))]
    plain, *decayed = jax.jit(lambda g, p: [tx.update(g, tx.init(p), p)[0] for tx in txs])(g, p)
    for updates in decayed:
        # -lr (u + wd p) = -lr u - 0.5 0.25 1
        np.testing.assert_allclose(updates["kernel"], plain["kernel"] - 0.125, rtol=1e-6)
        np.testing.assert_array_equal(updates["bias"], plain["bias"])


@pytest.mark.parametrize(
    "name", daily((n for n, row in OPTIMIZERS.items() if row.takes_accumulator), KINDS)
)
def test_the_accumulator_dtype_is_that_of_the_memory_alone(name: str):
    tx = OPTIMIZERS[name].make(0.1, accumulator_dtype=jnp.float32)
    p, g = params(jnp.bfloat16), one_worker(gradients(1, 0, jnp.bfloat16))
    state = tx.init(p)
    memory = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(memory) == OPTIMIZERS[name].num_memories
    assert all(x.dtype == jnp.float32 for x in memory)
    updates, new = jax.jit(tx.update)(g, state, p)
    assert abstract(new) == abstract(state)
    # As in Optax's own signum and sgd, the update has the accumulator's dtype, not the gradient's,
    # where the memory is Optax's; apply_updates gives the parameters theirs back.
    chex.assert_trees_all_equal_shapes_and_dtypes(optax.apply_updates(p, updates), p)


@every_kind
def test_clipping_before_the_link_composes(name: str):
    """Under shard_map, which alone would refuse a clipped gradient typed as replicated."""
    tx = optax.chain(optax.clip_by_global_norm(0.1), OPTIMIZERS[name].make(1.0, axis_name=WORKERS))
    out = map_workers("shard_map", lambda g: tx.update(g, tx.init(g))[0], 2)(gradients(2))
    for leaf in jax.tree.leaves(out):
        assert np.isfinite(leaf).all()
        np.testing.assert_array_equal(leaf[0], leaf[1])


@every_kind
def test_it_converges_on_a_quadratic_with_noise(name: str):
    """Three workers, f_n = |x - c_n|^2 / 2 with c_n around one optimum, noisy gradients."""
    row = OPTIMIZERS[name]
    tx = row.make(row.learning_rate, axis_name=WORKERS)
    optimum = jnp.array([1.0, -0.5, 0.25, 0.0])

    def worker(key):
        def step(carry, key):
            x, state = carry
            g = x - optimum + 0.1 * jax.random.normal(key, x.shape)
            updates, state = tx.update(g, state, x)
            return (optax.apply_updates(x, updates), state), None

        start = jnp.zeros(4)
        (x, _), _ = jax.lax.scan(step, (start, tx.init(start)), jax.random.split(key, 400))
        return x

    keys = jax.random.split(jax.random.key(0), NUM_WORKERS)
    x = jax.jit(jax.vmap(worker, axis_name=WORKERS))(keys)
    np.testing.assert_array_equal(x[0], x[1])
    assert float(jnp.max(jnp.abs(x[0] - optimum))) < row.tolerance


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5, 8])
def test_signum_and_sign_sgd_take_the_steps_of_the_reference(num_workers: int):
    """With NaN workers, ties and zeros, over ten steps; powers of two make every step exact."""
    size, gamma, beta = 9, 0.25, 0.5
    rng = np.random.default_rng(num_workers)
    rows = rng.integers(-2, 3, (10, num_workers, size)).astype(np.float32)
    rows[4, 0, 3] = np.nan
    rows[7, :, 1] = np.inf
    txs = {
        "sign_sgd": signax.sign_sgd(gamma, axis_name=WORKERS, wire="float32"),
        "signum": signax.signum(gamma, beta, axis_name=WORKERS, wire="float32"),
    }

    def worker(rows):
        out = {}
        for name, tx in txs.items():

            def step(carry, g, tx=tx):
                x, state = carry
                updates, state = tx.update(g, state)
                x = optax.apply_updates(x, updates)
                return (x, state), x

            x = jnp.zeros(size)
            out[name] = jax.lax.scan(step, (x, tx.init(x)), rows)[1]
        return out

    out = jax.jit(jax.vmap(worker, 1, axis_name=WORKERS))(jnp.asarray(rows))
    x, y, momenta = np.zeros(size), np.zeros(size), [None] * num_workers
    for k in range(len(rows)):
        x = reference.majority_vote_step(x, rows[k], gamma)
        y, momenta = reference.signum_step(y, momenta, rows[k], gamma, beta)
        np.testing.assert_array_equal(out["sign_sgd"][:, k], np.tile(x, (num_workers, 1)))
        np.testing.assert_array_equal(out["signum"][:, k], np.tile(y, (num_workers, 1)))


@every_kind
@pytest.mark.parametrize(
    "tree", [{"w": jnp.ones((3, 2)), "e": jnp.zeros((0, 3))}, {"e": np.ones(0)}]
)
def test_leaves_without_coordinates_take_part_in_a_step(name: str, tree: dict[str, Any]):
    tx, mesh = OPTIMIZERS[name].make(0.1, axis_name=WORKERS), worker_mesh(2)
    state = signax.init_train_state(tree, tx, mesh)
    step = signax.make_train_step(lambda p, b: sum(jnp.sum(x * b[0]) for x in p.values()), tx, mesh)
    new, _ = jax.eval_shape(step, state, jnp.ones(2))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)


@every_kind
def test_a_state_whose_rows_were_not_taken_apart_is_refused(name: str):
    """In one's own `jax.shard_map`, without `to_worker`: it would be broadcast, silently."""
    tx, mesh = OPTIMIZERS[name].make(0.1, axis_name=WORKERS), worker_mesh(2)
    p = {"w": jnp.ones((6, 3))}
    specs = signax.state_specs(tx, p, mesh)
    if not any(jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))):
        pytest.skip("no worker has anything of its own")
    mapped = jax.shard_map(
        lambda p, state: tx.update(signax.as_varying(p, WORKERS), state, p),
        mesh=mesh,
        in_specs=(P(), specs),
        out_specs=(P(), specs),
    )
    state = signax.init_opt_state(tx, p, mesh)
    as_users_have_it = jax.numpy_rank_promotion("allow")
    with as_users_have_it, pytest.raises(ValueError, match=r"signax\.to_worker"):
        jax.eval_shape(mapped, p, state)


@every_kind
@pytest.mark.usefixtures("strict_dtypes")
def test_16_bits_need_no_implicit_promotion(name: str):
    tx = OPTIMIZERS[name].make(0.1, axis_name=WORKERS)
    p = {"a": jnp.ones((6, 3), jnp.bfloat16), "b": jnp.ones(5, jnp.float16)}

    def step(p, g):
        return tx.update(g, tx.init(p), p)[0]

    update = jax.vmap(step, (None, 0), axis_name=WORKERS)
    jax.eval_shape(update, p, jax.tree.map(lambda x: jnp.stack([x, x]), p))
