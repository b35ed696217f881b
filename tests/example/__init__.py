"""A strategy as a newcomer would add it. A package, so that no installed module called `example` hides it."""
