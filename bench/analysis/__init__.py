"""Run records -> tables -> statistics -> views. Imports no torch: all of it is rebuilt in seconds."""
