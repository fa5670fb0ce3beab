"""What a start policy and PPO will compute and hold: `estimate` for the stages that write, score and learn responses."""

from dataclasses import dataclass, replace

from scpo_ray import hardware, model_files
from scpo_ray.artifacts import RunDirectory
from scpo_ray.capacity import Capacity
from scpo_ray.config import Config, LearnerConfig
from scpo_ray.core.model_size import (
    TransformerShape,
    activation_bytes,
    backward_bytes,
    cache_bytes,
    decoding_seconds,
    forward_flops,
    logits_bytes,
    state_bytes,
    synchronization_bytes,
    training_flops,
)
from scpo_ray.models import shape_of
from scpo_ray.precision import resolved_precision
from scpo_ray.stages.estimate import Data, Estimate, communities_of, device_of, reward_shape, scratch_shape
from scpo_ray.stages.recipes import START_POLICY

_MOST_CONCURRENT = 256
"""Sequences that vLLM writes side by side, unless its cache is full."""


@dataclass(frozen=True)
class Rollouts:
    """Of a whole PPO run, at most: every response as long as it may be."""

    num_policies: int
    num_responses: float
    """Of each policy."""
    prompt_tokens: float
    response_tokens: float

    @property
    def num_tokens(self) -> float:
        """Prompts and responses of all policies."""
        return self.num_policies * self.num_responses * self.length

    @property
    def length(self) -> float:
        """Of a prompt with its response."""
        return self.prompt_tokens + self.response_tokens


def start_policy(config: Config, directory: RunDirectory, data: Data, capacity: Capacity) -> Estimate:
    """At most: the communities' training responses, all of which may have been chosen."""
    sft, shape = config.sft, _shape_to_teach(config)
    names = sft.communities or data.majority
    responses = sum(data.training_responses.get(name, 0) for name in names) * sft.epochs
    if sft.max_steps is not None:
        responses = min(responses, sft.max_steps * sft.batch_size)
    tokens = responses * data.mean_tokens
    flops = _learning(shape, sft, tokens=tokens, length=data.mean_tokens)
    device = device_of(sft.precision, sft.gpus_per_learner > 0, capacity)
    devices = sft.num_learners if sft.gpus_per_learner else 1
    seconds = device and flops / (device.flops * device.training_utilization) / devices
    states = _learner_states(shape, sft, has_critic=False, has_reference=False)
    memory = states + _micro_batch_bytes(shape, sft, sequence_length=data.mean_tokens)
    return Estimate(tokens, flops, memory, seconds, least_bytes=states)


def ppo(config: Config, directory: RunDirectory, data: Data, capacity: Capacity) -> Estimate:
    """The training of every policy, and their measurement; at most, as `Rollouts`."""
    training = policy_training(config, directory, data, capacity)
    return training.with_more(policy_evaluation(config, directory, data, capacity))


def policy_training(config: Config, directory: RunDirectory, data: Data, capacity: Capacity) -> Estimate:
    """Generation, scoring, evaluation under policy, reference and critic, updates; at most, as `Rollouts`."""
    settings, shape, reward = config.ppo, policy_shape(config, directory), reward_shape(config, directory)
    rollouts = _rollouts(config, data)
    tokens, length = rollouts.num_tokens, rollouts.length
    has_critic = settings.advantage == "gae"
    forward = forward_flops(shape, num_tokens=tokens, mean_length=length, lm_head=True)
    scoring = forward_flops(reward, num_tokens=tokens, mean_length=length) * _readers(config, data)
    learning = _learning(shape, settings, tokens=tokens * settings.update_epochs, length=length)
    if has_critic:  # no adapters, and one value a token
        learning += training_flops(
            shape,
            num_tokens=tokens * settings.update_epochs,
            mean_length=length,
            checkpointing=settings.gradient_checkpointing,
        )
    evaluating = forward * (2 + has_critic)
    learner = device_of(settings.precision, settings.gpus_per_learner > 0, capacity)
    engine = device_of(_engine_precision(config), settings.gpus_per_engine > 0, capacity)
    scorer = device_of(config.score.precision, settings.gpus_per_scorer > 0, capacity)
    seconds = None
    if learner is not None and engine is not None and scorer is not None:
        seconds = (
            _generation_seconds(config, shape, rollouts, engine)
            + scoring
            / (scorer.flops * scorer.scoring_utilization)
            / _devices(settings.num_scorers, settings.gpus_per_scorer)
            + (evaluating / learner.scoring_utilization + learning / learner.training_utilization)
            / learner.flops
            / _devices(settings.num_learners, settings.gpus_per_learner)
        )
    states = _learner_states(shape, settings, has_critic=has_critic, has_reference=not settings.lora.enabled)
    memory = max(
        states + _micro_batch_bytes(shape, settings, sequence_length=length), engine_bytes(config, shape, rollouts)
    )
    moved = (
        settings.num_steps
        * rollouts.num_policies
        * synchronization_bytes(
            _policy_parameters(shape),
            num_engines=settings.num_engines,
            bytes_per_value=_engine_width(config),
        )
    )
    least = {"learner": states, "engine": _engine_width(config) * _policy_parameters(shape)}
    on_gpu = [kind for kind in least if getattr(settings, f"gpus_per_{kind}")]
    return Estimate(
        tokens,
        forward + scoring + evaluating + learning,
        memory,
        seconds,
        moved,
        least_bytes=max(least[kind] for kind in on_gpu or least),
    )


def policy_evaluation(config: Config, directory: RunDirectory, data: Data, capacity: Capacity) -> Estimate:
    """The start policy and every trained one answer the test prompts; every community's models read every answer."""
    rollouts = _rollouts(config, data)
    number = config.ppo.evaluation.max_prompts * config.ppo.evaluation.responses_per_prompt
    return _measured(
        config,
        directory,
        data,
        capacity,
        replace(rollouts, num_policies=rollouts.num_policies + 1, num_responses=number),
    )


def best_of_n(config: Config, directory: RunDirectory, data: Data, capacity: Capacity) -> Estimate:
    """At most: as many test prompts as may be, every response as long as it may be."""
    number = config.ppo.evaluation.max_prompts * max(config.best_of_n.num_samples, default=0)
    rollouts = replace(_rollouts(config, data), num_policies=1, num_responses=number)
    return _measured(config, directory, data, capacity, rollouts)


def _measured(config: Config, directory: RunDirectory, data: Data, capacity: Capacity, rollouts: Rollouts) -> Estimate:
    """Responses that are written, and read by two models of each community (one of them held out, where there are seeds), by the
    policy and by its reference."""
    settings, shape, reward = config.ppo, policy_shape(config, directory), reward_shape(config, directory)
    sizes = {"num_tokens": rollouts.num_tokens, "mean_length": rollouts.length}
    num_readers = len(_communities(config, data)) * min(2, config.train.num_seeds)
    scoring, reading = num_readers * forward_flops(reward, **sizes), 2 * forward_flops(shape, **sizes, lm_head=True)
    learner = device_of(settings.precision, settings.gpus_per_learner > 0, capacity)
    engine = device_of(_engine_precision(config), settings.gpus_per_engine > 0, capacity)
    scorer = device_of(config.score.precision, settings.gpus_per_scorer > 0, capacity)
    seconds = None
    if learner is not None and engine is not None and scorer is not None:
        seconds = _generation_seconds(config, shape, rollouts, engine)
        for flops, device, devices in (
            (scoring, scorer, _devices(settings.num_scorers, settings.gpus_per_scorer)),
            (reading, learner, _devices(settings.num_learners, settings.gpus_per_learner)),
        ):
            seconds += flops / (device.flops * device.scoring_utilization) / devices
    writing = forward_flops(shape, **sizes, lm_head=True)
    return Estimate(
        rollouts.num_tokens,
        writing + scoring + reading,
        engine_bytes(config, shape, rollouts),
        seconds,
        least_bytes=_engine_width(config) * _policy_parameters(shape),
    )


def engine_bytes(config: Config, shape: TransformerShape, rollouts: Rollouts) -> float:
    """Weights of a rollout engine, and keys and values of the responses that it writes side by side."""
    width = _engine_width(config)
    kept = cache_bytes(shape, num_tokens=_concurrent(config) * rollouts.length, bytes_per_value=width)
    return width * _policy_parameters(shape) + kept


def policy_shape(config: Config, directory: RunDirectory) -> TransformerShape:
    """Of the policies: that of the configured one, of the run's start policy, or of what it will be made from.

    Raises:
        ModelError: the configured policy cannot be had.
    """
    if config.ppo.policy is not None:
        return shape_of(model_files.resolve(config.ppo.policy))
    if directory.find(START_POLICY) is not None and directory.is_local:
        return shape_of(directory.fetch(START_POLICY))
    return _shape_to_teach(config)


def _shape_to_teach(config: Config) -> TransformerShape:
    """Of the start policy, before it is there."""
    if config.sft.policy is not None:
        return shape_of(model_files.resolve(config.sft.policy))
    return scratch_shape(config.sft.scratch, config.format.max_tokens)


def _engine_precision(config: Config) -> str:
    on_gpu = config.ppo.gpus_per_engine > 0
    if config.ppo.engine_precision == "auto" and not on_gpu:
        return "float32"
    return resolved_precision(config.ppo.engine_precision, on_gpu=on_gpu)


def _engine_width(config: Config) -> int:
    """Bytes of a weight."""
    return 2 if _engine_precision(config) == "bfloat16" else 4


def _rollouts(config: Config, data: Data) -> Rollouts:
    ppo = config.ppo
    communities = _communities(config, data)
    policies = sum(len(communities) if kind == "each" else 1 for kind in ppo.compositions)
    prompt = min(data.mean_context_tokens, config.format.max_tokens - ppo.max_response_tokens)
    number = ppo.num_steps * ppo.prompts_per_step * ppo.responses_per_prompt
    return Rollouts(policies, number, max(prompt, 1.0), ppo.max_response_tokens)


def _communities(config: Config, data: Data) -> list[str]:
    return list(config.ppo.communities or communities_of(config, data))


def _readers(config: Config, data: Data) -> float:
    """Reward models that read a response, in the mean over policies: its own, or all that are composed."""
    communities = _communities(config, data)
    readers = [
        count
        for kind in config.ppo.compositions
        for count in ([1] * len(communities) if kind == "each" else [1 if kind == "routed" else len(communities)])
    ]
    return sum(readers) / max(len(readers), 1)


def _generation_seconds(config: Config, shape: TransformerShape, rollouts: Rollouts, engine: hardware.Device) -> float:
    """Reading the prompts at the speed of scoring, then writing token by token at the speed of memory."""
    ppo, number = config.ppo, rollouts.num_policies * rollouts.num_responses
    reading = forward_flops(shape, num_tokens=number * rollouts.prompt_tokens, mean_length=rollouts.prompt_tokens)
    writing = decoding_seconds(
        shape,
        num_tokens=number * rollouts.response_tokens,
        num_concurrent=_concurrent(config),
        mean_length=rollouts.prompt_tokens + rollouts.response_tokens / 2,
        bytes_per_value=_engine_width(config),
        bytes_per_second=engine.bytes_per_second,
    )
    return (reading / (engine.flops * engine.scoring_utilization) + writing) / _devices(
        ppo.num_engines, ppo.gpus_per_engine
    )


def _concurrent(config: Config) -> float:
    each = config.ppo.prompts_per_step * config.ppo.responses_per_prompt / config.ppo.num_engines
    return min(max(each, 1.0), _MOST_CONCURRENT)


def _devices(number: int, gpus_each: float) -> float:
    """CPUs of one machine are one device, whoever shares them; fractions of a GPU share it."""
    return max(number * gpus_each, gpus_each) if gpus_each else 1.0


def _policy_parameters(shape: TransformerShape) -> int:
    """With an output layer of its own."""
    return shape.num_parameters + shape.hidden_size * shape.vocab_size


def _learning(shape: TransformerShape, config: LearnerConfig, *, tokens: float, length: float) -> float:
    rank = config.lora.rank if config.lora.enabled else None
    return training_flops(
        shape,
        num_tokens=tokens,
        mean_length=length,
        lora_rank=rank,
        checkpointing=config.gradient_checkpointing,
        lm_head=True,
    )


def _learner_states(shape: TransformerShape, config: LearnerConfig, *, has_critic: bool, has_reference: bool) -> float:
    """Bytes of policy, critic and reference on one learner, with gradients and optimisers."""
    number = _policy_parameters(shape)
    trained = shape.num_adapter_parameters(config.lora.rank) if config.lora.enabled else number
    state = state_bytes(number, num_trained=trained, zero_stage=config.zero_stage, num_devices=config.num_learners)
    critic = (
        state_bytes(
            shape.num_parameters,
            num_trained=shape.num_parameters,
            zero_stage=config.zero_stage,
            num_devices=config.num_learners,
        )
        if has_critic
        else 0.0
    )
    reference = 4 * number / (config.num_learners if config.zero_stage == 3 else 1) if has_reference else 0.0
    return state + critic + reference


def _micro_batch_bytes(shape: TransformerShape, config: LearnerConfig, *, sequence_length: float) -> float:
    """What a micro-batch keeps and its backward pass writes, and its logits."""
    on_gpu = config.gpus_per_learner > 0
    width = 2 if resolved_precision(config.precision, on_gpu=on_gpu) == "bfloat16" else 4
    kept = activation_bytes(
        shape,
        num_tokens=config.tokens_per_micro_batch,
        length=int(sequence_length),
        bytes_per_value=width,
        checkpointing=config.gradient_checkpointing,
        num_scores=2 if config.attention == "eager" else 0,
    )
    written = backward_bytes(shape, num_tokens=config.tokens_per_micro_batch, bytes_per_value=width)
    return kept + written + logits_bytes(shape, num_tokens=config.tokens_per_micro_batch)
