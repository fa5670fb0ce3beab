"""Trains one policy: PPO steps, each a method.

What is decided here is a function of (seed, step) and of what the last checkpoint holds, so that an interrupted run goes on as if
it had not been.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from scpo_ray.artifacts import Recipe, RunDirectory, content_hash_of
from scpo_ray.config import Config, PpoConfig
from scpo_ray.core.kl import AdaptiveKL, FixedKL
from scpo_ray.errors import SynchronizationError
from scpo_ray.models import load_tokenizer
from scpo_ray.ppo import experience, objective, step_metrics, tracking
from scpo_ray.ppo import prompts as prompt_sets
from scpo_ray.ppo.checkpoints import checkpoints_in
from scpo_ray.ppo.crew import Crew
from scpo_ray.ppo.engines import Generation
from scpo_ray.ppo.experience import Evaluated
from scpo_ray.ppo.learner import LearnerTask
from scpo_ray.ppo.learners import LearnerDied
from scpo_ray.ppo.objective import Scale, Scores, Target
from scpo_ray.ppo.records import Experience, Prompt, Rollout, Sample
from scpo_ray.runtime import Bar, console, progress_bar
from scpo_ray.stages.policy_plan import Plan, held_out_name, training_prompts
from scpo_ray.training.policy_card import policy_card


class Controller:
    """One policy, from its start (or last checkpoint) to its artifact."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        plan: Plan,
        target: Target,
        recipe: Recipe,
        crew: Crew,
        known_scales: Mapping[str, Scale],
    ) -> None:
        self.config, self.ppo, self.directory, self.plan = config, config.ppo, directory, plan
        self.target, self.recipe, self.crew, self.scales = target, recipe, crew, known_scales
        self.prompts = training_prompts(config.ppo, target, plan.prompts)
        self.tokenizer = load_tokenizer(plan.start)
        self.canaries = prompt_sets.canaries(
            self.prompts,
            number=self.ppo.num_canaries,
            max_tokens=config.format.max_tokens,
            vocab_size=len(self.tokenizer),
        )
        self.checkpoints = checkpoints_in(directory, recipe, config.ppo)
        self.step = 0
        self.kl = kl_controller(self.ppo)
        self.history: list[dict[str, float]] = []
        self.ahead: list[Sample] | None = None
        """Overlap: responses to this step's prompts that were written while the last step trained."""
        self._generation: Generation | None = None
        self._seconds = dict.fromkeys(step_metrics.PHASES, 0.0)
        self._num_restored, self._deaths_before = 0, len(crew.failures.seen)
        self._shown: list[dict[str, str]] = []

    def run(self) -> None:
        """All steps; dead learners are started again from the last checkpoint."""
        with progress_bar("ppo", unit="steps", run=self.directory.absolute_address) as bar:
            while True:
                try:
                    if not self.crew.learners.actors:
                        self.crew.learners.start()
                    self._begin()
                    self._run_steps(bar)
                    self._write()
                    break
                except LearnerDied:
                    self.crew.failures.note("learner")
                    self.crew.learners.stop()
                    console.print(f"{self.target.name}: a learner died; starting again from the last checkpoint")
                    bar.told.log("a learner died", name=self.target.name, level=logging.WARNING)
        self.checkpoints.remove()

    def run_step(self) -> dict[str, float]:
        """One PPO step: roll out, score, shape rewards, estimate advantages, update, synchronise; its metrics."""
        rollouts = self.roll_out()
        scores = self.score(rollouts)
        rewards, evaluated = self.shape_rewards(rollouts, scores)
        batch = self.estimate_advantages(rewards, evaluated)
        losses = self.update(batch)
        canary_difference = self.synchronise()
        self._shown = step_metrics.samples(rollouts, scores)
        return {
            **step_metrics.metrics(rollouts, scores, evaluated, batch),
            **losses,
            "canary_difference": canary_difference,
            **self.held_out_rewards(rollouts),
            **self.true_utilities(rollouts),
            **self.steer_kl(evaluated),
        }

    def roll_out(self) -> list[Rollout]:
        """One response per request of this step, with the log-probabilities of the engine that wrote it."""
        prompts = self._requests(self.step)
        with self._timed("generation"):
            samples = self.ahead
            if samples is None:
                samples = self.crew.engines.collect(self._submit(self.step))
        self._check_versions(samples)
        self.ahead = None
        if self.ppo.overlap and self.step + 1 < self.ppo.num_steps:
            self._generation = self._submit(self.step + 1)
        texts = self.tokenizer.batch_decode([sample.token_ids for sample in samples], skip_special_tokens=True)
        return [
            Rollout(prompt, sample, text.strip()) for prompt, sample, text in zip(prompts, samples, texts, strict=True)
        ]

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Rewards of the communities' models, normalised, composed, adjusted."""
        with self._timed("scoring"):
            asked = objective.questions(self.target, rollouts)
            rewards = self.crew.scorers.score(
                {community: objective.answers(rollouts, rows) for community, rows in asked.items()}
            )
        return objective.scores(self.target, rollouts, rewards, scales=self.scales, config=self.ppo)

    def shape_rewards(
        self, rollouts: Sequence[Rollout], scores: Scores
    ) -> tuple[Float[Tensor, "responses tokens"], Evaluated]:
        """Every token's reward: the price of moving from the reference and, at the last one, the score."""
        sequences = experience.sequences_of(rollouts)
        with self._timed("training"):
            found = self.crew.learners.evaluate(sequences)
        mask, written = experience.response_mask(sequences), experience.engine_log_probs(rollouts)
        evaluated = Evaluated(sequences, mask, written, **found)
        rewards = experience.rewards_of_tokens(
            scores.final, evaluated, kl_coefficient=self.kl.coefficient, config=self.ppo
        )
        return rewards, evaluated

    def estimate_advantages(self, rewards: Float[Tensor, "responses tokens"], evaluated: Evaluated) -> Experience:
        """What each token is praised for, and how much it counts."""
        return experience.estimated(rewards, evaluated, self.ppo)

    def update(self, batch: Experience) -> dict[str, float]:
        """Learn from the batch."""
        with self._timed("training"):
            return self.crew.learners.update(batch, self.step)

    def synchronise(self) -> float:
        """The new weights to every engine, proved; the largest canary difference, nats.

        With overlap the engines finish the next batch first: it is written by the weights before this update.
        """
        if self._generation is not None:
            with self._timed("generation"):
                self.ahead = self.crew.engines.collect(self._generation)
            self._generation = None
        with self._timed("synchronising"):
            return self._publish(self.step + 1)

    def held_out_rewards(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """What models that no policy is trained by think of these rollouts, on some steps; normalised means."""
        names = [name for name in self.target.communities if name in self.plan.held_out]
        if not names or self.step % self.ppo.held_out_every_steps:
            return {}
        rows = [row for row, rollout in enumerate(rollouts) if rollout.text]
        asked, num_empty = objective.answers(rollouts, rows), len(rollouts) - len(rows)
        with self._timed("scoring"):
            rewards = self.crew.scorers.score({held_out_name(name): asked for name in names})
        return {
            f"held out reward of {name}": step_metrics.normalised_mean(
                rewards[held_out_name(name)],
                self.scales[held_out_name(name)],
                num_empty=num_empty,
                empty_reward=self.ppo.empty_reward,
            )
            for name in names
        }

    def true_utilities(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """What each community is planted to think of these rollouts, where the truth is known."""
        truth = self.plan.truth
        if truth is None:
            return {}
        return {
            f"utility of {community}": sum(truth.utility(rollout.text, community) for rollout in rollouts)
            / len(rollouts)
            for community in truth.preferences
        }

    def steer_kl(self, evaluated: Evaluated) -> dict[str, float]:
        """The price of moving that this step was charged; the next one's follows the divergence where there is a budget."""
        charged = self.kl.coefficient
        self.kl = self.kl.after(kl=evaluated.divergence, num_sequences=len(evaluated.sequences.responses))
        return {"kl_coefficient": charged}

    def _check_versions(self, samples: Sequence[Sample]) -> None:
        """Step n is written by the weights after n updates; with overlap by those before the last of them."""
        expected = max(self.step - self.ppo.overlap, 0)
        found = {sample.version for sample in samples}
        if found != {expected}:
            raise SynchronizationError(
                f"{self.target.name}: step {self.step} was written by weights of version {sorted(found)}, {expected} was to "
                "write: a synchronisation was skipped; rerun to resume from the last checkpoint"
            )

    def _requests(self, step: int) -> list[Prompt]:
        asked = prompt_sets.prompts_of_step(
            self.prompts, step=step, number=self.ppo.prompts_per_step, seed=self.config.seed
        )
        return [prompt for prompt in asked for _ in range(self.ppo.responses_per_prompt)]

    def _submit(self, step: int) -> Generation:
        prompts = self._requests(step)
        seeds = prompt_sets.request_seeds(seed=self.config.seed, step=step, number=len(prompts))
        return self.crew.engines.submit([prompt.token_ids for prompt in prompts], seeds)

    def _publish(self, version: int) -> float:
        return self.crew.synchronise(version, self.canaries)

    def _begin(self) -> None:
        """The state of the last checkpoint, or the start; engines in step with it."""
        self.crew.learners.begin(
            LearnerTask(
                name=self.target.name,
                start=self.plan.start_address,
                config=self.ppo,
                seed=self.config.seed,
                temperature=self.ppo.temperature,
                reference=self.plan.start_address,
                has_critic=self.ppo.advantage == "gae",
                run=self.directory.absolute_address,
                stage="ppo",
                community=", ".join(self.target.communities),
            )
        )
        self.step, self.history, self.ahead, self._generation = 0, [], None, None
        self._num_restored = 0
        self.kl = kl_controller(self.ppo)
        newest = self.checkpoints.newest()
        if newest is not None:
            self._restore(self.crew.learners.restore(str(newest)))
        self._publish(self.step)

    def _run_steps(self, bar: Bar) -> None:
        folder = Path(self.checkpoints_address) if "://" in self.config.run_dir else Path(self.config.run_dir) / "logs"
        info = tracking.RunInfo(
            name=f"ppo {self.target.name}",
            identifier=content_hash_of(self.recipe.name, dict(self.recipe.identity), dict(self.recipe.inputs))[:16],
            folder=folder / self.recipe.name,
            first_step=self.step,
            settings=self.ppo.identity("ppo"),
        )
        with tracking.tracking(self.ppo.loggers, info) as trackers:
            while self.step < self.ppo.num_steps:
                start = time.monotonic()
                self._seconds = dict.fromkeys(step_metrics.PHASES, 0.0)
                row = self.run_step()
                elapsed = time.monotonic() - start
                row |= {f"{phase}_share": seconds / elapsed for phase, seconds in self._seconds.items()}
                tokens = row["length"] * self.ppo.prompts_per_step * self.ppo.responses_per_prompt
                row |= {"seconds": elapsed, "tokens_per_second": tokens / elapsed}
                self.history.append(row)
                trackers.metrics(self.step, row)
                if self.step % self.ppo.checkpoint_every_steps == 0:
                    trackers.samples(self.step, self._shown)
                self.step += 1
                bar.update(
                    self.step,
                    self.ppo.num_steps,
                    name=self.target.name,
                    note=step_metrics.progress_note(row),
                    community=", ".join(self.target.communities),
                    measures=step_metrics.measures(self.history[self._num_restored :])
                    | {"deaths_total": len(self.crew.failures.seen) - self._deaths_before},
                )
                every, failures = self.ppo.checkpoint_every_steps, self.crew.failures
                if self.step < self.ppo.num_steps and self.checkpoints.is_due(
                    self.step, every=every, failures=failures
                ):
                    self.checkpoints.save(self.crew.learners, self.step, self._state())

    @property
    def checkpoints_address(self) -> str:
        """Where logs go when the run directory is no disk."""
        return str(self.ppo.checkpoint_dir)

    def _state(self) -> dict:
        """What the controller must remember; plain values. RNG: every draw is a function of (seed, step)."""
        ahead = None if self.ahead is None else [asdict(sample) for sample in self.ahead]
        return {
            "step": self.step,
            "history": self.history,
            "kl_coefficient": self.kl.coefficient,
            "ahead": json.dumps(ahead),
        }

    def _restore(self, state: dict) -> None:
        self.step, self.history = state["step"], list(state["history"])
        self._num_restored = len(self.history)
        self.kl = replace(self.kl, coefficient=state["kl_coefficient"])
        ahead = json.loads(state["ahead"])
        if ahead is not None:
            self.ahead = [
                Sample(tuple(row["token_ids"]), tuple(row["log_probs"]), row["is_finished"], row["version"])
                for row in ahead
            ]

    def _write(self) -> None:
        ppo, last = self.ppo, self.history[-1]
        facts = {
            "trained for": list(self.target.communities),
            "composition": self.target.composition,
            "start and reference": ppo.policy or "the run's start policy",
            "advantages": ppo.advantage,
            "steps": len(self.history),
            "responses per step": ppo.prompts_per_step * ppo.responses_per_prompt,
            "KL coefficient, first and last": f"{self.history[0]['kl_coefficient']:.4g}, {last['kl_coefficient']:.4g}",
            "reward (validation standard deviations), first and last step": f"{self.history[0]['reward']:+.3f}, "
            f"{last['reward']:+.3f}",
            "KL to the reference at the end, nats per response": f"{last['kl']:.3f}",
            **self.crew.learners.describe(),
        }
        files = {
            "README.md": policy_card(f"policy for {self.target.name}", facts),
            "metrics.json": {"target": asdict(self.target), "steps": self.history},
        }
        statistics = {
            "num_steps": len(self.history),
            "num_prompts": len(self.prompts),
            "num_prompts_too_long": self.plan.prompts.num_too_long,
            "kl": last["kl"],
            "reward": last["reward"],
            "wall_time_s": round(sum(row["seconds"] for row in self.history), 3),
        }
        self.crew.learners.write(self.recipe, self.directory.absolute_address, files, statistics)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[phase] += time.monotonic() - start


def kl_controller(config: PpoConfig) -> AdaptiveKL | FixedKL:
    """Fixed, or adaptive when there is a budget."""
    if config.kl_budget is None:
        return FixedKL(config.kl_coefficient)
    return AdaptiveKL(max(config.kl_coefficient, 1e-4), target=config.kl_budget, horizon=config.kl_horizon)
