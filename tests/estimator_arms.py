"""The arms of `docs/estimator.md`, and its table:  python -m tests.estimator_arms [--trajectories 51200] [NAME ...]"""

import argparse

import numpy as np

from engine.branching import Aepo, Arpo, ArpoSampled, TreeGrpo
from engine.granting import Ranked
from learner.algorithms.correction_config import ExactIs
from tests.toy_estimator import Arm, Bias, estimates
from tests.toy_policy import OLDER, TABLE, Enumerated

NOW = (TABLE,)
"""Without staleness: what is trained also samples."""
AT_RESULT = Arpo(initial=4, probe_tokens=2, fork_at="tool_result")

EXACT: dict[str, Arm] = {
    "arpo": Arm(),
    "arpo_sampled": Arm(branching=ArpoSampled(initial=4, probe_tokens=2, beta=1.0)),
    "aepo": Arm(branching=Aepo(initial=4, probe_tokens=2)),
    "arpo, two branches a fork": Arm(branching=Arpo(initial=2, probe_tokens=2, branches=2)),
    "arpo, logical time": Arm(is_logical=True),
    "arpo, 5 places": Arm(size=5),
    "arpo, 40 places a cohort": Arm(leaves_per_cohort=40),
    "arpo, tool_result with k = 1": Arm(branching=Arpo(initial=4, probe_tokens=1, fork_at="tool_result")),
    "ranked": Arm(granting=Ranked()),
}
"""Those whose mean is the true gradient. All are stale: versions 0 and 1 sample, in one tree."""

BIASED: dict[str, Arm] = {
    "equal leaves": Arm(leaf_weighting="equal", tables=NOW),
    "tool_result with k = 2": Arm(branching=AT_RESULT, tables=NOW),
    "weights scaled in each group": Arm(is_scaled=True, tables=NOW),
    "tree_grpo": Arm(branching=TreeGrpo(), tables=NOW),
    "ranked, 1 place for a fork": Arm(branching=Arpo(initial=1, probe_tokens=2), granting=Ranked(), size=2, tables=NOW),
    "stale, products over prefixes": Arm(correction=ExactIs(over="prefix"), tables=(OLDER[0],)),
}
"""Those whose mean is another one; all but the last are on policy."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the biases of the toy policy's estimators as a table.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--trajectories", type=int, default=51_200)
    arguments = parser.parse_args()
    true_G = Enumerated().gradient(TABLE)
    print("| estimator | bias / true gradient | seen from | largest of 45 z | z along the gradient |")
    print("|---|---|---|---|---|")
    for name, arm in (EXACT | BIASED).items():
        if arguments.names and name not in arguments.names:
            continue
        bias = Bias(estimates(arm, num_trajectories=arguments.trajectories), true_G)
        largest, along = np.abs(bias.z_scores).max(), bias.z_along(true_G)
        print(f"| {name} | {bias.relative:.1%} | {bias.resolution:.1%} | {largest:.1f} | {along:+.1f} |", flush=True)


if __name__ == "__main__":
    main()
