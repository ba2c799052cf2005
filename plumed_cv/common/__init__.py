"""Tools for all other folders: errors for users, files, progress, tables, threads, numbers.

`errors` has the one exception that users see; `extras` imports packages that may be missing;
`files` writes files that are either complete or absent; `progress` reports progress, `bars` on a
terminal; `display` has axes and tables for notebooks; `threads` keeps results independent of the
number of threads; `numbers` rounds numbers to their errors.
"""
