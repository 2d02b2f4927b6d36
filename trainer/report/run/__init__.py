"""A run folder as plain records: its files, read or named as missing; what a cache says; what building it took."""
