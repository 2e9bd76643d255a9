"""The table of hard inputs: each with its expected value or the text of its error.

`TABLE` runs here. `ELSEWHERE` names, for the items that a file of their own covers with more cases,
the test that does; that this test exists is itself a test.
"""

import ast
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax
from workers import WORKERS, map_workers, worker_mesh

pytestmark = pytest.mark.machine_code

M = 3
PARAMS = {"a": jnp.ones(3), "b": jnp.ones(())}
MAKERS = {
    "sign_sgd": signax.sign_sgd,
    "signum": signax.signum,
    "ssdm": functools.partial(signax.ssdm, scale=signax.Scale("linf")),
    "ef_sign_sgd": signax.ef_sign_sgd,
    "dense_sgd": signax.dense_sgd,
}


class Refused(NamedTuple):
    """The input is an error of this type, which says all of this."""

    error: type[Exception]
    says: tuple[str, ...]


# How a row is run.


def vote(rows: Any, link: Callable = signax.majority_vote, **kwargs: Any) -> np.ndarray:
    """What one link makes of the workers' rows [M, d], under vmap: [d]."""
    tx = link(WORKERS, **kwargs)
    rows = jnp.asarray(rows)
    fn = map_workers("vmap", lambda g: tx.update(g, tx.init(g))[0], len(rows))
    return np.asarray(fn(rows), np.float32)[0]


def one_step(name: str, gradient: Any, params: Any = PARAMS) -> Any:
    """One worker's update with learning rate 1, the state made for `params`."""
    tx = MAKERS[name](1.0)
    return jax.jit(tx.update)(gradient, tx.init(params), params)[0]


def stochastic(g: Any, scale: float, key: Any = 0, step: int = 0) -> np.ndarray:
    tx = signax.scale_by_stochastic_sign(key, axis_name=None, scale=scale)
    return np.asarray(tx.update(jnp.asarray(g), tx.init(g)._replace(count=jnp.int32(step)))[0])


def loss_fn(params: Any, batch: jax.Array) -> jax.Array:
    return jnp.sum((params["a"][None] + params["b"] - batch) ** 2) / 2


@functools.cache
def trainer(name: str = "signum"):
    tx = MAKERS[name](1.0, axis_name=WORKERS)
    return tx, signax.make_train_step(loss_fn, tx, worker_mesh(M))


def start(name: str = "signum") -> signax.TrainState:
    return signax.init_train_state(PARAMS, trainer(name)[0], worker_mesh(M))


# Rows: values.


def links_with_coins() -> tuple[optax.GradientTransformation, ...]:
    return (
        signax.scale_by_stochastic_sign(5, axis_name=None, scale=1.0),
        signax.scale_by_noisy_sign(5, 1.0, axis_name=None),
        signax.scale_by_scaled_sign(5, axis_name=None),
        signax.majority_vote(None, ties="random", key=5),
    )


def dtypes_under_x64() -> set[str]:
    with jax.enable_x64(True):
        g = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), PARAMS)
        txs = (*(make(1.0) for make in MAKERS.values()), *links_with_coins())
        updates = [jax.eval_shape(lambda g, tx=tx: tx.update(g, tx.init(g))[0], g) for tx in txs]
        return {str(leaf.dtype) for leaf in jax.tree.leaves(updates)}


def draws_with_64_bits() -> bool:
    """Each link's random bits, drawn with and without x64."""

    g = np.linspace(-1, 1, 101).astype(np.float32)
    zeros = np.eye(1, 101, dtype=np.float32)[0]

    def draw():
        txs = links_with_coins()
        drawn = jax.jit(lambda *gs: [tx.update(x, tx.init(x))[0] for tx in txs for x in gs])
        return [np.asarray(x) for x in drawn(g, zeros)]

    narrow = draw()
    with jax.enable_x64(True):
        return all(map(np.array_equal, narrow, draw()))


def two_thousand_leaves() -> bool:
    # Not under jit: compiling so many leaves takes a minute, and the values are the same.
    rng = np.random.default_rng(0)
    tree = {str(i): rng.integers(-1, 2, (M, 1 + i % 3)).astype(np.float32) for i in range(2000)}
    tx = signax.majority_vote(WORKERS, wire="float32")
    run = jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name=WORKERS)
    out = run(jax.tree.map(jnp.asarray, tree))
    return all(np.array_equal(out[k][0], np.sign(np.sign(tree[k]).sum(0))) for k in tree)


def fewer_coordinates_than_workers() -> list[np.ndarray]:
    rows = [[1.0]] * 5 + [[-1.0]] * 3
    return [vote(rows), vote(rows, signax.average_signs), vote(rows, wire="lanes")]


def share_of_plus(unit: float) -> int:
    """64 coordinates of 1/4 of the scale, in units of any size: how many say +1."""
    return int((stochastic(jnp.full(64, 0.25 * unit, jnp.float32), unit) > 0).sum())


def steps_around_2_31() -> bool:
    """The count is an address: it wraps, and no two steps around the wrap draw the same."""
    g = jnp.zeros(64).at[0].set(1)
    draws = [stochastic(g, 2.0, step=k) for k in (2**31 - 2, 2**31 - 1, -(2**31), -(2**31) + 1, 0)]
    return len({d.tobytes() for d in draws}) == 5


def count_after_2_31() -> int:
    tx = signax.majority_vote(None, ties="random")
    state = tx.init(PARAMS)._replace(count=jnp.int32(2**31 - 1))
    update, state = tx.update(PARAMS, state)
    assert np.array_equal(update["a"], np.ones(3))
    return int(state.count)


def warmup_at_the_last_count() -> int:
    """A count that wrapped would start another warm-up."""
    tx = signax.warmup(1, signax.sign_sgd(1.0), dense=signax.dense_sgd(7.0))
    state = tx.init(PARAMS)._replace(count=jnp.int32(2**31 - 1))
    for _ in range(2):
        updates, state = tx.update(PARAMS, state, PARAMS)
    return int(updates["b"])


# Rows: settings of JAX.


def debug_nans(where: str) -> float:
    """A finite step of every maker while `jax_debug_nans` looks for the first NaN."""
    with jax.debug_nans(True):
        for name in MAKERS:
            tx = MAKERS[name](1.0)
            update = jax.jit(tx.update) if where == "jit" else tx.update
            updates, _ = update(PARAMS, tx.init(PARAMS), PARAMS)
    return float(updates["b"])


def debug_nans_and_a_nan_worker() -> tuple[float, float]:
    """Nothing that leaves the jitted step is NaN: the worker abstains, and training goes on."""
    _, step = trainer()
    batch = jnp.zeros((M, 3)).at[1, 1].set(jnp.inf)  # a NaN itself could not be cut in shards
    with jax.debug_nans(True):
        state, metrics = step(start(), batch)
    return float(metrics["num_abstained"]), float(state.params["a"][0])


def debug_nans_without_jit() -> None:
    tx = signax.signum(1.0)
    with jax.debug_nans(True):
        tx.update({"a": jnp.log(-jnp.ones(3)), "b": jnp.ones(())}, tx.init(PARAMS))


# Rows: states.


def init_twice_after_donation() -> list[float]:
    """The optimizer's own key, and the parameters, survive the donation of a state made of them."""
    tx = signax.ssdm(1.0, key=jax.random.key(3))
    params = jax.tree.map(jnp.copy, PARAMS)
    step = jax.jit(lambda p, s: tx.update(p, s, p), donate_argnums=(0, 1))
    out = []
    for _ in range(2):
        state = tx.init(params)
        updates, _ = step(jax.tree.map(jnp.copy, params), state)
        with pytest.raises(RuntimeError, match="deleted"):
            np.asarray(jax.tree.leaves(state)[0])
        out.append(updates["a"])
    return np.array_equal(*out)


def two_groups_with_one_key() -> bool:
    """Like leaves in two groups of `optax.partition`, each with a link of its own and key 0."""

    def make():
        return signax.ssdm(1.0, 0.0, key=0, scale=signax.Scale("linf"))

    groups = {"x": "left", "y": "right"}
    tx = optax.partition({"left": make(), "right": make()}, groups)
    g = dict.fromkeys(groups, jnp.zeros(1000).at[0].set(1))
    updates, _ = jax.jit(tx.update)(g, tx.init(g), g)
    agree = np.mean(np.asarray(updates["x"] == updates["y"])[1:])
    # Hoeffding, wrong once in 1e9: |mean - 1/2| <= sqrt(log(2e9) / (2 n)) = 0.104 for n = 999.
    return abs(agree - 0.5) < 0.104


def injected(**hyperparams: Any) -> tuple[str, bool]:
    """`inject_hyperparams` traces key and beta; with bfloat16 parameters nothing changes."""
    p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    scale = {"scale": signax.Scale("linf")}
    make = optax.inject_hyperparams(signax.ssdm, static_args=("scale", "weight_decay"))
    update = {}
    for name, tx in {
        "injected": make(0.5, **hyperparams, **scale),
        "plain": signax.ssdm(0.5, **hyperparams, **scale),
    }.items():
        state, step = jax.jit(tx.init)(p), jax.jit(tx.update)  # the key is read in init
        for k in range(2):
            g = jax.tree.map(lambda x, k=k: x * (k - 0.25), p)
            update[name], state = step(g, state, p)
    is_same = jax.tree.all(jax.tree.map(np.array_equal, update["injected"], update["plain"]))
    return str(update["injected"]["a"].dtype), is_same


def restored_without_target(path: Path) -> None:
    import orbax.checkpoint as ocp

    _, step = trainer()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", start())
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(path / "state", start())
        assert int(step(restored, jnp.zeros((M, 3)))[0].step) == 1, "with the target that is named"
        plain = ocp.PyTreeCheckpointer().restore(path / "state")
    assert isinstance(plain, dict)
    step(plain, jnp.zeros((M, 3)))


NO_SIGN = "only floating-point leaves can take part"
NO_PLACE = "in 8 bits a step of a usual learning rate rounds to zero"
HERE = "the update at ['a']"
SUBNORMAL = np.float32(1e-40)

TABLE: dict[str, tuple[Callable[[], Any], Any]] = {
    # leaves
    "float64 under x64": (dtypes_under_x64, {"float64"}),
    "randomness with x64 on and off": (draws_with_64_bits, True),
    "2,000 tiny leaves": (two_thousand_leaves, True),
    "d < M": (fewer_coordinates_than_workers, [[1.0], [0.25], [1.0]]),
    "a missing leaf": (
        lambda: one_step("signum", {"a": jnp.ones(3)}),
        Refused(ValueError, ("symmetric difference on key sets is", "b")),
    ),
    "an extra leaf": (
        lambda: one_step("ssdm", PARAMS | {"c": jnp.ones(2)}),
        Refused(ValueError, ("the memory was made for a tree", "'c': *")),
    ),
    "a wrong shape": (
        lambda: one_step("signum", PARAMS | {"a": jnp.ones(4)}),
        Refused(TypeError, ("incompatible shapes for broadcasting: (4,), (3,)",)),
    ),
    **{
        f"a shape that would be broadcast against the memory, {name}": (
            lambda name=name: one_step(name, PARAMS, PARAMS | {"a": jnp.ones(1)}),
            Refused(ValueError, ("the memory at", "['a']", "(1,)", "(3,)", "tx.init(params)")),
        )
        for name in ("signum", "ssdm", "ef_sign_sgd")
    },
    # values
    "0 and -0": (lambda: vote([[0.0, -0.0, 1.0], [0.0, -0.0, 1.0]]), [0.0, 0.0, 1.0]),
    # XLA on CPU reads a subnormal float32 as zero, on all workers alike.
    "a subnormal": (lambda: vote([[SUBNORMAL, -SUBNORMAL, 1.0]]), [0.0, 0.0, 1.0]),
    # A subnormal float16 is an ordinary float32, in which its sign is read.
    "a subnormal float16": (
        lambda: vote(np.array([[6e-8, -6e-8, 0.0]], np.float16)),
        [1.0, -1.0, 0.0],
    ),
    "all subnormal is all zero, and abstains": (
        lambda: vote([[SUBNORMAL, SUBNORMAL], [-1.0, 1.0]], signax.average_signs),
        [-1.0, 1.0],
    ),
    **{
        f"mean of +-{unit:g} in scaled signs": (
            lambda unit=unit: vote([[unit, -unit]] * 4, signax.average_scaled_signs) / unit,
            [1.0, -1.0],
        )
        for unit in (1e-30, 1e30, 3e38)
    },
    **{
        f"a quarter of a scale of {unit:g}": (
            lambda unit=unit: share_of_plus(unit) == share_of_plus(1.0),
            True,
        )
        for unit in (1e-30, 1e30, 3e38)
    },
    # steps
    "draws of steps around 2^31": (steps_around_2_31, True),
    "the count after step 2^31 - 1": (count_after_2_31, -(2**31)),
    "a warm-up at step 2^31 - 1": (warmup_at_the_last_count, -1),
    # settings
    "jax_debug_nans and finite gradients": (lambda: debug_nans("eager"), -1.0),
    "jax_debug_nans and finite gradients, jit": (lambda: debug_nans("jit"), -1.0),
    "jax_debug_nans and a NaN worker, jit": (debug_nans_and_a_nan_worker, (1.0, 0.0)),
    "jax_debug_nans and a NaN gradient": (
        debug_nans_without_jit,
        Refused(FloatingPointError, ("invalid value (nan)",)),
    ),
    # states and hyperparameters
    "init twice after donation": (init_twice_after_donation, True),
    "two groups with one key": (two_groups_with_one_key, True),
    "an injected key, bfloat16": (lambda: injected(key=4), ("bfloat16", True)),
    "an injected beta, bfloat16": (lambda: injected(beta=0.75), ("bfloat16", True)),
}

UNFIT = {
    "int32": (jnp.ones(3, jnp.int32), NO_SIGN),
    "bool": (jnp.ones(3, bool), NO_SIGN),
    "complex64": (jnp.ones(3, jnp.complex64), NO_SIGN),
    "key": (jax.random.split(jax.random.key(0), 3), NO_SIGN),
    "float0": (np.zeros(3, jax.dtypes.float0), NO_SIGN),
    "float8_e4m3fn": (jnp.ones(3, jnp.float8_e4m3fn), NO_PLACE),
    "float8_e5m2": (jnp.ones(3, jnp.float8_e5m2), NO_PLACE),
}


def check(run: Callable[[], Any], expected: Any) -> None:
    if isinstance(expected, Refused):
        with pytest.raises(expected.error) as error:
            run()
        for part in expected.says:
            assert part in str(error.value)
    else:
        jax.tree.map(np.testing.assert_array_equal, run(), expected)


SLOW = {"2,000 tiny leaves": pytest.mark.slow}


@pytest.mark.parametrize("item", [pytest.param(i, marks=SLOW.get(i, ())) for i in TABLE])
def test_a_hard_input_has_its_expected_value_or_its_error(item: str):
    check(*TABLE[item])


@pytest.mark.parametrize("dtype", UNFIT)
@pytest.mark.parametrize("name", MAKERS)
def test_an_unfit_leaf_is_refused_by_its_path_in_update_and_in_init_train_state(
    name: str, dtype: str
):
    leaf, reason = UNFIT[dtype]
    tx = MAKERS[name](1.0)
    refused = Refused(TypeError, (HERE, reason))
    check(lambda: tx.update(PARAMS | {"a": leaf}, tx.init(PARAMS), PARAMS), refused)
    tx = MAKERS[name](1.0, axis_name=WORKERS)
    check(lambda: signax.init_train_state(PARAMS | {"a": leaf}, tx, M), refused)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # Orbax sees it coming
def test_a_checkpoint_restored_without_a_target_is_refused(tmp_path: Path):
    says = ("was given a dict", "restored without a target", "StandardRestore(signax.init_train")
    check(lambda: restored_without_target(tmp_path), Refused(TypeError, says))


ELSEWHERE = {
    "gradients already summed, all leaves": "workers_types::gradients_at_replicated_parameters_are_"
    "refused_with_the_line_to_write",
    "gradients already summed, some leaves": "workers_types::one_summed_leaf_among_local_ones_is_"
    "refused_by_its_path",
    "gradients psum'ed by hand": "workers_types::a_gradient_summed_by_hand_is_refused",
    "an unbound axis": "workers_types::an_unbound_axis_is_named_with_the_mappings_that_would_bind_"
    "it",
    "a misspelt axis": "workers_types::a_misspelt_axis_is_refused_under_every_mapping",
    "a tuple of axes": "votes::a_tuple_of_axes_votes_like_one_axis_of_all_workers",
    "M = 1": "optimizers::one_worker_equals_optax_exactly",
    "a second data axis not voted on": "state_layout::a_vote_over_one_axis_of_two_that_are_all_"
    "workers_is_refused",
    "None, MaskedNode, {}, shapes (0,) and (3, 0, 2), scalars": "optimizers::leaves_of_every_kind_"
    "pass",
    "Python floats and weak types": "optimizers::python_floats_and_weak_types_pass",
    "float16 and float64 in every algorithm": "optax_checks::a_step_keeps_dtypes_through_a_cond",
    "bfloat16": "optimizers::updates_keep_the_dtype_of_the_gradients",
    "integer, bool, complex, float0 and key leaves in a link": "workers_types::leaves_without_a_"
    "sign_are_a_type_error_that_names_the_path",
    "a state of another model": "step_inputs::a_state_of_another_optimizer_or_model_is_refused",
    "d no multiple of 8 M; ties at even M; 1e-30 and 3e38": "votes::votes_equal_the_reference_on_"
    "all_wires_replicas_and_mappings",
    "probabilities down to 1e-8": "stochastic::a_small_probability_keeps_its_signal",
    "1e-30, 1e30 and 3e38": "stochastic_link::the_law_does_not_depend_on_the_unit_of_the_gradient",
    "M = 127, 128, 256": "votes::no_count_wraps_at_any_number_of_workers",
    "donation of params and state": "training::donation_leaves_the_users_parameters_alive_and_init_"
    "may_run_twice",
    "two votes over parts of a tree with the same key": "vote_coins::votes_over_two_parts_of_a_"
    "tree_have_independent_coins",
    "inject_hyperparams": "optimizers::hyperparameters_may_be_injected_and_scheduled",
    "beta outside [0, 1)": "arguments::a_beta_outside_its_range_is_refused_at_construction",
    "unknown norm, scope, wire, ties": "arguments::an_unknown_word_is_refused_at_construction_"
    "with_the_choices",
    "replicated momentum fed to a step": "step_inputs::a_state_of_plain_init_is_an_error_"
    "that_names_init_opt_state",
}


@functools.cache
def functions_in(file: str) -> set[str]:
    tree = ast.parse((Path(__file__).parent / f"test_{file}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("item", ELSEWHERE)
def test_an_item_that_is_tested_elsewhere_is_tested_there(item: str):
    file, name = ELSEWHERE[item].split("::")
    assert f"test_{name}" in functions_in(file)
