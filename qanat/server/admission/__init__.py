"""Who may come in before anyone is authenticated."""
