"""Collective variables: the model, its file, and its training.

`collective_variable` has the model with value, gradient, path and deviation, of the layers in
`network`; `model_file` saves it. `projection` makes the linear one. `pca`, `meanpath`, `elastic`
and `symmetry` determine the principal components. `learning` learns a CV from displacements;
`training` has the settings, `autoencoder` the network and its training (with torch), `torchscript`
the export. `selection` chooses its atoms. `equivalence` compares two CVs, `energy` has the energy
along a CV at 0 K, and `reconstruction` tests an autoencoder by it. `localisation` says which atoms
take part; `estimators` has the CVs as scikit-learn's estimators. Importing this package does not
import torch.
"""

from plumed_cv.cv.collective_variable import CollectiveVariable, random_model
from plumed_cv.cv.network import ACTIVATIONS, Layer
from plumed_cv.cv.projection import linear, select

__all__ = ["ACTIVATIONS", "CollectiveVariable", "Layer", "linear", "random_model", "select"]
