// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "BabfAction.h"
#include "kernel.h"

#include "core/ActionRegister.h"

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
23152 (2022), which is called the paper here. RAMP is the N of the weights $w_s=\min(1, s/N)$: the
first samples are taken while $A$ is still wrong, so they count less. The regularisation $\tau$
(TAU) is the weight of the prior, in samples. The prior is zero unless PRIOR gives a profile.

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

GRID_BIN is the number of intervals of the grid. In its place, GRID_SPACING can be given, the
largest distance between two nodes. The grid must extend beyond the two states of interest. Outside
of it the bias is a half-harmonic wall of spring constant KAPPA at the end nodes: the CV leaves the
grid by a few $\Delta z$ and comes back. Samples outside count for $A_k$ of the nodes near the end.
This is necessary, and it makes $A_k$ exact up to the end nodes. These samples do not count for the
histogram. The wall covers half of the bins of the two end nodes, and the corrected profile has an
error of about 0.05 $k_BT$ there. A simulation that _starts_ far outside is pushed back with a force
of $\kappa$ times the distance, which it may not survive. Start inside the grid. Steps that are so
far outside that the wall makes them $e^{-40}$ times less probable are not learned.

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
of these numbers. A file with rounded numbers has no checksum. STATE_WFILE contains the sums above
in full precision. They are additive. The sum of two states is the state of both runs together. The
difference of two states of one run is what the run learned in between, and gives error bars. If you
add states with another program, add the columns from `weight` to `offset`, those that end in
`_rest`, and `steps`, and remove `checksum` and the lines that begin with `md_`.

For two CVs each line is a node, and the first CV varies fastest. FES_FILE then has an empty line
after each row of the first CV, as `sum_hills` and gnuplot need it. Both files are replaced as a
whole, with the given strides in learned steps, at checkpoints of the engine and at the end. An
engine that never withdraws its request for a checkpoint (`mdrun -plumed` of GROMACS, unless
`plumed-cv` starts it) gets files only at the first one: give the strides. Files of other runs are
kept under PLUMED's names for backups. Exceptions are a state from which this run continues and,
with RESTART, FES_FILE. When a state is written, the output of other actions in the previous steps
is also written to disk, without FLUSH. With STORE_STATES each state that STATE_WSTRIDE asks for is
also kept in a file of its own. The number of learned steps is inserted into its name
(`state.100000.dat`). Differences of these states are the blocks for error bars. (OPES_METAD, in
contrast, appends all states to one file.)

A run that is continued with STATE_RFILE is the same, to the last bit, as a run that was not
interrupted, as long as the engine continues in this way. For this purpose the state also contains
the profile that is used as bias. With several walkers this holds as long as the files of the other
walkers do not change in between. The grid, KAPPA, TAU, RAMP, the temperature and the UNITS of
energy and length must be those of the state. SOLVE_STRIDE is that of the state unless it is given.
The prior is part of the state, and PRIOR is then not read. The state contains the number of the
last step that was learned, `md_step`, with its values of the CV and the bias. If an engine computes
this step again, as GROMACS does after `-cpi` and LAMMPS at the beginning of a run, the step is not
learned again and has the same force. (GROMACS requests a checkpoint one step late. If such a run
was killed, the step of the checkpoint and the next one are learned twice.)

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
continuation. (An $n$ below $10^{-7}$ of the largest one counts as $10^{-7}$, because rounding would
hide it.) With equal weights this would be Poisson's equation with the mean force as boundary
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
learned step. The last one is at the end, before FES_FILE is written, so the profile of the walker
that ends last is that of all walkers. The state contains the exchanges of the run only. Between
exchanges no file is accessed. The bias does not
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

    make_estimator(parameters);
    add_zeta();
    back_up_outputs();
    join_walkers();
    describe();
}

} // namespace plumed_cv
