"""`python -m noisescale` is the command `noisescale`."""

from noisescale.cli import main

main()
