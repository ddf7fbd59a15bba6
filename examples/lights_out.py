"""
Learn without a critic from a reward at the end: switch off all lights of a puzzle.

Whoever presses a light switches it and its neighbours; the only reward is 1 for a dark board. Some boards are easier than
others. Eight environments play the same board at a time, so that an episode is compared with others of equal difficulty:
their mean is the baseline, and no value function has to learn how hard each board is.

``python examples/lights_out.py`` (about a minute)
"""

from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_grpo import GRPO, make_group_vec_env
from sb3_grpo.envs.lights_out import LightsOut


def main(total_timesteps: int = 200_000) -> GRPO:
    """
    Train, then print the share of boards that are solved.

    :param total_timesteps: environment steps to train for
    :return: the trained model
    """
    env = make_group_vec_env(LightsOut, group_size=8, n_starts=2, seed=0)
    model = GRPO(
        "MlpPolicy",
        env,
        advantage_estimator="outcome",
        group_size=8,
        n_steps=64,
        batch_size=256,
        learning_rate=1e-3,
        gamma=1.0,
        ent_coef=0.01,
        seed=0,
        device="cpu",
    )
    model.learn(total_timesteps)
    solved, _ = evaluate_policy(model, Monitor(LightsOut()), 200)
    print(f"solved: {solved:.0%} of 200 boards")
    return model


if __name__ == "__main__":
    main()
