"""The tests, laid out as the tree they test; a package, so that two files may have the same name."""
