# SPDX-License-Identifier: Apache-2.0
"""Configuration of the documentation's build (Sphinx)."""

project = "greenamqp"
author = "the greenamqp authors"
project_copyright = author

extensions = ["oslo_config.sphinxext", "reno.sphinxext"]

exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "AMQP 1.0 for oslo.messaging",
    "fixed_sidebar": True,
    "page_width": "60em",
}
