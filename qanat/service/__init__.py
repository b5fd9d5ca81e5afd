"""Qanat as a service of this machine or of a user: under systemd, supervisor or cron.  `qanat.cli.service` calls it.

`plan` says what runs, from a configuration and the way this program was started; `systemd`, `supervisor` and `cron`
write that down in their own forms, start it, and know what they have written; `choose` finds the right one.
"""
