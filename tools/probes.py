"""Other classifiers on frozen features besides the linear SVM: nearest neighbours and logistic regression.

Legend: M clouds, C channels.
"""

import numpy as np

from utils.metrics import accuracy

NEIGHBORS = (1, 5, 10, 20, 50)
FOLDS = 4


def knn_probe(train_x, train_y, test_x, test_y) -> tuple[float, str]:
    """Classify by the nearest training features (M, C) by cosine similarity; returns the accuracy (a fraction) and the setting.

    Neighbours vote with equal weight; their number is chosen by cross-validation on the training features.
    """
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    train_x, test_x = normalize(train_x), normalize(test_x)  # Euclidean neighbours of unit vectors are those by cosine
    folds = _folds(train_y)
    smallest = len(train_y) * (folds - 1) // folds
    grid = {"n_neighbors": [count for count in NEIGHBORS if count <= smallest]}
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    search = GridSearchCV(KNeighborsClassifier(algorithm="brute"), grid, cv=splits).fit(train_x, train_y)
    chosen = search.best_params_["n_neighbors"]
    return accuracy(search.predict(test_x), test_y), f"k {chosen}, cross-validated on the training features"


def logistic_probe(train_x, train_y, test_x, test_y) -> tuple[float, str]:
    """Fit a multinomial logistic regression to standardised features (M, C); returns the accuracy (a fraction) and the setting.

    The strength of the L2 penalty is scikit-learn's default, C 1.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000)).fit(train_x, train_y)
    return accuracy(model.predict(test_x), test_y), "C 1, standardised features"


PROBES = {"knn": knn_probe, "logistic": logistic_probe}


def _folds(labels) -> int:
    """Return the number of folds: at most as many as the rarest class has clouds."""
    _, counts = np.unique(labels, return_counts=True)
    return max(2, min(FOLDS, int(counts.min())))
