# SPDX-License-Identifier: Apache-2.0
"""Imported last by the fork server: what has been loaded by then is left alone by garbage collectors.

Else each collection in a forked process touches, and so copies, every page that the modules share.
"""

import gc

gc.collect()
gc.freeze()
gc.enable()
