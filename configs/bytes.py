"""A transformer on the sources of Python's standard library: bits per byte of files not seen.

Shows    what a model that is worth a slow link learns in a few hundred steps, behind one bit per
         coordinate, behind local steps, and behind what one would use instead
Command  signax train --config=configs/bytes.py:RUN
         signax train --config=configs/bytes.py:RUN --config.hidden_size=512
Runs     adamw adamw_bfloat16 adamw_low_rank power_sgd distributed_lion signum one_bit_adam
         ssdm_shared double_squeeze local_vote local_squeeze
"""

from signax.experiments import default_config

ADAMW = {"name": "adamw", "learning_rate": 0.001, "b2": 0.95}
LOCAL = {"name": "adamw", "learning_rate": 0.003, "b2": 0.95, "schedule": "warmup"}

RUNS = {
    "adamw": {"optimizer": ADAMW},
    "adamw_bfloat16": {"optimizer": {**ADAMW, "average": "bfloat16"}},
    "adamw_low_rank": {"optimizer": {**ADAMW, "average": "low_rank", "rank": 4}},
    "power_sgd": {
        "optimizer": {"name": "power_sgd", "rank": 4, "momentum": 0.9, "learning_rate": 0.05}
    },
    "distributed_lion": {"optimizer": {"name": "distributed_lion", "learning_rate": 0.0006}},
    "signum": {"optimizer": {"name": "signum", "learning_rate": 0.001}},
    "one_bit_adam": {
        "optimizer": {"name": "one_bit_adam", "learning_rate": 0.001, "freeze_steps": 36}
    },
    "ssdm_shared": {
        "optimizer": {
            "name": "ssdm",
            "learning_rate": 0.01,
            "scale": {"norm": "linf", "scope": "leaf", "shared": True},
        }
    },
    "double_squeeze": {"optimizer": {"name": "double_squeeze", "learning_rate": 0.3}},
    "local_vote": {
        "local_steps": 8,
        "inner": LOCAL,
        "optimizer": {"name": "sign_sgd", "learning_rate": 0.003},
    },
    "local_squeeze": {
        "local_steps": 8,
        "inner": LOCAL,
        "optimizer": {"name": "double_squeeze", "learning_rate": 1.0, "schedule": "constant"},
    },
}


def get_config(run: str = "distributed_lion") -> default_config.Config:
    """Returns one of `RUNS`."""
    config = default_config.get_config()
    config.dataset = "stdlib"
    config.num_workers = 4
    config.batch_size = 16
    config.num_steps = 240
    config.eval_every = 16
    config.checkpoint_every = 240
    config.hidden_size = 320
    config.text.scored_bytes = 16_384
    config.optimizer.schedule = "warmup"
    config.update(RUNS[run])
    return config
