"""The one training format: tar shards as the WebDataset library writes them, and an index beside them.

:mod:`.record` says what a sample is inside a tar, :mod:`.index` where each one is, :mod:`.writer` makes both,
:mod:`.reader` reads at random, :mod:`.foreign` opens tars that somebody else wrote, :mod:`.verify` finds and cuts out
damage. ``docs/data.md`` has the format byte by byte.
"""
