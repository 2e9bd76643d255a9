# ruff: noqa: I001  (in the order of the rooms)
"""Sign-based distributed training for JAX: one bit per coordinate, as Optax transformations.

In Optax an optimizer is a chain. Here the network is one more link of the chain: what stands before
it runs on each worker alone, what stands after it runs everywhere alike.
"""

# 0. Who are the workers?
from signax._workers import as_varying
from signax._shards._cut import sharded

# 1. What does a worker say?
from signax.signs._noisy import NoisySignState, noisy_sign, scale_by_noisy_sign
from signax.signs._sign import ScaledSignState, scale_by_scaled_sign, scaled_sign
from signax.signs._scales import Scale
from signax.signs._stochastic import (
    StochasticSignState,
    scale_by_stochastic_sign,
    stochastic_sign,
)

# 2. How does it travel?
from signax.wire._bits import pack_bits, unpack_bits
from signax.wire._cost import WireReport, wire_bits

# 3. Who wins?
from signax._network import VoteState
from signax._average import average_gradients
from signax._votes import average_signs, majority_vote
from signax._scaled import ScaledVoteState, average_scaled_signs
from signax._columns import average_column_means, scale_by_column_means

# 4. What is not forgotten?
from signax._differences import DifferencesState
from signax._feedback import ErrorFeedbackState, compressed_mean, error_feedback
from signax._memory import EmaFromFirstGradientState, abstaining, ema_from_first_gradient
from signax._freezing import freeze
from signax._warmup import WarmupState, warmup
from signax._bypass import dense_below
from signax._skipping import SkipTogetherState, skip_together
from signax._local_updates import LocalUpdatesState, local_updates

# 5. The named algorithms.
from signax._optimizers._adam import OneBitAdamState, one_bit_adam
from signax._optimizers._dense import dense_sgd
from signax._optimizers._differences import diana, ef21
from signax._optimizers._feedback import double_squeeze, ef_sign_sgd
from signax._optimizers._lion import distributed_lion
from signax._optimizers._majority import noisy_sign_sgd, sign_sgd, signum
from signax._optimizers._monotone import monotone_sign_sgd
from signax._optimizers._one_bit_sgd import one_bit_sgd
from signax._optimizers._ssdm import ssdm

# 5b. What they are compared with.
from signax import baselines

# 6. One jitted step on a mesh of workers.
from signax._drift import replicas_in_sync
from signax._elastic import change_num_workers
from signax._restoring import abstract_train_state
from signax._layout import init_opt_state, state_specs
from signax._mesh import make_worker_mesh
from signax._specs import from_worker, to_worker
from signax._training import init_train_state, make_train_step, simulate_train_step
from signax._worker_step import TrainState, local_value_and_grad

# 7. The paper's probabilities, norms and rates.
from signax import theory

# 8. Will sign methods work on my problem?
from signax import diagnostics

__version__ = "0.1.0"

__all__ = [
    "DifferencesState",
    "EmaFromFirstGradientState",
    "ErrorFeedbackState",
    "LocalUpdatesState",
    "NoisySignState",
    "OneBitAdamState",
    "Scale",
    "ScaledSignState",
    "ScaledVoteState",
    "SkipTogetherState",
    "StochasticSignState",
    "TrainState",
    "VoteState",
    "WarmupState",
    "WireReport",
    "abstaining",
    "abstract_train_state",
    "as_varying",
    "average_column_means",
    "average_gradients",
    "average_scaled_signs",
    "average_signs",
    "baselines",
    "change_num_workers",
    "compressed_mean",
    "dense_below",
    "dense_sgd",
    "diagnostics",
    "diana",
    "distributed_lion",
    "double_squeeze",
    "ef21",
    "ef_sign_sgd",
    "ema_from_first_gradient",
    "error_feedback",
    "freeze",
    "from_worker",
    "init_opt_state",
    "init_train_state",
    "local_updates",
    "local_value_and_grad",
    "majority_vote",
    "make_train_step",
    "make_worker_mesh",
    "monotone_sign_sgd",
    "noisy_sign",
    "noisy_sign_sgd",
    "one_bit_adam",
    "one_bit_sgd",
    "pack_bits",
    "replicas_in_sync",
    "scale_by_column_means",
    "scale_by_noisy_sign",
    "scale_by_scaled_sign",
    "scale_by_stochastic_sign",
    "scaled_sign",
    "sharded",
    "sign_sgd",
    "signum",
    "simulate_train_step",
    "skip_together",
    "ssdm",
    "state_specs",
    "stochastic_sign",
    "theory",
    "to_worker",
    "unpack_bits",
    "warmup",
    "wire_bits",
]
