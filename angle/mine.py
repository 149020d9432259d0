"""Mine hard negatives: python -m angle.mine model.name_or_path=RUN rows.name_or_path=pairs.jsonl."""

from __future__ import annotations

from pathlib import Path

from angle.cli.app import launch, require_model
from angle.config import MineConfig
from angle.files import relative_to_cwd
from angle.terminal import announce, print_once


def main(config: MineConfig) -> None:
    """Mine, and print how many negatives there are and where."""
    require_model("-m angle.mine")
    announce("loading libraries")
    from angle.distributed.process_group import init_distributed
    from angle.mining.mine import mine
    from angle.reports.mining_page import mining_page
    from angle.reports.writing import REPORT_FOLDER, write_page

    processes = init_distributed("angle.mine")
    mining = mine(config, processes)
    print_once(mining)
    if processes is None or processes.is_main_process:
        page = write_page(mining_page(mining), mining.folder / REPORT_FOLDER, pictures=False)
        print_once(f"\nSaved   {relative_to_cwd(mining.path)}, and a page: {relative_to_cwd(page)}")


if __name__ == "__main__":
    launch(main, MineConfig, "mine", Path(__file__).resolve().parent.parent / "conf")
