"""Handwritten digits, five workers: worker n owns the labels n and n + 5.

Shows    when workers disagree for good, a majority is not a mean: the votes and SSDM as printed get
         stuck, SSDM with one scale for all workers does not. The small sister of mnist_by_label.py.
Command  signax train --config=configs/digits_by_label.py:RUN --seeds=0,1,2
Cost     5 to 25 s for each seed on two shared CPU cores, most of it compilation; no download
Expect   accuracy after 600 steps, mean and sample standard deviation of the three seeds

    RUN            ties  train accuracy [%]  test accuracy [%]  bits per coordinate, worker, step
    signum         zero     67.36 +- 3.82      64.17 +- 5.58      3.30
    majority_vote  zero     70.15 +- 4.54      67.04 +- 4.52      3.30
    ssdm           -        57.09 +- 2.32      56.39 +- 1.69      3.30
    ssdm_shared    -        96.59 +- 0.18      96.20 +- 0.64      3.34
    ef21           -        99.03 +- 0.07      97.69 +- 0.64      3.35
    sgd            -        99.88 +- 0.04      97.78 +- 0.28     51.25

Learning rates: the better of 0.001 and 0.003 for the votes, of 0.01 and 0.03 for SSDM, by train
accuracy with seed 0; EF21's the better of 0.1 and 0.3, with a constant step; SGD's is the first
that was tried.
"""

from signax.experiments import default_config

RUNS = {
    "signum": {"name": "signum", "learning_rate": 0.003},
    "majority_vote": {"name": "sign_sgd", "learning_rate": 0.003},
    "ssdm": {"name": "ssdm", "learning_rate": 0.03},
    "ssdm_shared": {
        "name": "ssdm",
        "learning_rate": 0.03,
        "scale": {"norm": "linf", "scope": "leaf", "shared": True},
    },
    "ef21": {"name": "ef21", "learning_rate": 0.3, "schedule": "constant"},
    "sgd": {"name": "dense_sgd", "learning_rate": 0.1, "momentum": 0.9},
}


def get_config(run: str = "signum") -> default_config.Config:
    """Returns one of `RUNS`."""
    config = default_config.get_config()
    config.partition = "by_label"
    config.num_workers = 5
    config.batch_size = 250
    config.optimizer.update(RUNS[run])
    return config
