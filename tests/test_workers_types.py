"""Axes, worker indices, and the trap: gradients that `shard_map` has already summed."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import named_algorithms
import signax
from signax import _workers
from workers import WORKERS, Mapped, worker_mesh

M = 8

# Every network link. Whoever adds one adds it here.
NETWORK_LINKS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "majority_vote": signax.majority_vote,
    "average_signs": signax.average_signs,
    "average_gradients": signax.average_gradients,
    "average_scaled_signs": signax.average_scaled_signs,
}
links = pytest.mark.parametrize("link", NETWORK_LINKS)


def trace_on_mesh(fn: Callable, *args, mesh=None) -> jax.Array:
    """Traces `fn` under `shard_map` with replicated arguments; the trap is a trace-time error."""
    replicated = PartitionSpec()
    mesh = worker_mesh(M) if mesh is None else mesh
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=replicated, out_specs=replicated)
    return jax.eval_shape(mapped, *args)


def params() -> dict[str, jax.Array]:
    return {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}


def loss(params: dict[str, jax.Array]) -> jax.Array:
    """Differs between workers, as a batch would make it differ."""
    index = jax.lax.axis_index(WORKERS).astype(jnp.float32)
    return sum(jnp.sum(jnp.sin(p * index)) for p in jax.tree.leaves(params))


def update(link: str, grads: dict[str, jax.Array]) -> dict[str, jax.Array]:
    tx = NETWORK_LINKS[link](WORKERS)
    return tx.update(grads, tx.init(grads))[0]


@links
def test_gradients_at_replicated_parameters_are_refused_with_the_line_to_write(link: str):
    with pytest.raises(ValueError, match="already summed") as error:
        trace_on_mesh(lambda p: update(link, jax.grad(loss)(p)), params())
    for part in (f"signax.{link}", "['bias']", "signax.as_varying(params, 'workers')"):
        assert part in str(error.value)


@links
def test_gradients_at_varying_parameters_are_accepted(link: str):
    fn = lambda p: update(link, jax.grad(loss)(signax.as_varying(p, WORKERS)))  # noqa: E731
    assert jax.tree.map(jnp.shape, trace_on_mesh(fn, params())) == jax.tree.map(jnp.shape, params())


@links
def test_one_summed_leaf_among_local_ones_is_refused_by_its_path(link: str):
    def fn(p):
        local = jax.grad(loss)(signax.as_varying(p, WORKERS))
        return update(link, local | {"kernel": jax.grad(loss)(p)["kernel"]})

    with pytest.raises(ValueError, match=re.escape("leaf ['kernel']")):
        trace_on_mesh(fn, params())


@links
@pytest.mark.parametrize("collective", [jax.lax.psum, jax.lax.pmean])
def test_a_gradient_summed_by_hand_is_refused(link: str, collective: Callable):
    def fn(p):
        return update(link, collective(jax.grad(loss)(signax.as_varying(p, WORKERS)), WORKERS))

    with pytest.raises(ValueError, match="do not psum or pmean the gradient"):
        trace_on_mesh(fn, params())


@links
@pytest.mark.parametrize("reduced", ["hosts", "devices"])
def test_a_gradient_summed_over_one_axis_of_two_is_refused(link: str, reduced: str):
    tx = NETWORK_LINKS[link](("hosts", "devices"))

    def fn(p):
        local = jax.lax.psum(signax.as_varying(p, ("hosts", "devices")), reduced)
        return tx.update(local, tx.init(p))[0]

    with pytest.raises(ValueError, match="already summed"):
        trace_on_mesh(fn, params(), mesh=two_level_mesh())


@links
def test_an_unbound_axis_is_named_with_the_mappings_that_would_bind_it(link: str):
    with pytest.raises(ValueError, match=f"signax.{link}: no axis named 'workers' is bound") as e:
        update(link, params())
    assert "jax.shard_map" in str(e.value)
    assert "axis_name=None" in str(e.value)


@links
@pytest.mark.parametrize("axis", ["worker", ("workers", "hosts")])
def test_a_misspelt_axis_is_refused_under_every_mapping(mapped: Mapped, link: str, axis):
    tx = NETWORK_LINKS[link](axis)
    with pytest.raises(ValueError, match=r"no axis named '(worker|hosts)' is bound"):
        mapped(lambda g: tx.update(g, tx.init(g))[0], jnp.ones((2, 3)))


@pytest.mark.parametrize("axis", ["worker", ("workers", "hosts")])
def test_every_link_that_knows_the_axis_refuses_a_misspelt_one(axis):
    sign = signax.scale_by_stochastic_sign(0, axis_name=axis)
    with pytest.raises(ValueError, match="scale_by_stochastic_sign: no axis named"):
        jax.vmap(lambda g: sign.update(g, sign.init(g))[0], axis_name=WORKERS)(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="as_varying: no axis named"):
        jax.vmap(lambda g: signax.as_varying(g, axis), axis_name=WORKERS)(jnp.ones((2, 3)))


NOT_REAL = {
    "int32": jnp.ones(3, jnp.int32),
    "uint8": jnp.ones(3, jnp.uint8),
    "complex64": jnp.ones(3, jnp.complex64),
    "bool": jnp.ones(3, bool),
    "key<fry>": jax.random.split(jax.random.key(0), 3),
    "[('float0', 'V')]": np.zeros(3, jax.dtypes.float0),
}
ALL_LINKS = {
    **{name: make(None) for name, make in NETWORK_LINKS.items()},
    "scale_by_stochastic_sign": signax.scale_by_stochastic_sign(0, axis_name=None),
}


@pytest.mark.parametrize("link", ALL_LINKS)
@pytest.mark.parametrize("dtype", NOT_REAL)
def test_leaves_without_a_sign_are_a_type_error_that_names_the_path(link: str, dtype: str):
    tx = ALL_LINKS[link]
    updates = {"fine": jnp.ones(2), "inner": [NOT_REAL[dtype]]}
    with pytest.raises(TypeError, match=re.escape(f"{link}: the update at ['inner'][0]")) as error:
        tx.update(updates, tx.init(updates))
    assert dtype in str(error.value)


def test_as_varying_changes_no_value_and_marks_only_what_is_missing(mapped: Mapped):
    def fn(x):
        tree = {"local": x, "same": jnp.ones(2), "count": jnp.int32(3), "none": None}
        marked = signax.as_varying(tree, WORKERS)
        assert set(_workers.tracked_axes(WORKERS)) == set(_workers.varying_axes(marked["same"]))
        return marked

    out = mapped(fn, jnp.arange(3.0))
    np.testing.assert_array_equal(out["local"], np.arange(3.0))
    np.testing.assert_array_equal(out["same"], np.ones((3, 2)))
    assert out["count"].dtype == jnp.int32


def test_as_varying_keeps_the_gradient_local(mapped: Mapped):
    x = jnp.full(3, 0.5)

    def fn(target):
        loss = lambda x: jnp.sum((x - target) ** 2) / 2  # noqa: E731
        value, gradient = signax.local_value_and_grad(loss, WORKERS)(x)
        return value, gradient, jax.grad(loss)(signax.as_varying(x, WORKERS))

    targets = jnp.arange(12.0).reshape(4, 3)
    value, gradient, by_hand = mapped(fn, targets)
    np.testing.assert_allclose(value, np.sum((0.5 - np.asarray(targets)) ** 2, 1) / 2)
    np.testing.assert_array_equal(gradient, 0.5 - np.asarray(targets))
    np.testing.assert_array_equal(by_hand, gradient)


def test_a_parameter_that_the_loss_does_not_use_may_vote():
    tx = signax.majority_vote(WORKERS)

    def fn(p):
        value_and_grad = signax.local_value_and_grad(lambda p: jnp.sum(p["used"]), WORKERS)
        return tx.update(value_and_grad(p)[1], tx.init(p))[0]

    trace_on_mesh(fn, {"used": jnp.ones(2), "unused": jnp.ones(3)})


def test_workers_on_a_tuple_of_axes_are_numbered_row_major():
    axes = ("hosts", "devices")

    def fn(x):
        del x
        return _workers.worker_index(axes), jnp.int32(_workers.num_workers(axes))

    on_mesh = jax.shard_map(
        lambda x: jax.tree.map(lambda v: signax.as_varying(v, axes)[None], fn(x)),
        mesh=two_level_mesh(),
        in_specs=PartitionSpec(axes),
        out_specs=PartitionSpec(axes),
    )
    nested = jax.vmap(jax.vmap(fn, axis_name="devices"), axis_name="hosts")
    for index, size in (on_mesh(jnp.zeros(8)), nested(jnp.zeros((2, 4)))):
        np.testing.assert_array_equal(index.reshape(-1), np.arange(8))
        np.testing.assert_array_equal(size.reshape(-1), np.full(8, 8))


def two_level_mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("hosts", "devices"), (AxisType.Auto, AxisType.Auto))


# Chains whose memory or coins make a summed gradient vary again before the network link sees it.
HIDING = {
    "front page": lambda: optax.chain(
        signax.ema_from_first_gradient(0.9),
        signax.scale_by_stochastic_sign(0, axis_name=WORKERS),
        signax.average_signs(WORKERS),
    ),
    "stochastic": lambda: optax.chain(
        signax.scale_by_stochastic_sign(0, axis_name=WORKERS), signax.average_signs(WORKERS)
    ),
    "scaled": lambda: optax.chain(
        signax.scale_by_scaled_sign(axis_name=WORKERS), signax.average_scaled_signs(WORKERS)
    ),
    "feedback": lambda: optax.chain(
        signax.error_feedback(signax.scale_by_scaled_sign(axis_name=WORKERS)),
        signax.average_scaled_signs(WORKERS),
    ),
    "compressed mean": lambda: optax.chain(signax.compressed_mean(WORKERS), optax.adam(0.1)),
} | {
    name: functools.partial(named_algorithms.OPTIMIZERS[name].make, 0.1, axis_name=WORKERS)
    for name in ("signum", "ssdm", "noisy_sign_sgd", "distributed_lion", "ef21", "one_bit_sgd")
}


@pytest.mark.parametrize("name", HIDING)
def test_summed_gradients_are_refused_where_every_worker_has_a_state_of_its_own(name: str):
    """In the layout of `init_opt_state`, as in a loop of one's own: momenta vary already."""
    tx, mesh = HIDING[name](), worker_mesh(2)
    specs = signax.state_specs(tx, params(), mesh)

    def step(p, state, differentiate_at):
        grads = jax.grad(loss)(differentiate_at(p))
        updates, state = tx.update(grads, signax.to_worker(state, specs), p)
        return updates, signax.from_worker(state, specs)

    state = jax.eval_shape(lambda p: signax.init_opt_state(tx, p, mesh), params())
    for is_summed in (False, True):
        at = (lambda p: p) if is_summed else (lambda p: signax.as_varying(p, WORKERS))
        mapped_step = jax.shard_map(
            functools.partial(step, differentiate_at=at),
            mesh=mesh, in_specs=(jax.P(), specs), out_specs=(jax.P(), specs),
        )  # fmt: skip
        if is_summed:
            with pytest.raises(ValueError, match=r"already summed.*signax\.as_varying\(params"):
                jax.eval_shape(mapped_step, params(), state)
        else:
            jax.eval_shape(mapped_step, params(), state)
