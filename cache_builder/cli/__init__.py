"""The commands `footsteps cache …`: one file per group, and the options that they share.

Imports every other room; nothing imports it but the `footsteps` command itself.
"""
