"""Configuration files for the programs that Qanat works with, to be copied and edited.

A package only so that `init` can print from nginx.conf wherever Qanat is installed.
"""
