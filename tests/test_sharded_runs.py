"""`signax train` with parameters that are cut over the devices of each worker."""

import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from daily import thorough
from signax.experiments import default_config
from signax.experiments.errors import UsageError
from signax.experiments.experiment import make_experiment
from signax.experiments.train import train


def config(num_workers: int = 2, devices_per_worker: int = 2, **fields):
    chosen = default_config.get_config()
    chosen.num_workers, chosen.devices_per_worker = num_workers, devices_per_worker
    chosen.batch_size, chosen.num_steps, chosen.eval_every = 32, 8, 4
    chosen.update(fields)
    return chosen


@thorough
def test_a_run_that_is_cut_learns_as_one_that_is_not(tmp_path: Path):
    whole = train(config(devices_per_worker=1), tmp_path / "whole")
    cut = train(config(), tmp_path / "cut", check_sync_every=4)
    assert cut.num_workers == whole.num_workers == 2
    # The compiler's sums over the devices may differ in the last bit, and a sign near zero with
    # them: one step of 0.003 in a few of 4,810 coordinates, which moves few of 360 test images.
    assert cut.test_score == pytest.approx(whole.test_score, abs=0.02)
    # Two planes each way; what is padded is at most a word of each leaf and device.
    assert cut.bits_per_coordinate == pytest.approx(whole.bits_per_coordinate, abs=0.3)


def test_parameters_and_momenta_lie_in_pieces_and_stay_so():
    experiment = make_experiment(config())
    state = experiment.first_state()
    for _ in range(2):
        before = jax.tree.map(lambda x: x.sharding, state)
        assert "devices" in {a for x in jax.tree.leaves(state.params) for a in x.sharding.spec}
        (ema,) = (s.ema for s in jax.tree.leaves(state.opt_state, is_leaf=_has_ema) if _has_ema(s))
        for momentum, x in zip(*map(jax.tree.leaves, (ema, state.params)), strict=True):
            assert momentum.sharding.spec == P("workers", *x.sharding.spec)
        batch = {
            name: np.zeros((32, *x.shape[2:]), x.dtype)
            for name, x in experiment.train.examples.items()
        }
        state, _ = experiment.step(state, batch)
        after = jax.tree.map(lambda x: x.sharding, state)
        assert jax.tree.map(lambda a, b: a.spec == b.spec, before, after)


def _has_ema(x) -> bool:
    return hasattr(x, "ema")


def test_a_batch_that_the_devices_cannot_share_is_refused():
    with pytest.raises(UsageError, match="2 workers of 3 devices: 6 is, and its multiples"):
        make_experiment(config(devices_per_worker=3))


@pytest.mark.slow
def test_a_run_goes_on_with_other_workers_of_other_sizes(tmp_path: Path):
    def stop(step, row):
        signal.raise_signal(signal.SIGINT)

    assert train(config(), tmp_path / "run", on_metrics=stop).step == 4
    again = config(num_workers=4, devices_per_worker=1)
    result = train(again, tmp_path / "run", resume=True, change_num_workers="mean")
    assert (result.step, result.num_workers) == (8, 4)
