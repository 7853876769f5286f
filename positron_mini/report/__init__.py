"""The evolution report: what a run measured, what it learned and when, and whether to go on.

`build.evolution` reads a run folder and works everything out; `page` writes it as one HTML file, `plots` as pictures, `compare` sets two
runs side by side. Nothing is measured here that the run folder and the prepared text do not hold.
"""
