"""Run ``python -m sb3_grpo.zoo``: one of RL Zoo's scripts, with GRPO as one of its algorithms."""

from sb3_grpo.zoo import main

if __name__ == "__main__":
    main()
