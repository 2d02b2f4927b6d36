"""When do the schedule and adaptive weighting help? A grid of students over factors, one CSV line each.

cells      which students, in which order         data      the demo's notes with other noise, and a shifted test
students   one teacher and cache a cell, then its students, by the program's own stages
tables     paired differences over seeds, Holm-corrected                 plots
"""
