"""What the endpoints answer, without HTTP: communities, scores, comparisons."""

import difflib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np
from scipy.special import expit

from scpo_ray.errors import DataError, ScpoError
from scpo_ray.serving.cache import Reward
from scpo_ray.serving.catalog import Catalog, Scale, ServedModel
from scpo_ray.serving.rewards import Rewards, Text
from scpo_ray.serving.schemas import (
    CommunitiesResponse,
    CommunityFacts,
    CommunityScores,
    CompareRequest,
    CompareResponse,
    Disagreement,
    Preference,
    ScoreRequest,
    ScoreResponse,
)

_NUM_SUGGESTIONS = 3


class UnknownCommunityError(ScpoError):
    """Nobody of that name is served; the message has the nearest names."""


class Service:
    """Everything that a run's models can be asked.

    Args:
        note: is told which community's whole model is asked for.
    """

    def __init__(
        self, catalog: Catalog, rewards: Rewards, *, note: Callable[[str], Awaitable[object]] | None = None
    ) -> None:
        self.catalog, self.rewards, self._note = catalog, rewards, note
        self.run = catalog.digest

    async def rewards_of(self, models: Sequence[ServedModel], texts: Sequence[Text]) -> list[list[Reward]]:
        """`Rewards.of`; a whole model that is asked for alone is made known to the router."""
        if self._note is not None and len(models) == 1 and not models[0].shares_base:
            await self._note(models[0].community)
        return await self.rewards.of(models, texts)

    def chosen(self, communities: str | Sequence[str] | Mapping[str, float]) -> list[ServedModel]:
        """The models of "all", of names, or of a steering vector's communities; each once.

        Raises:
            UnknownCommunityError: one of them is not served.
        """
        names = list(self.catalog.models) if communities == "all" else list(dict.fromkeys(communities))
        return [self.model_of(name) for name in names]

    def model_of(self, community: str) -> ServedModel:
        """One community's.

        Raises:
            UnknownCommunityError: it is not served.
        """
        model = self.catalog.models.get(community)
        if model is not None:
            return model
        lower = {name.casefold(): name for name in self.catalog.models}
        near = difflib.get_close_matches(community[:100].casefold(), lower, n=_NUM_SUGGESTIONS, cutoff=0.5)
        hint = f"did you mean {', '.join(lower[name] for name in near)}?" if near else "GET /v1/communities lists all"
        shown = community[:60].encode("ascii", "backslashreplace").decode()
        raise UnknownCommunityError(f"communities: {shown!r} is not served; {hint}")

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Rewards of responses.

        Raises:
            UnknownCommunityError: a community is not served.
            DataError: calibrated scores are asked of a model that has no scale.
        """
        models = self.chosen(request.communities)
        if request.scale == "calibrated":
            require_scales(models)
        found = await self.rewards_of(models, [Text(request.context, text) for text in request.texts])
        rows = [
            CommunityScores(
                community=model.community,
                scores=[on_scale(reward, model.scale if request.scale == "calibrated" else None) for reward in rewards],
                raw=[reward.value for reward in rewards],
                truncated=[reward.truncated for reward in rewards],
            )
            for model, rewards in zip(models, found, strict=True)
        ]
        steered = None
        if request.weights is not None:
            steered = [
                math.fsum(request.weights[row.community] * row.scores[place] for row in rows)
                for place in range(len(request.texts))
            ]
        return ScoreResponse(run=self.run, scale=request.scale, communities=rows, steered=steered)

    async def compare(self, request: CompareRequest) -> CompareResponse:
        """Who would rather have A.

        Raises:
            UnknownCommunityError: a community is not served.
        """
        models = self.chosen(request.communities)
        texts = [Text(request.context, request.response_a), Text(request.context, request.response_b)]
        found = await self.rewards_of(models, texts)
        rows = [preference(model, a, b) for model, (a, b) in zip(models, found, strict=True)]
        steered = None
        if request.weights is not None:
            steered = math.fsum(request.weights[row.community] * row.probability for row in rows)
        return CompareResponse(run=self.run, communities=rows, disagreement=disagreement(rows), steered=steered)

    def communities(self) -> CommunitiesResponse:
        """Everyone who is served."""
        return CommunitiesResponse(run=self.run, communities=[facts(model) for model in self.catalog.models.values()])


def on_scale(reward: Reward, scale: Scale | None) -> float:
    """Standard deviations above the mean validation response; raw without a scale."""
    return reward.value if scale is None else (reward.value - scale.mean) / scale.standard_deviation


def preference(model: ServedModel, a: Reward, b: Reward) -> Preference:
    """P(A beats B) = σ((r_A - r_B) / T), with the interval that T's own leaves."""
    margin, scale = a.value - b.value, model.scale
    interval = None
    if scale is not None and scale.temperature_interval is not None:
        low, high = sorted(float(expit(margin / temperature)) for temperature in scale.temperature_interval)
        interval = (low, high)
    return Preference(
        community=model.community,
        probability=float(expit(margin / (1.0 if scale is None else scale.temperature))),
        interval=interval,
        reward_margin=margin,
        is_calibrated=scale is not None,
        truncated=a.truncated or b.truncated,
    )


def disagreement(rows: Sequence[Preference]) -> Disagreement:
    """Of at least one community."""
    least = min(rows, key=lambda row: row.probability)
    most = max(rows, key=lambda row: row.probability)
    return Disagreement(
        lowest=least.probability,
        highest=most.probability,
        standard_deviation=float(np.std([row.probability for row in rows])),
        least_favourable=least.community,
        most_favourable=most.community,
    )


def facts(model: ServedModel) -> CommunityFacts:
    """What is told of a model."""
    scale = model.scale
    return CommunityFacts(
        name=model.community,
        kind=model.kind,
        model=model.content_hash,
        is_calibrated=scale is not None,
        mean=scale and scale.mean,
        standard_deviation=scale and scale.standard_deviation,
        temperature=scale and scale.temperature,
        temperature_interval=scale and scale.temperature_interval,
        num_validation_pairs=scale and scale.num_pairs,
        facts=dict(model.facts),
    )


def require_scales(models: Sequence[ServedModel]) -> None:
    """Refuse to speak of standard deviations where there are none.

    Raises:
        DataError: a model has no scale.
    """
    for model in models:
        if model.scale is None:
            raise DataError(
                f"scale: {model.community} has no calibration (no validation pairs, or a model from elsewhere); ask for "
                '"scale": "raw", or leave it out of communities'
            )
