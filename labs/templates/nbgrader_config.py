"""How nbgrader grades this lab. For instructors: copy this file to the course folder; their page says what it does."""

from pathlib import Path

from labs import grading

COURSE = Path(__file__).resolve().parent
RELEASE = COURSE / "students"  # the folder that `labs release` made

grading.configure(get_config(), COURSE, RELEASE)  # noqa: F821, nbgrader knows it
