"""Conversations to text by a chat template, and which parts of the text a model has to write.

templates      which template is in force, what it reads, how it treats a system message
conversation   what of an example is handed to it, and the text that comes back
spans          where in that text the completions are
uses           whether everything that was handed over is in the text
"""
