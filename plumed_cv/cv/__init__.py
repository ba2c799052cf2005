"""Collective variables: the model, its file, and its training.

`collective_variable` has the model with value, gradient, path and deviation, of the layers in
`network`; `model_file` saves it. `pca`, `meanpath`, `elastic` and `symmetry` determine its
principal components; `training` has the settings, `autoencoder` the network and its training (with
torch), `torchscript` the export. `selection` chooses its atoms. `equivalence` compares two CVs,
`energy` has the energy along a CV at 0 K, and `reconstruction` tests an autoencoder by it.
`localisation` says which atoms take part; `estimators` has the CVs as scikit-learn's estimators.
Importing this package does not import torch.
"""

from plumed_cv.cv.collective_variable import CollectiveVariable, linear, random_model, select
from plumed_cv.cv.network import ACTIVATIONS, Layer

__all__ = ["ACTIVATIONS", "CollectiveVariable", "Layer", "linear", "random_model", "select"]
