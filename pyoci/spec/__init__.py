"""config.json: what it says (`types`), reading it (`load`), and what is wrong with it (`validate`)."""
