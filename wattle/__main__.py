"""``python -m wattle`` is the ``wattle`` command."""

from wattle.cli import app

app(prog_name="wattle")
