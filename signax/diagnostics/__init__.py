"""Will sign methods work on *my* problem? An examination, and a link that watches the vote.

`examine` looks at one point: how often each sign is right, why not, what more workers would bring,
whether the workers disagree for good, and whether sending signs pays. `track_votes` watches a
training run from inside its chain for a few scalars per step.
"""

from signax.diagnostics._cost import Cost, MethodCost
from signax.diagnostics._examine import examine
from signax.diagnostics._report import Coordinates, LeafReport, Report
from signax.diagnostics._tracking import TrackVotesState, agreement_by_chance, track_votes
from signax.diagnostics._verdict import Verdict

__all__ = [
    "Coordinates",
    "Cost",
    "LeafReport",
    "MethodCost",
    "Report",
    "TrackVotesState",
    "Verdict",
    "agreement_by_chance",
    "examine",
    "track_votes",
]
