"""syncd mirrors a Billetweb account into a SQL database, every 15 minutes, by itself."""

import sys

__version__ = "0.3.0"

# Never used here and 7 MiB: httpx's command line and Mako's coloured error pages, which would load rich and
# pygments where these are installed. And sniffio, for which httpcore looks on the disk with every request
# to be told that this is asyncio. All go on where the import fails.
for _needless in ("httpx._main", "mako.ext.pygmentplugin", "sniffio"):
    sys.modules.setdefault(_needless, None)  # type: ignore[arg-type]  # None: the import system's own "no"
