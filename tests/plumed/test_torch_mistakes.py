"""Error messages of TORCH_CV."""

import re
from pathlib import Path

import plumed
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import MakePlumed
from tests.plumed.autoencoder import NO_CELL, step
from tests.plumed.babf import sentence
from tests.plumed.torch_models import FOUR_ATOMS, Distance, network, save


class Logarithm(nn.Module):
    def forward(self, arguments: Tensor) -> Tensor:
        return torch.log(arguments)


class Root(nn.Module):
    def forward(self, arguments: Tensor) -> Tensor:
        return torch.sqrt(arguments - arguments.detach())


class Detached(nn.Module):
    def forward(self, arguments: Tensor) -> Tensor:
        return arguments.detach().sum()


class TwoTensors(nn.Module):
    def forward(self, arguments: Tensor) -> tuple[Tensor, Tensor]:
        return arguments, arguments


class WrongGradient(nn.Module):
    def forward(self, arguments: Tensor) -> Tensor:
        return arguments.sum()

    @torch.jit.export
    def value_and_gradient(self, arguments: Tensor) -> tuple[Tensor, Tensor]:
        return arguments.sum(), arguments[0, :1]


MISTAKES = {
    "missing file": ("MODEL=none.pt ARG=d", r"none\.pt: there is no such file"),
    "text": ("MODEL=text.pt ARG=d", r"text\.pt: this is no TorchScript file"),
    "state dictionary": ("MODEL=state.pt ARG=d", r"state\.pt: this is no TorchScript file"),
    "arguments": (
        "MODEL=three.pt ARG=d",
        r"three\.pt: the model does not take 1 argument \(.*shapes.*\); give those it was made",
    ),
    "atoms": ("MODEL=three.pt ATOMS=1", r"three\.pt: the model does not take 1 atom \("),
    "nothing": ("MODEL=three.pt", r"give either the values \(ARG\) or the atoms \(ATOMS\)"),
    "both": ("MODEL=one.pt ARG=d ATOMS=1", r"give either the values"),
    "twice": ("MODEL=one.pt FILE=one.pt ARG=d", r"MODEL=one.pt and FILE=one.pt both name"),
    "half": ("MODEL=half.pt ARG=d", r"half\.pt: its numbers are of type Half and must be float32"),
    "of atoms": ("MODEL=distance.pt ARG=d", r"several tensors, so it is a model of atoms"),
    "tuple": ("MODEL=tuple.pt ARG=d", r"forward returns .*Tensor.* and not a tensor"),
    "detached": ("MODEL=detached.pt ARG=d", r"the output has no derivatives"),
    "own gradient": ("MODEL=wrong.pt ARG=d,e", r"1 values and 1 derivatives for 2 arguments"),
    "device": ("MODEL=one.pt ARG=d DEVICE=tpu", r"DEVICE=tpu: there are cpu, cuda"),
    "threads": ("MODEL=one.pt ARG=d THREADS=0", r"THREADS=0 must be positive: give at least 1"),
    "nan": ("MODEL=log.pt ARG=negative", r"log\.pt: node-0 is -?nan for -1\.4"),
    "derivative": ("MODEL=root.pt ARG=d", r"root\.pt: a derivative is not a finite number for 1"),
}
if torch.cuda.is_available():
    MISTAKES["cuda"] = ("MODEL=one.pt ARG=d DEVICE=cuda:99", r"DEVICE=cuda:99: .* cannot compute")
else:
    MISTAKES["cuda"] = ("MODEL=one.pt ARG=d DEVICE=cuda", r"DEVICE=cuda: .* finds no CUDA device")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(
    make_plumed: MakePlumed,
    torch_plugin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pt").write_text("not a model\n")
    torch.save(network(1, 1).state_dict(), "state.pt")
    for name, module in {
        "one": network(1, 1),
        "three": network(4, 1),
        "half": network(1, 1, torch.float16),
        "distance": Distance(),
        "tuple": TwoTensors(),
        "detached": Detached(),
        "wrong": WrongGradient(),
        "log": Logarithm(),
        "root": Root(),
    }.items():
        save(module, Path(f"{name}.pt"))
    keywords, message = MISTAKES[mistake]
    lines = (
        f"LOAD FILE={torch_plugin}\nd: DISTANCE ATOMS=1,2\ne: DISTANCE ATOMS=2,3\n"
        f"negative: CUSTOM ARG=d FUNC=-x PERIODIC=NO\n"
        f"cv: TORCH_CV {keywords}\nRESTRAINT ARG=cv.node-0 AT=0 KAPPA=1"
    )

    def run() -> None:
        step(make_plumed(4, lines), 0, FOUR_ATOMS, NO_CELL)

    with pytest.raises(plumed.PlumedError) as caught:
        run()
    assert re.search(message, sentence(caught.value))
