"""Where bytes lie: a folder, an object store, a dataset repository; knows nothing of any format.

Imports only the root files. What builds (locks, leases) is imported when something is built, never to read.
"""
