"""Parameters cut inside each host, votes across hosts: the run of as many whole workers, by bits.

Meshes are H hosts x D devices. The gradient of each leaf is x - target, so it has the same bits
however the leaf is cut; targets are small integers and the steps powers of two, so that zeros and
ties are common.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import signax

HOSTS, STEPS = "hosts", 50
SPECS = {
    "rows": P("devices"),
    "columns": P(None, "devices"),  # 3 coordinates a device: no whole bytes
    "copied": P(),
    "scalar": P(),
}
SHAPES = {"rows": (8, 5), "columns": (3, 12), "copied": (13,), "scalar": ()}
LINES = {
    "majority zero": lambda axis: signax.sign_sgd(0.25, axis_name=axis),
    "majority random": lambda axis: signax.sign_sgd(0.25, axis_name=axis, ties="random"),
    "signum": lambda axis: signax.signum(0.25, axis_name=axis, ties="random"),
    "ssdm": lambda axis: signax.ssdm(0.25, axis_name=axis, scale=4.0),
}
MESHES = [(2, 4), (4, 2)]


def mesh_of(num_hosts: int, num_devices: int) -> Mesh:
    return signax.make_worker_mesh(num_hosts, HOSTS, inside={"devices": num_devices})


def params() -> Any:
    return {name: jnp.zeros(shape) for name, shape in SHAPES.items()}


def targets(step: int, num_hosts: int) -> Any:
    """What each host pulls its parameters to: one row for each."""
    draw = np.random.default_rng(step)
    return {
        name: draw.integers(-1, 2, (num_hosts, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def loss(x: Any, target: Any) -> jax.Array:
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(target), strict=True)
    return sum((jnp.sum((x - t[0]) ** 2) / 2 for x, t in pairs), start=jnp.zeros(()))


def on_mesh(mesh: Mesh, tree: Any, specs: Any) -> Any:
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs)


def on_whole_workers(make: Callable, num_hosts: int, num_steps: int = STEPS) -> Any:
    """The same run with as many workers of one device each, and no parameter cut."""
    tx, mesh = make("workers"), signax.make_worker_mesh(num_hosts)
    step = signax.make_train_step(loss, tx, mesh)
    state = signax.init_train_state(params(), tx, mesh)
    for k in range(num_steps):
        state, _ = step(state, targets(k, num_hosts))
    return state


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


def assert_equal(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_cut_as_at_the_start(x: Any, state: Any, mesh: Mesh) -> None:
    for name, leaf in x.items():
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, SPECS[name]), leaf.ndim), name
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        where = jax.tree_util.keystr(path)
        if "ema" in where or "momentum" in where:
            spec = P(HOSTS, *SPECS[where.split("'")[1]])
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim), where


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize(
    "shape", [MESHES[0], pytest.param(MESHES[1], marks=pytest.mark.slow)], ids=str
)
def test_a_sharded_run_is_the_run_of_as_many_whole_workers(name: str, shape: tuple[int, int]):
    mesh = mesh_of(*shape)
    expected = on_whole_workers(LINES[name], shape[0]).params
    for run in WAYS.values():
        x, state = run(LINES[name], mesh)
        assert_equal(x, expected)
        assert_cut_as_at_the_start(x, state, mesh)
