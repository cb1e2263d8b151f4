"""Measurements of a problem at one parameter vector, each as one record."""
