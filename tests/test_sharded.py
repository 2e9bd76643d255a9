"""Parameters cut inside each host, votes across hosts: by bits the run of as many whole workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import signax
from cut_model import (
    HOSTS,
    LINES,
    MESHES,
    SPECS,
    STEPS,
    assert_cut_as_at_the_start,
    assert_equal,
    loss,
    mesh_of,
    on_mesh,
    on_whole_workers,
    params,
    started,
    targets,
)
from daily import thorough

slow = pytest.mark.slow


def in_the_train_step(make: Callable, mesh: Mesh) -> Any:
    tx, axes = make(HOSTS), (HOSTS,)
    step = signax.make_train_step(loss, tx, mesh, axis_names=axes)
    state = signax.init_train_state(on_mesh(mesh, params(), SPECS), tx, mesh, axis_names=axes)
    for k in range(STEPS):
        state, _ = step(state, targets(k, mesh.shape[HOSTS]))
    return state.params, state.opt_state


def in_a_map_over(axes: set[str]) -> Callable:
    """One's own loop: `jax.shard_map` over all axes, or over the hosts alone."""

    def run(make: Callable, mesh: Mesh) -> Any:
        tx, hosts = signax.sharded(make(HOSTS), SPECS), (HOSTS,)
        layout = {"axis_names": hosts, "param_specs": SPECS}
        is_partial = axes == {HOSTS}
        specs = signax.state_specs(tx, params(), mesh, **layout, workers_only=is_partial)
        state = signax.init_opt_state(tx, params(), mesh, **layout)
        cut = {name: P() if is_partial else spec for name, spec in SPECS.items()}

        def on_device(x, state, target):
            gradient = jax.tree.map(lambda x, t: x - t[0], x, target)
            state = signax.to_worker(state, specs, hosts)
            updates, state = tx.update(gradient, state, x)
            return optax.apply_updates(x, updates), signax.from_worker(state, specs, hosts)

        rows = {name: P(HOSTS, *spec) for name, spec in cut.items()}
        step = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(cut, specs, rows),
            out_specs=(cut, specs),
            axis_names=axes,
        )
        step, x = jax.jit(step, donate_argnums=(0, 1)), on_mesh(mesh, params(), SPECS)
        for k in range(STEPS):
            x, state = step(x, state, targets(k, mesh.shape[HOSTS]))
        return x, state

    return run


WAYS = {
    "all axes": in_a_map_over({HOSTS, "devices"}),
    "hosts only": in_a_map_over({HOSTS}),
    "make_train_step": in_the_train_step,
}


MARKS = {("majority random", MESHES[1]): [], ("ssdm", MESHES[0]): [thorough]}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=MARKS.get((name, shape), [slow]))
        for name in LINES
        for shape in MESHES
    ],
    ids=str,
)
def test_a_sharded_run_is_the_run_of_as_many_whole_workers(name: str, shape: tuple[int, int]):
    mesh = mesh_of(*shape)
    expected = on_whole_workers(LINES[name], shape[0]).params
    for run in WAYS.values():
        x, state = run(LINES[name], mesh)
        assert_equal(x, expected)
        assert_cut_as_at_the_start(x, state, mesh)


@pytest.mark.parametrize("leaf", ["rows", pytest.param("copied", marks=slow)])
def test_a_nan_in_one_shard_makes_the_whole_host_abstain(leaf: str):
    mesh = mesh_of(2, 4)
    step, state = started(LINES["signum"](HOSTS), mesh)
    state, _ = step(state, targets(0, 2))
    before = jax.tree.map(np.asarray, state.opt_state[0].ema)
    spoilt = targets(1, 2)
    spoilt[leaf][1].flat[0] = np.nan  # on host 1; of the four devices only one holds it, if cut
    state, metrics = step(state, spoilt)
    assert metrics["num_abstained"] == 1
    for name, momentum in state.opt_state[0].ema.items():
        np.testing.assert_array_equal(momentum[1], before[name][1])
        assert (np.asarray(momentum[0]) != before[name][0]).any()
        assert np.isfinite(state.params[name]).all()


def test_the_step_does_not_recompile_and_donates_its_state():
    step, state = started(LINES["signum"](HOSTS), mesh_of(2, 4))
    old = state
    for k in range(3):
        state, _ = step(state, targets(k, 2))
    assert all(x.is_deleted() for x in jax.tree.leaves((old.params, old.opt_state[0].ema)))
    assert step._cache_size() == 1
    with pytest.raises(RuntimeError, match="given to a step before"):
        step(old, targets(0, 2))


@thorough
@pytest.mark.parametrize("shape", [(4, 2), pytest.param((1, 8), marks=slow)], ids=str)
def test_a_state_goes_on_with_other_hosts_and_devices(shape: tuple[int, int], tmp_path: Path):
    tx = LINES["signum"](HOSTS)
    step, state = started(tx, mesh_of(2, 4))
    for k in range(3):
        state, _ = step(state, targets(k, 2))
    kept = jax.tree.map(np.asarray, state)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    mesh = mesh_of(*shape)
    on_it = {"axis_names": (HOSTS,), "param_specs": SPECS}
    saved_on = {HOSTS: 2, "devices": 4}
    target = signax.abstract_train_state(params(), tx, mesh, saved_on=saved_on, **on_it)
    restored = checkpointer.restore(tmp_path / "state", target)
    assert_equal(restored, kept)
    new = signax.change_num_workers(restored, tx, mesh, **on_it)
    assert_equal(new.params, kept.params)
    assert_cut_as_at_the_start(new.params, new.opt_state, mesh)
    for name, momentum in new.opt_state[0].ema.items():
        mean = kept.opt_state[0].ema[name].astype(np.float64).mean(0).astype(np.float32)
        assert_equal(np.asarray(momentum), np.broadcast_to(mean, momentum.shape))
    go_on = signax.make_train_step(loss, tx, mesh, axis_names=(HOSTS,))
    new, metrics = go_on(new, targets(3, shape[0]))
    assert int(new.step) == 4
    assert np.isfinite(metrics["loss"])


@slow
def test_the_servers_memory_is_cut_anew_for_other_hosts_of_as_many_devices():
    tx = signax.double_squeeze(0.25, axis_name=HOSTS)
    step, state = started(tx, mesh_of(4, 2))
    for k in range(3):
        state, _ = step(state, targets(k, 4))
    (old,) = optax.tree.get_all_with_path(state.opt_state, "server_residual")
    here = {"axis_names": (HOSTS,)}
    (new,) = optax.tree.get_all_with_path(
        signax.change_num_workers(state, tx, mesh_of(2, 2), **here).opt_state, "server_residual"
    )
    old, new = (np.asarray(x[1]) for x in (old, new))  # [hosts, devices * words, 8]
    for device in range(2):
        before, after = (x.reshape(len(x), 2, -1, 8)[:, device].reshape(-1, 8) for x in (old, new))
        size = min(len(before), len(after))
        assert_equal(before[:size], after[:size])
        assert before[:size].any()
    with pytest.raises(ValueError, match="cannot be moved to another number of devices"):
        signax.change_num_workers(state, tx, mesh_of(2, 4), **here)
    forgotten = signax.change_num_workers(state, tx, mesh_of(2, 4), "zero", **here)
    new, _ = started(tx, mesh_of(2, 4))[0](forgotten, targets(3, 2))
    assert int(new.step) == 4


def test_bfloat16_compute_float32_parameters_accumulation_and_checkpointing_train():
    mesh = mesh_of(2, 4)
    tx = signax.ssdm(0.05, axis_name=HOSTS, scale=signax.Scale("linf", "leaf"))
    x = {"in": jax.random.normal(jax.random.key(0), (4, 16)), "out": jnp.zeros((16, 4))}
    specs = {"in": P(None, "devices"), "out": P("devices")}

    def net(x, inputs):
        low = jax.tree.map(lambda k: k.astype(jnp.bfloat16), x)
        return jnp.tanh(inputs.astype(jnp.bfloat16) @ low["in"]) @ low["out"]

    def mean_square(x, batch):
        return jnp.mean((jax.checkpoint(net)(x, batch).astype(jnp.float32) - batch) ** 2)

    step = signax.make_train_step(
        mean_square, tx, mesh, axis_names=(HOSTS,), accumulate_steps=2, param_specs=specs
    )
    state = signax.init_train_state(x, tx, mesh, axis_names=(HOSTS,), param_specs=specs)
    rows = NamedSharding(mesh, P((HOSTS, "devices")))
    losses = []
    for k in range(20):
        batch = jax.random.normal(jax.random.key(k), (32, 4))
        state, metrics = step(state, jax.device_put(batch, rows))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    for name, leaf in state.params.items():
        assert leaf.dtype == jnp.float32
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, specs[name]), leaf.ndim)


# Two axes inside a host, leaves cut over both, over one, over both at one dimension, over none.
TWO_AXES = {
    "rows": P(("tensor", "fsdp")),
    "columns": P(None, "tensor"),
    "copied": P(),
    "scalar": None,
}
CHAINS = {
    "lanes": lambda axis: signax.signum(0.25, axis_name=axis, ties="random", wire="lanes"),
    "float32": lambda axis: signax.sign_sgd(0.25, axis_name=axis, ties="random", wire="float32"),
    "averages": lambda axis: signax.ssdm(0.25, axis_name=axis, scale=signax.Scale("linf", "leaf")),
    "traced beta": lambda axis: optax.inject_hyperparams(signax.signum)(
        optax.constant_schedule(0.25), beta=0.5, axis_name=axis
    ),
    "traced noise": lambda axis: optax.inject_hyperparams(signax.noisy_sign_sgd)(
        0.25, noise_scale=0.5, axis_name=axis
    ),
    "traced scale": lambda axis: optax.inject_hyperparams(signax.ssdm)(
        0.25, scale=4.0, axis_name=axis
    ),
    "skipping": lambda axis: signax.skip_together(
        signax.signum(0.25, axis_name=axis), lambda g, _: optax.tree.norm(g) > 9, axis_name=axis
    ),
    "frozen": lambda axis: signax.freeze(
        signax.signum(0.25, axis_name=axis, ties="random"),
        {"rows": True, "columns": False, "copied": False, "scalar": False},
    ),
    "warm": lambda axis: signax.warmup(
        5, signax.signum(0.25, axis_name=axis), dense=signax.dense_sgd(0.25, axis_name=axis)
    ),
    "dense below": lambda axis: signax.dense_below(
        60, signax.signum(0.25, axis_name=axis), dense=signax.dense_sgd(0.25, axis_name=axis)
    ),
    "lion": lambda axis: signax.distributed_lion(0.25, axis_name=axis),
    "errors": lambda axis: signax.sign_sgd(0.25, axis_name=axis, on_nonfinite="propagate"),
}


@slow
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_every_kind_of_chain_does_as_on_whole_workers(name: str, check_vma: bool):
    mesh = signax.make_worker_mesh(2, HOSTS, inside={"fsdp": 2, "tensor": 2})
    tx, options = CHAINS[name](HOSTS), {"axis_names": (HOSTS,), "param_specs": TWO_AXES}
    step = signax.make_train_step(loss, tx, mesh, check_vma=check_vma, **options)
    state = signax.init_train_state(params(), tx, mesh, **options)
    for k in range(7):
        state, _ = step(state, targets(k, 2))
    assert_equal(state.params, on_whole_workers(CHAINS[name], 2, num_steps=7).params)


@slow
def test_hosts_of_several_workers_whose_parameters_are_cut():
    types = (AxisType.Auto,) * 3
    chain = optax.chain(
        signax.average_gradients("local"),
        signax.signum(0.25, 0.5, axis_name=HOSTS, ties="random"),
    )
    found = []
    for size in (1, 2):
        mesh = jax.make_mesh(
            (2, 2, size), (HOSTS, "local", "devices"), types, devices=jax.devices()[: 4 * size]
        )
        options = {"axis_names": (HOSTS, "local"), "param_specs": SPECS}
        step = signax.make_train_step(loss, chain, mesh, **options)
        state = signax.init_train_state(params(), chain, mesh, **options)
        for k in range(5):
            state, _ = step(state, targets(k, 4))
        found.append(jax.tree.map(np.asarray, state))
    assert_equal(*found)


@slow
def test_local_steps_run_on_cut_parameters():
    def make(axis):
        return signax.local_updates(optax.sgd(0.25), signax.sign_sgd(0.25, axis_name=axis))

    whole, mesh = signax.make_worker_mesh(2), mesh_of(2, 4)
    step = signax.make_train_step(loss, make("workers"), whole, local_steps=2)
    expected = signax.init_train_state(params(), make("workers"), whole)
    cut_step, state = started(make(HOSTS), mesh, local_steps=2)
    for k in range(5):
        expected, _ = step(expected, targets(k, 4))
        state, _ = cut_step(state, targets(k, 4))
    assert_equal(state.params, expected.params)
