# SPDX-License-Identifier: Apache-2.0
"""Imported last by the fork server: garbage collectors then ignore what has been loaded.

Otherwise each collection in a forked process would touch, and so copy, every page that the modules share.
"""

import gc

gc.collect()
gc.freeze()
gc.enable()
