"""Settings for the processes that tests start: providers and policy come from the environment, as JSON."""

from __future__ import annotations

import json
import os

import django

from project.settings import *  # noqa: F403

MAILERS = json.loads(os.environ["TEST_MAILERS"])
MAILENGINE = json.loads(os.environ["TEST_MAILENGINE"])
if django.VERSION < (6, 1):
    EMAIL_BACKEND = MAILERS["default"]["BACKEND"]
