"""What gradient noise is made of: sizes of models, wrong labels, single examples, temperature."""
