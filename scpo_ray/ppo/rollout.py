"""A vLLM engine that writes responses, takes new weights, and says with which weights it wrote.

The engine lives in its actor's own process. It starts with dummy weights and writes nothing before its first update, so a
restarted engine is brought up by the same path as a running one. Model libraries are imported where the actor starts.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from scpo_ray import model_files
from scpo_ray.errors import ModelError, SynchronizationError, TrainingError
from scpo_ray.ppo.hanging import EndsIfHung
from scpo_ray.ppo.records import Sample, SyncReport, WeightUpdate


@dataclass(frozen=True)
class EngineSpec:
    """What an engine needs to know before any weights."""

    policy: str
    """Address of one with the same config.json; its weights are not read."""
    max_tokens: int
    """Prompt and response."""
    max_response_tokens: int
    stop_token_ids: tuple[int, ...]
    temperature: float
    precision: str
    threads: int
    cache_gib: int
    gpu_memory_utilization: float
    uses_gpu: bool
    receives_nccl: bool = False


class RolloutEngine(EndsIfHung):
    """One vLLM engine; it is there after `load`."""

    def __init__(self, spec: EngineSpec) -> None:
        _set_environment(spec)
        self._spec = spec
        self._version: int | None = None
        self._is_loaded = False

    def load(self) -> None:
        """Start vLLM, unless it runs: who replaces a dead engine loads its successor, and then repeats what was asked of it.

        Raises:
            ModelError: it cannot run the policy's architecture here.
        """
        from transformers import AutoConfig
        from vllm import LLM
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._is_loaded:
            return
        spec = self._spec
        folder = str(model_files.resolve(spec.policy))
        tied = getattr(AutoConfig.from_pretrained(folder), "tie_word_embeddings", False)
        try:
            self._llm = LLM(
                folder,
                load_format="dummy",
                # On CPUs an output layer that is tied keeps its old weights when new ones are loaded.
                hf_overrides={"tie_word_embeddings": False} if tied else None,
                skip_tokenizer_init=True,
                dtype=spec.precision,
                max_model_len=spec.max_tokens,
                max_num_batched_tokens=max(8192, spec.max_tokens),
                logprobs_mode="processed_logprobs",  # tempered, as they are sampled from
                enforce_eager=not spec.uses_gpu,
                seed=0,  # every request has its own
                disable_log_stats=True,
                **({"gpu_memory_utilization": spec.gpu_memory_utilization} if spec.uses_gpu else {}),
                **({"weight_transfer_config": {"backend": "nccl"}} if spec.receives_nccl else {}),
            )
            self.log_probs([[0, 0]])  # kernels refuse a head size when they are first used
        except (ValueError, NotImplementedError, RuntimeError, EngineDeadError) as error:
            raise ModelError(
                f"{spec.policy}: vLLM cannot run it here ({str(error).strip().splitlines()[0][:200]}); on CPUs heads must have "
                "32 or more dimensions"
            ) from error

        self._is_loaded = True

    def pid(self) -> int:
        """Of the actor's process."""
        return os.getpid()

    def update(self, update: WeightUpdate) -> SyncReport:
        """Load published weights, forget cached prefixes, compute the canaries."""
        checksum = self._load(update)
        self._llm.reset_prefix_cache()
        self._version = update.version
        return SyncReport(update.version, checksum, self.log_probs(update.canaries.token_ids))

    def open_transfer(self, init_info: dict) -> None:
        """Join the NCCL group of the learners' first rank; an older one is left."""
        self._llm.collective_rpc("shutdown_weight_transfer_engine")
        self._llm.collective_rpc("init_weight_transfer_engine", args=(init_info,))

    def start_weight_update(self) -> None:
        """What comes next is weights; until they are confirmed there is no version."""
        self._version = None
        self._llm.collective_rpc("start_weight_update")

    def receive(self, update_info: dict) -> None:
        """Load what the learners broadcast, and note its checksum."""
        from scpo_ray.ppo.sync import Checksum

        self._received = Checksum()

        def noted(worker) -> None:
            model = worker.model_runner.get_model()
            load = model.load_weights

            def load_and_note(weights):
                weights = list(weights)
                for name, tensor in weights:
                    self._received.update(name, tensor)
                return load(weights)

            model.load_weights = load_and_note
            try:
                worker.update_weights(update_info)
            finally:
                model.load_weights = load

        self._llm.collective_rpc(noted)

    def finish_weight_update(self) -> None:
        """All weights are there."""
        self._llm.collective_rpc("finish_weight_update")

    def confirm(self, update: WeightUpdate) -> SyncReport:
        """After `receive`: forget cached prefixes, compute the canaries."""
        self._llm.reset_prefix_cache()
        self._version = update.version
        return SyncReport(update.version, self._received.hexdigest(), self.log_probs(update.canaries.token_ids))

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], expects: int | None = None
    ) -> list[Sample]:
        """One response to each prompt; the same seed and weights write the same response.

        Args:
            expects: the version of the weights that must be loaded.

        Raises:
            SynchronizationError: there are no weights yet, or others than expected.
            TrainingError: a response has no token.
        """
        from vllm import SamplingParams, TokensPrompt

        if self._version is None or (expects is not None and self._version != expects):
            raise SynchronizationError(
                f"rollout engine: has weights of version {self._version}, version {expects} was to write; a synchronisation was "
                "skipped, rerun to resume from the last checkpoint"
            )
        parameters = [
            SamplingParams(
                temperature=self._spec.temperature,
                max_tokens=self._spec.max_response_tokens,
                stop_token_ids=list(self._spec.stop_token_ids),
                seed=seed,
                logprobs=0,
                detokenize=False,
            )
            for seed in seeds
        ]
        inputs = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        outputs = self._llm.generate(inputs, parameters, use_tqdm=False)
        return [self._sample(output.outputs[0]) for output in outputs]

    def log_probs(self, sequences: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
        """Of every token but the first, at temperature 1, nats."""
        from vllm import SamplingParams, TokensPrompt

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        inputs = [TokensPrompt(prompt_token_ids=list(sequence)) for sequence in sequences]
        outputs = self._llm.generate(inputs, parameters, use_tqdm=False)
        return tuple(
            tuple(
                position[token].logprob
                for token, position in zip(sequence[1:], output.prompt_logprobs[1:], strict=True)
            )
            for sequence, output in zip(sequences, outputs, strict=True)
        )

    def _load(self, update: WeightUpdate) -> str:
        """Hand the chunks to vLLM one after another; the checksum of what it was handed."""
        from scpo_ray.ppo.sync import Checksum

        checksum = Checksum()

        def tensors():
            for chunk in update.chunks:
                for name, tensor in ray.get(chunk):
                    checksum.update(name, tensor)
                    yield name, tensor

        def reload(worker) -> None:
            known = hasattr(worker.model_runner.get_model(), "lm_head")  # Gemma 2 has none apart from its embedding
            kept = (item for item in tensors() if known or item[0] != "lm_head.weight")
            worker.reload_weights(weights_iterator=kept)

        self._llm.collective_rpc(reload)
        return checksum.hexdigest()

    def _sample(self, output) -> Sample:
        if not output.token_ids:
            raise TrainingError(
                f"rollout engine: a response without any token ({output.finish_reason}); its prompt fills the context, lower "
                "ppo.max_response_tokens or raise format.max_tokens"
            )
        assert self._version is not None
        return Sample(
            token_ids=tuple(output.token_ids),
            log_probs=tuple(
                position[token].logprob for token, position in zip(output.token_ids, output.logprobs, strict=True)
            ),
            is_finished=output.token_ids[-1] in self._spec.stop_token_ids,
            version=self._version,
        )


def _set_environment(spec: EngineSpec) -> None:
    """Before torch or vLLM is imported: both read these once."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: no second one to start, and functions need not pickle
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if not spec.uses_gpu:
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": str(spec.cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # engines and learners take turns on the same cores
            "OMP_NUM_THREADS": str(spec.threads),
        }
