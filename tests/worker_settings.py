"""Settings for the processes that tests start: providers, policy and others come from the environment, as JSON."""

from __future__ import annotations

import json
import os

import django

from project.settings import *  # noqa: F403

MAILERS = json.loads(os.environ["TEST_MAILERS"])
MAILENGINE = json.loads(os.environ["TEST_MAILENGINE"])
globals().update(json.loads(os.environ.get("TEST_SETTINGS", "{}")))
if django.VERSION < (6, 1):
    EMAIL_BACKEND = MAILERS["default"]["BACKEND"]
