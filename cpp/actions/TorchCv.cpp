// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#include "../core/cell.h"
#include "../core/torch_model.h"
#include "compat.h"
#include "kernel.h"

#include "core/ActionRegister.h"
#include "core/ActionWithArguments.h"
#include "core/Colvar.h"
#include "core/PlumedMain.h"

#include <array>
#include <exception>
#include <optional>
#include <string>
#include <vector>

namespace plumed_cv {

//+PLUMEDOC COLVAR TORCH_CV
/*
Collective variables computed by a TorchScript model, of other variables or of atoms.

A model that was trained with PyTorch and saved as TorchScript is evaluated in every step. Its input
is either the values of other actions (ARG), in PLUMED's units, or the positions of atoms (ATOMS),
in angstrom for any UNITS. Each number that it returns is a component: `node-0`, `node-1` and so on.

With ARG the model is called with a tensor of shape $(1,n)$ for $n$ arguments. Input lines and
components are those of PYTORCH_MODEL, which is in PLUMED only if PLUMED was built with libtorch.
Write TORCH_CV instead. With PLUMED 2.10 or newer, this action also has the name PYTORCH_MODEL, so
such an input works without a change.

With ATOMS the method `forward` receives the positions, shape $(N,3)$. If it has a second argument,
it also receives the cell, shape $(3,3)$, whose rows are the lattice vectors, in angstrom (zeros if
there is none). A model that receives the cell receives the atoms as in the engine, in any periodic
image, and chooses images itself. For a model without a cell, the atoms are made whole like a
molecule, in the order of ATOMS, unless NOPBC is set.

The derivatives come from torch's automatic differentiation. A model can have its own derivatives: a
method `value_and_gradient` with the same arguments as `forward` returns a tuple of the $d$ values,
their derivatives, shape $(d,n)$ or $(d,N,3)$, and, if it receives the cell, the derivatives with
respect to the cell at fixed positions, shape $(d,3,3)$. These and the positions give the virial:

$$
\sum_i r_{ia}\frac{\partial\xi}{\partial r_{ib}}+\sum_k h_{ka}\frac{\partial\xi}{\partial h_{kb}}.
$$

Numbers are float32 or float64, as in the model. With float32, forces have about six digits, and
energy is conserved accordingly. `model.double()` before saving costs little.

TORCH_CV is in a library of its own (`plumed-cv plugin --torch` prints its path), and it needs the
torch of the Python environment in which it was built. AUTOENCODER and BABF do not need torch.

## Pitfalls

- A TorchScript file is a program. It can do everything that you can do. Load only files from
  sources that you trust. (The model files of AUTOENCODER contain no code.)
- The order and the units of arguments and atoms must be those of the training. The file contains no
  information to check this.
- The components are not periodic. A model of torsions must use their sines and cosines; otherwise
  it has jumps.
- torch takes some microseconds for each operation of the model, however small it is: see
  docs/torch-cv.md.

## Examples

A model of two torsions that returns two variables. The first one is biased:

```plumed
LOAD FILE=libplumed_cv_torch.so
phi: TORSION ATOMS=5,7,9,15
psi: TORSION ATOMS=7,9,15,17
cv: TORCH_CV MODEL=model.pt ARG=phi,psi
opes: OPES_METAD ARG=cv.node-0 PACE=500 BARRIER=40 TEMP=300
```

A model of ten atoms on a GPU:

```plumed
LOAD FILE=libplumed_cv_torch.so
cv: TORCH_CV MODEL=model.pt ATOMS=1-10 DEVICE=cuda
PRINT ARG=cv.node-0 FILE=colvar
```

*/
//+ENDPLUMEDOC

class TorchCv : public compat::Compat<PLMD::Colvar>, public PLMD::ActionWithArguments {
  public:
    explicit TorchCv(const PLMD::ActionOptions&);
    static void registerKeywords(PLMD::Keywords& keys);
    void calculate() override;
    void apply() override;
    unsigned getNumberOfDerivatives() override;
    void calculateNumericalDerivatives(PLMD::ActionWithValue* values) override;
    void lockRequests() override;
    void unlockRequests() override;

  private:
    bool of_atoms() const { return getNumberOfAtoms() > 0; }

    std::optional<TorchModel> model_;
    std::vector<double> input_;  // arguments, or positions in angstrom
    std::vector<double> forces_; // on arguments, or on positions and cell
    double angstrom_ = 0;        // PLUMED's unit of length
    bool whole_ = false;         // whether the atoms are made whole
};

PLUMED_REGISTER_ACTION(TorchCv, "TORCH_CV")
#if !PLUMED_CV_BEFORE_2_10
// Up to 2.9, two actions of one name disable each other.
PLUMED_REGISTER_ACTION(TorchCv, "PYTORCH_MODEL")
#endif

void TorchCv::registerKeywords(PLMD::Keywords& keys) {
    check_kernel();
    Colvar::registerKeywords(keys);
    compat::add_scalar_input(keys, "ARG", "the values that are the input of the model");
    keys.add("atoms", "ATOMS", "the atoms whose positions are the input of the model, in order");
    keys.add("optional", "MODEL", "the TorchScript file");
    keys.add("optional", "FILE",
             "the same under the name in PYTORCH_MODEL; without both keywords it is model.ptc");
    keys.add("compulsory", "DEVICE", "cpu",
             "device of the model: cpu; cuda (or cuda:1, ...); auto, a GPU if there is one");
    keys.add("compulsory", "THREADS", "1", "the number of threads of torch");
    compat::add_component(keys, "node", "a number that the model returns");
}

TorchCv::TorchCv(const PLMD::ActionOptions& ao) : Action(ao), Compat(ao), ActionWithArguments(ao) {
    std::string file, file_of_pytorch, device;
    parse("MODEL", file);
    parse("FILE", file_of_pytorch);
    parse("DEVICE", device);
    int threads = 1;
    parse("THREADS", threads);
    bool nopbc = false;
    parseFlag("NOPBC", nopbc);
    std::vector<PLMD::AtomNumber> atoms;
    parseAtomList("ATOMS", atoms);
    checkRead();

    if (!file.empty() && !file_of_pytorch.empty())
        error("MODEL=" + file + " and FILE=" + file_of_pytorch +
              " both name the model: give one of them.");
    if (file.empty())
        file = file_of_pytorch.empty() ? "model.ptc" : file_of_pytorch;
    if (threads < 1)
        error("THREADS=" + std::to_string(threads) + " must be positive: give at least 1.");
    const std::size_t n = getNumberOfArguments();
    if (atoms.empty() == (n == 0))
        error("give either the values (ARG) or the atoms (ATOMS) that the model takes.");
    for (const PLMD::Value* argument : getArguments())
        if (compat::rank(*argument) > 0)
            error(argument->getName() + " is not a single number; give its elements one by one.");
    if (!atoms.empty() && usingNaturalUnits())
        error("the model takes angstrom, so UNITS NATURAL cannot be used with ATOMS; give real "
              "units.");
    angstrom_ = 10 * getUnits().getLength();

    try {
        model_.emplace(file, device, threads);
        if (atoms.empty())
            model_->take_arguments(n);
        else
            model_->take_atoms(atoms.size());
    } catch (const std::exception& failure) {
        error(failure.what());
    }
    for (std::size_t k = 0; k < model_->outputs(); ++k) {
        const std::string name = "node-" + std::to_string(k);
        addComponentWithDerivatives(name);
        componentIsNotPeriodic(name);
    }
    if (!atoms.empty()) {
        requestAtoms(atoms);
        whole_ = !model_->takes_cell() && !nopbc;
    }
    input_.resize(atoms.empty() ? n : 3 * atoms.size());
    forces_.resize(getNumberOfDerivatives());

    log << "  model " << file << ", " << model_->description() << ", with "
        << static_cast<unsigned>(model_->outputs()) << " outputs; derivatives "
        << (model_->has_own_gradient() ? "by its own value_and_gradient\n" : "by autograd\n");
    if (of_atoms())
        log << "  the model takes positions in angstrom"
            << (model_->takes_cell() ? " and the cell\n"
                : whole_             ? ", made whole\n"
                                     : ", as they are\n");
    log << "  libtorch " << TORCH_VERSION << ", " << torch_detail::library_path() << "\n";
    log << "  A TorchScript file is a program: run only those whose origin you trust\n";
}

void TorchCv::calculate() {
    const bool derivatives = !doNotCalculateDerivatives();
    std::array<double, 9> cell{};
    if (of_atoms()) {
        if (whole_)
            makeWhole();
        const double* positions = &getPositions()[0][0];
        for (std::size_t j = 0; j < input_.size(); ++j)
            input_[j] = angstrom_ * positions[j];
        const PLMD::Tensor& box = getPbc().getBox();
        if (getPbc().isSet()) // without a cell, numerical derivatives still change its numbers
            for (unsigned a = 0; a < 3; ++a)
                for (unsigned b = 0; b < 3; ++b)
                    cell[3 * a + b] = angstrom_ * box(a, b);
    } else {
        for (unsigned i = 0; i < input_.size(); ++i)
            input_[i] = getArgument(i);
    }

    try {
        model_->evaluate(input_.data(), cell.data(), derivatives);
    } catch (const std::exception& failure) {
        error(failure.what());
    }

    const unsigned n = static_cast<unsigned>(input_.size());
    const double unit = of_atoms() ? angstrom_ : 1;
    for (std::size_t k = 0; k < model_->outputs(); ++k) {
        PLMD::Value* node = getPntrToComponent(static_cast<int>(k));
        node->set(model_->value(k));
        if (!derivatives)
            continue;
        const double* gradient = model_->gradient(k);
        for (unsigned j = 0; j < n; ++j)
            node->setDerivative(j, unit * gradient[j]);
        if (!of_atoms())
            continue;
        std::array<double, 9> strain{};
        const auto add = [&strain](const double* at, const double* slope) {
            for (unsigned a = 0; a < 3; ++a)
                for (unsigned b = 0; b < 3; ++b)
                    strain[3 * a + b] += at[a] * slope[b];
        };
        for (unsigned i = 0; i < n; i += 3)
            add(&input_[i], gradient + i);
        if (model_->takes_cell())
            for (unsigned i = 0; i < 9; i += 3)
                add(&cell[i], model_->cell_gradient(k) + i);
        symmetrise(cell, strain);
        for (unsigned j = 0; j < 9; ++j)
            node->setDerivative(n + j, -strain[j]);
    }
}

void TorchCv::apply() {
    const auto outputs = static_cast<int>(model_->outputs());
    const unsigned n = static_cast<unsigned>(forces_.size());
    bool forced = false;
    for (int k = 0; k < outputs; ++k) {
        const PLMD::Value* node = getPntrToComponent(k);
        const double force = node->getForce();
        if (force == 0)
            continue;
        for (unsigned j = 0; j < n; ++j)
            forces_[j] = (forced ? forces_[j] : 0) + force * node->getDerivative(j);
        forced = true;
    }
    if (!forced)
        return;
    if (of_atoms()) {
        unsigned start = 0;
        setForcesOnAtoms(forces_, start);
    } else {
        for (unsigned i = 0; i < n; ++i)
            getPntrToArgument(i)->addForce(forces_[i]);
    }
}

unsigned TorchCv::getNumberOfDerivatives() {
    return of_atoms() ? Colvar::getNumberOfDerivatives() : getNumberOfArguments();
}

void TorchCv::calculateNumericalDerivatives(PLMD::ActionWithValue* values) {
    if (of_atoms())
        ActionAtomistic::calculateNumericalDerivatives(values);
    else
        ActionWithArguments::calculateNumericalDerivatives(values);
}

void TorchCv::lockRequests() {
    ActionAtomistic::lockRequests();
    ActionWithArguments::lockRequests();
}

void TorchCv::unlockRequests() {
    ActionAtomistic::unlockRequests();
    ActionWithArguments::unlockRequests();
}

} // namespace plumed_cv
