"""The sections of the page: each turns a run's records into headings, tables and figures."""
