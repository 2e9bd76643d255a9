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
    "average": str,
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
# One worker's own optimizer: arguments of `optax.adamw`, `optax.lion` and `optax.sgd`.
INNER_FIELDS = {
    "learning_rate": float,
    "b1": float,
    "b2": float,
    "eps": float,
    "momentum": float,
    "nesterov": bool,
    "weight_decay": float,
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
    config.dataset = "digits"  # "digits" (inside scikit-learn), "mnist", or "stdlib" (text)
    config.mnist_dir = ""  # folder with MNIST's four .gz files; "": SIGNAX_MNIST_DIR, else download
    config.partition = "iid"  # "iid", or "by_label": worker n owns the labels n, n + M, ...; files
    config.num_workers = placeholder(int)  # None: the accelerators if two or more, else 8 on CPU
    config.devices_per_worker = 1  # above 1 the parameters are cut over a worker's devices (FSDP)
    config.batch_size = 256  # examples per step, all workers together
    config.num_steps = 600  # batches that each worker has seen at the end
    config.hidden_size = 64  # of the one hidden layer; of a transformer the width
    config.text = ConfigDict()  # of dataset "stdlib", Python's own sources: bytes to the next byte
    config.text.sequence_length = 64  # bytes that the transformer foretells at once
    config.text.num_layers = 4
    config.text.num_heads = 4
    config.text.scored_bytes = 32_768  # of the test files, evenly spread, at each evaluation
    config.seed = 0  # of the first parameters, the order of the data and the optimizer's coins
    config.eval_every = 50  # steps: one jitted scan, one row of metrics.jsonl
    config.checkpoint_every = 500  # steps; the last step is always kept

    # k above 1: each worker takes k steps of `inner` alone, then `optimizer` is given how far it
    # came. num_steps, eval_every and checkpoint_every go on counting batches.
    config.local_steps = 1
    config.inner = ConfigDict({k: placeholder(t) for k, t in INNER_FIELDS.items()})
    config.inner.name = "adamw"  # "adamw", "lion" or "sgd", of Optax
    config.inner.schedule = "cosine"

    # None is the optimizer's own default; a field that it does not take is an error. A vote moves
    # every coordinate by the learning rate, a mean of signs by less, a gradient by its own size.
    config.optimizer = ConfigDict()
    config.optimizer.name = "signum"
    config.optimizer.learning_rate = placeholder(float)  # None: a first try for the optimizer
    config.optimizer.schedule = "cosine"  # "constant"; "cosine" or "linear", down to zero; or
    # "warmup": up for a tenth of the steps, then "cosine"
    for field, type_of_field in OPTIMIZER_FIELDS.items():
        config.optimizer[field] = placeholder(type_of_field)
    config.optimizer.scale = ConfigDict({k: placeholder(t) for k, t in SCALE_FIELDS.items()})
    config.optimizer.dense = ConfigDict({k: placeholder(t) for k, t in DENSE_FIELDS.items()})
    return config.lock()  # a misspelt field in a config file is an error
