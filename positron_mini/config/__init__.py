"""Every setting with its default, unit and meaning: what a model is, how it is trained, how it speaks.

The dataclasses are frozen; the command line is generated from them. `None` means "decide by preset, device or recorded run"; 0 and 0.0
are real values.
"""

from positron_mini.config.checks import (
    changed_fields,
    check_ranges,
    check_rates,
    from_names,
    given_flags,
    is_milestone,
    is_of_type,
    parse_duration,
    parse_milestones,
)
from positron_mini.config.loop import RunConfig
from positron_mini.config.sample import SampleConfig, Weights
from positron_mini.config.sft import SFTConfig
from positron_mini.config.shape import MAX_PARAMETERS, PRESETS, ModelConfig, Preset, preset, self_logit_std
from positron_mini.config.train import (
    DEFAULT_TEXT,
    TrainConfig,
    default_eval_every,
    default_lr,
    default_short_steps,
    model_config,
    preset_shape,
)

__all__ = [
    "DEFAULT_TEXT",
    "MAX_PARAMETERS",
    "PRESETS",
    "ModelConfig",
    "Preset",
    "RunConfig",
    "SFTConfig",
    "SampleConfig",
    "TrainConfig",
    "Weights",
    "changed_fields",
    "check_ranges",
    "check_rates",
    "default_eval_every",
    "default_lr",
    "default_short_steps",
    "from_names",
    "given_flags",
    "is_milestone",
    "is_of_type",
    "model_config",
    "parse_duration",
    "parse_milestones",
    "preset",
    "preset_shape",
    "self_logit_std",
]
