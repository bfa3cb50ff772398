# SPDX-License-Identifier: Apache-2.0
"""Configuration of the documentation's build (Sphinx)."""

project = "greenamqp"
author = "the greenamqp authors"
project_copyright = author

extensions = ["oslo_config.sphinxext", "reno.sphinxext", "sphinx.ext.autodoc"]

autodoc_member_order = "bysource"
# What is in ``:param ...:`` already is not said twice.
autodoc_typehints = "signature"

exclude_patterns = ["_build"]
# Its tables are as wide as they are, and can be moved.
html_theme = "furo"
html_title = "greenamqp: AMQP 1.0 for oslo.messaging"
