"""Parameters cut inside each host, votes across hosts: the run of as many whole workers, by bits.

Meshes are H hosts x D devices. The gradient of each leaf is x - target, so it has the same bits
however the leaf is cut; targets are small integers and the steps powers of two, so that zeros and
ties are common.
"""

import math
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
from signax.wire import _hlo

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


QUICK = [("majority random", MESHES[1]), ("ssdm", MESHES[0])]
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=[] if (name, shape) in QUICK else slow)
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


def started(tx: Any, mesh: Mesh, **options: Any) -> tuple[Any, Any]:
    """A step, and the state that it starts from."""
    step = signax.make_train_step(loss, tx, mesh, axis_names=(HOSTS,), **options)
    state = on_mesh(mesh, params(), SPECS)
    return step, signax.init_train_state(state, tx, mesh, axis_names=(HOSTS,))


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
    (jitted,) = step._jitted.values()
    assert jitted._cache_size() == 1


def across_hosts(text: str, num_devices: int) -> list[_hlo.Collective]:
    """The collectives in which devices of different hosts meet, but for the step's metrics."""
    found = [
        c
        for c in _hlo.read_collectives(text)
        if any(len({device // num_devices for device in group}) > 1 for group in c.groups)
    ]
    scalars = [c for c in found if c.kind == "all-reduce" and c.elements <= 2]  # the mean loss
    return [c for c in found if c not in scalars]


@pytest.mark.parametrize("shape", [MESHES[0], pytest.param(MESHES[1], marks=slow)], ids=str)
def test_a_device_sends_the_words_of_its_own_shard_in_two_collectives(shape: tuple[int, int]):
    num_hosts, num_devices = shape
    step, state = started(LINES["majority random"](HOSTS), mesh_of(*shape))
    text = step.lower(state, targets(0, num_hosts)).compile().as_text()
    up, down = across_hosts(text, num_devices)
    assert (up.kind, down.kind) == ("all-to-all", "all-gather")
    # Whole bytes of each leaf's shard; of the leaves with copies, 13 + 1 coordinates in 2 + 1
    # bytes, each device sends its part.
    own = math.ceil(40 / num_devices / 8) + math.ceil(72 / num_devices / 8)
    words = own + math.ceil(3 / num_devices)
    part = math.ceil(words / num_hosts)
    assert (up.dtype, up.elements) == ("u8", num_hosts * (part + 1))  # and whether the host votes
    assert (down.dtype, down.elements) == ("u8", part + 4)  # and how many hosts voted
    assert {len(group) for group in up.groups} == {num_hosts}


@pytest.mark.parametrize("num_devices", [*(pytest.param(n, marks=slow) for n in (1, 2)), 4])
def test_bits_between_hosts_do_not_depend_on_the_devices_inside(num_devices: int):
    size = 1 << 16
    mesh = mesh_of(2, num_devices)
    tx = signax.sign_sgd(0.1, axis_name=HOSTS, ties="random")
    step = signax.make_train_step(loss, tx, mesh, axis_names=(HOSTS,))
    x = {"cut": jnp.zeros((8, size // 8)), "copied": jnp.zeros(size)}
    specs = {"cut": P("devices"), "copied": P()}
    state = signax.init_train_state(on_mesh(mesh, x, specs), tx, mesh, axis_names=(HOSTS,))
    batch = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), x)
    found = across_hosts(step.lower(state, batch).compile().as_text(), num_devices)
    bits = num_devices * sum(c.bits for c in found)  # of all devices of one host
    headers = num_devices * (8 + 4 * 8)  # a byte up, four down
    assert bits == 2 * (2 - 1) / 2 * (2 * size) + headers


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


def test_memory_of_the_step_is_that_of_the_dense_one_and_the_packed_words():
    size, mesh = 256, mesh_of(2, 4)
    x = {f"layer {i}": jnp.zeros((size, size)) for i in range(3)}

    def layers(x, batch):
        hidden = batch.astype(jnp.bfloat16)
        for kernel in x.values():
            hidden = jnp.tanh(hidden @ kernel.astype(jnp.bfloat16))
        return hidden

    def mean_square(x, batch):
        return jnp.mean(jax.checkpoint(layers)(x, batch).astype(jnp.float32) ** 2)

    def temporary(tx):
        step = signax.make_train_step(mean_square, tx, mesh, axis_names=(HOSTS,))
        cut = on_mesh(mesh, x, dict.fromkeys(x, P("devices")))
        state = signax.init_train_state(cut, tx, mesh, axis_names=(HOSTS,))
        batch = jax.device_put(jnp.ones((64, size)), NamedSharding(mesh, P((HOSTS, "devices"))))
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    dense = temporary(signax.dense_sgd(0.1, axis_name=HOSTS))
    words = 3 * size**2 // 4 // 8
    for tx in (
        signax.sign_sgd(0.1, axis_name=HOSTS, ties="random"),
        signax.signum(0.1, axis_name=HOSTS, ties="random"),
        signax.ssdm(0.1, axis_name=HOSTS),
    ):
        # sent and received; and a few scalars, such as who votes
        assert temporary(tx) <= dense + 2 * words + 256


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


def stochastic(scale: signax.Scale) -> Any:
    return signax.scale_by_stochastic_sign(0, axis_name=HOSTS, rescale=True, scale=scale)


SIZES = {  # links that say +-c or +-R, so that a magnitude can be read off
    "l2 leaf": lambda: stochastic(signax.Scale("l2", "leaf")),
    "mean global": lambda: signax.scale_by_scaled_sign(axis_name=HOSTS, scope="global"),
    "l2 global": lambda: stochastic(signax.Scale("l2", "global")),
    "linf global": lambda: stochastic(signax.Scale("linf", "global")),
    "linf leaf running": lambda: stochastic(signax.Scale("linf", "leaf", running=True)),
    "mean leaf": lambda: signax.scale_by_scaled_sign(axis_name=HOSTS),
}


@pytest.mark.parametrize(
    "name", [n if i < 2 else pytest.param(n, marks=slow) for i, n in enumerate(SIZES)]
)
def test_norms_are_those_of_the_whole_leaves(name: str):
    """A float32 sum of at most 126 squares, in another order: each of 126 roundings is 6e-8."""
    gradient = jax.tree.map(lambda x: x[0], targets(5, 1))

    def magnitudes(g, tx):
        said, _ = tx.update(signax.as_varying(g, HOSTS), tx.init(g))
        return jax.tree.map(lambda x: jax.lax.pmax(jnp.abs(x), HOSTS), said)

    on_shards = jax.shard_map(
        lambda g: magnitudes(g, signax.sharded(SIZES[name](), SPECS)),
        mesh=mesh_of(2, 4), in_specs=(SPECS,), out_specs=SPECS,
    )  # fmt: skip
    as_whole = jax.shard_map(
        lambda g: magnitudes(g, SIZES[name]()),
        mesh=signax.make_worker_mesh(2, HOSTS), in_specs=P(), out_specs=P(),
    )  # fmt: skip
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=126 * 6e-8),
        jax.jit(on_shards)(gradient),
        jax.jit(as_whole)(gradient),
    )


def in_all_axes(tx: Any) -> Any:
    """One update in a `jax.shard_map` over all axes."""
    update = lambda g: tx.update(signax.as_varying(g, HOSTS), tx.init(g))[0]  # noqa: E731
    mapped = jax.shard_map(update, mesh=mesh_of(2, 4), in_specs=(SPECS,), out_specs=SPECS)
    return jax.eval_shape(mapped, params())


@pytest.mark.parametrize("name", LINES)
def test_a_chain_that_was_not_told_of_the_shards_is_refused(name: str):
    with pytest.raises(ValueError, match=r"also differs over \('devices',\)") as error:
        in_all_axes(LINES[name](HOSTS))
    assert "signax.sharded(tx, param_specs)" in str(error.value)
    tx = LINES[name](HOSTS)
    update = lambda g: tx.update(signax.as_varying(g, HOSTS), tx.init(g))[0]  # noqa: E731
    mapped = jax.shard_map(
        update, mesh=mesh_of(2, 4), in_specs=(P(),), out_specs=P(), axis_names={HOSTS}
    )
    with pytest.raises(ValueError, match="would gather the whole model"):
        jax.eval_shape(mapped, params())


def test_links_that_need_whole_leaves_say_so():
    blocks = signax.ssdm(0.1, axis_name=HOSTS, scale=signax.Scale("linf", 256))
    with pytest.raises(ValueError, match=r"blocks of 256 coordinates .* scope=\"leaf\""):
        in_all_axes(signax.sharded(blocks, SPECS))
    with pytest.raises(ValueError, match=r"baselines.* leaf \['columns'\] is cut over"):
        in_all_axes(signax.sharded(signax.baselines.top_k_sgd(0.1, 0.5, axis_name=HOSTS), SPECS))


def test_specs_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"\['rows'\] .* 8 coordinates do not make 3 equal pieces"):
        signax.state_specs(
            LINES["signum"](HOSTS), params(), mesh_of(2, 3), axis_names=(HOSTS,), param_specs=SPECS
        )
    types = (AxisType.Auto, AxisType.Explicit)
    explicit = jax.make_mesh((2, 4), (HOSTS, "devices"), types)
    with pytest.raises(ValueError, match=r"\['devices'\] inside a worker are Explicit"):
        started(LINES["signum"](HOSTS), explicit)
    tx, mesh = LINES["signum"](HOSTS), mesh_of(2, 4)
    with pytest.raises(TypeError, match=r"param_specs at \['rows'\] is 'devices'"):
        signax.sharded(tx, {"rows": "devices"})
    for specs in ({"rows": P(HOSTS)}, {"rows": P("model")}):
        with pytest.raises(ValueError, match="needs the whole parameter"):
            signax.state_specs(tx, params(), mesh, axis_names=(HOSTS,), param_specs=specs)
    with pytest.raises(ValueError, match=r"the mesh has the axes \('hosts', 'devices'\)"):
        signax.make_train_step(loss, tx, mesh, axis_names=("workers",))


@slow
def test_a_sharded_chain_is_the_chain_itself_where_nothing_is_cut():
    tx = signax.ssdm(0.25, axis_name="workers")
    told = signax.sharded(tx, SPECS)
    rows = jax.tree.map(jnp.asarray, targets(0, 3))

    def update(tx):
        one = lambda g: tx.update(g, tx.init(g), g)[0]  # noqa: E731
        return jax.jit(jax.vmap(one, axis_name="workers"))(rows)

    assert_equal(update(told), update(tx))


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
