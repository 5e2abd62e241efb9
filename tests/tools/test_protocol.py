"""Numbers of the published protocol that live in the runners."""

import pytest

from models import MODELS
from models.i2p_mae import I2PMAE
from models.point_m2ae import PointM2AE
from models.point_mae import PointMAE
from tools.pretrain import last_epoch
from tools.svm import DATASET_C, PRETRAINING_C
from utils.config.schema import RunConfig


def test_published_c_of_the_linear_svm():
    assert PRETRAINING_C == 0.01
    assert DATASET_C == {"scan": 0.042}
    assert PointM2AE.svm_C == {"modelnet40": 0.012} and PointMAE.svm_C == {}
    assert I2PMAE.svm_C == {"modelnet40": 0.0093, "scan": 0.018}


@pytest.mark.parametrize(("inclusive", "last"), [(True, 300), (False, 299)])
def test_max_epoch_itself_runs_as_published(inclusive, last):
    assert last_epoch(RunConfig(model=None, max_epoch=300, max_epoch_inclusive=inclusive)) == last


def test_published_rounds_of_voting():
    rounds = {
        target.method: target.published_rounds for target in MODELS.targets() if hasattr(target, "published_rounds")
    }
    others = {"gm3d-point-m2ae": 1, "i2p-mae": 1, "inter-mae": 1}
    assert {**others, **rounds} == {**others, "point-m2ae": 49, "point-mae": 299, "gm3d": 299, "pcp-mae": 51, "point-jepa": 300}
