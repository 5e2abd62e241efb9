"""Numbers of the published protocol that live in the runners."""

import pytest

from tools.pretrain import last_epoch
from tools.svm import DATASET_C, PRETRAINING_C, PUBLISHED_C
from utils.config.schema import RunConfig


def test_published_c_of_the_linear_svm():
    assert PRETRAINING_C == 0.01
    assert PUBLISHED_C["Point_M2AE", "modelnet40"] == 0.012
    assert DATASET_C == {"scan": 0.042}
    assert PUBLISHED_C["I2P_MAE", "modelnet40"] == 0.0093 and PUBLISHED_C["I2P_MAE", "scan"] == 0.018


@pytest.mark.parametrize(("inclusive", "last"), [(True, 300), (False, 299)])
def test_max_epoch_itself_runs_as_published(inclusive, last):
    assert last_epoch(RunConfig(model=None, max_epoch=300, max_epoch_inclusive=inclusive)) == last
