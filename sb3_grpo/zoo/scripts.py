"""Run RL Zoo's scripts with GRPO registered, on machines without a display or ffmpeg too."""

import argparse
import os
import runpy
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import imageio_ffmpeg
import matplotlib
from matplotlib import pyplot as plt

from sb3_grpo.zoo.command_line import REWRITES, parse_training
from sb3_grpo.zoo.manager import install_manager
from sb3_grpo.zoo.model_card import install_model_card
from sb3_grpo.zoo.patches import patch
from sb3_grpo.zoo.search_space import register

SCRIPTS = {
    **{name: f"rl_zoo3.{name}" for name in ("train", "enjoy", "record_video", "record_training", "benchmark")},
    **{name: f"rl_zoo3.{name}" for name in ("push_to_hub", "load_from_hub")},
    **{name: f"rl_zoo3.plots.{name}" for name in ("all_plots", "plot_train", "plot_from_file")},
}
NEED_FFMPEG = ("record_training", "push_to_hub")


def run_script(argv: Sequence[str]) -> None:
    """
    Run one of RL Zoo's scripts in this process; without a display its figures are saved in the current folder.

    :param argv: name of the script and its arguments
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_grpo.zoo", description="Run one of RL Zoo's scripts with GRPO.")
    parser.add_argument("script", choices=SCRIPTS, help="RL Zoo's script; all further arguments are the script's")
    script, rest = parser.parse_args(list(argv[:1]) or ["--help"]).script, list(argv[1:])
    register()
    patch(SCRIPTS.values())
    if script == "train":
        options, rest = parse_training(rest)
        install_manager(options.objective, dict(options.fix))
    elif script == "push_to_hub":
        install_model_card(rest)
    elif script in REWRITES:
        rest = REWRITES[script](rest)
    if not has_display():
        matplotlib.use("Agg")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    # importing a script's package imports the script, which is then run once more
    warnings.filterwarnings("ignore", "'rl_zoo3.* found in sys.modules", RuntimeWarning)
    sys.argv = [script, *rest]
    with ffmpeg_on_path() if script in NEED_FFMPEG else nullcontext():
        runpy.run_module(SCRIPTS[script], run_name="__main__", alter_sys=True)
    if not has_display():
        save_figures(script)


def has_display() -> bool:
    """Return whether windows can be opened."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def save_figures(script: str) -> None:
    """
    Save the figures that ``plt.show()`` would have shown, and print their paths.

    :param script: first part of the files' names
    """
    for number in plt.get_fignums():
        path = f"{script}_{number}.png"
        plt.figure(number).savefig(path)
        print(f"Figure: {path}")


@contextmanager
def ffmpeg_on_path() -> Iterator[None]:
    """
    Add a folder with the command ``ffmpeg`` to ``PATH`` for the time of the context, if the machine has none.

    The command is the one of the package ``imageio_ffmpeg``; only POSIX systems can link to it.
    """
    if shutil.which("ffmpeg") is not None or os.name != "posix":
        yield
        return
    path = os.environ.get("PATH", os.defpath)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        os.environ["PATH"] = f"{path}{os.pathsep}{folder}"
        try:
            yield
        finally:
            os.environ["PATH"] = path
