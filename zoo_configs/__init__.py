"""Hold the hyper-parameters of GRPO for RL Zoo, ``grpo.yml``; :mod:`sb3_grpo.zoo.hyperparams` reads them."""
