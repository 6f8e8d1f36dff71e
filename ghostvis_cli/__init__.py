"""The command line. Importing it binds ``components`` and ``stages`` to ours (see ``_own``)."""

from ._own import own

own()
