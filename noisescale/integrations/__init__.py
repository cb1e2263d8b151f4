"""The noise-scale monitor in other people's trainers, a file each."""
