"""Collective variables: the model, its file, and its training.

`collective_variable` has the model with value, gradient, path and deviation; `model_file` saves
it. `pca`, `meanpath`, `elastic` and `symmetry` determine its principal components;
`training` has the settings, `autoencoder` the network and its training (with torch), `torchscript`
the export. `equivalence` compares two CVs, `energy` tests one at 0 K, `localisation` says which
atoms take part; `estimators` has the CVs as scikit-learn's estimators. Importing this package does
not import torch.
"""

from plumed_cv.cv.collective_variable import (
    ACTIVATIONS,
    CollectiveVariable,
    Layer,
    linear,
    random_model,
    select,
)

__all__ = ["ACTIVATIONS", "CollectiveVariable", "Layer", "linear", "random_model", "select"]
