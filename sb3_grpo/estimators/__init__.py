"""Advantages: with a critic, as PPO, or relative to other episodes of the same sampling group."""

from sb3_grpo.estimators.base import GAE, AdvantageEstimator, Experience
from sb3_grpo.estimators.critic_free import CriticFreeEstimator, OutcomeEstimator, ProcessEstimator, TimeStepEstimator

#: Values of the argument ``advantage_estimator``
ESTIMATORS: dict[str, type[AdvantageEstimator]] = {
    "gae": GAE,
    "outcome": OutcomeEstimator,
    "process": ProcessEstimator,
    "time_step": TimeStepEstimator,
}

__all__ = [
    "ESTIMATORS",
    "GAE",
    "AdvantageEstimator",
    "CriticFreeEstimator",
    "Experience",
    "OutcomeEstimator",
    "ProcessEstimator",
    "TimeStepEstimator",
]
