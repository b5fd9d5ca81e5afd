"""Leaves: errors, threads, deadlines and socket habits that every other room may use.

Nothing here knows what a tunnel is, and nothing here imports another package of this project.
"""
