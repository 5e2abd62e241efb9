"""What features and colours know of parts: known answers, patches with the part of their centre, and the file."""

import json
import shutil

import numpy as np
import pytest
import torch

from benchmarks.studies import part_colors
from benchmarks.studies.part_colors import Patches
from datasets import build_dataset
from models import build_model
from tests.models.small import SMALL
from utils.seed import seed_everything


def test_colours_of_parts():
    """A colour for each part: all of the variance; a difference of categories alone, or parts that are shuffled: none."""
    random = np.random.default_rng(0)
    categories, parts = np.repeat([0, 1], 2500), np.repeat(np.arange(10), 500)
    directions = random.normal(size=(10, 8))
    clear = Patches(directions[parts] + 0.001 * random.normal(size=(5000, 8)), parts, categories)
    assert part_colors.between_parts(clear) > 0.99
    assert part_colors.between_parts(part_colors.shuffled(clear)) < 0.01
    noise = Patches(10 * directions[categories] + random.normal(size=(5000, 8)), parts, categories)
    assert part_colors.between_parts(noise) < 0.01


def test_probe_of_known_features():
    parts = np.arange(600) % 3
    known = Patches(np.eye(3, dtype=np.float32)[parts], parts, np.zeros(600))
    assert part_colors.evaluate(known, known)["linear probe"] == 100
    noise = known._replace(features=np.random.default_rng(0).normal(size=(600, 3)))
    assert 20 < part_colors.evaluate(noise, noise._replace(features=noise.features[::-1]))["linear probe"] < 47


def test_patches_have_the_part_of_their_centre():
    clouds = build_dataset({"NAME": "Synthetic", "clouds": 3, "N_POINTS": 200, "categories": ["mug", "table", "chair"]})
    seed_everything(0)
    scales = part_colors.patches(build_model(SMALL).eval(), clouds)
    assert [one.features.shape[1] for one in scales] == SMALL["encoder_dims"]
    assert scales[-1].features.shape[0] == 3 * SMALL["num_groups"][-1]
    for one in scales:
        for category in range(3):
            own = set(one.parts[one.categories == category])
            assert own <= set(clouds.category_parts[clouds.class_names[category]]) and len(own) > 1


@pytest.mark.slow
def test_states_of_runs_are_written(tmp_path, capsys):
    seed_everything(1)
    torch.save(
        {"base_model": build_model(SMALL).state_dict(), "config": {"model": SMALL, "seed": 0}}, tmp_path / "a.pth"
    )
    for seed in (0, 1):
        (tmp_path / "runs" / f"seed{seed}").mkdir(parents=True)
        shutil.copy(tmp_path / "a.pth", tmp_path / "runs" / f"seed{seed}" / "ckpt-last.pth")
    out = tmp_path / "found.json"
    part_colors.main([f"tiny={tmp_path / 'runs'}", "--clouds", "20", "--out", str(out)])
    found = json.loads(out.read_text())["built-in set"]
    assert list(found) == ["shuffled parts", "centres", *(f"tiny, scale {scale}" for scale in range(3))]
    for quantity in ("linear probe", "colours"):
        before, after = (found["tiny, scale 0"][state][quantity]["values"] for state in ("untrained", "pre-trained"))
        assert len(before) == len(after) == 2 and before[0] == before[1] and after[0] == after[1] and before != after
    assert "| centres | coordinates |" in capsys.readouterr().out


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        part_colors.main([f"a={tmp_path}", "--out", str(tmp_path / "b.json")])
    assert "expected NAME=FOLDER with runs in it" in capsys.readouterr().err
