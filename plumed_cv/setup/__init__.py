"""Programs of this machine: PLUMED kernels, our plugins, compilers.

`kernel` finds PLUMED or installs one, `kernel_build` builds an optimised one, `plugin` builds our
actions and writes plumed.dat, `tools` finds compilers and counts cores.
"""
