"""The running server: sessions, their access rules, admission and the front door."""
