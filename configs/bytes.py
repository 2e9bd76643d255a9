"""A transformer on the sources of Python's standard library: bits per byte of files not seen.

Shows    what a model that is worth a slow link learns in its first few hundred steps behind a vote,
         behind a vote every 8 steps, and behind what one would use in place of them. 5,111,936
         parameters, 4 workers, 16 windows of 64 bytes for a step
Command  signax train --config=configs/bytes.py:RUN
         larger: --config.hidden_size=768 --config.text.num_layers=12 --config.text.num_heads=12
         two hosts of four devices, parameters cut over the devices of each (FSDP), a vote across:
         --config.num_workers=2 --config.devices_per_worker=4
Cost     0.5 s for a step on two shared CPU cores; no download
Expect   full: steps until 3.8 bits per byte of test text, looked at every 16 (docs/operations.md
         has the command). small: bits per byte in training, mean of the steps 161 to 200, with
         --config.hidden_size=192 --config.text.num_layers=2 --config.num_steps=200
         --config.eval_every=40 (and freeze_steps=30). Seed 0, Python 3.11.7: the text is a little
         another one in other versions. "-": not measured; "no": not in 240 steps, which end at
         4.089, 3.844 and 3.825. Another CPU rounds otherwise: distributed_lion took 144 on one

    RUN               ties    full   small   bits per coordinate, worker, step
    adamw             -        128   3.781   48
    adamw_bfloat16    -        128   -       24
    adamw_low_rank    -        160   -        0.94
    power_sgd         -        144   3.770    0.94
    distributed_lion  zero     128   -        3
    signum            zero     160   3.748    3
    one_bit_adam      -        no    4.058    1.5, and 48 in the first steps
    ssdm_shared       -        no    3.999    3
    double_squeeze    -        176   3.791    1.5
    local_vote        zero     192   3.810    0.38
    local_squeeze     -        no    -        0.19

Learning rates are the best of a grid, by the small column: 1e-3, 3e-3, 1e-2 for AdamW; 3e-4, 1e-3,
3e-3 for Signum; 1e-3 and 3e-3 for 1-bit Adam; 3e-3, 0.01, 0.03 for SSDM; 0.1 and 0.3 for
DoubleSqueeze; 3e-3 and 0.01 for the vote after local steps, on AdamW with 3e-3. Lion is best at
1e-3 of 3e-4, 1e-3, 3e-3 there, and has 6e-4 as the wider model wants less; PowerSGD is best at 0.1
(3.670) of 0.05, 0.1 and 0.3, which diverges, and has 0.05, with which its first steps at full size
still bounce. AdamW's grids were with b2 = 0.999; 0.95 is a little better in so few steps.
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
