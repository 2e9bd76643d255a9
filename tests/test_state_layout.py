"""Which leaves of an optimizer's state are each worker's own, and how they are laid out."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import signax
from signax import _specs
from workers import WORKERS

OWN, SAME = PartitionSpec(WORKERS), PartitionSpec()
M = 8


def params() -> dict[str, jax.Array]:
    return {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}


def vote(**kwargs: Any) -> optax.GradientTransformation:
    return signax.majority_vote(WORKERS, **kwargs)


def layout(tx: optax.GradientTransformation, mesh: Any = M) -> dict[str, PartitionSpec]:
    """{path of a state leaf: its spec}."""
    specs = signax.state_specs(tx, params(), mesh)
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=_specs.is_spec)
    return {jax.tree_util.keystr(path): spec for path, spec in leaves}


# A chain -> the names of the state's leaves that are each worker's own. All others are the same.
CHAINS: dict[str, tuple[Callable[[], optax.GradientTransformation], set[str]]] = {
    "vote alone": (lambda: vote(ties="random"), set()),
    "clip": (lambda: optax.chain(optax.clip_by_global_norm(1.0), vote()), set()),
    "ema before": (lambda: optax.chain(optax.ema(0.9), vote()), {"ema"}),
    "ema after": (lambda: optax.chain(vote(), optax.ema(0.9)), set()),
    "trace both": (lambda: optax.chain(optax.trace(0.9), vote(), optax.trace(0.9)), {"trace"}),
    "adam before": (lambda: optax.chain(optax.scale_by_adam(), vote()), {"mu", "nu"}),
    "first gradient": (
        lambda: optax.chain(signax.ema_from_first_gradient(0.9), vote()),
        {"momentum"},
    ),
    "abstaining first gradient": (
        lambda: optax.chain(signax.abstaining(signax.ema_from_first_gradient(0.9)), vote()),
        {"momentum", "has_started"},
    ),
    "noise before": (
        lambda: optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), vote()),
        set(),
    ),
    "abstaining noise": (
        lambda: optax.chain(
            signax.abstaining(optax.add_noise(0.1, 0.5, jax.random.key(0))), vote()
        ),
        set(),
    ),
    "sign_sgd": (lambda: signax.sign_sgd(0.1, axis_name=WORKERS), set()),
    "signum": (lambda: signax.signum(0.1, axis_name=WORKERS), {"ema"}),
    "ssdm": (lambda: signax.ssdm(0.1, axis_name=WORKERS), {"momentum", "has_started"}),
    "ssdm shared": (
        lambda: signax.ssdm(0.1, axis_name=WORKERS, scale=signax.Scale(shared=True)),
        {"momentum", "has_started"},
    ),
    "dense_sgd": (lambda: signax.dense_sgd(0.1, 0.9, axis_name=WORKERS), set()),
    "decay and schedule": (
        lambda: signax.signum(
            optax.cosine_decay_schedule(0.1, 10), axis_name=WORKERS, weight_decay=0.1
        ),
        {"ema"},
    ),
    "injected": (
        lambda: optax.inject_hyperparams(signax.signum)(
            optax.constant_schedule(0.1), beta=0.5, axis_name=WORKERS
        ),
        {"ema"},
    ),
    "plateau after": (
        lambda: optax.chain(
            signax.signum(0.1, axis_name=WORKERS), optax.contrib.reduce_on_plateau()
        ),
        {"ema"},
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_memory_before_the_network_is_each_workers_own_and_nothing_else(name: str):
    make, own = CHAINS[name]
    specs = layout(make())
    if name == "trace both":
        assert specs["[0].trace['bias']"] == OWN
        assert specs["[2].trace['bias']"] == SAME
        return
    for path, spec in specs.items():
        fields = re.findall(r"\.(\w+)", path)
        assert spec == (OWN if own & set(fields) else SAME), path
    if own:
        assert OWN in specs.values()


def test_factored_moments_before_the_network_are_each_workers_own():
    specs = layout(optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=2), vote()))
    for moment in ("v_row['kernel']", "v_col['kernel']", "v['bias']"):
        assert specs[f"[0].{moment}"] == OWN
    assert specs["[0].v['kernel']"] == SAME  # a placeholder that is never written
    assert specs["[0].count"] == SAME


def test_after_an_exact_mean_inside_a_host_momentum_varies_over_hosts_only():
    mesh = two_level_mesh()
    tx = optax.chain(
        optax.trace(0.9),
        signax.average_gradients("local"),
        optax.ema(0.9),
        signax.majority_vote("hosts"),
        optax.trace(0.9),
    )
    specs = layout(tx, mesh)
    assert specs["[0].trace['bias']"] == PartitionSpec(("hosts", "local"))
    assert specs["[2].ema['bias']"] == PartitionSpec("hosts")
    assert specs["[4].trace['bias']"] == SAME
    state = signax.init_opt_state(tx, params(), mesh)
    assert state[0].trace["bias"].shape == (8, 2)
    assert state[2].ema["bias"].shape == (2, 2)
    assert (
        state[2]
        .ema["bias"]
        .sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("hosts")), 2)
    )


def test_a_vote_over_one_axis_of_two_that_are_all_workers_is_refused():
    with pytest.raises(ValueError, match=r"'hosts' was given .* also differs over \('local',\)"):
        layout(signax.majority_vote("hosts"), two_level_mesh())


@pytest.mark.parametrize("make", [lambda: optax.sgd(0.1, 0.9), lambda: signax.signum(0.1)])
def test_an_optimizer_without_a_network_link_is_refused(make: Callable):
    for build in (signax.state_specs, signax.init_opt_state):
        with pytest.raises(ValueError, match="needs a network link") as error:
            build(make(), params(), M)
        assert "signax.majority_vote" in str(error.value)
    with pytest.raises(ValueError, match="needs a network link"):
        signax.init_train_state(params(), make(), signax.make_worker_mesh(M))


def test_a_mask_around_the_vote_that_lets_local_gradients_pass_is_refused():
    tx = optax.masked(vote(), {"kernel": True, "bias": False})
    with pytest.raises(ValueError, match=r"leaf \['bias'\]"):
        signax.state_specs(tx, params(), M)


def test_a_state_that_changes_its_structure_is_refused():
    init, update = vote()
    tx = optax.GradientTransformation(init, lambda u, s, p=None: (update(u, s)[0], (s, s)))
    with pytest.raises(ValueError, match="changes its structure at update"):
        signax.state_specs(tx, params(), M)


def test_the_errors_of_a_link_come_through_the_inference():
    with pytest.raises(ValueError, match="no axis named 'worker' is bound"):
        signax.state_specs(signax.sign_sgd(0.1, axis_name="worker"), params(), M)
    with pytest.raises(TypeError, match=r"\['count'\] has dtype int32"):
        signax.state_specs(vote(), params() | {"count": jnp.ones(2, jnp.int32)}, M)


@pytest.mark.parametrize("num_workers", [1, 3, 8])
def test_the_state_is_stacked_and_sharded_over_the_workers(num_workers: int):
    mesh = signax.make_worker_mesh(num_workers)
    tx = optax.chain(optax.scale_by_adam(), vote(ties="random", key=5))
    state = signax.init_opt_state(tx, params(), mesh)
    assert state[0].mu["kernel"].shape == (num_workers, 3, 2)
    assert state[0].count.shape == ()
    specs = signax.state_specs(tx, params(), mesh)
    for leaf, spec in zip(
        jax.tree.leaves(state), jax.tree.leaves(specs, is_leaf=_specs.is_spec), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim)
    np.testing.assert_array_equal(state[1].key, tx.init(params())[1].key)


def test_simulated_workers_have_the_same_layout():
    tx = signax.ssdm(0.1, axis_name=WORKERS)
    mesh = signax.make_worker_mesh(M)
    assert layout(tx, M) == layout(tx, mesh)
    simulated, sharded = (signax.init_opt_state(tx, params(), m) for m in (M, mesh))
    jax.tree.map(np.testing.assert_array_equal, simulated, sharded)


def test_a_state_that_starts_from_the_parameters_is_stacked_with_their_values():
    start = optax.GradientTransformation(lambda p: p, lambda g, s, p=None: (g, g))
    state = signax.init_opt_state(optax.chain(start, vote()), {"a": jnp.arange(3.0)}, 4)
    np.testing.assert_array_equal(state[0]["a"], np.tile(np.arange(3.0), (4, 1)))


def test_to_worker_and_from_worker_are_inverse():
    tx = signax.signum(0.1, axis_name=WORKERS)
    specs = signax.state_specs(tx, params(), 1)
    state = tx.init(params())
    stacked = signax.from_worker(state, specs)
    assert stacked[0].ema["bias"].shape == (1, 2)
    assert stacked[0].count.shape == ()
    jax.tree.map(np.testing.assert_array_equal, signax.to_worker(stacked, specs), state)


def test_abstract_parameters_have_a_layout():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params())
    tx = signax.signum(0.1, axis_name=WORKERS)
    assert signax.state_specs(tx, shapes, M) == signax.state_specs(tx, params(), M)


def test_a_mesh_of_more_workers_than_devices_is_refused_with_the_line_to_write():
    with pytest.raises(ValueError, match=r"^signax\.make_worker_mesh: 9 workers need") as error:
        signax.make_worker_mesh(9)
    assert 'jax.config.update("jax_num_cpu_devices", 9)' in str(error.value)
    assert signax.make_worker_mesh(3, "voters").shape == {"voters": 3}


def two_level_mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("hosts", "local"), (AxisType.Auto, AxisType.Auto))


def test_parameters_may_be_float64_of_numpy():
    """As JAX takes them: in float32, and without a warning."""
    specs = signax.state_specs(signax.signum(0.1, axis_name=WORKERS), {"w": np.ones(3)}, M)
    assert specs[0].ema["w"] == OWN
