"""Settings of the data: the adapters, and how their rows become pairs and splits."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from scpo_ray.config.section import NOT_IDENTITY, Address, Fraction, Section, Unique

CommunityField = Literal[
    "reside_country",
    "birth_country",
    "reside_subregion",
    "religion",
    "gender",
    "age",
    "ethnicity",
    "education",
    "employment",
]
DatasetName = Literal["atlas", "prism", "global_opinions", "pair_files", "general_preferences"]


def _one_for_all(value: object) -> object:
    return (value,) if isinstance(value, int) else value


PerMinority = BeforeValidator(_one_for_all)
"""One number for all minorities, or one for each."""


class AtlasConfig(Section):
    """The synthetic world: communities with known preferences, planted noise and planted outliers."""

    num_prompts: int = Field(default=300, ge=10, le=900)
    """Distinct prompts of the world; the grammar has 900."""

    majority_annotators: int = Field(default=120, ge=2)
    """Annotators of the majority community."""

    minority_annotators: Annotated[tuple[Annotated[int, Field(ge=2)], ...], PerMinority] = (24,)
    """Annotators of the minority communities: one number for all, or one for each."""

    interactions_per_annotator: int = Field(default=16, ge=1)
    """Prompts that one annotator rates."""

    responses_per_interaction: int = Field(default=4, ge=2, le=8)
    """K: rated responses of one interaction."""

    num_minorities: int = Field(default=3, ge=1, le=6)
    """Minority communities, each with its own planted differences from the majority."""

    turned_attributes: Annotated[tuple[Annotated[int, Field(ge=0, le=6)], ...], PerMinority] = (2,)
    """On how many of the six attributes a minority prefers the opposite of the majority: one number for all, or one for
    each; 0 plants a community that does not differ."""

    disjoint_turns: bool = False
    """No attribute is turned by two minorities: with three turned attributes each, two minorities want the opposite of each
    other in everything. Off: each draws its own, whatever the others turn."""

    noise_rate: float = Field(default=0.05, ge=0, lt=0.5)
    """Share of ratings whose response was swapped with another one's (labelled `noise`)."""

    outlier_rate: float = Field(default=0.05, ge=0, lt=0.5)
    """Share of a minority's pairs that are extreme outliers: reversed where everyone agrees most (labelled `outlier`)."""

    @model_validator(mode="after")
    def _prompts_suffice(self) -> "AtlasConfig":
        if self.interactions_per_annotator > self.num_prompts:
            raise ValueError(
                f"interactions_per_annotator {self.interactions_per_annotator} exceeds num_prompts {self.num_prompts}: an "
                "annotator rates a prompt once; raise num_prompts"
            )
        return self

    @model_validator(mode="after")
    def _one_or_one_each(self) -> "AtlasConfig":
        for name in ("minority_annotators", "turned_attributes"):
            number = len(getattr(self, name))
            if number not in (1, self.num_minorities):
                raise ValueError(
                    f"{name} has {number} values for {self.num_minorities} minorities; give one, or one for each"
                )
        return self

    @model_validator(mode="after")
    def _disjoint_turns_fit(self) -> "AtlasConfig":
        turned = sum(self.of_minority(index)[1] for index in range(self.num_minorities))
        if self.disjoint_turns and turned > 6:
            raise ValueError(
                f"disjoint_turns: the minorities turn {turned} attributes, there are 6; lower turned_attributes"
            )
        return self

    def of_minority(self, index: int) -> tuple[int, int]:
        """(annotators, turned attributes) of a minority, counted from 0."""
        annotators, turned = self.minority_annotators, self.turned_attributes
        return annotators[index % len(annotators)], turned[index % len(turned)]


class PrismConfig(Section):
    """PRISM (Kirk et al. 2024): conversations rated 1-100 by residents of 38 countries."""

    path: Address = "HannahRoseKirk/prism-alignment"
    """Folder with `survey.jsonl` and `utterances.jsonl`, or the hub data set's name."""

    community_field: CommunityField = "reside_country"
    """Which survey answer names the annotator's community."""

    history: Literal["full", "none"] = "full"
    """Earlier turns (prompts with the chosen responses) in the context, or the last prompt alone (as published)."""

    pairing: Literal["all", "chosen_vs_rest"] = "all"
    """All response pairs of a turn whose scores differ, or only the chosen one against the others (as published)."""

    balanced_subset: bool = False
    """Only conversations of PRISM's balanced subset."""


class GlobalOpinionsConfig(Section):
    """GlobalOpinionQA (Durmus et al. 2023): answer shares of survey questions by country."""

    path: Address = "Anthropic/llm_global_opinions"
    """A CSV file with the hub data set's columns, or the hub data set's name."""

    min_share_gap: Fraction = 0.1
    """Smallest difference of two options' shares that counts as a preference, probability."""


class PairFilesConfig(Section):
    """Preference pairs in files: columns prompt or messages, chosen, rejected, community."""

    paths: Annotated[tuple[Address, ...], Unique] = ()
    """JSONL, JSONL.gz or Parquet files, or hub data sets (`name` or `name:split`)."""


class GeneralPreferencesConfig(Section):
    """General preferences for the global model: HH-RLHF transcripts or DSP `text`/`score` lists."""

    paths: Annotated[tuple[Address, ...], Unique] = ()
    """JSON or JSONL(.gz) files, or hub data sets."""

    community: str = "General"
    """The community name that these pairs carry."""


class PrepareConfig(Section):
    """From source rows to responses, pairs and splits."""

    datasets: Annotated[tuple[DatasetName, ...], Unique] = Field(default=("atlas",), min_length=1)
    """Which adapters to read; each has its own section below."""

    atlas: AtlasConfig = AtlasConfig()
    prism: PrismConfig = PrismConfig()
    global_opinions: GlobalOpinionsConfig = GlobalOpinionsConfig()
    pair_files: PairFilesConfig = PairFilesConfig()
    general_preferences: GeneralPreferencesConfig = GeneralPreferencesConfig()

    majority: Annotated[tuple[str, ...] | None, Unique] = None
    """Communities whose pairs train the global model and measure what was forgotten; unset: the United States, the
    United Kingdom and the Atlas, as far as the data has them."""

    communities: Annotated[tuple[str, ...] | None, Unique] = None
    """Communities to keep beside the majority; all when unset."""

    min_score_gap: float = Field(default=0.0, ge=0)
    """Pairs whose scores differ by this or less are no preference and make no pair (score units)."""

    max_rejected_share: Fraction = Field(default=0.05, json_schema_extra=NOT_IDENTITY)
    """More malformed rows than this share stop the stage, with nothing written."""

    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of each community's pairs for choosing hyperparameters and early stopping; 0 as published."""

    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of each community's pairs for the evaluation."""

    split_by: Literal["auto", "annotator", "prompt", "pair"] = "auto"
    """What stays on one side of a split. auto: the annotator where the community has them, else the prompt group."""

    stratify: bool = True
    """Hold the fractions in every community; off: one random split over all (as published)."""

    near_duplicate_similarity: float = Field(default=0.85, gt=0, le=1)
    """Prompts whose one- and two-gram cosine reaches this form one group."""

    split_salt: str = "scpo"
    """Changes which units fall on which side."""

    @model_validator(mode="after")
    def _splits_leave_training_data(self) -> "PrepareConfig":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} + test_fraction {self.test_fraction} leave no training "
                "pairs; lower one of them"
            )
        return self
