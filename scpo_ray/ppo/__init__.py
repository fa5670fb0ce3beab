"""The actors behind `sft`, `ppo` and `best_of_n`: rollout engines, reward scorers, learners, and what passes between them."""
