"""Tests of mux/: cores against a model and against hostile peers, lanes over real pipes."""
