# SPDX-License-Identifier: Apache-2.0
"""No test asserts how long something takes; hypothesis does, unless told otherwise."""

from hypothesis import settings

settings.register_profile("any time", deadline=None)
settings.load_profile("any time")
