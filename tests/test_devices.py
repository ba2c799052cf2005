"""With a GPU, no tensor remains on the processor; tested without a GPU.

torch's device without numbers, "meta", takes the part of the GPU: what is computed there has shape,
type and device only. Every operation of torch is looked at on its way.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plumed_cv.cv import ACTIVATIONS, autoencoder, random_model
from plumed_cv.cv.autoencoder import Examples
from plumed_cv.cv.torchscript import _Model
from plumed_cv.cv.training import RECIPES
from tests.plumed.autoencoder import NO_CELL, TRICLINIC

META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Refuses operations between devices, also those that a GPU would accept.

    A number that is asked for is `answer`; of a tensor that is brought back come zeros.
    """

    def __init__(self, answer: bool | float = 1.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.answer = answer

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return self.answer
        if func is torch.ops.aten._to_copy.default and str(kwargs.get("device")) == "cpu":
            return torch.zeros_like(args[0], **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        assert len(devices) <= 1, f"{func} of tensors on {devices}"
        return func(*args, **kwargs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adam = torch.optim.Adam  # whose fused kernel is for real devices
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr, fused: adam(parameters, lr))
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((50, 4), (50, 4), (50, 4), (50,))]
    examples = Examples(*(arrays if recipe == "denoising" else arrays[:2]))
    training = replace(RECIPES[recipe], schedule=((0.1, 2),), batch_size=20)
    with OneDevice():
        data = autoencoder._Tensors.of(examples, 1.0, META, torch.float64)
        losses, model = autoencoder._restart(data, training, 0, 1.0, lambda *report: None)
        encoder, decoder = model.layers()
    assert np.shape(losses) == (2, 4)
    assert {(p.device, p.dtype) for p in model.parameters()} == {(META, torch.float64)}
    assert encoder[0].weight.shape[1] == len(decoder[-1].bias) == 4


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("frame", ["no cell", "triclinic", "aligned", "aligned in a cell"])
def test_an_exported_model(frame: str, activation: str) -> None:
    cell = TRICLINIC if frame == "triclinic" else NO_CELL
    alignment = "optimal" if "aligned" in frame else "none"
    rng = np.random.default_rng(1)
    cv = random_model(rng, 13, 7, [6, 9], 2, activation, cell, alignment)
    model = _Model(cv).double().to(META)
    positions = torch.empty(13, 3, dtype=torch.float64, device=META, requires_grad=True)
    box = torch.empty(3, 3, dtype=torch.float64, device=META)
    with OneDevice(answer=frame == "aligned in a cell"):
        value = model(positions, box)
        (by_autograd,) = torch.autograd.grad(value.sum(), positions)
        results = value, *model.value_and_gradient(positions.detach(), box)
    assert by_autograd.shape == (13, 3)
    assert [tuple(result.shape) for result in results] == [(2,), (2,), (2, 13, 3), (2, 3, 3)]
    assert {(result.device, result.dtype) for result in results} == {(META, torch.float64)}


def test_a_mistake_is_found() -> None:
    with OneDevice():
        number = torch.zeros((), device=META)
        with pytest.raises(AssertionError, match="of tensors on"):
            torch.stack([number, torch.zeros(())])
