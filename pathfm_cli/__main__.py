"""`python -m pathfm_cli` is the same command as `pathfm`."""

from pathfm_cli.cli import app

if __name__ == "__main__":
    app.main()
