"""`config.optimizer`: every algorithm, every argument, and errors for what makes no sense."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signax
from signax.experiments import default_config, weights_command
from signax.experiments.errors import UsageError
from signax.experiments.optimizers import OPTIMIZERS, make_optimizer
from workers import WORKERS, map_workers

NEEDED = {"noisy_sign_sgd": {"noise_scale": 0.1}, "one_bit_adam": {"freeze_steps": 3}}
# The seed is the config's; the axis the run's; a mask is a tree, which no flag can hold.
NOT_FIELDS = {"learning_rate", "axis_name", "key", "mask", "scale"}


def make(num_steps: int = 20, **fields: Any) -> Any:
    config = default_config.get_config()
    config.num_steps = num_steps
    config.optimizer.update(fields)
    return make_optimizer(config, WORKERS)


def test_every_algorithm_of_the_library_can_be_chosen_by_its_name():
    """A named algorithm is what takes a learning rate; Algorithm 1, Option 2, has one worker."""
    named = {
        name
        for name in signax.__all__
        if inspect.isfunction(function := getattr(signax, name))
        and "learning_rate" in inspect.signature(function).parameters
    }
    assert named - {"monotone_sign_sgd"} <= {*OPTIMIZERS}
    with pytest.raises(UsageError, match="for one worker"):
        make(name="monotone_sign_sgd")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_argument_is_a_field(name: str):
    arguments = inspect.signature(OPTIMIZERS[name]).parameters
    assert {*arguments} - NOT_FIELDS <= {*default_config.OPTIMIZER_FIELDS}
    assert make(name=name, **NEEDED.get(name, {}))


def test_every_field_belongs_to_some_optimizer_and_every_scale_field_to_scale():
    taken = {k for function in OPTIMIZERS.values() for k in inspect.signature(function).parameters}
    assert {*default_config.OPTIMIZER_FIELDS} <= taken
    fields = {*inspect.signature(signax.Scale).parameters}
    assert {*default_config.SCALE_FIELDS} == fields | {"fixed"}


@pytest.mark.parametrize(
    ("name", "rate"), [("signum", 0.003), ("ssdm", 0.03), ("double_squeeze", 0.3)]
)
def test_a_learning_rate_that_is_left_out_is_in_the_units_of_the_optimizer(name: str, rate: float):
    given, left_out = (
        update_of(make(name=name, schedule="constant", learning_rate=r)) for r in (rate, None)
    )
    jax.tree.map(np.testing.assert_array_equal, given, left_out)


def test_an_optimizer_of_ones_own_needs_a_learning_rate():
    with pytest.raises(UsageError, match=r"units of signax:signum.*optimizer\.learning_rate"):
        make(name="signax:signum")


def update_of(tx: Any) -> Any:
    g = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3), "b": jnp.array([0.5, -1.0])}
    rows = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), g)
    return map_workers("vmap", lambda g: tx.update(g, tx.init(g), g)[0], 2)(rows)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"name": "ssdm", "scale": {"norm": "linf", "scope": "4", "running": True,
                                       "share_every": 2}},
            lambda: signax.ssdm(
                0.5, axis_name=WORKERS,
                scale=signax.Scale("linf", 4, running=True, share_every=2),
            ),
        ),
        (
            {"name": "ssdm", "scale": {"fixed": 3.0}},
            lambda: signax.ssdm(0.5, axis_name=WORKERS, scale=3.0),
        ),
        (
            {"name": "signum", "beta": 0.5, "dense": {"below": 3, "learning_rate": 0.25}},
            lambda: signax.dense_below(
                3,
                signax.signum(0.5, 0.5, axis_name=WORKERS),
                dense=signax.dense_sgd(0.25, axis_name=WORKERS),
            ),
        ),
        (
            {"name": "ef21", "weight_decay": 0.5,
             "dense": {"steps": 3, "learning_rate": 0.25, "momentum": 0.5}},
            lambda: signax.warmup(
                3,
                signax.ef21(0.5, axis_name=WORKERS, weight_decay=0.5),
                dense=signax.dense_sgd(0.25, 0.5, axis_name=WORKERS, weight_decay=0.5),
            ),
        ),
    ],
)  # fmt: skip
def test_fields_reach_the_optimizer(fields: Any, expected: Any):
    tx = make(learning_rate=0.5, schedule="constant", **fields)
    jax.tree.map(np.testing.assert_array_equal, update_of(tx), update_of(expected()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "signum", "alpha": 0.1}, "signum takes no 'alpha'"),
        ({"name": "ef21", "scale": {"norm": "l2"}}, "ef21 takes no 'scale'"),
        ({"name": "noisy_sign_sgd"}, r"needs a noise_scale: set config\.optimizer\.noise_scale"),
        ({"name": "one_bit_adam"}, "needs a freeze_steps"),
        ({"name": "ssdm", "scale": {"fixed": 1.0, "norm": "l2"}}, "fixed is R itself"),
        ({"name": "ssdm", "scale": {"scope": "blocks"}}, "unknown scope 'blocks'"),
        ({"dense": {"momentum": 0.9}}, r"dense\.momentum has no effect"),
        ({"dense": {"steps": 10}}, r"set config\.optimizer\.dense\.learning_rate"),
        ({"dense": {"below": -1, "learning_rate": 0.1}}, "must not be negative"),
    ],
)
def test_a_field_without_meaning_is_an_error(fields: Any, message: str):
    with pytest.raises(UsageError, match=message):
        make(**fields)


def test_the_schedule_behind_a_warm_up_ends_with_the_run():
    tx = make(
        num_steps=6, name="sign_sgd", learning_rate=1.0, schedule="linear",
        dense={"steps": 2, "learning_rate": 0.0},
    )  # fmt: skip

    def steps(g):
        state, seen = tx.init(g), []
        for _ in range(6):
            updates, state = tx.update(g, state)
            seen.append(updates)
        return jnp.stack(seen)

    seen = map_workers("vmap", steps, 1)(jnp.ones((1, 1)))[0, :, 0]
    np.testing.assert_array_equal(seen, [0, 0, -1.0, -0.75, -0.5, -0.25])


def test_the_table_of_weights_says_who_follows_them(capsys: pytest.CaptureFixture):
    dense, sign = (weights_command.row(name, 1500) for name in ("dense_sgd", "sign_sgd"))
    dense_ends = dense.equal, dense.unequal, dense.constant, abs(dense.in_one_dimension + 1)
    assert max(dense_ends) < 0.01
    assert sign.moved == 0
    assert sign.unequal > 0.5
    lines = weights_command.table([dense, sign]).splitlines()
    assert lines[2].startswith("| `dense_sgd` | 0.000 | 0.000 |")
    assert len({line.count("|") for line in lines}) == 1
    assert weights_command.main(["--help"]) == 0
    assert "signax weights" in capsys.readouterr().out
    with pytest.raises(UsageError, match="unrecognized arguments: --steps=3"):
        weights_command.main(["--steps=3"])
