"""The tests mirror the package; what they share is in tests/helpers/ and tests/conftest.py."""

import os

# One thread in this process and in those that tests start, since two of them share two cores.
# Here, since torch and NumPy read it when they are loaded, which every test module does.
os.environ["OMP_NUM_THREADS"] = "1"
