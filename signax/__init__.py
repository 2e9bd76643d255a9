# ruff: noqa: I001  (in the order of the rooms)
"""Sign-based distributed training for JAX: one bit per coordinate, as Optax transformations.

In Optax an optimizer is a chain. Here the network is one more link of the chain: what stands before
it runs on each worker alone, what stands after it runs everywhere alike.
"""

# 0. Who are the workers?
from signax._workers import as_varying

# 1. What does a worker say?
from signax.signs._stochastic import (
    Scale,
    StochasticSignState,
    scale_by_stochastic_sign,
    stochastic_sign,
)

# 2. How does it travel?
from signax.wire._bits import pack_bits, unpack_bits
from signax.wire._cost import WireReport, wire_bits

# 3. Who wins?
from signax._votes import VoteState, average_gradients, average_signs, majority_vote

# 4. What is not forgotten?
from signax._memory import EmaFromFirstGradientState, abstaining, ema_from_first_gradient
from signax._skipping import SkipTogetherState, skip_together

# 5. The named algorithms.
from signax._optimizers import dense_sgd, sign_sgd, signum, ssdm

# 6. One jitted step on a mesh of workers.
from signax._drift import replicas_in_sync
from signax._elastic import change_num_workers
from signax._layout import from_worker, init_opt_state, make_worker_mesh, state_specs, to_worker
from signax._training import (
    TrainState,
    init_train_state,
    local_value_and_grad,
    make_train_step,
    simulate_train_step,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "EmaFromFirstGradientState",
    "Scale",
    "SkipTogetherState",
    "StochasticSignState",
    "TrainState",
    "VoteState",
    "WireReport",
    "abstaining",
    "as_varying",
    "average_gradients",
    "average_signs",
    "change_num_workers",
    "dense_sgd",
    "ema_from_first_gradient",
    "from_worker",
    "init_opt_state",
    "init_train_state",
    "local_value_and_grad",
    "majority_vote",
    "make_train_step",
    "make_worker_mesh",
    "pack_bits",
    "replicas_in_sync",
    "scale_by_stochastic_sign",
    "sign_sgd",
    "signum",
    "simulate_train_step",
    "skip_together",
    "ssdm",
    "state_specs",
    "stochastic_sign",
    "to_worker",
    "unpack_bits",
    "wire_bits",
]
