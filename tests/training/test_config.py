"""Settings: presets, files, ``--set``, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loracomp.errors import UsageError
from loracomp.training.config import TrainConfig, load_dump, make_config, parse_settings, read_toml
from loracomp.training.presets import PRESETS, prediction_of

NEEDED = {"name": "ink", "kind": "style"}


@pytest.mark.parametrize(("kind", "family"), PRESETS)
def test_every_preset_is_a_valid_config(kind: str, family: str) -> None:
    base = {"v_prediction": "glyph", "epsilon": "sdxl", "flow": "flux"}[family]
    config = make_config({"name": "ink", "kind": kind, "base": base})
    assert {key: getattr(config, key) for key in PRESETS[kind, family]} == PRESETS[kind, family]


def test_given_values_win_over_the_preset() -> None:
    config = make_config(NEEDED | {"steps": 7})
    assert config.steps == 7
    assert config.lr == PRESETS["style", "v_prediction"]["lr"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 3}, "unknown setting 'stepz'; did you mean steps"),
        ({"flip": "False"}, "flip: input should be a valid boolean"),
        ({"lr": "1e-3"}, "lr: input should be a valid number"),
        ({"steps": 2.5}, "steps: input should be a valid integer"),
        ({"steps": 0}, "steps: input should be greater than or equal to 1"),
        ({"kind": "face"}, "kind: input should be 'style', 'subject' or 'accelerator'"),
        ({"betas": [0.9, 1.0]}, "betas must lie in"),
        ({"name": "a/b"}, "must not contain a path"),
        ({"base": "flux", "min_snr_gamma": 5}, "flow-matching"),
    ],
)
def test_mistakes_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_config(NEEDED | values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_name_says_what_it_is_for() -> None:
    with pytest.raises(UsageError, match="name: needed; What users call"):
        make_config({"kind": "style"})


def test_dump_and_load_are_inverse() -> None:
    config = make_config(NEEDED | {"trigger": "ink, sumi", "betas": [0.8, 0.9], "targets": ["to_q"]})
    assert config.trigger == ("ink", "sumi")
    assert load_dump(config.dump()) == config


def test_config_is_frozen() -> None:
    config = make_config(NEEDED)
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 3  # type: ignore[misc]


def test_settings_are_toml_and_text_where_they_are_not() -> None:
    pairs = ["lr=2e-3", "flip=true", "name=ink wash", 'targets=["to_q", "to_v"]', "trigger=ink, sumi"]
    table = parse_settings(pairs)
    assert table == {
        "lr": 2e-3,
        "flip": True,
        "name": "ink wash",
        "targets": ["to_q", "to_v"],
        "trigger": "ink, sumi",
    }
    with pytest.raises(UsageError, match="KEY=VALUE"):
        parse_settings(["steps"])


def test_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('name = "ink"\nkind = "subject"\nsteps = 9\nsample_prompts = ["a", "b, c"]\n')
    config = make_config(read_toml(path))
    assert (config.steps, config.sample_prompts) == (9, ("a", "b, c"))
    path.write_text("steps = = 9")
    with pytest.raises(UsageError, match="not TOML"):
        read_toml(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_toml(tmp_path / "none.toml")


def test_alpha_is_the_rank_unless_given() -> None:
    assert make_config(NEEDED | {"rank": 6}).scale_alpha == 6.0
    assert make_config(NEEDED | {"rank": 6, "alpha": 3.0}).scale_alpha == 3.0


def test_prediction_is_read_from_a_diffusers_folder(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    index, scheduler = tmp_path / "model_index.json", tmp_path / "scheduler" / "scheduler_config.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    scheduler.write_text(json.dumps({"prediction_type": "v_prediction"}))
    assert prediction_of(str(tmp_path)) == "v_prediction"
    scheduler.write_text("{broken")
    assert prediction_of(str(tmp_path)) == "epsilon"
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert prediction_of(str(tmp_path)) == "flow"
    assert prediction_of("black-forest-labs/FLUX.1-dev") == "flow"


def test_every_setting_is_described() -> None:
    assert all(field.description for field in TrainConfig.model_fields.values())
