// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "../core/babf_fes.h"
#include "../core/babf_prior.h"
#include "../core/babf_state.h"
#include "../core/walkers.h"
#include "compat.h"
#include "kernel.h"

#include "bias/Bias.h"
#include "core/ActionRegister.h"
#include "core/ActionSet.h"
#include "tools/Communicator.h"
#include "tools/File.h"

#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace plumed_cv {

//+PLUMEDOC BIAS BABF
/*
Bayesian adaptive biasing force along one or two collective variables.

BABF flattens the free energy along a collective variable (CV) $\xi$ with a force that it learns
during the simulation, and writes the learned free energy profile. It is an extended-system method
without an extended particle. A variable $z$ on a grid of nodes $z_j$ is coupled to the CV by a
spring. In every step the whole conditional distribution of $z$ is computed, instead of one value
that moves in time. There is no fictitious mass, friction or temperature to choose.

### Theory

With a spring constant $\kappa$ and the present estimate $A$ of the profile, the probability of node
$j$ for a given value of the CV is

$$
P_j(\xi) \propto \exp\{-\beta[\frac{\kappa}{2}(\xi-z_j)^2 - A_j]\}, \qquad \sum_j P_j = 1 .
$$

The force on the system is the mean force of the spring, $-\kappa(\xi-\langle z\rangle_\xi)$ with
$\langle z\rangle_\xi=\sum_j z_j P_j$. It is exactly minus the derivative of the bias

$$
V(\xi) = -\frac{1}{\beta}\ln\sum_j \Delta z\, \exp\{-\beta[\frac{\kappa}{2}(\xi-z_j)^2 - A_j]\} ,
$$

so `bias` is a true potential at any time. After every step $s$ with the weight $w_s$, the
derivative of the profile is updated to

$$
A'_j = \frac{\tau A'^{\,\mathrm{prior}}_j + \sum_s w_s P_j(\xi_s)\,\kappa(z_j-\xi_s)}
            {\tau + \sum_s w_s P_j(\xi_s)}
$$

and integrated by the trapezoidal rule. RAMP is the N of the weights $w_s=\min(1, s/N)$: the first
samples are taken while $A$ is still wrong, so they count less. The regularisation $\tau$ (TAU) is
the weight of the prior, in samples. The prior is zero unless PRIOR gives a profile.

$A$ converges to $A_k$, the profile smoothed by a Gaussian of variance $1/(\beta\kappa)$. With the
default $\kappa=k_BT/\Delta z^2$ its width is one grid spacing, which often does not matter. The
profile without the Gaussian is also written. It follows from the histogram $\rho$ of the CV and the
mean of $z$ at given $\xi$,

$$
A'(\xi) = -\frac{1}{\beta}\frac{d \ln\rho}{d\xi} + \kappa(\langle z\rangle_\xi - \xi) ,
$$

This equation holds for a constant bias and for a bias that changes slowly. If the two profiles
differ by more than their errors, KAPPA is too small or the run too short.

### How to choose the parameters

The grid must extend beyond the two states of interest. Outside of it the bias is a half-harmonic
wall of spring constant KAPPA at the end nodes: the CV leaves the grid by a few $\Delta z$ and comes
back. Samples outside count for $A_k$ of the nodes near the end. This is necessary, and it makes
$A_k$ exact up to the end nodes. These samples do not count for the histogram. The wall covers half
of the bins of the two end nodes, and the corrected profile has an error of about 0.05 $k_BT$ there.
A simulation that _starts_ far outside is pushed back with a force of $\kappa$ times the distance,
which it may not survive. Start inside the grid. Steps that are so far outside that the wall makes
them $e^{-40}$ times less probable are not learned.

A RAMP of the order of the length of the run is the choice of the paper cited below. With a much
shorter RAMP, the first crossing has a large weight. With RAMP=0 all samples have equal weights. The
final answer is the same.

The profile that is used as bias is updated after 5 % more samples. With the default of
SOLVE_STRIDE, this happens after at least 50 samples; it always happens after at most SOLVE_STRIDE
samples. Between two updates the bias is a constant potential. A bias that follows every sample at
once, as in the paper cited below, is raised at the position of the system in every step. This work
heats the CV above the temperature of the thermostat by a fraction of about $n/(\gamma t)$, for $n$
nodes, a friction $\gamma$ and a run of length $t$. Light atoms are heated most, because they
transfer the heat slowly. While the wells are filled for the first time, the bias still heats the
system slightly. If the thermostat is so weak that the CV crosses the grid several times before its
velocity is forgotten, use a stronger coupling or discard the first blocks. The component `temp` of
AUTOENCODER gives the temperature of the CV.

With KAPPA above about $4 k_BT/\Delta z^2$ each node becomes a separate well, and the log contains a
warning. With a smaller KAPPA the bias is smoother, its forces are smaller, and it follows sharp
features less.

The grid of a periodic CV is its domain: GRID_MIN and GRID_MAX must equal it. The error of closure
of the mean force around the period is distributed where the uncertainty is largest, as for two CVs.

BABF learns in every step that the engine reports as a step of the dynamics, or in every PACE-th
step. STRIDE is a multiple time step, as for every bias of PLUMED: the bias acts and learns only in
every STRIDE-th step, and its force is then STRIDE times larger. With UPDATE_FROM it begins later. A CV that does not distinguish the important states leads to
a profile that depends on the direction of the last crossing. Check the error bars from independent
runs.

### Files

FES_FILE contains four numbers for every node: `A_k`, the corrected `A` (NAN in a bin that was never
visited), the derivative of `A_k`, and the sum of the weights of the samples in the bin around the
node. Energies are in PLUMED's unit, and the lowest value of each profile is zero. STATE_WFILE
contains the sums above in full precision. They are additive. The sum of two states is the state of
both runs together. The difference of two states of one run is what the run learned in between, and
gives error bars. If you add states with another program, add the columns from `weight` to `offset`,
those that end in `_rest`, and `steps`, and remove `checksum` and the lines that begin with `md_`.

For two CVs each line is a node, and the first CV varies fastest. FES_FILE then has an empty line
after each row of the first CV, as `sum_hills` and gnuplot need it. Both files are replaced as a
whole, with the given strides in learned steps, at checkpoints of the engine and at the end. Files
of other runs are kept under PLUMED's names for backups. Exceptions are a state from which this run
continues and, with RESTART, FES_FILE. When a state is written, the output of other actions in the
previous steps is also written to disk, without FLUSH.

A run that is continued with STATE_RFILE is the same, to the last bit, as a run that was not
interrupted, as long as the engine continues in this way. For this purpose the state also contains
the profile that is used as bias. With several walkers this holds as long as the files of the other
walkers do not change in between. The grid, KAPPA, TAU, RAMP and the temperature must be those of
the state. SOLVE_STRIDE is that of the state unless it is given. The prior is part of the state, and
PRIOR is then not read. The state contains the number of the last step that was learned, `md_step`,
with its values of the CV and the bias. If an engine
computes this step again, as GROMACS does after `-cpi` and LAMMPS at the beginning of a run, the
step is not learned again and has the same force.

The same input can begin a run and continue it: give STATE_RFILE and STATE_WFILE the same file. The
run continues from this file if it exists. With RESTART, also if the engine requests it, the file
must exist, and an existing STATE_WFILE must be read with STATE_RFILE. `RESTART=NO` in the line of
BABF overrides the engine.

### Two collective variables

With `ARG=phi,psi`, GRID_MIN, GRID_MAX, GRID_BIN and KAPPA are lists with one number for each CV.
Everything above remains valid, with sums over the nodes of the plane, the springs of both CVs in
$P_j$, and a mean force with two components. One CV, both or none may be periodic. Columns that
belong to one CV have its name (`force_phi`), and components its number (`zeta-0`, `zeta-1`).

The profile follows from the mean force by least squares: $A$ minimises the sum over neighbouring
nodes $a$, $b$ along each CV $d$ of

$$
\frac{n_a n_b}{n_a+n_b}\,\frac{1}{\kappa_d \Delta z_d^2}
\left[A_b - A_a - \frac{\Delta z_d}{2}(A'_{d,a}+A'_{d,b})\right]^2 ,
\qquad n = \tau + \sum_s w_s P_j(\xi_s) .
$$

The weights are the inverse variances of the steps. A part of the plane that was never visited
therefore does not influence the known parts around it, and the profile there is the smoothest
continuation. With equal weights this would be Poisson's equation with the mean force as boundary
condition, and without a boundary for periodic CVs. On one CV the rule is the trapezoidal rule, and
on a circle it is this least-squares rule.

A step takes a few microseconds, because only nodes near $\xi$ contribute. A solution takes
milliseconds, so it is computed only when the profile is updated.

### Several walkers

Simultaneous simulations, the walkers, can learn one estimate together. WALKERS_N is their number,
WALKERS_ID the number of this walker (from 0), and WALKERS_DIR a folder that all of them can access.
Every WALKERS_RSTRIDE learned steps, a walker replaces its file `walker-<ID>.state` there, which is
a state as above, and reads the files of the others that have changed. Its bias follows from its own
sums and the latest sums of every other walker. New sums of a walker replace its earlier ones, so
nothing is counted twice.

STATE_WFILE contains only what this walker has learned. The states of all walkers add up to the
state of all together, and they are blocks for error bars. FES_FILE contains the profile that is
used as bias, from all walkers as far as they are known here. The first exchange is at the first
learned step, and the last one at the end. Between exchanges no file is accessed. The bias does not
change before UPDATE_FROM and after UPDATE_UNTIL, and never with TAU=inf.

The $s$ of the ramp counts the samples of all walkers from which $A$ was learned. RAMP is therefore
the number of steps of all walkers together, and a walker that joins late starts from a good $A$
with full weight. The prior counts once.

No walker waits for another one that has not begun. The last file of a slow or dead walker remains
valid. A file is ignored if it is truncated or damaged, belongs to another walker, or has another
CV, grid, temperature, KAPPA, TAU, RAMP or unit. One line in the log gives the reason, and earlier
sums of that walker remain valid. If the own file cannot be written at the first exchange, the run
ends. Later, the log reports this once, and the run continues.

To continue a walker, give STATE_RFILE a state of this walker: its STATE_WFILE, or its file in
WALKERS_DIR. The sums of the others come from their files. Do not give the state of all walkers to
one of them, because it would count twice. Start a new estimate in an empty folder. Files of earlier
runs count until a walker with the same number replaces them. Each estimate needs its own folder.
Two runs with the same WALKERS_ID are an error, which ends the run whose file was replaced.

The file names in WALKERS_DIR have no replica suffix. In a multi-replica run with one input, give
each replica its number by `WALKERS_ID=@replicas:0,1,2,3`. If an engine runs one walker with several
MPI processes, one of them accesses the files and informs the others.

### Examples

The smallest input, for a dihedral angle. The profile is written every 10000 steps:

```plumed
phi: TORSION ATOMS=5,7,9,15
b: BABF ARG=phi TEMP=300 GRID_MIN=-pi GRID_MAX=pi GRID_BIN=100 RAMP=1000000 FES_FILE=fes.dat FES_STRIDE=10000
PRINT ARG=phi,b.bias,b.zeta STRIDE=100 FILE=COLVAR
```

A distance. States are written, so that the run can be continued and its errors computed. To
continue, add `STATE_RFILE=state.dat`:

```plumed
d: DISTANCE ATOMS=1,2
b: BABF ...
  ARG=d TEMP=300
  GRID_MIN=0.2 GRID_MAX=1.2 GRID_BIN=120
  RAMP=1000000
  STATE_WFILE=state.dat STATE_WSTRIDE=100000
  FES_FILE=fes.dat FES_STRIDE=100000
...
```

The second of four walkers, which exchange their states by files in the folder `../shared`:

```plumed
d: DISTANCE ATOMS=1,2
b: BABF ...
  ARG=d TEMP=300
  GRID_MIN=0.2 GRID_MAX=1.2 GRID_BIN=120
  RAMP=1000000
  STATE_WFILE=state.dat STATE_WSTRIDE=100000
  WALKERS_N=4 WALKERS_ID=1 WALKERS_DIR=../shared
...
```

The free energy on two dihedral angles:

```plumed
phi: TORSION ATOMS=5,7,9,15
psi: TORSION ATOMS=7,9,15,17
b: BABF ...
  ARG=phi,psi TEMP=300
  GRID_MIN=-pi,-pi GRID_MAX=pi,pi GRID_BIN=60,60
  RAMP=1000000 FES_FILE=fes.dat FES_STRIDE=100000 STATE_WFILE=state.dat STATE_WSTRIDE=100000
...
PRINT ARG=phi,psi,b.bias,b.zeta-0,b.zeta-1 STRIDE=100 FILE=COLVAR
```

A known profile as the start, for instance that of another temperature. It has the weight of 1000
samples at each node:

```plumed
d: DISTANCE ATOMS=1,2
b: BABF ARG=d TEMP=300 GRID_MIN=0.2 GRID_MAX=1.2 GRID_BIN=120 RAMP=0 PRIOR=fes.dat TAU=1000
```

A constant bias. With TAU=inf the bias is that of PRIOR and samples do not change it, but everything
is still counted. Any observable can then be reweighted by $\exp(\beta V)$ (up to PLUMED 2.9 the
last two lines have GRID in place of ARG):

```plumed
d: DISTANCE ATOMS=1,2
b: BABF ARG=d TEMP=300 GRID_MIN=0.2 GRID_MAX=1.2 GRID_BIN=120 RAMP=0 PRIOR=fes.dat TAU=inf FES_FILE=fes_frozen.dat
w: REWEIGHT_BIAS TEMP=300 ARG=b.bias
h: HISTOGRAM ARG=d GRID_MIN=0.2 GRID_MAX=1.2 GRID_BIN=60 BANDWIDTH=0.01 LOGWEIGHTS=w
f: CONVERT_TO_FES ARG=h TEMP=300
DUMPGRID ARG=f FILE=fes_reweighted.dat STRIDE=1000
```

*/
//+ENDPLUMEDOC

namespace {

bool file_exists(const std::string& path) {
    return static_cast<bool>(std::ifstream(path));
}

/// Whether two names refer to one file; the file need not exist.
bool same_file(const std::string& a, const std::string& b) {
    if (a.empty() || b.empty())
        return false;
    const auto real = [](const std::string& path) {
        std::error_code failure;
        const auto found =
            std::filesystem::weakly_canonical(std::filesystem::absolute(path, failure), failure);
        return failure ? std::filesystem::path(path) : found;
    };
    return real(a) == real(b);
}

} // namespace

class BabfAction : public compat::Compat<PLMD::bias::Bias> {
  public:
    explicit BabfAction(const PLMD::ActionOptions&);
    ~BabfAction() override;
    static void registerKeywords(PLMD::Keywords& keys);
    void calculate() override;
    void apply() override;
    void update() override;

  private:
    // A file that is written every `stride` learned steps (0: never), at checkpoints and at the
    // end.
    struct Output {
        std::string path;
        int stride = 0;
        bool due(double steps) const {
            return stride > 0 && static_cast<long long>(steps) % stride == 0;
        }
    };

    Output parse_output(const std::string& file, const std::string& stride);
    template <class Number>
    std::vector<Number> parse_list(const std::string& key);
    std::vector<Grid> parse_axes();
    std::optional<int> parse_solve_stride();
    double parse_tau(double ramp);
    std::string energy_unit();
    std::string input_path(const std::string& path) const;
    void check_outputs(const std::string& restart);
    void back_up_outputs(const std::string& restart);
    void write(bool state, bool profile) const;
    void parse_walkers(std::size_t nodes);
    void check_start(const std::string& name, double xi, const Grid& grid) const;
    void exchange(bool write);
    void tell(std::string& message);

    BabfLabels labels_;
    Output state_, profile_;
    std::optional<Babf> babf_;
    std::optional<Walkers> walkers_;
    int walkers_stride_ = 0;
    bool exchanged_ = false; // since the start
    bool silent_ = false;    // the log knows that the contribution cannot be written
    std::vector<PLMD::Value*> zeta_;
    int pace_ = 1;
    bool begun_ = false;  // whether a step has been computed
    bool writes_ = false; // on one process of a parallel engine only
    double written_steps_ = 0;
    LearnedStep learned_;     // the last one
    bool is_the_last_ = true; // whether the engine has begun no other step since
    bool repeated_ = false;   // whether it computes that one again
};

PLUMED_REGISTER_ACTION(BabfAction, "BABF")

void BabfAction::registerKeywords(PLMD::Keywords& keys) {
    check_kernel();
    PLMD::bias::Bias::registerKeywords(keys);
    compat::use_arg(keys);
    keys.add("optional", "TEMP", "temperature; not needed if the engine passes it");
    keys.add("compulsory", "GRID_MIN", "the first node of the grid, for each CV");
    keys.add("compulsory", "GRID_MAX", "the last node of the grid, for each CV");
    keys.add("compulsory", "GRID_BIN", "the number of intervals between nodes, for each CV");
    keys.add(
        "compulsory", "RAMP",
        "the number of steps over which the weight of a sample grows to 1; 0 for equal weights");
    keys.add(
        "optional", "KAPPA",
        "the spring constant, energy over CV squared, for each CV; kT over the square of the grid "
        "spacing by default");
    keys.add("optional", "TAU",
             "the weight of the prior, in samples at each node; that of the first 20 samples by "
             "default; with inf the bias is always that of PRIOR");
    keys.add(
        "optional", "PRIOR",
        "a file with the initial profile: its column A_k, or otherwise the column after the CVs");
    keys.add("compulsory", "PACE", "1", "the number of steps between two learned steps");
    keys.add(
        "optional", "SOLVE_STRIDE",
        "largest number of learned steps between two updates of the bias; the larger of 1000 and a "
        "20th of the number of nodes by default");
    keys.add("optional", "FES_FILE", "write the free energy profile to this file");
    keys.add("optional", "FES_STRIDE",
             "steps between writing FES_FILE; only at the end by default");
    keys.add("optional", "STATE_WFILE", "write the state to this file");
    keys.add("optional", "STATE_WSTRIDE",
             "steps between writing STATE_WFILE; only at the end by default");
    keys.add("optional", "STATE_RFILE", "continue from the state in this file");
    keys.add("optional", "WALKERS_N", "the number of walkers that learn one estimate together");
    keys.add("optional", "WALKERS_ID", "the number of this walker, from 0");
    keys.add("optional", "WALKERS_DIR", "the folder through which the walkers exchange states");
    keys.add("optional", "WALKERS_RSTRIDE",
             "learned steps between exchanges; by default the largest of 1000, 20 for each walker "
             "and 1 for each node");
    keys.use("RESTART");
    keys.use("UPDATE_FROM");
    keys.use("UPDATE_UNTIL");
    compat::add_component(
        keys, "zeta", "the mean of the extended variable at this CV; zeta-0 and zeta-1 for two");
}

BabfAction::BabfAction(const PLMD::ActionOptions& ao) : Action(ao), Compat(ao) {
    const std::size_t dimensions = getNumberOfArguments();
    if (dimensions < 1 || dimensions > most_dimensions)
        error("BABF biases one or two CVs, but ARG names " + std::to_string(dimensions) + ".");
    for (std::size_t d = 0; d < dimensions; ++d)
        labels_.arguments.push_back(getPntrToArgument(static_cast<unsigned>(d))->getName());
    if (dimensions == 2 && labels_.arguments[0] == labels_.arguments[1])
        error("ARG names " + labels_.arguments[0] + " twice: name two CVs.");
    labels_.energy_unit = energy_unit();

    // What is estimated
    BabfParameters parameters;
    parameters.kT = getkBT();
    if (!(parameters.kT > 0))
        error("the temperature is not known, because the engine does not pass it: give TEMP.");
    // Of the constants of nature engines know seven digits alike.
    if (engine_kT() > 0 && std::abs(engine_kT() / parameters.kT - 1) > 1e-3)
        error("TEMP says kT=" + std::to_string(parameters.kT) +
              " and the engine kT=" + std::to_string(engine_kT()) + " (" + labels_.energy_unit +
              "): give both the same temperature, or leave TEMP out.");
    parameters.axes = parse_axes();
    parse("RAMP", parameters.ramp);
    parse("PACE", pace_);
    if (pace_ < 1)
        error("PACE=" + std::to_string(pace_) + " must be a positive number of steps.");
    parameters.kappa = parse_list<double>("KAPPA");
    if (parameters.kappa.empty())
        for (const Grid& grid : parameters.axes)
            parameters.kappa.push_back(BabfParameters::default_kappa(grid, parameters.kT));
    parameters.tau = parse_tau(parameters.ramp);
    const std::optional<int> solve_stride = parse_solve_stride();
    parameters.solve_stride =
        solve_stride.value_or(BabfParameters::default_solve_stride(parameters.nodes()));

    // Files
    std::string prior, restart;
    parse("PRIOR", prior);
    parse("STATE_RFILE", restart);
    if (!restart.empty())
        restart = input_path(restart);
    state_ = parse_output("STATE_WFILE", "STATE_WSTRIDE");
    // One input begins and goes on: the state that it will write is not there the first time.
    const bool begins = same_file(restart, state_.path) && !file_exists(restart) && !getRestart();
    if (begins)
        restart.clear();
    profile_ = parse_output("FES_FILE", "FES_STRIDE");
    parse_walkers(parameters.nodes());
    checkRead();
    check_outputs(restart);

    try {
        babf_.emplace(parameters);
        if (!restart.empty()) {
            const Table table = read_table(restart);
            const long long walker = walker_of(table);
            if (walkers_ && walker >= 0 &&
                walkers_->path(static_cast<std::size_t>(walker)) != walkers_->path())
                error(restart + ": is the contribution of walker " + std::to_string(walker) +
                      ", which counts here already; give STATE_RFILE a state of this walker.");
            if (!solve_stride)
                parameters.solve_stride = solve_stride_of(table, parameters.nodes(), restart);
            babf_ = restored(table, parameters, labels_, restart);
            written_steps_ = babf_->sums().steps;
            learned_ = learned_step(table, labels_, parameters, restart);
        } else if (!prior.empty()) {
            parameters.prior = read_prior(input_path(prior), parameters.axes, labels_);
            babf_.emplace(parameters);
        }
    } catch (const std::runtime_error& problem) {
        error(problem.what());
    }

    for (std::size_t d = 0; d < dimensions; ++d) {
        const std::string name = dimensions == 1 ? "zeta" : "zeta-" + std::to_string(d);
        addComponent(name);
        if (parameters.axes[d].periodic) {
            std::string minimum, maximum;
            getPntrToArgument(static_cast<unsigned>(d))->getDomain(minimum, maximum);
            componentIsPeriodic(name, minimum, maximum);
        } else {
            componentIsNotPeriodic(name);
        }
        zeta_.push_back(getPntrToComponent(name));
    }

    if (walkers_)
        for (const std::string& name : walkers_->left_out())
            warning(name + ": is the contribution of a walker whose number is too high for "
                           "WALKERS_N, and does not count");
    writes_ = comm.Get_rank() == 0;
    back_up_outputs(restart);
    if (walkers_)
        exchange(false);

    log.printf("  kT %g, TAU %g, RAMP %g\n", parameters.kT, parameters.tau, parameters.ramp);
    for (std::size_t d = 0; d < dimensions; ++d) {
        const Grid& grid = parameters.axes[d];
        log.printf("  %s: grid from %g to %g with spacing %g%s, KAPPA %g\n",
                   labels_.arguments[d].c_str(), grid.minimum, grid.maximum, grid.spacing(),
                   grid.periodic ? ", periodic" : "", parameters.kappa[d]);
    }
    if (begins)
        log.printf("  %s is not there yet: starting from zero\n", state_.path.c_str());
    if (pace_ > 1)
        log.printf("  learning in every %d steps\n", pace_);
    log.printf("  the profile that biases is updated every %d steps, and more often at first\n",
               parameters.solve_stride);
    if (!restart.empty())
        log.printf("  going on from %s, which has learned from %.0f steps%s\n", restart.c_str(),
                   babf_->sums().steps,
                   prior.empty() ? "" : " and brings its prior: PRIOR is not read");
    else if (!prior.empty())
        log.printf("  starting from the profile in %s\n", prior.c_str());
    if (walkers_)
        log.printf("  this walker contributes to %s, every %d steps; of the others %zu have "
                   "contributed, %.0f steps\n",
                   walkers_->path().c_str(), walkers_stride_, walkers_->contributors(),
                   babf_->steps() - babf_->sums().steps);
    for (std::size_t d = 0; d < dimensions; ++d)
        if (parameters.kappa[d] >
            4.01 * BabfParameters::default_kappa(parameters.axes[d], parameters.kT))
            warning(
                "KAPPA is more than 4 kT over the square of the grid spacing: the nodes are "
                "further apart than the spring is wide, and the bias has a well at each of them");
    log << "  Bibliography "
        << plumed.cite("Baima, Goryaeva, Swinburne, Maillet, Nastar, Marinica, "
                       "Phys. Chem. Chem. Phys. 24, 23152 (2022)")
        << plumed.cite(
               "Cao, Stoltz, Lelievre, Marinica, Athenes, J. Chem. Phys. 140, 104108 (2014)")
        << "\n";
}

BabfAction::~BabfAction() {
    // A run that has learned nothing replaces nothing; a state it was to go on from is passed on.
    if (!babf_ || babf_->sums().steps == 0)
        return;
    try {
        const bool learned = babf_->sums().steps != written_steps_;
        write(learned || !file_exists(state_.path), learned || !file_exists(profile_.path));
        if (walkers_ && exchanged_ && writes_)
            walkers_->write(*babf_, labels_, learned_);
    } catch (const std::exception& problem) {
        if (comm.Get_size() == 1)
            log.printf("+++ WARNING +++ %s\n", problem.what());
        else // where the log would wait for processes that may have ended
            std::fprintf(stderr, "+++ WARNING +++ %s\n", problem.what());
    }
}

void BabfAction::calculate() {
    Point xi{};
    const std::size_t dimensions = labels_.arguments.size();
    for (std::size_t d = 0; d < dimensions; ++d) {
        xi[d] = getArgument(static_cast<unsigned>(d));
        if (!std::isfinite(xi[d]))
            error("the CV " + labels_.arguments[d] +
                  " is not a finite number: the dynamics has failed before this step.");
        if (!begun_)
            check_start(labels_.arguments[d], xi[d], babf_->parameters().axes[d]);
    }
    begun_ = true;
    is_the_last_ = is_the_last_ && getStep() == learned_.number;
    repeated_ = is_the_last_ && learned_.is_at(xi, babf_->parameters().axes);
    // The bias of a step is the one from before it was learned from.
    const Evaluation now =
        repeated_ ? learned_.acting_at(xi, babf_->parameters().axes) : babf_->evaluate(xi.data());
    for (std::size_t d = 0; d < dimensions; ++d)
        if (!std::isfinite(now.bias) || !std::isfinite(now.force[d]))
            error("the CV " + labels_.arguments[d] + " is " + to_text(xi[d]) +
                  ", where the bias is not a finite number: the dynamics has failed before this "
                  "step.");
    setBias(now.bias);
    for (std::size_t d = 0; d < dimensions; ++d) {
        setOutputForce(static_cast<unsigned>(d), now.force[d]);
        zeta_[d]->set(now.zeta[d]);
    }
}

// PLUMED would drop such a force in silence.
void BabfAction::apply() {
    std::vector<double> none(labels_.arguments.size());
    for (const PLMD::Value* zeta : zeta_)
        if (compat::is_forced(*zeta, none))
            error("a bias on " + zeta->getName() +
                  " has no force, because it has no derivatives; "
                  "bias " +
                  labels_.arguments[0] + " itself.");
    Bias::apply();
}

// The spring would be stretched over several grids, as when one of the two is in nm and the other in angstrom.
void BabfAction::check_start(const std::string& name, double xi, const Grid& grid) const {
    const double width = grid.maximum - grid.minimum;
    if (grid.periodic || (xi > grid.minimum - width && xi < grid.maximum + width))
        return;
    char numbers[100];
    std::snprintf(numbers, sizeof numbers, "%g at the first step, and the grid from %g to %g", xi,
                  grid.minimum, grid.maximum);
    error("the CV " + name + " is " + numbers +
          ", further away than its width: give GRID_MIN and GRID_MAX in the units of the CV "
          "(lengths are in nm if UNITS does not say otherwise), or start within the grid.");
}

void BabfAction::update() {
    if (!onStep() || getStep() % pace_ != 0 || repeated_)
        return;
    learned_ = {getStep(), babf_->xi(), babf_->evaluation()};
    is_the_last_ = true;
    babf_->update();
    const double steps = babf_->sums().steps;
    if (walkers_ && (!exchanged_ || static_cast<long long>(steps) % walkers_stride_ == 0)) {
        exchange(true);
        exchanged_ = true;
    }
    const bool state = getCPT() || state_.due(steps);
    const bool profile = getCPT() || profile_.due(steps);
    if (!state && !profile)
        return;
    plumed.fflush(); // what was printed on the way to a state is there when the state is
    std::string problem;
    try {
        write(state, profile);
    } catch (const std::runtime_error& failure) {
        problem = failure.what();
    }
    tell(problem);
    if (!problem.empty())
        error(problem);
    if (state && profile)
        written_steps_ = steps;
}

void BabfAction::write(bool state, bool profile) const {
    if (!writes_)
        return;
    if (state && !state_.path.empty())
        write_table(state_.path, state_table(*babf_, labels_, learned_));
    if (profile && !profile_.path.empty())
        write_table(profile_.path, profile_table(*babf_, labels_));
}

void BabfAction::parse_walkers(std::size_t nodes) {
    const int absent = std::numeric_limits<int>::min();
    int number = absent, id = absent, stride = absent;
    std::string folder;
    parse("WALKERS_N", number);
    parse("WALKERS_ID", id);
    parse("WALKERS_DIR", folder);
    parse("WALKERS_RSTRIDE", stride);
    if (number == absent) {
        if (id != absent || !folder.empty() || stride != absent)
            error("WALKERS_ID, WALKERS_DIR or WALKERS_RSTRIDE is given without WALKERS_N: say how "
                  "many walkers there are.");
        return;
    }
    const std::string given = "WALKERS_N=" + std::to_string(number);
    if (number < 1 || number > 100000)
        error(given + " must be from 1 to 100000.");
    if (id < 0 || id >= number)
        error(given + " walkers have numbers from 0 to " + std::to_string(number - 1) +
              ": give this one by WALKERS_ID" +
              (id == absent ? "." : ", which is " + std::to_string(id) + "."));
    if (folder.empty())
        error(given + " is given without WALKERS_DIR: name a folder that all walkers see.");
    if (!std::filesystem::is_directory(folder))
        error("WALKERS_DIR=" + folder + " is no folder: make it before the walkers start.");
    if (stride != absent && stride < 1)
        error("WALKERS_RSTRIDE=" + std::to_string(stride) + " must be a positive number of steps.");
    const auto walkers = static_cast<std::size_t>(number);
    walkers_.emplace(folder, walkers, static_cast<std::size_t>(id));
    walkers_stride_ = stride != absent ? stride : Walkers::default_stride(walkers, nodes);
}

// One process reads and writes; all of them leave with the same sums, or with an error.
void BabfAction::exchange(bool write) {
    enum { same, changed, failed } outcome = same;
    std::string problem;
    std::vector<std::string> complaints;
    if (writes_) {
        try {
            if (write)
                walkers_->write(*babf_, labels_, learned_);
        } catch (const Walkers::SameWalker& found) {
            problem = found.what();
            outcome = failed;
        } catch (const std::runtime_error& found) { // a file system may come back
            problem = found.what();
            if (!exchanged_)
                outcome = failed;
            else if (!silent_)
                complaints.push_back(problem + " The other walkers do not know of this one's "
                                               "later steps until it can be.");
            silent_ = true;
        }
        if (outcome != failed && walkers_->read(babf_->parameters(), labels_, complaints))
            outcome = changed;
    }
    int told[] = {outcome, static_cast<int>(complaints.size())};
    comm.Bcast(told, 2, 0);
    complaints.resize(static_cast<std::size_t>(told[1]));
    for (std::string& complaint : complaints) {
        tell(complaint);
        warning(complaint);
    }
    tell(problem);
    if (told[0] == failed)
        error(problem);
    if (told[0] == same)
        return;
    BabfSums others = writes_ ? walkers_->others(babf_->parameters())
                              : BabfSums(babf_->size(), babf_->dimensions());
    for (Sums* sums : {&others.weight, &others.force, &others.count, &others.offset}) {
        comm.Bcast(sums->sum, 0);
        comm.Bcast(sums->rest, 0);
    }
    comm.Bcast(others.steps, 0);
    // A restart goes on with the profile that acted, which knows of the others.
    babf_->set_others(std::move(others), write || babf_->sums().steps == 0);
}

// Makes what one process has to say that of all: PLUMED's error, warning and log wait for every process.
void BabfAction::tell(std::string& message) {
    int size = static_cast<int>(message.size());
    comm.Bcast(size, 0);
    message.resize(static_cast<std::size_t>(size));
    if (size > 0)
        comm.Bcast(message, 0);
}

void BabfAction::check_outputs(const std::string& restart) {
    if (same_file(state_.path, profile_.path))
        error("STATE_WFILE and FES_FILE are both " + state_.path + "; give them different names.");
    if (same_file(restart, profile_.path))
        error("STATE_RFILE and FES_FILE are both " + restart + "; give them different names.");
    for (const auto& action : plumed.getActionSet()) {
        const auto* other = dynamic_cast<const BabfAction*>(action.get());
        if (other == nullptr)
            continue;
        for (const Output* mine : {&state_, &profile_})
            for (const Output* theirs : {&other->state_, &other->profile_})
                if (same_file(mine->path, theirs->path))
                    error(mine->path + ": is written by " + other->getLabel() +
                          ", too; give each action files of its own.");
    }
    const std::string contribution = walkers_ ? walkers_->path() : "";
    for (const Output* output : {&state_, &profile_})
        if (same_file(contribution, output->path))
            error(output->path + ": is this walker's file in WALKERS_DIR; give another name.");
    for (const std::string& path : {state_.path, contribution})
        if (getRestart() && restart.empty() && file_exists(path))
            error(path +
                  ": is the state of an earlier run, and RESTART would not go on from it; give "
                  "STATE_RFILE=" +
                  path + ", or move the file away to start from zero.");
}

// With RESTART the profile is replaced like the file of any other action, but a state that was not
// read may be all that is left of a run.
void BabfAction::back_up_outputs(const std::string& restart) {
    comm.Barrier(); // another process may still be reading
    const bool continued = getRestart() && !restart.empty();
    const auto back_up = [&](const std::string& path) {
        if (path.empty() || same_file(path, restart))
            return;
        PLMD::OFile file;
        file.link(*this);
        file.backupFile("bck", path);
    };
    back_up(state_.path);
    if (!continued)
        back_up(profile_.path);
    if (walkers_ && restart.empty())
        back_up(walkers_->path());
}

// One number a CV, or none at all.
template <class Number>
std::vector<Number> BabfAction::parse_list(const std::string& key) {
    std::vector<Number> list;
    parseVector(key, list);
    const std::size_t expected = labels_.arguments.size();
    if (!list.empty() && list.size() != expected)
        error(key + " has " + std::to_string(list.size()) + " numbers for the " +
              std::to_string(expected) + (expected == 1 ? " CV" : " CVs") + " of ARG: give " +
              (expected == 1 ? "one." : "one for each."));
    return list;
}

std::vector<Grid> BabfAction::parse_axes() {
    const auto minima = parse_list<double>("GRID_MIN"), maxima = parse_list<double>("GRID_MAX");
    const auto bins = parse_list<int>("GRID_BIN");
    std::vector<Grid> axes;
    double nodes = 1;
    for (std::size_t d = 0; d < labels_.arguments.size(); ++d) {
        const PLMD::Value& cv = *getPntrToArgument(static_cast<unsigned>(d));
        if (bins[d] < 2 || bins[d] > 1000000)
            error("GRID_BIN=" + std::to_string(bins[d]) + " must be from 2 to 1000000.");
        Grid grid{minima[d], maxima[d], static_cast<std::size_t>(bins[d]), cv.isPeriodic()};
        if (grid.periodic) {
            double minimum = 0, maximum = 0;
            cv.getDomain(minimum, maximum);
            const double slack = 1e-6 * (maximum - minimum);
            if (!(std::abs(grid.minimum - minimum) < slack &&
                  std::abs(grid.maximum - maximum) < slack)) {
                std::string from, to;
                cv.getDomain(from, to);
                error("the CV " + labels_.arguments[d] +
                      " is periodic, so the grid must be its domain: "
                      "give GRID_MIN=" +
                      from + " and GRID_MAX=" + to +
                      (labels_.arguments.size() == 1 ? "." : " for it."));
            }
            grid.minimum = minimum;
            grid.maximum = maximum;
        }
        nodes *= static_cast<double>(grid.nodes());
        axes.push_back(grid);
    }
    if (axes.size() > 1 && nodes > 4e6)
        error("GRID_BIN asks for " + to_text(nodes) + " nodes: give fewer bins, 4000000 in all.");
    return axes;
}

std::optional<int> BabfAction::parse_solve_stride() {
    const int absent = std::numeric_limits<int>::min();
    int stride = absent;
    parse("SOLVE_STRIDE", stride);
    if (stride == absent)
        return std::nullopt;
    if (stride < 1)
        error("SOLVE_STRIDE=" + std::to_string(stride) + " must be a positive number of steps.");
    return stride;
}

// Its name, or kJ/mol in one of it where the user or the engine gave a number.
std::string BabfAction::energy_unit() {
    if (usingNaturalUnits())
        return "natural";
    const std::string name = getUnits().getEnergyString();
    return name.empty() ? to_text(getUnits().getEnergy()) : name;
}

double BabfAction::parse_tau(double ramp) {
    std::string text;
    parse("TAU", text);
    if (text.empty())
        return BabfParameters::default_tau(ramp);
    double tau = 0;
    if (!to_number(text, tau) || !(tau > 0))
        error("TAU=" + text + " must be a positive number, or inf to keep the bias as it is.");
    return tau;
}

BabfAction::Output BabfAction::parse_output(const std::string& file, const std::string& stride) {
    Output output;
    parse(file, output.path);
    parse(stride, output.stride);
    if (output.stride < 0)
        error(stride + "=" + std::to_string(output.stride) + " must be a number of steps.");
    if (output.path.empty() && output.stride > 0)
        error(stride + " is given without " + file + ": say which file to write.");
    if (!output.path.empty())
        output.path = PLMD::FileBase::appendSuffix(output.path, plumed.getSuffix());
    return output;
}

// Like PLUMED's own reader: the replica's file if there is one, else the file itself.
std::string BabfAction::input_path(const std::string& path) const {
    const std::string own = PLMD::FileBase::appendSuffix(path, plumed.getSuffix());
    return std::ifstream(own) ? own : path;
}

} // namespace plumed_cv
