"""What a newcomer runs first: the demo, a first config, a check of the machine.

footsteps demo     demo.toml and models/, which travel with the package ──▶ the whole pipeline, in a folder
footsteps init     a table's first rows ──▶ a short config that runs
footsteps doctor   versions, devices, memory, disk, template ──▶ a line each, and what to do
"""
