"""The linear SVM on frozen features."""

import numpy as np
import pytest
from sklearn.svm import SVC

from tools.features import choose_c, linear_svm


@pytest.fixture
def blobs():
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 4
    features = rng.normal(size=(4, 12))[labels] + rng.normal(size=(240, 12)) * 1.2
    return features[:160].astype(np.float32), labels[:160], features[160:].astype(np.float32), labels[160:]


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_gram_matrix_gives_the_predictions_of_the_linear_kernel(blobs, C):
    train_x, train_y, test_x, test_y = blobs
    plain = SVC(C=C, kernel="linear").fit(train_x.astype(np.float64), train_y).predict(test_x.astype(np.float64))
    result = linear_svm(*blobs, C=C)
    np.testing.assert_array_equal(result.predictions, plain)
    assert result.accuracy == pytest.approx((plain == test_y).mean())
    assert result.chosen_C is None


def test_c_is_chosen_on_training_features_alone(blobs):
    train_x, train_y, test_x, test_y = blobs
    result = linear_svm(*blobs, C=0.01, choose=True)
    shuffled = linear_svm(train_x, train_y, test_x, test_y[::-1].copy(), C=0.01, choose=True)
    assert result.chosen_C == shuffled.chosen_C
    assert result.chosen_accuracy >= 0.5


def test_smallest_c_wins_ties():
    features = np.repeat(np.eye(2), 10, axis=0)
    labels = np.repeat([0, 1], 10)
    assert choose_c(features @ features.T, labels, [0.1, 1.0, 10.0]) == 0.1


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 1]])
def test_without_two_clouds_in_two_classes_the_smallest_c_is_taken_and_said(caplog, labels):
    features = np.eye(4)
    assert choose_c(features @ features.T, np.array(labels), [1.0, 0.1, 10.0]) == 0.1
    assert "too few classes have two clouds" in caplog.text


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_a_class_of_one_cloud_leaves_two_folds():
    features = np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [5, 5]])
    assert choose_c(features @ features.T, np.array([0, 0, 1, 1, 2]), [0.1, 1.0]) == 0.1
