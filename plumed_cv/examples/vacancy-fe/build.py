"""Builds the end states: a vacancy in bcc iron before and after a neighbour has moved into it."""

import numpy as np
from ase.build import bulk

# Four cubic cells along each side; 11.5412 A as in the paper's public scripts.
crystal = bulk("Fe", "bcc", a=11.5412 / 4, cubic=True).repeat(4)

vacancy = int(crystal.get_distances(0, range(len(crystal)), mic=True).argmax())
distances = crystal.get_distances(vacancy, range(len(crystal)), mic=True)
distances[vacancy] = np.inf
neighbour = int(distances.argmin())

initial, final = crystal.copy(), crystal.copy()
final.positions[neighbour] = crystal.positions[vacancy]
del initial[vacancy]
del final[vacancy]

initial.write("initial.xyz", format="extxyz")
final.write("final.xyz", format="extxyz")
print(f"initial.xyz and final.xyz: {len(initial)} atoms, cell {initial.cell.lengths()} A")
