"""The command line as `python -m plumed_cv.cli`."""

from plumed_cv.cli import main

main()
