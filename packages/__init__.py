"""How Qanat becomes a wheel, tunnel.pyz, a Debian package and an image; no part of what is installed.

`python -m packages wheel|pyz|deb|oci` calls this, as `make` does.  docs/PACKAGING.md says what each is made of.
"""
