"""Where jobs run. ``base`` is the contract; each other module is one kind of place."""
