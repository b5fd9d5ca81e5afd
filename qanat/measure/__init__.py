"""Measuring a live tunnel: what each end does on the streams that measure it, the figures, and how they are shown."""
