"""What an augmentation can be called, known without importing Albumentations, which takes a while."""

from typing import Literal, get_args

Preset = Literal["none", "light", "strong"]
PRESETS: tuple[Preset, ...] = get_args(Preset)

# One transform in YAML: `class_path` with the name, `init_args` with the arguments.
TransformSpec = dict[str, str | dict[str, object]]
