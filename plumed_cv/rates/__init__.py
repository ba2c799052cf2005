"""Rates beyond one surface and one temperature.

`harmonic` has harmonic transition state theory: Hessians at the minimum and at the saddle point,
Vineyard's prefactor and quantum corrections. `multiplicity` counts the events that the symmetry of
the initial state makes out of one.
"""
