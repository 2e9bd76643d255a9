"""A problem whose parameters are cut inside each host, and the same one on whole workers.

Meshes are H hosts x D devices. The gradient of each leaf is x - target, so it has the same bits
however the leaf is cut; targets are small integers and the steps powers of two, so that zeros and
ties are common.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import signax

HOSTS, STEPS = "hosts", 50
SPECS = {
    "rows": P("devices"),
    "columns": P(None, "devices"),  # 18 coordinates on each of 4 devices: no whole bytes
    "copied": P(),
    "scalar": P(),
}
SHAPES = {"rows": (8, 5), "columns": (3, 24), "copied": (13,), "scalar": ()}
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
    """What each host pulls its parameters to: one row for each. Now and then the last abstains."""
    draw = np.random.default_rng(step)
    rows = {
        name: draw.integers(-1, 2, (num_hosts, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    if step % 10 == 7:
        rows["rows"][-1, 0, 0] = np.nan  # in one piece of one leaf
    return rows


def loss(x: Any, target: Any) -> jax.Array:
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(target), strict=True)
    return sum((jnp.sum((x - t[0]) ** 2) / 2 for x, t in pairs), start=jnp.zeros(()))


def on_mesh(mesh: Mesh, tree: Any, specs: Any) -> Any:
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs)


def started(tx: Any, mesh: Mesh, **options: Any) -> tuple[Any, Any]:
    """A step, and the state that it starts from."""
    step = signax.make_train_step(loss, tx, mesh, axis_names=(HOSTS,), **options)
    state = on_mesh(mesh, params(), SPECS)
    return step, signax.init_train_state(state, tx, mesh, axis_names=(HOSTS,))


def on_whole_workers(make: Callable, num_hosts: int, num_steps: int = STEPS) -> Any:
    """The same run with as many workers of one device each, and no parameter cut."""
    tx, mesh = make("workers"), signax.make_worker_mesh(num_hosts)
    step = signax.make_train_step(loss, tx, mesh)
    state = signax.init_train_state(params(), tx, mesh)
    for k in range(num_steps):
        state, _ = step(state, targets(k, num_hosts))
    return state


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
