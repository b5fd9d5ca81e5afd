"""The live page: who is connected, what is wrong, the last hour, the log's last lines, in a browser (docs/PAGE.md)."""
