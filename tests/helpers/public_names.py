"""The public names that have a signature and a docstring of their own."""

import noisescale

TYPES = {"LossFn", "MatVec", "Params", "Population", "__version__"}  # aliases, and a string
DOCUMENTED = sorted(set(noisescale.__all__) - TYPES)
