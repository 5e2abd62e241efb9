"""Retrieval from image to cloud: by hand, ties, chance."""

import pytest
import torch

from tools.retrieval import retrieval, same_class, similarity


def test_by_hand():
    cosines = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.5, 0.1], [0.3, 0.2, 0.1]])  # found first, second, third
    found = retrieval(cosines, torch.tensor([0, 0, 1]))
    assert found["top 1"] == pytest.approx(100 / 3) and found["top 1, chance"] == pytest.approx(100 / 3)
    assert found["top 5"] == 100 and found["top 5, chance"] == 100 and found["median place"] == 2
    assert found["same class"] == pytest.approx(200 / 3)  # the third image's nearest cloud is of class 0
    assert found["same class, chance"] == pytest.approx(100 * (4 + 1) / 9)


def test_equal_features_find_nothing():
    """A cloud that is as near as the right one counts as nearer, so that features that all agree are no success."""
    cosines = similarity(torch.ones(10, 4), torch.ones(10, 4))
    assert retrieval(cosines)["top 5"] == 0


def test_chance_is_what_random_features_reach():
    generator = torch.Generator().manual_seed(0)
    cosines = similarity(*(torch.randn(2000, 16, generator=generator) for _ in range(2)))
    found = retrieval(cosines)
    assert found["top 5"] == pytest.approx(found["top 5, chance"], abs=0.3) and 900 < found["median place"] < 1100


def test_the_nearest_other_cloud_is_of_the_same_class():
    cosines = torch.tensor([[1, 0.9, 0.1, 0.2], [0.9, 1, 0.8, 0.3], [0.1, 0.8, 1, 0.7], [0.2, 0.3, 0.7, 1]])
    found, chance = same_class(cosines, torch.tensor([0, 0, 0, 1]))  # nearest: 1, 0, 1, 2
    assert found == pytest.approx(75) and chance == pytest.approx(
        50
    )  # two of three others for three clouds, none for one
    assert cosines[0, 0] == 1  # left as it was
