"""How the suite is run: what each test needs, and in which order the tests share the machine."""
