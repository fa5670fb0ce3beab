"""Two run directories with the same prepared data: is the one's main strategy better, on the same test pairs?

python -m benchmarks.compare_runs RUN AGAINST

prints RUN minus AGAINST, in points of accuracy of each community's own model, with the intervals and p-values of the
evaluation: clusters of test pairs are resampled whole, as docs/evaluation.md says.
"""

import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa

from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import load_config
from scpo_ray.config import Config
from scpo_ray.core.accuracy import pair_correctness
from scpo_ray.evaluation.comparisons import compare
from scpo_ray.evaluation.pairs import PairSet
from scpo_ray.stages.evaluate import load_inputs


def correctness(run: RunDirectory, strategy: str, community: str, pairs: PairSet) -> np.ndarray:
    """1 where the community's model prefers what its annotator chose, in the order of the pairs."""
    rewards = run.read_table("evaluation/rewards.parquet").to_pandas()
    own = rewards[(rewards.model == f"{strategy}/{community}") & (rewards.community == community)].set_index("pair_id")
    own = own.loc[pairs.table["pair_id"].to_pylist()]
    return pair_correctness(
        chosen_rewards=own.reward_chosen.to_numpy(), rejected_rewards=own.reward_rejected.to_numpy()
    )


def main() -> None:
    """Print the differences."""
    configs: list[Config] = [
        load_config(["--config", f"{folder}/config.yaml", "--run_dir", folder]) for folder in sys.argv[1:3]
    ]
    first, second = (RunDirectory(config.run_dir) for config in configs)
    if first.require("prepared", job="prepare").content_hash != second.require("prepared", job="prepare").content_hash:
        raise SystemExit("the runs were prepared differently: their test pairs are not the same")
    config = configs[0]
    test = load_inputs(config, first).test
    strategy = config.select.strategy
    communities = sorted(
        {
            name.removeprefix(f"{strategy}/")
            for name in first.read_table("evaluation/rewards.parquet")["model"].to_pylist()
        }
        - {"global"}
    )
    rows = {
        community: [correctness(run, strategy, community, test[community]) for run in (first, second)]
        for community in communities
    }
    table = pa.concat_tables([test[community].table for community in communities])
    pooled = replace(test[communities[0]], name="all communities", table=table)
    together = [np.concatenate([rows[community][side] for community in communities]) for side in (0, 1)]
    for pairs, (ours, theirs) in [(test[name], rows[name]) for name in communities] + [(pooled, together)]:
        found = compare(pairs, ours, theirs, config.evaluate, seed=config.seed)
        print(
            f"{pairs.name:<16} {100 * ours.mean():.1f} against {100 * theirs.mean():.1f}: {100 * found['difference']:+.1f} "
            f"[{100 * found['low']:+.1f}, {100 * found['high']:+.1f}] points, p {found['p_value']:.3f}, "
            f"{found['num_pairs']} pairs, {found['num_clusters']} clusters"
        )


if __name__ == "__main__":
    main()
