# SPDX-License-Identifier: Apache-2.0
"""How the pages of docs/ become a site: make docs. No font, script or image comes from elsewhere."""

from __future__ import annotations

from splitee import __version__

project = "Hetero-SplitEE"
author = "The Hetero-SplitEE authors"
release = __version__
root_doc = "index"
extensions = ["myst_parser"]
exclude_patterns = ["README.md", "records"]
nitpicky = True
myst_heading_anchors = 4  # the forge's: [text](page.md#a-heading)
myst_url_schemes = ("http", "https")
html_theme = "furo"
html_title = f"Hetero-SplitEE {release}"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
