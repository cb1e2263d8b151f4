"""The tests, which mirror the package; what they share is in tests/helpers/ and tests/conftest.py."""

import os

# One thread in this process and in those that tests start: two of them are to share two cores. Here, as torch
# and NumPy read it when they are loaded, which every test module does.
os.environ["OMP_NUM_THREADS"] = "1"
