"""The runs of a measurement: to goals, along which the noise is measured, and where they start."""
