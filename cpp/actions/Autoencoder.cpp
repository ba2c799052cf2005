// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#include "../core/collective_variable.h"
#include "../core/elements.h"
#include "../core/model.h"
#include "compat.h"
#include "kernel.h"
#include "processes.h"

#include "core/ActionRegister.h"
#include "core/ActionSet.h"
#include "core/ActionWithArguments.h"
#include "core/Colvar.h"
#include "core/PlumedMain.h"
#include "tools/OpenMP.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace plumed_cv {

//+PLUMEDOC COLVAR AUTOENCODER
/*
Collective variable learned by an autoencoder on the displacements of the atoms of a solid.

The model file contains a reference structure, a principal component analysis (PCA) and a small
neural network. `plumed-cv train` and `plumed-cv run` write it. The paper cited below describes the
method. A linear collective variable is the same kind of file with one component and no hidden
layer.

The coordinates of $N$ atoms at positions $r_i$ in the cell $h$ (lattice vectors as rows) are the
displacements from the reference structure, which follows the cell:

$$
u_i = d_i - \frac{1}{N}\sum_j d_j, \qquad
d_i = r_i - r_i^{\mathrm{ref}}\, h_{\mathrm{ref}}^{-1} h ,
$$

where each $d_i - d_1$ is that to the nearest periodic image. The coordinates therefore do not
depend on the image in which the engine writes an atom, on a drift of the whole system, or on its
thermal expansion.

A lattice vector of zeros in the model is a direction without periodicity, as in a slab. There is no
image and no strain along it, and the vector of the engine's cell is not used: the height of a vacuum
has no effect. If `drift` is `kept` in the metadata, fixed atoms hold the system. The coordinates are
then $u_i = d_i$, where each $d_i$ is that to the nearest image.

For a model of a molecule, `alignment` is `optimal` in the metadata. Its reference has no cell, and
$u_i = R\,(r_i - \bar r) - (r_i^{\mathrm{ref}} - \bar r^{\mathrm{ref}})$ with the rotation $R$ of
the best fit. If the engine has a cell, the molecule is first made whole. The derivatives include those
of the rotation, and no orientation is singular.

With the principal components $U_D$, the mean displacement $\bar u$, the encoder $f_e$ and the decoder
$f_d$, whose hidden layers have one activation function,

$$
x = U_D^T (u - \bar u), \qquad \xi = \left(f_e(x) - b\right) a ,
$$

and $a$ and $b$ are such that $\xi=0$ in the initial and $\xi=1$ in the final state. The decoder
gives the mean path, $\hat u(\xi) = U_D f_d(f_e(x)) + \bar u$. Everything is computed in double
precision, and derivatives with respect to positions and cell (the virial) are analytic.

There are more components than $\xi$ (`node-0`, and `node-1` ... for models with more latent
dimensions). `dev` and `maxdev` have derivatives, so a wall on them can keep the system near the
path. The others are for output and reweighting, and a bias on them is refused:

- `dev`, the distance $|u - \hat u|$ from the mean path, orthogonal to the gradients of $\xi$. It is
  a norm over all atoms, so thermal motion makes it grow with the square root of their number.
- `maxdev`, the largest distance of one atom from its position on the mean path,
  $\max_i |u_i - \hat u_i|$. Thermal motion keeps it small in a system of any size. An atom that
  jumps to another site increases it by the length of the jump. A value above half of this length
  means that the system has left the process that the model describes. COMMITTOR can then stop the
  run, or a wall can prevent it. `maxdev` is computed every MAXDEV_STRIDE steps and keeps its value
  in between. A bias on it needs it in every step.
- `temp`, the kinetic temperature along the collective variable in K,
  $\dot\xi^2 / (k_\mathrm{B} \sum_i |\nabla_i\xi|^2/m_i)$, with $\dot\xi$ from two successive
  steps. In equilibrium its mean is the temperature of the thermostat. A larger mean shows that the
  bias heats the collective variable and that free energies along it are wrong. `temp` is not a
  number (nan) if the previous step is not known, without masses, and for more than one latent
  dimension.
- `gradnorm`, $|\nabla\xi|$ (for more dimensions $\sqrt{\det G}$ with
  $G_{kl}=\nabla\xi_k\cdot\nabla\xi_l$). It gives the flux through a dividing surface, and thus a
  barrier that does not depend on the choice of the collective variable.
- `invmass`, $\sum_i |\nabla_i\xi|^2/m_i$ (the determinant of the matrix for more dimensions). It
  gives rates in the same way. It is not a number (nan) if the engine passes no masses.

`temp` and `invmass` are those of free atoms. If the engine constrains the distance of an atom of the
model to another one (bonds to hydrogen, rigid water), both are wrong: the mean of `temp` is below the
temperature of the thermostat, and a rate of transition state theory from `invmass` is too high. Use
no constraints, or a model of atoms without constraints.

`dev`, `maxdev`, `gradnorm` and `invmass` are in PLUMED's units of length and mass. $\xi$ has no
unit.

For a large model, the MPI processes and the threads of PLUMED (PLUMED_NUM_THREADS) divide the work.
The log then says so.

The model is checked when it is read. It must be complete and consistent, and it must reproduce the
values and gradients that its writer has stored for one configuration.

## Pitfalls

- The atoms must be those of the training, in the same order. By default they have the serial
  numbers stored in the model. ATOMS can give the same number of other atoms. PLUMED knows masses
  but no species. A mass that does not fit the element of the model is therefore only reported in
  the log.
- The cell of the engine must be that of the model up to a strain, with the same lattice vectors. A
  cell that differs by more than 25 % is refused, because it is another cell or has other units. A
  rotated cell is refused, and so are other vectors of the same lattice, which an engine chooses if
  it flips its cell during the run (in LAMMPS, `fix npt` and `fix deform` do not flip it with `flip
  no`).
- An atom must not cross a border of the engine's cell along a direction without periodicity of the
  model. If the engine is periodic there, keep the atoms away from that border.
- Displacements do not follow a rotation of the system: a rotation of cell and atoms changes $\xi$.
  If the first cell vector is along x and the second in the xy plane, the virial is that of strains
  which preserve this orientation, and it is symmetric. Engines that keep their cell in this
  orientation receive the correct pressure, including shear.
- The positions of a solid are not made whole, and need not be. Those of a molecule are: neighbours
  in the reference must be closer than half the width of the cell, also if other atoms are between
  them.
- A displacement of more than half a lattice vector relative to that of the first atom changes the
  periodic image, and $\xi$ jumps. If the first atom diffuses, choose a model with another first
  atom.
- Without a cell, PLUMED's numerical derivatives (NUMERICAL_DERIVATIVES, `driver --debug-forces`)
  move all atoms to one point in between. This is refused for a molecule. Check its derivatives in a
  cell.
- PLUMED's natural units have no relation to the angstrom of the model and are refused.

## Examples

The collective variable of a model, with the quantities that show whether it is still valid:

```plumed
ae: AUTOENCODER MODEL=cv.safetensors
PRINT ARG=ae.node-0,ae.dev,ae.gradnorm STRIDE=10 FILE=COLVAR
```

The same atoms with other serial numbers, a bias, and a stop when an atom leaves the path by 1.5 A:

```plumed
UNITS LENGTH=A ENERGY=eV TIME=fs
ae: AUTOENCODER MODEL=cv.safetensors ATOMS=128-254 MAXDEV_STRIDE=10
opes: OPES_METAD ARG=ae.node-0 PACE=500 BARRIER=0.8 TEMP=300
COMMITTOR ARG=ae.maxdev STRIDE=10 BASIN_LL1=1.5 BASIN_UL1=1000
```

A wall that keeps every atom within 1.2 A of its position on the path:

```plumed
UNITS LENGTH=A ENERGY=eV TIME=fs
ae: AUTOENCODER MODEL=cv.safetensors
wall: UPPER_WALLS ARG=ae.maxdev AT=1.2 KAPPA=20
PRINT ARG=ae.node-0,ae.maxdev,wall.bias STRIDE=10 FILE=COLVAR
```

Bayesian adaptive biasing force with BABF, as in the paper:

```plumed
UNITS LENGTH=A ENERGY=eV TIME=fs
ae: AUTOENCODER MODEL=cv.safetensors
b: BABF ARG=ae.node-0 TEMP=300 GRID_MIN=0 GRID_MAX=1 GRID_BIN=100 RAMP=100000
PRINT ARG=ae.node-0,ae.dev,b.bias STRIDE=10 FILE=COLVAR
```

*/
//+ENDPLUMEDOC

// PLUMED's vectors are passed as arrays of their numbers.
static_assert(sizeof(PLMD::Vector) == 3 * sizeof(double));
static_assert(sizeof(PLMD::Tensor) == 9 * sizeof(double));

/// The components that come after the nodes, in this order.
enum Measure : unsigned { dev, gradnorm, invmass, maxdev, temp };
constexpr std::array measures{"dev", "gradnorm", "invmass", "maxdev", "temp"};

// Multiplications in one product with the components from which dividing them saves time: for
// processes those of components that do not fit into a cache of 8 MB.
constexpr std::size_t least_work_of_processes = 1'000'000, least_work_of_thread = 100'000;

class Autoencoder : public compat::Compat<PLMD::Colvar> {
  public:
    explicit Autoencoder(const PLMD::ActionOptions&);
    static void registerKeywords(PLMD::Keywords& keys);
    void calculate() override;
    void apply() override;

  private:
    void check_distinct(std::vector<PLMD::AtomNumber> atoms);
    void check_masses();
    void divide_work();
    double kinetic_temperature(double inverse_mass);
    PLMD::Value* measure(Measure k);
    bool is_used(const PLMD::Value* component) const;
    void set_derivatives(PLMD::Value* component, const double* gradient, double unit);

    std::optional<Processes> processes_;
    std::optional<CollectiveVariable> cv_;
    std::vector<std::string> species_;
    std::string model_file_;
    std::vector<double> forces_; // on positions x1 y1 z1 x2 ... and the cell, in PLUMED's order
    double angstrom_ = 0;        // PLUMED's unit of length
    double amu_ = 0;             // PLUMED's unit of mass
    int maxdev_stride_ = 1;
    bool first_step_ = true;
    bool masses_known_ = false;
    std::size_t known_actions_ = 0; // number of actions when the next two were decided
    bool dev_is_used_ = false, maxdev_is_used_ = false; // by actions that need derivatives
    // node-0 in the last step that was computed, and in the one before
    struct Passed {
        long long step;
        double value;
    };
    std::optional<Passed> last_, before_;
};

PLUMED_REGISTER_ACTION(Autoencoder, "AUTOENCODER")

void Autoencoder::registerKeywords(PLMD::Keywords& keys) {
    check_kernel();
    Colvar::registerKeywords(keys);
    keys.remove("NOPBC"); // the model says whether there is a cell
    keys.add("compulsory", "MODEL", "the model file (safetensors) written by plumed_cv");
    keys.add("atoms", "ATOMS",
             "the atoms in the order of the model; by default those with the serial numbers stored "
             "in the model");
    keys.add("compulsory", "MAXDEV_STRIDE", "1",
             "the number of steps between calculations of maxdev; PRINT and COMMITTOR need it at "
             "multiples of their STRIDE");
    compat::add_doi(keys, "10.1039/D2CP01917E");
    using compat::add_component;
    add_component(keys, "node", "the collective variable, one component per latent dimension");
    add_component(keys, "dev", "the distance from the mean path, orthogonal to the gradients");
    add_component(keys, "gradnorm", "the norm of the gradient");
    add_component(keys, "invmass", "the squared norm of the gradient weighted by inverse masses");
    add_component(keys, "maxdev", "the largest distance of one atom from the mean path");
    add_component(keys, "temp", "the kinetic temperature along the collective variable, K");
}

Autoencoder::Autoencoder(const PLMD::ActionOptions& ao) : Action(ao), Compat(ao) {
    parse("MODEL", model_file_);
    std::vector<PLMD::AtomNumber> atoms;
    parseAtomList("ATOMS", atoms);
    parse("MAXDEV_STRIDE", maxdev_stride_);
    checkRead();
    if (maxdev_stride_ < 1)
        error("MAXDEV_STRIDE=" + std::to_string(maxdev_stride_) +
              " must be a positive number of steps: give 1 to compute maxdev in every step.");

    if (usingNaturalUnits())
        error("the model's lengths are in angstrom, so UNITS NATURAL cannot be used with it; "
              "give real units.");
    angstrom_ = 10 * getUnits().getLength();
    amu_ = getUnits().getMass();

    std::vector<std::int64_t> serials;
    try {
        const auto model = Model::read(model_file_);
        cv_.emplace(model);
        species_ = model.species;
        serials = model.serials;
    } catch (const std::exception& failure) {
        error(failure.what());
    }

    if (atoms.empty()) {
        for (const auto serial : serials)
            atoms.push_back(PLMD::AtomNumber::serial(static_cast<unsigned>(serial)));
    } else if (atoms.size() != cv_->atoms()) {
        error(model_file_ + ": the model has " + std::to_string(cv_->atoms()) +
              " atoms and ATOMS lists " + std::to_string(atoms.size()) +
              "; list the atoms of the model in its order.");
    }
    check_distinct(atoms);

    for (std::size_t k = 0; k < cv_->latent(); ++k) {
        const std::string name = "node-" + std::to_string(k);
        addComponentWithDerivatives(name);
        componentIsNotPeriodic(name);
    }
    for (std::size_t k = 0; k < measures.size(); ++k) {
        if (k == dev || k == maxdev)
            addComponentWithDerivatives(measures[k]);
        else
            addComponent(measures[k]);
        componentIsNotPeriodic(measures[k]);
    }
    requestAtoms(atoms);
    forces_.resize(3 * cv_->atoms() + 9);
    processes_.emplace(comm);

    log << "  model " << model_file_ << " of " << static_cast<unsigned>(cv_->atoms()) << " atoms, "
        << static_cast<unsigned>(cv_->components()) << " components and "
        << static_cast<unsigned>(cv_->latent()) << " latent dimensions"
        << (cv_->frame().periodic() ? ", periodic\n" : ", without periodicity\n");
    log.printf("  maxdev is computed every %d steps\n", maxdev_stride_);
    log << "  Bibliography "
        << plumed.cite("Baima, Goryaeva, Swinburne, Maillet, Nastar and Marinica, Phys. Chem. "
                       "Chem. Phys. 24, 23152 (2022)")
        << "\n";
}

void Autoencoder::calculate() {
    const std::size_t latent = cv_->latent();
    const PLMD::Tensor& box = getPbc().getBox();
    Cell cell;
    for (unsigned a = 0; a < 3; ++a)
        for (unsigned b = 0; b < 3; ++b)
            cell[3 * a + b] = angstrom_ * box(a, b);

    if (first_step_)
        divide_work();
    try {
        cv_->evaluate(&getPositions()[0][0], angstrom_, cell);
        if (first_step_)
            check_masses();
        // An engine or another action may add actions during the run.
        if (const std::size_t number = plumed.getActionSet().size(); number != known_actions_) {
            known_actions_ = number;
            dev_is_used_ = is_used(measure(dev));
            maxdev_is_used_ = is_used(measure(maxdev));
        }
    } catch (const std::exception& failure) {
        error(model_file_ + ": " + failure.what());
    }

    for (std::size_t k = 0; k < latent; ++k) {
        PLMD::Value* node = getPntrToComponent(static_cast<int>(k));
        node->set(cv_->value(k));
        if (!doNotCalculateDerivatives())
            set_derivatives(node, cv_->gradient(k), 1);
    }

    const double scale = latent == 1 ? angstrom_ : std::pow(angstrom_, latent);
    measure(dev)->set(cv_->deviation() / angstrom_);
    if (dev_is_used_ && !doNotCalculateDerivatives())
        set_derivatives(measure(dev), cv_->deviation_gradient(), 1 / angstrom_);
    measure(gradnorm)->set(cv_->gradient_norm() * scale);
    const double unknown = std::numeric_limits<double>::quiet_NaN();
    const double inverse_mass = masses_known_ ? cv_->inverse_mass() * scale * scale : unknown;
    measure(invmass)->set(inverse_mass);
    if (getStep() % maxdev_stride_ == 0) {
        measure(maxdev)->set(cv_->largest_deviation() / angstrom_);
        if (maxdev_is_used_ && !doNotCalculateDerivatives())
            set_derivatives(measure(maxdev), cv_->largest_deviation_gradient(), 1 / angstrom_);
    }
    measure(temp)->set(latent == 1 ? kinetic_temperature(inverse_mass) : unknown);
}

PLMD::Value* Autoencoder::measure(Measure k) {
    return getPntrToComponent(static_cast<int>(cv_->latent() + k));
}

/// Whether an action that may need the derivatives of the component has it as an argument. These
/// derivatives take as much time as those of a node.
bool Autoencoder::is_used(const PLMD::Value* component) const {
    for (const auto& action : plumed.getActionSet()) {
        const auto* user = dynamic_cast<const PLMD::ActionWithArguments*>(action.get());
        if (user == nullptr || user->getName() == "PRINT" || user->getName() == "COMMITTOR")
            continue;
        for (const PLMD::Value* argument : user->getArguments())
            if (argument == component)
                return true;
    }
    return false;
}

/// Sets the derivatives with respect to positions and cell from a gradient in planes. `unit`
/// converts the value to PLUMED's unit.
void Autoencoder::set_derivatives(PLMD::Value* component, const double* gradient, double unit) {
    const std::size_t plane = cv_->frame().plane();
    const unsigned n = static_cast<unsigned>(cv_->atoms());
    const double slope = angstrom_ * unit;
    for (unsigned i = 0; i < n; ++i)
        for (unsigned a = 0; a < 3; ++a)
            component->setDerivative(3 * i + a, slope * gradient[a * plane + i]);
    Cell strain = cv_->strain_derivative(gradient);
    symmetrise(cv_->frame().cell(), strain);
    for (unsigned j = 0; j < 9; ++j)
        component->setDerivative(3 * n + j, -unit * strain[j]);
}

/// The kinetic temperature along node-0 in K, from its change since the previous step; NaN if that
/// step was not computed. `inverse_mass` is in PLUMED's units of length and mass.
double Autoencoder::kinetic_temperature(double inverse_mass) {
    constexpr double boltzmann = 0.0083144626; // kJ/mol/K, and amu nm^2/ps^2 is kJ/mol
    if (last_ && last_->step != getStep())     // otherwise the engine computes the step again
        before_ = last_;
    last_ = {getStep(), cv_->value(0)};
    if (!before_ || getStep() != before_->step + 1)
        return std::numeric_limits<double>::quiet_NaN();
    const double change = cv_->value(0) - before_->value;
    const double velocity = change / (getTimeStep() * getUnits().getTime());
    const double length = getUnits().getLength();
    return velocity * velocity * length * length * amu_ / (boltzmann * inverse_mass);
}

/// PLUMED's own apply() also reads derivatives of components that have none.
void Autoencoder::apply() {
    bool forced = false;
    double* const total = forces_.data();
    const unsigned n = static_cast<unsigned>(forces_.size());
    for (int k = 0; k < static_cast<int>(getNumberOfComponents()); ++k) {
        const PLMD::Value* node = getPntrToComponent(k);
        if (!node->hasDerivatives()) {
            if (compat::is_forced(*node, forces_))
                error(
                    "a bias on " + node->getName() +
                    " has no force, because it has no derivatives; bias node-0, or dev and maxdev "
                    "to keep the system near the path.");
            continue;
        }
        const double force = node->getForce();
        if (force == 0)
            continue;
        if (node == measure(maxdev) && getStep() % maxdev_stride_ != 0)
            error("MAXDEV_STRIDE=" + std::to_string(maxdev_stride_) + ": " + node->getName() +
                  " is not computed in step " + std::to_string(getStep()) +
                  ", where a bias acts on it; give MAXDEV_STRIDE=1.");
        if (forced) {
#pragma omp simd
            for (unsigned j = 0; j < n; ++j)
                total[j] += force * node->getDerivative(j);
        } else {
#pragma omp simd
            for (unsigned j = 0; j < n; ++j)
                total[j] = force * node->getDerivative(j);
        }
        forced = true;
    }
    if (!forced)
        return;
    unsigned start = 0;
    setForcesOnAtoms(forces_, start);
}

void Autoencoder::check_distinct(std::vector<PLMD::AtomNumber> atoms) {
    std::sort(atoms.begin(), atoms.end());
    const auto twice = std::adjacent_find(atoms.begin(), atoms.end());
    if (twice != atoms.end())
        error("ATOMS lists atom " + std::to_string(twice->serial()) +
              " twice; list the atoms of the model in its order.");
}

/// Divides the work among processes and threads, where this takes less time than it costs. The engine
/// sets the number of threads before the first step.
void Autoencoder::divide_work() {
    if (processes_->size() > 1 && cv_->work() >= least_work_of_processes)
        cv_->share(&*processes_);
    const std::size_t sharers = cv_->work() >= least_work_of_processes ? processes_->size() : 1;
    const std::size_t threads = std::min<std::size_t>(PLMD::OpenMP::getNumThreads(),
                                                      cv_->work() / sharers / least_work_of_thread);
    cv_->set_threads(threads);
    if (sharers > 1)
        log << "  the work of " << getLabel() << " is divided among "
            << static_cast<unsigned>(sharers) << " processes\n";
    if (threads > 1)
        log << "  " << getLabel() << " uses " << static_cast<unsigned>(threads) << " threads\n";
}

/// Compares the masses with those of the elements. The engine passes them with the first step.
void Autoencoder::check_masses() {
    first_step_ = false;
    // Without masses PLUMED warns at every call, so the first atom decides whether there are any.
    std::vector<double> masses{getMass(0)};
    const auto known = [](double m) { return std::isfinite(m) && m > 0; };
    masses_known_ = known(masses[0]);
    for (unsigned i = 1; masses_known_ && i < cv_->atoms(); ++i) {
        masses.push_back(getMass(static_cast<int>(i)));
        masses_known_ = known(masses[i]);
    }
    if (!masses_known_) {
        log << "  no masses were passed to PLUMED: " << getLabel() << ".invmass is nan\n";
        return;
    }
    cv_->set_masses(masses);
    for (unsigned i = 0; i < cv_->atoms(); ++i) {
        const auto expected = standard_mass(species_[i]);
        if (!expected || std::abs(amu_ * masses[i] - *expected) <= 0.05 * *expected)
            continue;
        warning(model_file_ + ": atom " + std::to_string(getAbsoluteIndex(i).serial()) + " is " +
                species_[i] + " in the model and has a mass of " +
                std::to_string(amu_ * masses[i]) +
                " here; check that the atoms are those of the model, in its order.");
        break;
    }
}

} // namespace plumed_cv
