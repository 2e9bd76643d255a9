"""`config.local_steps` and `config.inner`, and AdamW as a config has it."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax
from signax.experiments import default_config, workdir
from signax.experiments.adamw import adamw
from signax.experiments.default_config import Config
from signax.experiments.errors import UsageError
from signax.experiments.experiment import make_experiment, make_run_steps
from signax.experiments.optimizers import make_optimizer
from signax.experiments.train import train
from workers import WORKERS, map_workers


def config_of(**changes: Any) -> Config:
    config = default_config.get_config()
    config.num_steps, config.eval_every, config.hidden_size, config.batch_size = 8, 4, 8, 32
    config.update(changes)
    return config


def trained(config: Config) -> Any:
    experiment = make_experiment(config)
    rows = experiment.rows(0, config.num_steps)
    return make_run_steps(experiment)(experiment.first_state(), experiment.train, rows)[0]


SGD = {"name": "dense_sgd", "schedule": "constant"}
LOCAL = {
    "local_steps": 4,
    "inner": {"name": "sgd", "learning_rate": 0.1, "schedule": "constant"},
    "optimizer": {**SGD, "learning_rate": 1.0},
}


def test_one_worker_that_steps_alone_sees_the_batches_of_a_run_without_local_steps():
    """It starts at x and lands on x - (x - x_4): equal but for the rounding of two subtractions."""
    alone = trained(config_of(num_workers=1, optimizer={**SGD, "learning_rate": 0.1}))
    local = trained(config_of(num_workers=1, **LOCAL))
    assert (int(alone.step), int(local.step)) == (8, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone.params, local.params
    )


def test_each_of_several_workers_takes_its_own_batches_in_order():
    experiment = make_experiment(config_of(num_workers=2, **LOCAL))
    single = experiment.order.rows(0, 8)  # [step, worker, row]
    rounds = np.asarray(experiment.rows(0, 8))  # [round, worker, row of 4 steps]
    assert rounds.shape == (2, 2, 64)
    for step in range(8):
        part = slice(step % 4 * 16, step % 4 * 16 + 16)
        np.testing.assert_array_equal(rounds[step // 4, :, part], single[step])


@pytest.mark.slow
def test_a_round_is_sent_once_in_k_steps_and_resumes(tmp_path: Path):
    config = config_of(num_workers=2, **LOCAL, checkpoint_every=4)
    config.optimizer.update({"name": "sign_sgd", "learning_rate": 0.01})
    result = train(config, tmp_path / "run")
    every = config_of(num_workers=2, optimizer={"name": "sign_sgd", "learning_rate": 0.01})
    each = train(every, tmp_path / "each")
    assert (result.step, result.is_finished) == (8, True)
    assert result.megabytes_sent == pytest.approx(each.megabytes_sent / 4, rel=1e-3)
    assert result.bits_per_coordinate == pytest.approx(each.bits_per_coordinate / 4, rel=1e-3)
    again = train(config, tmp_path / "run", resume=True)
    assert (again.step, again.test_score) == (8, result.test_score)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner": {"b1": 0.8}}, r"config\.inner\.b1 has no effect"),
        ({"local_steps": 4}, r"set config\.inner\.learning_rate"),
        ({**LOCAL, "num_steps": 10}, r"num_steps=10 is no multiple of config\.local_steps=4"),
        ({**LOCAL, "eval_every": 3}, r"eval_every=3 is no multiple .*: 4 is"),
        ({**LOCAL, "inner": {"name": "adam", "learning_rate": 0.1}}, "Did you mean 'adamw'"),
        (
            {**LOCAL, "inner": {"name": "sgd", "learning_rate": 0.1, "b2": 0.9}},
            "sgd takes no 'b2': .* It takes: learning_rate, momentum, nesterov",
        ),
        (
            {**LOCAL, "optimizer": {"dense": {"steps": 2, "learning_rate": 0.1}}},
            r"config\.optimizer\.dense\.learning_rate is for steps that are all exchanged",
        ),
        ({"local_steps": 0}, r"config\.local_steps=0: must be 1 or more"),
        ({"optimizer": {"name": "adamw", "average": "int8"}}, "'int8' is none of 'float32'"),
    ],
)
def test_a_mistake_says_what_to_write(changes: Any, message: str):
    with pytest.raises(UsageError, match=message):
        make_experiment(config_of(**changes))


def test_the_inner_schedule_counts_batches_and_the_outer_one_rounds():
    tx = make_optimizer(
        config_of(
            **LOCAL | {"optimizer": {"name": "sign_sgd", "learning_rate": 1.0,
                                     "schedule": "linear"}},
        ),
        WORKERS,
    )  # fmt: skip
    assert isinstance(tx, optax.GradientTransformationExtraArgs)

    def outer_steps(g):
        state, seen = tx.outer.init(g), []  # type: ignore[attr-defined]
        for _ in range(2):
            update, state = tx.outer.update(g, state)  # type: ignore[attr-defined]
            seen.append(update)
        return jnp.stack(seen)

    seen = map_workers("vmap", outer_steps, 1)(jnp.ones((1, 1)))
    np.testing.assert_array_equal(seen[0, :, 0], [-1.0, -0.5])


@pytest.mark.parametrize("average", ["float32", "bfloat16"])
def test_adamw_is_that_of_optax_on_the_mean_gradient(average: str):
    g = jnp.asarray(np.random.default_rng(0).standard_normal((4, 12)), jnp.float32)
    x = jnp.linspace(-1.0, 1.0, 12)
    ours = adamw(0.1, axis_name=WORKERS, average=average, weight_decay=0.5)  # type: ignore[arg-type]
    update = map_workers("shard_map", lambda g: ours.update(g, ours.init(x), x)[0], 4)(g)
    theirs = optax.adamw(0.1, weight_decay=0.5)
    mean = g.mean(axis=0)
    expected, _ = theirs.update(mean, theirs.init(x), x)
    # The first step of Adam is a sign, up to eps / |g|; rounding to bfloat16 changes no sign here.
    np.testing.assert_allclose(update, jnp.stack([expected] * 4), rtol=1e-5)


def test_adamw_of_low_rank_is_power_sgds_mean_in_front():
    g = jnp.outer(jnp.arange(1.0, 9.0), jnp.linspace(-1.0, 1.0, 8))
    ours = adamw(0.1, axis_name=WORKERS, average="low_rank", rank=1, key=3, weight_decay=0.0)
    link = signax.baselines.average_low_rank(WORKERS, rank=1, key=3)
    theirs = optax.chain(link, optax.adamw(0.1, weight_decay=0.0))
    run = lambda tx: map_workers("vmap", lambda g: tx.update(g, tx.init(g), g)[0], 2)  # noqa: E731
    rows = jnp.stack([g, 2 * g])
    np.testing.assert_array_equal(run(ours)(rows), run(theirs)(rows))


def test_a_run_from_before_a_field_existed_had_its_default():
    new = config_of().to_dict()
    old = {name: value for name, value in new.items() if name not in ("local_steps", "inner")}
    saved = {"num_workers": 2, "config": old}
    workdir._check_same_run(saved, {"num_workers": 2, "config": new}, False)
    with pytest.raises(UsageError, match=r"config\.local_steps=1 and this one 4"):
        workdir._check_same_run(
            saved, {"num_workers": 2, "config": {**new, "local_steps": 4}}, False
        )
