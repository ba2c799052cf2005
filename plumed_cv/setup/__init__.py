"""Programs of this machine: PLUMED kernels, the plugins of plumed_cv, compilers.

`kernel` finds or installs PLUMED, `kernel_build` builds an optimised kernel, `plugin` builds the
actions and writes plumed.dat, `plumed_actions` reads the actions of an input, and `tools` finds
compilers and counts cores.
"""
