"""The default run: handwritten digits, eight workers, Signum with majority vote.

Shows    the signs of eight workers train a network as SGD would
Command  signax train
"""

from typing import Any, TypeAlias

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

Config: TypeAlias = Any  # a ConfigDict: type checkers cannot know what its fields hold


# The arguments of the named algorithms, signax.<name>; their docstrings say what each is.
OPTIMIZER_FIELDS = {
    "beta": float,
    "b1": float,
    "b2": float,
    "eps": float,
    "momentum": float,
    "alpha": float,
    "noise_scale": float,
    "noise": str,
    "freeze_steps": int,
    "aggregate": str,
    "sign": str,
    "rescale": bool,
    "shared": bool,
    "scope": str,
    "ties": str,
    "wire": str,
    "down_dtype": str,
    "levels": int,
    "norm": str,
    "clip_sigmas": float,
    "rank": int,
    "fraction": float,
    "feedback": bool,
    "on_nonfinite": str,
    "weight_decay": float,
    "accumulator_dtype": str,
}
# R of the stochastic sign: `signax.Scale`, or one fixed number (sto-sign).
SCALE_FIELDS = {
    "norm": str,
    "scope": str,  # "global", "leaf", or a number of coordinates
    "shared": bool,
    "running": bool,
    "share_every": int,
    "fixed": float,
}
# Dense SGD in a part of the run: `signax.warmup` and `signax.dense_below`.
DENSE_FIELDS = {
    "steps": int,  # the first steps
    "below": int,  # leaves with fewer coordinates
    "learning_rate": float,  # as for SGD; the optimizer's own may be that of a sign
    "momentum": float,
}


def get_config() -> Config:
    """Returns every field there is; other configs start here and change a few."""
    config: Config = ConfigDict()
    config.dataset = "digits"  # "digits" (inside scikit-learn) or "mnist"
    config.mnist_dir = ""  # folder with MNIST's four .gz files; "": SIGNAX_MNIST_DIR, else download
    config.partition = "iid"  # "iid", or "by_label": worker n owns the labels n, n + M, ...
    config.num_workers = placeholder(int)  # None: the accelerators if two or more, else 8 on CPU
    config.batch_size = 256  # examples per step, all workers together
    config.num_steps = 600
    config.hidden_size = 64
    config.seed = 0  # of the first parameters, the order of the data and the optimizer's coins
    config.eval_every = 50  # steps: one jitted scan, one row of metrics.jsonl
    config.checkpoint_every = 500  # steps; the last step is always kept

    # None is the optimizer's own default; a field that it does not take is an error. A vote moves
    # every coordinate by the learning rate, a mean of signs by less, a gradient by its own size.
    config.optimizer = ConfigDict()
    config.optimizer.name = "signum"
    config.optimizer.learning_rate = placeholder(
        float
    )  # None: a first try for the optimizer's units
    config.optimizer.schedule = "cosine"  # "constant", "cosine" or "linear", down to zero
    for field, type_of_field in OPTIMIZER_FIELDS.items():
        config.optimizer[field] = placeholder(type_of_field)
    config.optimizer.scale = ConfigDict({k: placeholder(t) for k, t in SCALE_FIELDS.items()})
    config.optimizer.dense = ConfigDict({k: placeholder(t) for k, t in DENSE_FIELDS.items()})
    return config.lock()  # a misspelt field in a config file is an error
