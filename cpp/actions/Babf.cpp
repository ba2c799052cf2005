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
#include <type_traits>
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

and integrated by the trapezoidal rule. This is the estimator of Cao, Stoltz, Lelievre, Marinica and
Athenes, J. Chem. Phys. 140, 104108 (2014), in the form of Baima et al., Phys. Chem. Chem. Phys. 24,
23152 (2022), which is called the paper here. RAMP is the N of the weights $w_s=\min(1, s/N)$: the first
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

GRID_BIN is the number of intervals of the grid. In its place, GRID_SPACING can be given, the largest
distance between two nodes. The grid must extend beyond the two states of interest. Outside of it the bias is a half-harmonic
wall of spring constant KAPPA at the end nodes: the CV leaves the grid by a few $\Delta z$ and comes
back. Samples outside count for $A_k$ of the nodes near the end. This is necessary, and it makes
$A_k$ exact up to the end nodes. These samples do not count for the histogram. The wall covers half
of the bins of the two end nodes, and the corrected profile has an error of about 0.05 $k_BT$ there.
A simulation that _starts_ far outside is pushed back with a force of $\kappa$ times the distance,
which it may not survive. Start inside the grid. Steps that are so far outside that the wall makes
them $e^{-40}$ times less probable are not learned.

A RAMP of the order of the length of the run is the choice of the paper. With a much
shorter RAMP, the first crossing has a large weight. With RAMP=0 all samples have equal weights. The
final answer is the same.

The profile that is used as bias is updated after 5 % more samples. With the default of
SOLVE_STRIDE, this happens after at least 50 samples; it always happens after at most SOLVE_STRIDE
samples. Between two updates the bias is a constant potential. A bias that follows every sample at
once, as in the paper, is raised at the position of the system in every step. This work
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
every STRIDE-th step, and its force is then STRIDE times larger. With UPDATE_FROM it begins later. A
CV that does not distinguish the important states leads to a profile that depends on the direction
of the last crossing. Check the error bars from independent runs.

### Other biases

Without EXTRA_BIAS, the profile includes the effect of all other biases, such as walls. EXTRA_BIAS
names bias potentials whose effect is removed. The weight of each sample is then multiplied by
$e^{\beta V}$, where $V$ is the sum of these potentials. BABF does not compensate their forces, so
the CV is finally distributed as $e^{-\beta V}$. This keeps the system away from a region, or gives
any other distribution. The weights are those of samples relative to a $V$ of zero. Add a constant to
a potential that is never near zero, because TAU counts samples at zero. Steps in which $V$ is more
than 40 $k_BT$ from zero are not learned, and the log contains a warning. The state contains the
names of the potentials, and they must be the same in a run that continues.

### Files

FES_FILE contains four numbers for every node: `A_k`, the corrected `A` (NAN in a bin that was never
visited), the derivative of `A_k`, and the sum of the weights of the samples in the bin around the
node. Energies are in PLUMED's unit, and the lowest value of each profile is zero. FMT is the format
of these numbers. A file with rounded numbers has no checksum. STATE_WFILE contains the sums above in full precision. They are additive. The sum of two states is the state of
both runs together. The difference of two states of one run is what the run learned in between, and
gives error bars. If you add states with another program, add the columns from `weight` to `offset`,
those that end in `_rest`, and `steps`, and remove `checksum` and the lines that begin with `md_`.

For two CVs each line is a node, and the first CV varies fastest. FES_FILE then has an empty line
after each row of the first CV, as `sum_hills` and gnuplot need it. Both files are replaced as a
whole, with the given strides in learned steps, at checkpoints of the engine and at the end. Files
of other runs are kept under PLUMED's names for backups. Exceptions are a state from which this run
continues and, with RESTART, FES_FILE. When a state is written, the output of other actions in the
previous steps is also written to disk, without FLUSH. With STORE_STATES each state that
STATE_WSTRIDE asks for is also kept in a file of its own. The number of learned steps is inserted
into its name (`state.100000.dat`). Differences of these states are the blocks for error bars.
(OPES_METAD, in contrast, appends all states to one file.)

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

The replicas of one simulation with MPI need no files. With WALKERS_MPI they are the walkers, and
they exchange their sums through MPI every WALKERS_RSTRIDE learned steps. Everything else is the
same, but all replicas must have the same parameters and number of learned steps, and the last
exchange is not at the end of the run. This needs a PLUMED with MPI.

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

A wall that limits the CV, whose effect is not part of the profile. The grid is given by its spacing,
the profile has three decimals, and the states are kept:

```plumed
d: DISTANCE ATOMS=1,2
w: UPPER_WALLS ARG=d AT=1.0 KAPPA=2000
b: BABF ...
  ARG=d TEMP=300 EXTRA_BIAS=w.bias
  GRID_MIN=0.2 GRID_MAX=1.2 GRID_SPACING=0.01
  RAMP=1000000 FES_FILE=fes.dat FMT=%.3f
  STATE_WFILE=state.dat STATE_WSTRIDE=100000 STORE_STATES
...
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

// The actions give PLUMED pointers and formats for these types.
static_assert(std::is_same_v<decltype(std::declval<PLMD::Value&>().get()), double>);
static_assert(std::is_same_v<decltype(std::declval<PLMD::Action&>().getStep()), long long>);

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

/// Gives all processes of a communicator the sums of one of them.
void broadcast(PLMD::Communicator& among, BabfSums& sums, int root) {
    for (Sums* one : {&sums.weight, &sums.force, &sums.count, &sums.offset}) {
        among.Bcast(one->sum, root);
        among.Bcast(one->rest, root);
    }
    among.Bcast(sums.steps, root);
}

/// Gives all processes of a communicator the text of one of them.
void broadcast(PLMD::Communicator& among, std::string& text, int root) {
    int size = static_cast<int>(text.size());
    among.Bcast(size, root);
    text.resize(static_cast<std::size_t>(size));
    if (size > 0)
        among.Bcast(text, root);
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

    // The parts of the constructor, in their order
    void read_cvs();
    BabfParameters parse_parameters();
    double parse_kT();
    std::vector<Grid> parse_axes();
    std::size_t parse_bins(std::size_t d, double length, const std::vector<int>& bins,
                           const std::vector<double>& spacings);
    double parse_tau(double ramp);
    void parse_extra_bias();
    void parse_files();
    Output parse_output(const std::string& file, const std::string& stride);
    void parse_walkers(std::size_t nodes);
    void parse_walkers_of_folder(std::size_t nodes, int stride);
    void check_outputs();
    void begin(BabfParameters parameters);
    void add_zeta();
    void join_walkers();
    void back_up_outputs();
    void describe();

    template <class Number>
    std::vector<Number> parse_list(const std::string& key);
    std::optional<int> parse_stride(const std::string& key);
    std::string energy_unit();
    std::string length_unit();
    std::string input_path(const std::string& path) const;

    // The parts of a step
    void check_start(std::size_t d, double xi);
    std::optional<double> weight_of_extra_bias();
    void write(bool state, bool profile);
    void exchange(bool write);
    void exchange_by_mpi(bool at_once);
    void say(std::string& message);

    BabfLabels labels_;
    std::vector<PLMD::Value*> extra_bias_, zeta_;
    std::optional<int> solve_stride_;
    int pace_ = 1;

    std::string prior_, restart_; // files to read
    bool begins_ = false;         // STATE_RFILE is STATE_WFILE, which does not exist yet
    Output state_, profile_;
    std::string format_; // of the numbers in FES_FILE
    bool stores_states_ = false;
    bool writes_ = false; // on one process of a parallel engine only
    double written_steps_ = 0;

    std::optional<Babf> babf_;
    bool begun_ = false;      // whether a step has been computed
    LearnedStep learned_;     // the last one
    bool is_the_last_ = true; // whether the engine has begun no other step since
    bool repeated_ = false;   // whether it computes that one again
    bool warned_of_extra_bias_ = false;

    std::optional<Walkers> walkers_;
    bool walkers_mpi_ = false;
    int walkers_stride_ = 0;
    bool exchanged_ = false;         // since the start
    bool cannot_contribute_ = false; // and the log says so
};

PLUMED_REGISTER_ACTION(BabfAction, "BABF")

void BabfAction::registerKeywords(PLMD::Keywords& keys) {
    check_kernel();
    PLMD::bias::Bias::registerKeywords(keys);
    compat::use_arg(keys);
    keys.add("optional", "TEMP", "temperature; not needed if the engine passes it");
    keys.add("compulsory", "GRID_MIN", "the first node of the grid, for each CV");
    keys.add("compulsory", "GRID_MAX", "the last node of the grid, for each CV");
    keys.add("optional", "GRID_BIN", "the number of intervals between nodes, for each CV");
    keys.add("optional", "GRID_SPACING",
             "the largest distance between nodes, for each CV; an alternative to GRID_BIN");
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
    compat::add_scalar_input(
        keys, "EXTRA_BIAS",
        "other bias potentials, whose effect is removed from the profile by reweighting");
    keys.add("compulsory", "PACE", "1", "the number of steps between two learned steps");
    keys.add(
        "optional", "SOLVE_STRIDE",
        "largest number of learned steps between two updates of the bias; the larger of 1000 and a "
        "20th of the number of nodes by default");
    keys.add("optional", "FES_FILE", "write the free energy profile to this file");
    keys.add("optional", "FES_STRIDE",
             "learned steps between writing FES_FILE; only at the end by default");
    keys.add("optional", "FMT",
             "format of the numbers in FES_FILE, for example %8.3f; full precision by default");
    keys.add("optional", "STATE_WFILE", "write the state to this file");
    keys.add("optional", "STATE_WSTRIDE",
             "learned steps between writing STATE_WFILE; only at the end by default");
    keys.addFlag("STORE_STATES", false,
                 "keep each state that STATE_WSTRIDE asks for in a file of its own, too");
    keys.add("optional", "STATE_RFILE", "continue from the state in this file");
    keys.addFlag("WALKERS_MPI", false,
                 "the replicas of a multi-replica simulation are walkers that learn one estimate");
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
    compat::add_doi(keys, "10.1039/D2CP01917E");
    compat::add_doi(keys, "10.1063/1.4866811");
}

BabfAction::BabfAction(const PLMD::ActionOptions& ao) : Action(ao), Compat(ao) {
    read_cvs();
    const BabfParameters parameters = parse_parameters();
    parse_extra_bias();
    parse_files();
    parse_walkers(parameters.nodes());
    checkRead();
    check_outputs();
    begin(parameters);
    add_zeta();
    back_up_outputs();
    join_walkers();
    describe();
}

void BabfAction::read_cvs() {
    const std::size_t dimensions = getNumberOfArguments();
    if (dimensions < 1 || dimensions > most_dimensions)
        error("BABF biases one or two CVs, but ARG names " + std::to_string(dimensions) + ".");
    for (std::size_t d = 0; d < dimensions; ++d)
        labels_.arguments.push_back(getPntrToArgument(static_cast<unsigned>(d))->getName());
    if (dimensions == 2 && labels_.arguments[0] == labels_.arguments[1])
        error("ARG names " + labels_.arguments[0] + " twice: name two CVs.");
    labels_.energy_unit = energy_unit();
    labels_.length_unit = length_unit();
}

BabfParameters BabfAction::parse_parameters() {
    BabfParameters parameters;
    parameters.kT = parse_kT();
    parameters.axes = parse_axes();
    parse("RAMP", parameters.ramp);
    pace_ = parse_stride("PACE").value_or(1);
    parameters.kappa = parse_list<double>("KAPPA");
    if (parameters.kappa.empty())
        for (const Grid& grid : parameters.axes)
            parameters.kappa.push_back(BabfParameters::default_kappa(grid, parameters.kT));
    parameters.tau = parse_tau(parameters.ramp);
    solve_stride_ = parse_stride("SOLVE_STRIDE");
    parameters.solve_stride =
        solve_stride_.value_or(BabfParameters::default_solve_stride(parameters.nodes()));
    return parameters;
}

double BabfAction::parse_kT() {
    const double kT = getkBT(), engine = engine_kT();
    if (!(kT > 0))
        error("the temperature is not known, because the engine does not pass it: give TEMP.");
    // Engines have the same first seven digits of the constants of nature.
    if (engine > 0 && std::abs(engine / kT - 1) > 1e-3)
        error("kT is " + std::to_string(kT) + " by TEMP and " + std::to_string(engine) +
              " by the engine (" + labels_.energy_unit +
              "): give both the same temperature, or leave TEMP out.");
    return kT;
}

std::vector<Grid> BabfAction::parse_axes() {
    const auto minima = parse_list<double>("GRID_MIN"), maxima = parse_list<double>("GRID_MAX"),
               spacings = parse_list<double>("GRID_SPACING");
    const auto bins = parse_list<int>("GRID_BIN");
    if (bins.empty() == spacings.empty())
        error("the number of nodes is needed once: give either GRID_BIN or GRID_SPACING.");
    std::vector<Grid> axes;
    double nodes = 1;
    for (std::size_t d = 0; d < labels_.arguments.size(); ++d) {
        const PLMD::Value& cv = *getPntrToArgument(static_cast<unsigned>(d));
        Grid grid{minima[d], maxima[d], parse_bins(d, maxima[d] - minima[d], bins, spacings),
                  cv.isPeriodic()};
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
        error("the grid has " + to_text(nodes) + " nodes: give fewer bins, 4000000 in all.");
    return axes;
}

std::size_t BabfAction::parse_bins(std::size_t d, double length, const std::vector<int>& bins,
                                   const std::vector<double>& spacings) {
    if (!bins.empty()) {
        if (bins[d] < 2 || bins[d] > 1000000)
            error("GRID_BIN=" + std::to_string(bins[d]) + " must be from 2 to 1000000.");
        return static_cast<std::size_t>(bins[d]);
    }
    // A length that is a multiple of the spacing but for rounding needs no further bin.
    const double number = std::ceil(length / spacings[d] * (1 - 1e-9));
    if (!(length > 0))
        return 2; // which the estimator refuses in words
    if (!(spacings[d] > 0 && number >= 2 && number <= 1000000))
        error("GRID_SPACING=" + to_short_text(spacings[d]) + " gives " + to_short_text(number) +
              " bins, and there must be from 2 to 1000000.");
    return static_cast<std::size_t>(number);
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

void BabfAction::parse_extra_bias() {
    parseArgumentList("EXTRA_BIAS", extra_bias_);
    if (extra_bias_.empty())
        return;
    requestExtraDependencies(extra_bias_);
    for (const PLMD::Value* bias : extra_bias_)
        labels_.extra_bias += (labels_.extra_bias.empty() ? "" : ",") + bias->getName();
}

void BabfAction::parse_files() {
    parse("PRIOR", prior_);
    parse("STATE_RFILE", restart_);
    if (!restart_.empty())
        restart_ = input_path(restart_);
    state_ = parse_output("STATE_WFILE", "STATE_WSTRIDE");
    parseFlag("STORE_STATES", stores_states_);
    if (stores_states_ && state_.stride == 0)
        error("STORE_STATES keeps the states that STATE_WSTRIDE asks for: give STATE_WFILE and "
              "STATE_WSTRIDE.");
    // With one input for the first part of a run and for all others, the state does not exist the
    // first time.
    begins_ = same_file(restart_, state_.path) && !file_exists(restart_) && !getRestart();
    if (begins_)
        restart_.clear();
    profile_ = parse_output("FES_FILE", "FES_STRIDE");
    parse("FMT", format_);
    if (!format_.empty() && !is_number_format(format_))
        error("FMT=" + format_ + " is not a format for one number: give one such as %8.3f.");
    if (!format_.empty() && profile_.path.empty())
        error("FMT is the format of FES_FILE: give FES_FILE, too.");
}

BabfAction::Output BabfAction::parse_output(const std::string& file, const std::string& stride) {
    Output output;
    parse(file, output.path);
    parse(stride, output.stride);
    if (output.stride < 0)
        error(stride + "=" + std::to_string(output.stride) + " must be a number of steps.");
    if (output.path.empty() && output.stride > 0)
        error(stride + " is given without " + file + ": name the file to write.");
    if (!output.path.empty())
        output.path = PLMD::FileBase::appendSuffix(output.path, plumed.getSuffix());
    return output;
}

void BabfAction::parse_walkers(std::size_t nodes) {
    parseFlag("WALKERS_MPI", walkers_mpi_);
    const std::optional<int> stride = parse_stride("WALKERS_RSTRIDE");
    if (!walkers_mpi_) {
        parse_walkers_of_folder(nodes, stride.value_or(0));
        return;
    }
    int number = 0, id = 0;
    std::string folder;
    parse("WALKERS_N", number);
    parse("WALKERS_ID", id);
    parse("WALKERS_DIR", folder);
    if (number != 0 || id != 0 || !folder.empty())
        error("with WALKERS_MPI the walkers need no files: leave out WALKERS_N, WALKERS_ID and "
              "WALKERS_DIR.");
    int replicas = comm.Get_rank() == 0 ? multi_sim_comm.Get_size() : 0;
    comm.Bcast(replicas, 0);
    walkers_stride_ =
        stride.value_or(Walkers::default_stride(static_cast<std::size_t>(replicas), nodes));
}

void BabfAction::parse_walkers_of_folder(std::size_t nodes, int stride) {
    const int absent = std::numeric_limits<int>::min();
    int number = absent, id = absent;
    std::string folder;
    parse("WALKERS_N", number);
    parse("WALKERS_ID", id);
    parse("WALKERS_DIR", folder);
    if (number == absent) {
        if (id != absent || !folder.empty() || stride != 0)
            error("WALKERS_ID, WALKERS_DIR or WALKERS_RSTRIDE is given without WALKERS_N: give the "
                  "number of walkers, or WALKERS_MPI.");
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
        error("WALKERS_DIR=" + folder + " is not a folder: make it before the walkers start.");
    const auto walkers = static_cast<std::size_t>(number);
    walkers_.emplace(folder, walkers, static_cast<std::size_t>(id));
    walkers_stride_ = stride != 0 ? stride : Walkers::default_stride(walkers, nodes);
}

void BabfAction::check_outputs() {
    if (same_file(state_.path, profile_.path))
        error("STATE_WFILE and FES_FILE are both " + state_.path + "; give them different names.");
    if (same_file(restart_, profile_.path))
        error("STATE_RFILE and FES_FILE are both " + restart_ + "; give them different names.");
    for (const auto& action : plumed.getActionSet()) {
        const auto* other = dynamic_cast<const BabfAction*>(action.get());
        if (other == nullptr)
            continue;
        for (const Output* mine : {&state_, &profile_})
            for (const Output* theirs : {&other->state_, &other->profile_})
                if (same_file(mine->path, theirs->path))
                    error(mine->path + ": " + other->getLabel() +
                          " writes this file, too; give each action files of its own.");
    }
    const std::string contribution = walkers_ ? walkers_->path() : "";
    for (const Output* output : {&state_, &profile_})
        if (same_file(contribution, output->path))
            error(output->path + ": is this walker's file in WALKERS_DIR; give another name.");
    for (const std::string& path : {state_.path, contribution})
        if (getRestart() && restart_.empty() && file_exists(path))
            error(path +
                  ": is the state of an earlier run, and RESTART would not continue from it; give "
                  "STATE_RFILE=" +
                  path + ", or move the file away to start from zero.");
}

// Makes the estimator: from a state, from a prior, or from nothing.
void BabfAction::begin(BabfParameters parameters) {
    try {
        if (restart_.empty()) {
            parameters = checked(std::move(parameters));
            if (!prior_.empty())
                parameters.prior = read_prior(input_path(prior_), parameters.axes, labels_);
            babf_.emplace(std::move(parameters));
            return;
        }
        checked(parameters);
        const Table table = read_table(restart_);
        const long long walker = walker_of(table);
        if (walkers_ && walker >= 0 &&
            walkers_->path(static_cast<std::size_t>(walker)) != walkers_->path())
            error(restart_ + ": is the contribution of walker " + std::to_string(walker) +
                  ", which would count twice; give STATE_RFILE a state of this walker.");
        if (!solve_stride_)
            parameters.solve_stride = solve_stride_of(table, parameters.nodes(), restart_);
        babf_ = restored(table, parameters, labels_, restart_);
        written_steps_ = babf_->sums().steps;
        learned_ = learned_step(table, labels_, parameters, restart_);
    } catch (const std::runtime_error& problem) {
        error(problem.what());
    }
}

void BabfAction::add_zeta() {
    const std::size_t dimensions = labels_.arguments.size();
    for (std::size_t d = 0; d < dimensions; ++d) {
        const std::string name = dimensions == 1 ? "zeta" : "zeta-" + std::to_string(d);
        addComponent(name);
        if (babf_->parameters().axes[d].periodic) {
            std::string minimum, maximum;
            getPntrToArgument(static_cast<unsigned>(d))->getDomain(minimum, maximum);
            componentIsPeriodic(name, minimum, maximum);
        } else {
            componentIsNotPeriodic(name);
        }
        zeta_.push_back(getPntrToComponent(name));
    }
}

// With RESTART the profile is replaced like the file of any other action, but a state that was not
// read may be all that is left of a run.
void BabfAction::back_up_outputs() {
    writes_ = comm.Get_rank() == 0;
    comm.Barrier(); // another process may still be reading
    const bool continued = getRestart() && !restart_.empty();
    const auto back_up = [&](const std::string& path) {
        if (path.empty() || same_file(path, restart_))
            return;
        PLMD::OFile file;
        file.link(*this);
        file.backupFile("bck", path);
    };
    back_up(state_.path);
    if (!continued)
        back_up(profile_.path);
    if (walkers_ && restart_.empty())
        back_up(walkers_->path());
}

void BabfAction::join_walkers() {
    if (walkers_) {
        for (const std::string& name : walkers_->left_out())
            warning(name + ": is the contribution of a walker whose number is too high for "
                           "WALKERS_N, and does not count");
        exchange(false);
    }
    if (!walkers_mpi_)
        return;
    // The walkers wait for each other, so all must exchange sums of one estimator in the same step.
    std::string mine;
    for (const auto& [key, value] : state_table(*babf_, labels_).constants)
        mine += key + " " + value + "\n";
    mine += std::to_string(pace_) + " " + std::to_string(walkers_stride_);
    std::string first = mine;
    int different = 0;
    if (writes_) {
        broadcast(multi_sim_comm, first, 0);
        different = first != mine;
        multi_sim_comm.Sum(different);
    }
    comm.Bcast(different, 0);
    if (different != 0)
        error("WALKERS_MPI: the replicas differ in the CVs, the grid, the parameters or the number "
              "of learned steps; give all of them the same input, and states of the same length.");
    exchange_by_mpi(babf_->sums().steps == 0);
}

void BabfAction::describe() {
    const BabfParameters& parameters = babf_->parameters();
    log.printf("  temperature: kT %g %s\n", parameters.kT, labels_.energy_unit.c_str());
    for (std::size_t d = 0; d < parameters.axes.size(); ++d) {
        const Grid& grid = parameters.axes[d];
        log.printf("  CV %s: grid from %g to %g with %zu bins of %g%s, KAPPA %g\n",
                   labels_.arguments[d].c_str(), grid.minimum, grid.maximum, grid.bins,
                   grid.spacing(), grid.periodic ? ", periodic" : "", parameters.kappa[d]);
        if (parameters.kappa[d] > 4.01 * BabfParameters::default_kappa(grid, parameters.kT))
            warning("KAPPA is more than 4 kT over the square of the grid spacing: the nodes are "
                    "further apart than the spring is wide, and the bias has a well at each of "
                    "them");
    }
    log.printf("  weights: RAMP %g, TAU %g\n", parameters.ramp, parameters.tau);
    if (std::isinf(parameters.tau))
        log.printf("  the bias is that of the prior and does not change\n");
    else
        log.printf("  the profile used as bias is updated after 5 %% more samples, at the latest "
                   "after %d\n",
                   parameters.solve_stride);
    log.printf("  a sample is learned every %d steps\n", pace_);
    if (!extra_bias_.empty())
        log.printf("  the effect of %s is removed by reweighting\n", labels_.extra_bias.c_str());
    if (!restart_.empty())
        log.printf("  continuing from %s, which has %.0f learned steps%s\n", restart_.c_str(),
                   babf_->sums().steps,
                   prior_.empty() ? "" : "; it contains the prior, and PRIOR is not read");
    else if (!prior_.empty())
        log.printf("  starting from the profile in %s\n", prior_.c_str());
    else
        log.printf("  starting from zero%s\n",
                   begins_ ? (", because " + state_.path + " does not exist yet").c_str() : "");
    const auto describe_output = [this](const Output& output, const char* what) {
        if (output.path.empty())
            return;
        log.printf("  %s: file %s, written ", what, output.path.c_str());
        if (output.stride > 0)
            log.printf("every %d learned steps, ", output.stride);
        log.printf("at checkpoints and at the end\n");
    };
    describe_output(profile_, "profile");
    if (!format_.empty())
        log.printf("  format of the profile: %s\n", format_.c_str());
    describe_output(state_, "state");
    if (stores_states_)
        log.printf("  each state is kept in a file of its own\n");
    if (walkers_)
        log.printf("  walker: file %s, written every %d learned steps; %zu of the other walkers "
                   "have contributed %.0f steps\n",
                   walkers_->path().c_str(), walkers_stride_, walkers_->contributors(),
                   babf_->steps() - babf_->sums().steps);
    if (walkers_mpi_)
        log.printf("  walkers: all replicas, which exchange their sums every %d learned steps\n",
                   walkers_stride_);
    log << "  Bibliography "
        << plumed.cite("Baima, Goryaeva, Swinburne, Maillet, Nastar, Marinica, "
                       "Phys. Chem. Chem. Phys. 24, 23152 (2022)")
        << plumed.cite(
               "Cao, Stoltz, Lelievre, Marinica, Athenes, J. Chem. Phys. 140, 104108 (2014)")
        << "\n";
}

BabfAction::~BabfAction() {
    // A run that has learned nothing replaces nothing, but it copies the state from which it was to
    // continue.
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
            check_start(d, xi[d]);
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

// PLUMED would drop such a force without a message.
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

// The spring would be stretched over several grids, for example when the grid is in nm and the CV
// in angstrom.
void BabfAction::check_start(std::size_t d, double xi) {
    const Grid& grid = babf_->parameters().axes[d];
    const double width = grid.maximum - grid.minimum;
    if (grid.periodic || (xi > grid.minimum - width && xi < grid.maximum + width))
        return;
    error("the CV " + labels_.arguments[d] + " is " + to_short_text(xi) +
          " at the first step, further away than the width of its grid from " +
          to_short_text(grid.minimum) + " to " + to_short_text(grid.maximum) +
          ": give GRID_MIN and GRID_MAX in the units of the CV (lengths are in nm unless UNITS "
          "changes them), or start within the grid.");
}

void BabfAction::update() {
    if (!onStep() || getStep() % pace_ != 0 || repeated_)
        return;
    learned_ = {getStep(), babf_->xi(), babf_->evaluation()};
    is_the_last_ = true;
    babf_->update(weight_of_extra_bias());
    const double steps = babf_->sums().steps;
    const bool exchanges =
        walkers_stride_ > 0 && static_cast<long long>(steps) % walkers_stride_ == 0;
    if (walkers_ && (!exchanged_ || exchanges)) {
        exchange(true);
        exchanged_ = true;
    }
    if (walkers_mpi_ && exchanges)
        exchange_by_mpi(true);
    const bool state = getCPT() || state_.due(steps);
    const bool profile = getCPT() || profile_.due(steps);
    if (!state && !profile)
        return;
    plumed.fflush(); // the output of all steps before a state is on disk with the state
    std::string problem;
    try {
        write(state, profile);
    } catch (const std::runtime_error& failure) {
        problem = failure.what();
    }
    say(problem);
    if (!problem.empty())
        error(problem);
    if (state && profile)
        written_steps_ = steps;
}

// exp(V/kT) of the other bias potentials. Nothing if it is so far from 1 that this sample would
// outweigh all others, or count for nothing.
std::optional<double> BabfAction::weight_of_extra_bias() {
    double exponent = 0;
    for (const PLMD::Value* bias : extra_bias_)
        exponent += bias->get() / babf_->parameters().kT;
    if (std::abs(exponent) <= Window::cutoff)
        return std::exp(exponent);
    if (!warned_of_extra_bias_) {
        warned_of_extra_bias_ = true;
        const std::string sentence = "EXTRA_BIAS is " + to_short_text(exponent) + " kT in step " +
                                     std::to_string(getStep()) +
                                     ": steps in which it is more than 40 kT from zero are not "
                                     "learned; add a constant to a bias that is never near zero";
        warning(sentence);
    }
    return std::nullopt;
}

void BabfAction::write(bool state, bool profile) {
    if (!writes_)
        return;
    if (state && !state_.path.empty()) {
        const Table table = state_table(*babf_, labels_, learned_);
        write_table(state_.path, table);
        if (stores_states_ && state_.due(babf_->sums().steps)) {
            const std::string number =
                "." + std::to_string(static_cast<long long>(babf_->sums().steps));
            const std::string path = PLMD::FileBase::appendSuffix(state_.path, number);
            if (restart_.empty()) {
                PLMD::OFile file;
                file.link(*this);
                file.backupFile("bck", path);
            }
            write_table(path, table);
        }
    }
    if (profile && !profile_.path.empty())
        write_table(profile_.path, profile_table(*babf_, labels_, format_));
}

// One process reads and writes. All processes get the same sums, or an error.
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
        } catch (const std::runtime_error& found) { // a file system may work again later
            problem = found.what();
            if (!exchanged_)
                outcome = failed;
            else if (!cannot_contribute_)
                complaints.push_back(problem + " The other walkers do not know the later steps of "
                                               "this one until the file can be written.");
            cannot_contribute_ = true;
        }
        if (outcome != failed && walkers_->read(babf_->parameters(), labels_, complaints))
            outcome = changed;
    }
    int told[] = {outcome, static_cast<int>(complaints.size())};
    comm.Bcast(told, 2, 0);
    complaints.resize(static_cast<std::size_t>(told[1]));
    for (std::string& complaint : complaints) {
        say(complaint);
        warning(complaint);
    }
    say(problem);
    if (told[0] == failed)
        error(problem);
    if (told[0] == same)
        return;
    BabfSums others = writes_ ? walkers_->others(babf_->parameters())
                              : BabfSums(babf_->size(), babf_->dimensions());
    broadcast(comm, others, 0);
    // A run that continues uses the profile of its state, which includes the other walkers.
    babf_->set_others(std::move(others), write || babf_->sums().steps == 0);
}

// The sums of the others are added in the order of the replicas, so that the same sums give the same
// bits.
void BabfAction::exchange_by_mpi(bool at_once) {
    BabfSums others(babf_->size(), babf_->dimensions());
    if (writes_)
        for (int replica = 0; replica < multi_sim_comm.Get_size(); ++replica) {
            const bool mine = replica == multi_sim_comm.Get_rank();
            BabfSums sums = mine ? babf_->sums() : BabfSums(babf_->size(), babf_->dimensions());
            broadcast(multi_sim_comm, sums, replica);
            if (!mine)
                others.add(sums);
        }
    broadcast(comm, others, 0);
    babf_->set_others(std::move(others), at_once);
}

// Gives all processes the message of one. PLUMED's error, warning and log need every process.
void BabfAction::say(std::string& message) {
    broadcast(comm, message, 0);
}

// One number for each CV, or none at all.
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

// A positive number of steps, if it is given.
std::optional<int> BabfAction::parse_stride(const std::string& key) {
    const int absent = std::numeric_limits<int>::min();
    int stride = absent;
    parse(key, stride);
    if (stride == absent)
        return std::nullopt;
    if (stride < 1)
        error(key + "=" + std::to_string(stride) + " must be a positive number of steps.");
    return stride;
}

// Its name, or its size in kJ/mol if the user or the engine gives a number.
std::string BabfAction::energy_unit() {
    if (usingNaturalUnits())
        return "natural";
    const std::string name = getUnits().getEnergyString();
    return name.empty() ? to_text(getUnits().getEnergy()) : name;
}

// Its name, or its size in nm.
std::string BabfAction::length_unit() {
    if (usingNaturalUnits())
        return "natural";
    const std::string name = getUnits().getLengthString();
    return name.empty() ? to_text(getUnits().getLength()) : name;
}

// Like PLUMED's own reader: the file of this replica if it exists, otherwise the file itself.
std::string BabfAction::input_path(const std::string& path) const {
    const std::string own = PLMD::FileBase::appendSuffix(path, plumed.getSuffix());
    return std::ifstream(own) ? own : path;
}

} // namespace plumed_cv
