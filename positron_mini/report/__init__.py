"""The evolution report: a run's measurements, what it learned and when, and whether to train on.

`evolution.evolution` reads a run folder and computes everything; `page` writes it as one HTML file, `plots` as pictures, `compare` sets
two runs side by side. Everything comes from the run folder and the prepared text.
"""
